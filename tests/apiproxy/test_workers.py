"""`up` with several workers: they share the port and the limits, die and are drained one by one, and stop together."""

import asyncio
import contextlib
import os
import random
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from apiproxy.dataplane.limits.redis import REDIS_AWAY
from apiproxy.server.gateway_lock import HELD
from apiproxy.server.succession import listening_port
from tests import engine
from tests.apiproxy.load import Load
from tests.engine import ANSWER, DONE, FINISH, SSE, chunk, unary, usage_event
from tests.installation import Installation, installed
from tests.output import lines_of
from tests.waiting import until

END = chunk(FINISH + usage_event(11, 4) + DONE) + "0\r\n\r\n"


@pytest.fixture
def fake() -> Iterator[engine.Running]:
    with engine.running() as running:
        yield running


@pytest.fixture
def place(tmp_path, redis_process) -> Iterator[Installation]:
    """Provide an installation that is not started."""
    redis_process.client.flushall()
    with installed(tmp_path / "var", REDIS_URL=redis_process.url, GATEWAY_WORKERS="2") as installation:
        yield installation


@pytest.fixture
def two(place) -> Installation:
    """Return two workers, both ready."""
    start(place)
    return place


def start(installation: Installation) -> None:
    installation.start()
    until(lambda: len(listening_workers(installation)) == 2)


def workers(installation: Installation) -> list[int]:
    return [pid for pid, command in installation.processes().items() if "gateway_worker" in command]


def sockets(pid: int) -> set[str]:
    with contextlib.suppress(OSError):
        links = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]
        return {link[8:-1] for link in links if link.startswith("socket:")}
    return set()


def inodes(port: int, state: str) -> set[str]:
    """Return the inodes of this host's sockets at this port in this state ("0A": listening, "01": connected)."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {row[9] for row in rows if row[1].endswith(f":{port:04X}") and row[3] == state}


def listening_workers(installation: Installation) -> list[int]:
    """Return the workers that take connections: their event loops wait for them."""
    open_ones = inodes(installation.port, "0A")
    return [pid for pid in workers(installation) if watched(pid) & open_ones]


def watched(pid: int) -> set[str]:
    """Return the inodes of the sockets that the event loop of this process waits for."""
    found = set()
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/fdinfo").iterdir():
            numbers = [line.split()[1] for line in entry.read_text().splitlines() if line.startswith("tfd:")]
            found |= {os.readlink(f"/proc/{pid}/fd/{number}")[8:-1] for number in numbers}
    return found


def kill_worker(installation: Installation, pid: int) -> None:
    """Kill a worker and wait until its connections are closed."""
    connected = sockets(pid) & inodes(installation.port, "01")
    os.kill(pid, signal.SIGKILL)
    until(lambda: not connected & inodes(installation.port, "01"))


def client(installation: Installation, key: str) -> httpx2.Client:
    headers = {"authorization": f"Bearer {key}"}
    return httpx2.Client(base_url=installation.url, headers=headers, timeout=30)


def test_connections_are_spread_evenly(two):
    """Each side of a fair coin comes 140 to 260 times in 400, but for one time in a thousand million."""
    with contextlib.ExitStack() as stack:
        for _ in range(400):
            stack.enter_context(socket.create_connection(("127.0.0.1", two.port)))
        until(lambda: sum(len(sockets(pid) & inodes(two.port, "01")) for pid in workers(two)) == 400)
        shares = [len(sockets(pid) & inodes(two.port, "01")) for pid in workers(two)]
    assert len(shares) == 2
    assert all(140 <= share <= 260 for share in shares), shares


async def call_at_once(installation: Installation, key: str, calls: int) -> Counter:
    """Send this many calls, each over a connection of its own; return how many had each status."""
    limits = httpx2.Limits(max_connections=250, max_keepalive_connections=0)
    headers = {"authorization": f"Bearer {key}"}
    async with httpx2.AsyncClient(base_url=installation.url, headers=headers, limits=limits, timeout=120) as http:
        body = {"model": "plain", "messages": []}
        answers = await asyncio.gather(*(http.post("/v1/chat/completions", json=body) for _ in range(calls)))
    return Counter(answer.status_code for answer in answers)


def test_a_thousand_parallel_calls_against_a_budget_of_ten_let_ten_through(place, fake):
    key = place.furnish(fake.url)
    place.manage("setquota", "--tenant", "research", "--unit", "requests", "--per", "day", "--amount", "10")
    start(place)
    assert asyncio.run(call_at_once(place, key, 1000)) == {200: 10, 429: 990}
    assert len(fake.seen()["requests"]) == 10


def test_a_redis_that_is_killed_and_started_again_stops_no_call(place, fake, redis_process):
    key = place.furnish(fake.url)
    place.manage("setquota", "--tenant", "research", "--unit", "requests", "--per", "day", "--amount", "1000")
    start(place)
    with client(place, key) as http:

        def read_remaining() -> int:
            answer = http.post("/v1/chat/completions", json={"model": "plain", "messages": []})
            assert answer.status_code == 200
            return int(answer.headers["x-ratelimit-remaining-requests"])

        def are_alone() -> bool:
            return "madoguchi_limits_alone 2\n" in http.get("/metrics").text

        assert [read_remaining() for _ in range(3)] == [999, 998, 997]
        redis_process.kill()
        try:
            assert [read_remaining() for _ in range(3)] in ([498, 497, 496], [499, 498, 497])  # half of what was left
            until(are_alone)
        finally:
            redis_process.start()
        until(lambda: "madoguchi_limits_alone 0\n" in http.get("/metrics").text)
        until(lambda: "madoguchi_limits_unsent 0\n" in http.get("/metrics").text)
        until(lambda: len(place.usage()) == 6)
        assert read_remaining() == 993
    assert len(lines_of(REDIS_AWAY, place.log)) == 2


STATE_SLOTS = """
from modelregistry.models import Replica, ServedModel
Replica.objects.all().delete()
for model in ServedModel.objects.filter(name="plain"):
    model.slots = {slots}
    model.save()
