"""The ledger's promise under kill -9 of the whole portal process at random moments, with calls under way.

`CRASH_SEED` repeats a run's moments (not its scheduling). Clients judge by the bytes that reached them: nothing else
can be held against the gateway.
"""

import asyncio
import os
import random
import time
from collections import Counter

import pytest

from tests import engine
from tests.apiproxy.load import Call, Load
from tests.installation import Installation, installed
from tests.waiting import until

KILLS = 22
CLIENTS = 12
LONGEST_LIFE = 0.6  # seconds that a gateway may serve before it is killed


async def kill_repeatedly(installation: Installation, dice: random.Random) -> None:
    """Kill gateways: most while they serve, some while they start (and move a dead one's spool)."""
    for number in range(KILLS):
        installation.serve()
        if number % 5 == 4:
            await asyncio.sleep(dice.uniform(0.3, 2.0))
        else:
            await asyncio.to_thread(until, installation.answers)
            await asyncio.sleep(dice.uniform(0, LONGEST_LIFE))
        installation.process.kill()
        await asyncio.to_thread(installation.process.wait)


async def under_load(installation: Installation, key: str, dice: random.Random) -> list[Call]:
    """Return every call that was made while gateways lived and died, and for a moment under the last, which lives."""
    load = Load(installation.url, key, dice)
    clients = [asyncio.create_task(load.client()) for _ in range(CLIENTS)]
    await kill_repeatedly(installation, dice)
    installation.serve()
    await asyncio.to_thread(until, installation.answers)
    await asyncio.sleep(0.5)
    load.going = False
    await asyncio.gather(*clients)
    return load.calls


@pytest.mark.timeout(300)
def test_every_finished_answer_is_recorded_exactly_once_whenever_the_gateway_is_killed(tmp_path):
    seed = int(os.environ.get("CRASH_SEED") or time.time())
    print(f"CRASH_SEED={seed}")
    with engine.running() as fake, installed(tmp_path / "var") as installation:
        key = installation.furnish(fake.url)
        calls = asyncio.run(under_load(installation, key, random.Random(seed)))
        deadline = time.monotonic() + 15
        began = [call for call in calls if call.request_id]
        finished = {call.request_id: call for call in began if call.finished}
        # What the last gateway took over is moved at its start, what it served itself a moment after.
        until(lambda: finished.keys() - installation.usage().keys() == set() or time.monotonic() > deadline)
        usage = installation.usage()
        spool = installation.spool()
        assert installation.process.poll() is None
        served = {"req_" + seen["headers"]["x-request-id"][:24] for seen in fake.seen()["requests"]}
        installation.process.terminate()
        installation.process.wait(30)
        after = installation.usage()

    print(Counter((call.kind, usage.get(call.request_id, {}).get("status")) for call in began))
    assert finished.keys() - usage.keys() == set()
    # Only the live gateway's lock and the segment that it writes.
    assert [name.partition("-")[2] for name in spool] == ["000000.jsonl", ""], spool
    # Enough went on for the rest to mean something: kills hit calls of every kind.
    assert {call.kind for call in finished.values()} == {"stream", "unary", "assembled"}
    assert len(finished) > 10 * KILLS
    assert any(row["status"] == "interrupted" for row in usage.values())

    for request_id, call in finished.items():
        row = usage[request_id]
        numbers = (row["prompt_tokens"], row["completion_tokens"], row["status"], row["estimated"])
        assert numbers == (call.prompt, call.completion, "finished", 0)
    # A stream of which a client saw anything is there too, with how far it came.
    cut = [call for call in began if call.kind == "stream" and call.received and not call.finished]
    allowed = {"interrupted", "finished"}  # finished: its end was recorded and then did not reach the client
    for call in cut:
        assert after[call.request_id]["status"] in (allowed | {"aborted"} if call.left else allowed)
    # Nothing is there that no engine was asked, nothing changed later, and no other call has the same numbers.
    assert set(after) <= served
    assert {request_id: after[request_id] for request_id in usage} == usage
    told = [row["completion_tokens"] for row in after.values() if not row["estimated"] and row["status"] == "finished"]
    assert len(told) == len(set(told))
