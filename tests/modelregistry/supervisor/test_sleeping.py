"""Sleep and waking by vLLM's routes, with a stand-in for vLLM behind the real guard."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import httpx2
import pytest

from modelregistry.engines.vllm import VLLM_GUARD
from modelregistry.hostside.sleep_record import SleepRecord
from modelregistry.process import probe
from modelregistry.process.probe import Target
from modelregistry.supervisor import sleeping
from modelregistry.supervisor.sleeping import SleepFault
from tests import ports
from tests.waiting import until

FAKE = Path(__file__).parents[1] / "vllm_server.py"


class StandIn:
    """A running stand-in, and what it is to do."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        port = ports.unused_port()
        self.target = Target(launcher="vllm", url=f"http://127.0.0.1:{port}", api_key="k", model="m", task="chat")
        self.process = subprocess.Popen(
            [
                *(sys.executable, FAKE, "serve", directory, "--host", "127.0.0.1", "--port", str(port)),
                *("--served-model-name", "m", "--middleware", "madoguchi_guard.Guard"),
            ],
            env=os.environ | {"VLLM_API_KEY": "k", "VLLM_SERVER_DEV_MODE": "1", "PYTHONPATH": str(VLLM_GUARD)},
        )
        until(self.listens)

    def listens(self) -> bool:
        try:
            return urlopen(f"{self.target.url}/health", timeout=5).status == 200
        except URLError:
            assert self.process.poll() is None
            return False

    def behave(self, **how: object) -> None:
        (self.directory / "behave.json").write_text(json.dumps(how))

    @property
    def calls(self) -> list[str]:
        return (self.directory / "calls").read_text().splitlines()


@pytest.fixture
def stand_in(tmp_path) -> Iterator[StandIn]:
    found = StandIn(tmp_path)
    yield found
    found.process.kill()
    found.process.wait()


@pytest.fixture
async def client():
    async with httpx2.AsyncClient() as client:
        yield client


async def first_answer(client, stand_in):
    answer = await probe.ask_sample(client, stand_in.target)
    assert answer
    return answer


async def test_weights_that_waited_in_ram_are_not_read_again(client, stand_in):
    answer = await first_answer(client, stand_in)
    assert await sleeping.ask_whether_asleep(client, stand_in.target) is False
    await sleeping.fall_asleep(client, stand_in.target, "level1")
    assert await sleeping.ask_whether_asleep(client, stand_in.target) is True
    await sleeping.wake_up(client, stand_in.target, SleepRecord(answer=answer, level="level1"), within=20)
    assert stand_in.calls == ["/sleep level=1", "/wake_up tags=weights", "/wake_up tags=kv_cache"]
    assert await sleeping.ask_whether_asleep(client, stand_in.target) is False


@pytest.mark.parametrize("known", ["level2", ""])
async def test_weights_that_were_discarded_are_read_before_the_cache_is_back(client, stand_in, known):
    answer = await first_answer(client, stand_in)
    await sleeping.fall_asleep(client, stand_in.target, "level2")
    await sleeping.wake_up(client, stand_in.target, SleepRecord(answer=answer, level=known), within=20)
    assert stand_in.calls == [*("/sleep level=2", "/wake_up tags=weights", "/collective_rpc", "/wake_up tags=kv_cache")]


async def test_an_engine_whose_weights_are_not_back_is_found_out_although_it_is_healthy(client, stand_in):
    answer = await first_answer(client, stand_in)
    await sleeping.fall_asleep(client, stand_in.target, "level2")
    with pytest.raises(SleepFault) as fault:  # nothing is reloaded, as at level 1
        await sleeping.wake_up(client, stand_in.target, SleepRecord(answer=answer, level="level1"), within=20)
    assert fault.value.cause == "wake-damaged"
    assert (await probe.check_health(client, stand_in.target)).healthy
    await probe.ask_question(client, stand_in.target)  # one token of it is a token


@pytest.mark.parametrize(("how", "cause"), [({"sleep": 500}, "sleep-failed"), ({"sleep": "hang"}, "sleep-failed")])
async def test_an_engine_that_does_not_go_to_sleep_is_given_up_in_time(client, stand_in, how, cause):
    stand_in.behave(**how)
    with pytest.raises(SleepFault) as fault:
        await sleeping.fall_asleep(client, stand_in.target, "level1", within=0.5)
    assert fault.value.cause == cause


@pytest.mark.parametrize(
    ("how", "cause"),
    [({"wake": 500}, "wake-failed"), ({"wake": "hang"}, "wake-failed"), ({"damaged": True}, "wake-damaged")],
)
async def test_an_engine_that_does_not_wake_as_it_was_is_given_up_in_time(client, stand_in, how, cause):
    answer = await first_answer(client, stand_in)
    await sleeping.fall_asleep(client, stand_in.target, "level1")
    stand_in.behave(**how)
    with pytest.raises(SleepFault) as fault:
        await sleeping.wake_up(client, stand_in.target, SleepRecord(answer=answer, level="level1"), within=1.5)
    assert fault.value.cause == cause


async def test_an_engine_that_died_asleep_does_not_wake(client, stand_in):
    answer = await first_answer(client, stand_in)
    await sleeping.fall_asleep(client, stand_in.target, "level1")
    stand_in.process.kill()
    stand_in.process.wait()
    assert await sleeping.ask_whether_asleep(client, stand_in.target) is None
    with pytest.raises(SleepFault):
        await sleeping.wake_up(client, stand_in.target, SleepRecord(answer=answer, level="level1"), within=5)


def test_weights_that_are_read_again_are_given_the_time_that_a_slow_disk_takes():
    assert sleeping.wake_limit("level1", 140 * 10**9) == 120
    assert sleeping.wake_limit("level2", 140 * 10**9) == 1520
    assert sleeping.wake_limit("level2", None) == float("inf")  # as long as a start may


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ({"text": "one, two"}, {"text": "one, two"}, True),
        ({"text": "one, two"}, {"text": "one, two."}, False),
        ({"text": "one, two"}, None, False),
        (None, None, False),
        ({"vector": [1.0, 0.0]}, {"vector": [0.999, 0.01]}, True),
        ({"vector": [1.0, 0.0]}, {"vector": [0.0, 0.0]}, False),
        ({"best": 1}, {"best": 1}, True),
        ({"best": 1}, {"best": 2}, False),
    ],
)
def test_an_answer_is_the_one_of_before(before, after, same):
    assert (sleeping.find_difference(before, after) == "") is same