"""


def test_an_engine_has_no_more_calls_than_slots_from_all_workers_and_all_are_answered(place, fake):
    key = place.furnish(fake.url)
    place.manage("shell", "--verbosity", "0", "--command", STATE_SLOTS.format(slots=3))
    start(place)
    ready = 'madoguchi_replicas_ready{model="plain"}'
    until(lambda: all(metrics(place).get(ready) == 1 for _ in range(20)))  # whichever worker is asked
    script = [{"wait": 0.4}, {"send": unary(200, ANSWER)}]

    async def calls() -> Counter:
        limits = httpx2.Limits(max_connections=60, max_keepalive_connections=0)
        headers = {"authorization": f"Bearer {key}"}
        async with httpx2.AsyncClient(base_url=place.url, headers=headers, limits=limits, timeout=60) as http:
            body = {"model": "plain", "messages": [], "script": script}
            answers = await asyncio.gather(*(http.post("/v1/chat/completions", json=body) for _ in range(30)))
        return Counter(answer.status_code for answer in answers)

    assert asyncio.run(calls()) == {200: 30}
    # On a busy machine Redis may answer too late. Then the worker that waits for it sends the engine its share: one.
    alone = place.log.count("WARNING madoguchi.queue")
    assert 3 <= fake.seen()["most_running"] <= 3 + alone


def test_a_killed_worker_is_drained_by_another_which_goes_on_and_it_is_started_again(two, fake):
    key = two.furnish(fake.url)
    script = [{"send": SSE}, {"events": 4}, {"wait": 60.0}, {"send": END}]
    with client(two, key) as http:
        body = {"model": "plain", "messages": [], "stream": True, "script": script}
        until(lambda: http.get("/v1/models").status_code == 200)
        with http.stream("POST", "/v1/chat/completions", json=body) as response:
            pieces = response.iter_raw()
            next(pieces)
            (victim,) = [pid for pid in workers(two) if is_serving(two, pid, response)]
            (other,) = [pid for pid in workers(two) if pid != victim]
            kill_worker(two, victim)
            with pytest.raises(httpx2.TransportError):
                b"".join(pieces)
        for _ in range(20):
            assert http.post("/v1/chat/completions", json={"model": "plain", "messages": []}).status_code == 200
        # Recorded by the other one: it takes what is left of the dead as soon as it has something to move itself.
        row = until(lambda: two.usage().get(response.headers["x-request-id"]))
        assert row["status"] == "interrupted"
    until(lambda: len(listening_workers(two)) == 2)
    assert other in workers(two)
    assert victim not in workers(two)
    assert "gateway" in two.log
    until(lambda: len(two.usage()) == 21)


def is_serving(installation: Installation, pid: int, response: httpx2.Response) -> bool:
    """Return whether this worker holds the connection of this answer."""
    _, port = response.extensions["network_stream"].get_extra_info("client_addr")
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ends = (f":{installation.port:04X}", f":{port:04X}")
    return any(row[1].endswith(ends[0]) and row[2].endswith(ends[1]) and row[9] in sockets(pid) for row in rows)


def metrics(installation: Installation) -> dict[str, float]:
    """Return /metrics of the worker that gets the connection."""
    lines = httpx2.get(f"{installation.url}/metrics").text.splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}


def test_any_worker_reports_all_and_a_killed_one_takes_no_number_along(two, fake):
    key = two.furnish(fake.url)
    until(lambda: asyncio.run(call_at_once(two, key, 10)) == {200: 10})  # both know the key
    asyncio.run(call_at_once(two, key, 40))
    finished = 'madoguchi_requests_total{endpoint="/v1/chat/completions",model="plain",ending="finished"}'
    whole = metrics(two)[finished]
    assert whole >= 50
    assert {metrics(two)[finished] for _ in range(20)} == {whole}
    assert metrics(two)["madoguchi_workers"] == 2
    kill_worker(two, workers(two)[0])
    assert metrics(two)[finished] == whole
    until(lambda: len(listening_workers(two)) == 2)
    asyncio.run(call_at_once(two, key, 20))
    assert {metrics(two)[finished] for _ in range(20)} == {whole + 20}
    until(lambda: metrics(two)["madoguchi_workers"] == 2)
    assert len(list((two.var / "run" / "metrics").glob("*.numbers"))) == 2


def test_tokens_leave_the_port_at_once():
    """With Nagle's algorithm events of a stream would wait up to 40 ms for the acknowledgement of the one before."""
    with listening_port("127.0.0.1", 0) as listener, contextlib.ExitStack() as stack:
        listener.listen()
        stack.enter_context(socket.create_connection(listener.getsockname()))
        connection, _ = listener.accept()
        stack.enter_context(connection)
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_sigterm_lets_the_open_answers_of_every_worker_end(two, fake):
    key = two.furnish(fake.url)
    script = [{"send": SSE}, {"events": 4}, {"wait": 2.0}, {"send": END}]
    body = {"model": "plain", "messages": [], "stream": True, "script": script}
    with contextlib.ExitStack() as stack:
        answers = []
        for _ in range(8):
            http = stack.enter_context(client(two, key))
            until(lambda http=http: http.get("/v1/models").status_code == 200)
            answers.append(stack.enter_context(http.stream("POST", "/v1/chat/completions", json=body)))
        pieces = [answer.iter_raw() for answer in answers]
        begun = [next(one) for one in pieces]
        two.process.send_signal(signal.SIGTERM)
        for first, rest in zip(begun, pieces, strict=True):
            assert (first + b"".join(rest)).endswith(DONE.encode())
    assert two.process.wait(30) == 0
    assert two.processes() == {}
    assert {row["status"] for row in two.usage().values()} == {"finished"}
    assert len(two.usage()) == 8


