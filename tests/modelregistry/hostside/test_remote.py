"""A host behind a channel: what is concluded from its answers, and what is not from its silence."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable

import pytest

from modelregistry.engines.base import EngineCommand, Spec
from modelregistry.engines.selection import ChosenEngine
from modelregistry.hostside import remote, wire
from modelregistry.hostside.launching import HostConfig
from modelregistry.hostside.local import LocalHost
from modelregistry.hostside.remote import METHODS, HostServer, RemoteHost
from modelregistry.hostside.replicas import ReplicaKey
from modelregistry.hostside.sleep_record import NEVER_SLEPT
from modelregistry.hostside.surface import (
    HostFault,
    HostSilent,
    HostSnapshot,
    HostSurface,
    HostUnreadable,
    LaunchOrder,
    LaunchRefused,
)
from modelregistry.process import process
from modelregistry.process.process import Life
from tests.waiting import eventually

LABEL = {
    **{"model": 1, "replica": 0, "name": "m", "task": "chat", "fingerprint": "", "launcher": "llama-server"},
    **{"slots": 1, "port": 0, "url": "", "api_key": ""},
}
SLEEP = EngineCommand(argv=("/bin/sleep", "600"), env={})
LIMITS = {**remote.LIMITS, "usual": 0.3, "take_snapshot": 0.3, "launch": 0.3}


class Wire:
    """A channel within this process, which can be cut, and on which answers can be changed."""

    def __init__(self, server: HostServer) -> None:
        self.server = server
        self.cut = False
        self.hold: asyncio.Event | None = None  # until it is set answers are on their way
        self.sent = self.held = 0
        self.change: Callable[[bytes], bytes] = lambda answer: answer

    async def send(self, request: bytes) -> bytes:
        self.sent += 1
        if self.cut:
            await asyncio.Event().wait()
        answer = await self.server.answer(request)
        if hold := self.hold:
            self.held += 1
            await hold.wait()
        return self.change(answer)

    async def close(self) -> None:
        return


class Ends:
    """Both ends of a wire."""

    def __init__(self, local: LocalHost) -> None:
        self.local = local
        self.wire = Wire(HostServer(local))
        self.host = RemoteHost(self.wire, limits=LIMITS, silent_after=1.0)

    async def heard(self) -> None:
        async with asyncio.timeout(10):
            await self.host.wait_until_heard()


@pytest.fixture
async def ends(runs) -> AsyncIterator[Ends]:
    local = LocalHost(HostConfig(runs=runs.root, cache=runs.root / "cache", commands={}, ports=range(18_100, 18_200)))
    found = Ends(local)
    yield found
    await found.host.close()
    await local.close()


async def test_a_host_gives_up_what_its_sender_waits_for_no_longer(ends, monkeypatch):
    ended = asyncio.Event()

    async def hang(paths):
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    monkeypatch.setattr(ends.local, "find_existing", hang)
    server = HostServer(ends.local)  # beyond a wire that knows no end of waiting
    request = {"method": "find_existing", "arguments": {"paths": ["/m"]}, "within": 0.1}
    async with asyncio.timeout(20):
        assert "fault" in json.loads(await server.answer(json.dumps(request).encode()))
        await ended.wait()


async def test_a_request_says_how_long_it_is_waited_for(ends, monkeypatch):
    sent = []
    send = ends.wire.send

    async def note(request):
        sent.append(json.loads(request)["within"])
        return await send(request)

    monkeypatch.setattr(ends.wire, "send", note)
    await ends.host.take_snapshot()
    await ends.host.stop("none", 5.0)
    assert sent == [LIMITS["take_snapshot"], 5.0 + remote.STOP_BESIDE_GRACE]


async def test_an_answer_that_breaks_the_bounds_is_not_taken_and_says_as_little_as_silence(ends):
    whole = await ends.host.inspect()

    def change(**values):
        return lambda answer: json.dumps({"value": json.loads(answer)["value"] | values}).encode()

    card = wire.encode(whole.devices[0])
    ends.wire.change = change(devices=[card] * 3_000)
    with pytest.raises(HostUnreadable, match="3000"):
        await ends.host.inspect()
    ends.wire.change = change(unknown="x" * remote.MOST_ANSWERED["inspect"])
    with pytest.raises(HostUnreadable):
        await ends.host.inspect()
    ends.wire.change = change(unknown="x")
    assert (await ends.host.inspect()).engines == whole.engines


def test_each_request_of_the_protocol_can_be_sent():
    asked = {name for name in vars(HostSurface) if not name.startswith("_")}
    at_once = {"silent_for", "life_of", "oom_kills", "open", "close", "wait_until_heard"}
    assert set(METHODS) == asked - at_once


async def test_a_host_is_silent_until_it_is_heard(ends):
    assert ends.host.silent_for() > 0
    await ends.host.open()
    await ends.heard()
    assert ends.host.silent_for() == 0.0


async def test_lives_are_those_of_the_last_answer_and_unknown_in_silence(ends, runs):
    run = runs.start("a", SLEEP, label=LABEL, grace=1)
    await ends.host.open()
    await ends.heard()
    await eventually(lambda: ends.host.life_of("a") is Life.RUNNING)
    ends.wire.cut = True
    await eventually(lambda: ends.host.silent_for() > 0)
    assert ends.host.life_of("a") is None
    process.stop(run, grace=0)
    assert ends.host.life_of("a") is None
    ends.wire.cut = False
    await eventually(lambda: ends.host.life_of("a") is Life.ENDED)
    ends.wire.cut = True
    await eventually(lambda: ends.host.silent_for() > 0)
    assert ends.host.life_of("a") is Life.ENDED  # what was over stays so


async def test_a_run_that_its_host_lacks_is_lost(ends, runs):
    run = runs.start("a", SLEEP, label=LABEL, grace=1)
    await ends.host.open()
    await eventually(lambda: ends.host.life_of("a") is Life.RUNNING)
    process.stop(run, grace=0)
    await ends.local.forget_run("a")
    await eventually(lambda: ends.host.life_of("a") in (Life.ENDED, Life.LOST))


async def test_what_is_remembered_of_runs_that_are_gone_is_bounded(ends, monkeypatch):
    monkeypatch.setattr(remote, "MOST_GONE", 3)
    lives = {f"r{number}": Life.ENDED for number in range(10)}
    given = [HostSnapshot(lives=lives, oom_kills=0)]

    async def take_snapshot() -> HostSnapshot:
        return given[0]

    monkeypatch.setattr(ends.local, "take_snapshot", take_snapshot)
    ends.wire.server = HostServer(ends.local)
    await ends.host.open()
    await eventually(lambda: ends.host.life_of("r0") is Life.ENDED)
    given[0] = HostSnapshot(lives={"r9": Life.ENDED}, oom_kills=0)
    await eventually(lambda: ends.host.life_of("r0") is None)
    assert [name for name in lives if ends.host.life_of(name)] == ["r6", "r7", "r8", "r9"]


async def test_nothing_is_concluded_of_a_run_that_a_host_was_never_heard_to_have(ends):
    await ends.host.open()
    await ends.heard()
    assert ends.host.life_of("never") is None


async def test_a_host_whose_disk_is_away_has_lost_no_run(ends, runs):
    run = runs.start("a", SLEEP, label=LABEL, grace=1)
    await ends.host.open()
    await eventually(lambda: ends.host.life_of("a") is Life.RUNNING)
    other = Ends(LocalHost(ends.local.config))  # an agent that was started since: it knows none of them
    hidden = runs.root.rename(runs.root.parent / "hidden")
    ends.wire.server = other.wire.server
    await eventually(lambda: ends.host.silent_for() > 0)
    assert ends.host.life_of("a") is None
    hidden.rename(runs.root)
    await eventually(lambda: ends.host.life_of("a") is Life.RUNNING)
    process.stop(run, grace=0)
    await other.local.close()


async def test_an_older_account_says_nothing_of_a_run_that_came_since(ends, runs):
    """The account of runs was made before the run was started, and arrives after the answer to its start."""
    host = RemoteHost(ends.wire, limits={**LIMITS, "take_snapshot": 30.0}, silent_after=60.0)
    await host.open()
    await eventually(lambda: not host.silent_for())
    ends.wire.hold = held = asyncio.Event()
    await eventually(lambda: ends.wire.held)  # an account without the run is on its way now
    runs.start("a", SLEEP, label=LABEL, grace=1)
    ends.wire.hold = None
    assert [run.run_id for run in await host.list_runs()] == ["a"]
    sent = ends.wire.sent
    held.set()
    await eventually(lambda: ends.wire.sent >= sent + 2)
    assert host.life_of("a") is Life.RUNNING
    await host.close()


async def test_no_answer_is_silence_whatever_the_reason(ends):
    ends.wire.cut = True
    with pytest.raises(HostSilent):
        await ends.host.list_runs()
    ends.wire.cut = False
    for broken in (b"", b"[]", b'{"value": 7}', b'{"value": [{"run_id": 1}]}', b'{"refused": {"failed": 1}}'):
        ends.wire.change = lambda answer, broken=broken: broken
        with pytest.raises(HostSilent):
            await ends.host.list_runs()


async def test_what_a_host_cannot_do_is_a_fault_of_it(ends):
    with pytest.raises(HostFault):
        await ends.host.stop("../../etc", 0.0)
    with pytest.raises(HostFault):
        await ends.host.keep_sleep_record("none", NEVER_SLEPT)


@pytest.mark.parametrize(
    "request_",
    [
        *(b"", b"{}", b'{"method": "close", "arguments": {}}', b'{"method": "__init__", "arguments": {}}'),
        *(b'{"method": "stop", "arguments": {"run_id": 1, "grace": 1}}', b'{"method": "stop", "arguments": []}'),
    ],
)
async def test_requests_that_are_none_are_refused(ends, request_):
    assert "fault" in json.loads(await ends.wire.server.answer(request_))


def order(run_id: str, program: str = "/bin/sleep") -> LaunchOrder:
    spec = Spec(engine="llama.cpp", name="m", path="/m.gguf")
    engine = ChosenEngine(launcher="llama-server", program=(program, "600", "--"))
    return LaunchOrder(run_id=run_id, key=ReplicaKey(1, 0), spec=spec, engine=engine, address="127.0.0.1", grace=1.0)


async def test_a_start_that_was_called_off_never_happens(ends):
    assert await ends.host.settle_launch("later") is None
    with pytest.raises(LaunchRefused):
        await ends.local.launch(order("later"))
    assert await ends.local.list_runs() == []


async def test_a_start_is_settled_with_its_run(ends):
    started = await ends.local.launch(order("now", program="/bin/true"))
    settled = await ends.host.settle_launch("now")
    assert settled
    assert (settled.run_id, settled.pid) == ("now", started.pid)


async def test_a_replica_never_has_two_living_engines(ends, runs):
    runs.start("first", SLEEP, label=LABEL, grace=1)
    several = await asyncio.gather(*(ends.local.launch(order(f"more{number}")) for number in range(4)))
    assert {run.run_id for run in several} == {"first"}
    assert [run.run_id for run in runs.all()] == ["first"]


async def test_processes_of_a_run_are_stopped_although_its_directory_is_gone(ends, runs):
    run = runs.start("a", SLEEP, label=LABEL, grace=1)
    hidden = run.directory.rename(runs.root.parent / "hidden")
    assert await ends.host.stop("a", 0.0) == ""
    await eventually(lambda: process.life_of(run) is not Life.RUNNING)
    hidden.rename(run.directory)