async def kill_workers(installation: Installation, dice: random.Random, kills: int) -> None:
    for _ in range(kills):
        await asyncio.to_thread(until, lambda: len(listening_workers(installation)) == 2)
        await asyncio.sleep(dice.uniform(0.1, 0.6))
        os.kill(dice.choice(workers(installation)), signal.SIGKILL)


@pytest.mark.timeout(300)
def test_every_finished_answer_is_recorded_exactly_once_whichever_worker_is_killed(two, fake):
    seed = int(os.environ.get("CRASH_SEED") or time.time())
    print(f"CRASH_SEED={seed}")
    dice = random.Random(seed)
    key = two.furnish(fake.url)

    async def under_load() -> Load:
        load = Load(two.url, key, dice)
        with client(two, key) as http:
            await asyncio.to_thread(until, lambda: http.get("/v1/models").status_code == 200)
        clients = [asyncio.create_task(load.client()) for _ in range(6)]
        await kill_workers(two, dice, 6)
        load.going = False
        await asyncio.gather(*clients)
        return load

    calls = asyncio.run(under_load()).calls
    finished = {call.request_id: call for call in calls if call.request_id and call.finished}
    assert len(finished) > 60
    until(lambda: finished.keys() - two.usage().keys() == set(), 20)
    usage = two.usage()
    for request_id, call in finished.items():
        row = usage[request_id]
        told = (row["prompt_tokens"], row["completion_tokens"], row["status"])
        assert told == (call.prompt, call.completion, "finished")
    two.stop()
    after = two.usage()
    assert {request_id: after[request_id] for request_id in usage} == usage


def test_several_workers_without_redis_are_refused_with_a_reason(tmp_path):
    with installed(tmp_path / "var") as installation:
        with pytest.raises(AssertionError, match="REDIS_URL"):
            installation.manage("up", "--workers", "2", "--port", str(installation.port))
        installation.env["GATEWAY_WORKERS"] = "2"
        with pytest.raises(AssertionError, match=r"apiproxy\.E001"):
            installation.manage("check")


def test_a_redis_address_that_cannot_be_read_is_not_shown(tmp_path):
    with installed(tmp_path / "var") as installation:
        installation.env["REDIS_URL"] = "http://:s3cret@127.0.0.1"
        with pytest.raises(AssertionError, match=r"apiproxy\.E002") as refused:
            installation.manage("check")
        assert "s3cret" not in str(refused.value)


def test_a_gateway_that_counts_for_itself_is_refused_beside_those_that_count_in_redis(two):
    are_alone = Installation(two.var, two.port + 1, {**two.env, "REDIS_URL": "", "GATEWAY_WORKERS": "1"})
    log = two.log
    are_alone.serve()
    assert are_alone.process.wait(60) != 0
    assert lines_of(HELD, two.log[len(log) :])
