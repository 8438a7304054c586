"""A host that is another machine: `RemoteHost` sends what is asked of it over a channel, `HostServer` carries it out.

The supervisor's loop reads the lives of runs without waiting, so a remote host is asked for all of them every BEAT
seconds. It is silent once it has not answered for SILENT_AFTER seconds: then nothing is known of its runs but that
those which were over still are.
"""

import asyncio
import inspect
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol, get_type_hints

from modelregistry.engines.base import Spec
from modelregistry.engines.selection import ChosenEngine
from modelregistry.engines.version_trials import Installed, Trial
from modelregistry.hostside import wire
from modelregistry.hostside.inspection import Inspection
from modelregistry.hostside.own_address import AddressFault
from modelregistry.hostside.sleep_record import SleepRecord
from modelregistry.hostside.surface import (
    FilesRead,
    HostedRun,
    HostFault,
    HostOffer,
    HostRoom,
    HostSilent,
    HostSnapshot,
    HostSurface,
    HostUnreadable,
    LaunchOrder,
    LaunchRefusal,
    LaunchRefused,
    PlacedReplica,
    RunEnd,
    WatchedFiles,
)
from modelregistry.hostside.wire import WireFault
from modelregistry.memory.allocation import Allocation, FitResult, MemoryUse
from modelregistry.memory.estimate import Measured
from modelregistry.process.process import GONE_WITHIN, Life
from modelregistry.process.stopping import BACK_WITHIN

log = logging.getLogger(__name__)

BEAT = 0.5  # seconds between two snapshots: as often as the supervisor plans
BEAT_WITHIN = 2.0  # seconds for the answer to one; on one node of Ray it takes 4 ms
SILENT_AFTER = 4.0  # seconds: one snapshot was lost, and so was the next
OVER = (Life.ENDED, Life.LOST)
# Bytes of an answer: an inspection of 128 devices and 200 strangers is some 100 KB; those with the ends of logs, or
# what the files of all models say, are the largest.
MOST_ANSWERED: Mapping[str, int] = {"inspect": 2 * 2**20, "usual": 16 * 2**20}
MOST_GONE = 1000  # runs that are over and gone from the host, of which is remembered that they are over

# Seconds for an answer. What reads a disk may wait for a slow one; nothing waits for ever.
USUAL = 30.0
LIMITS: Mapping[str, float] = {
    "usual": USUAL,
    "take_snapshot": BEAT_WITHIN,
    "log_tail": 5.0,
    "kill": 5.0,
    "reserve": 5.0,
    "inspect": 120.0,  # programs are asked for their versions: 20 s each at worst
    "read_changed_files": 120.0,
    "launch": 45.0,  # a shim's start may take 30 on a machine that swaps
    "settle_launch": 60.0,
    "kill_strays": 60.0,
}
STOP_BESIDE_GRACE = 2 * GONE_WITHIN + BACK_WITHIN + 10.0
LONGEST = 600.0  # of a request whose sender does not say for how long it waits, as one of version 1.0


class Channel(Protocol):
    """Carries messages to a `HostServer` and its answers back, several at a time."""

    async def send(self, request: bytes) -> bytes:
        """Return the answer. Raises any exception when there is none; may be cancelled at any time."""

    async def close(self) -> None: ...


class HostServer:
    """The host's end: answers messages by what its surface does, for as long as their sender waits for it.

    One that hangs at a disk would else be worked on for ever, and there is room for so many only.

    `others`: further surfaces, each with its methods by their names.
    """

    def __init__(self, surface: HostSurface, *others: tuple[object, "Methods"]) -> None:
        self.methods = {
            name: (getattr(one, name), *kinds)
            for one, methods in ((surface, METHODS), *others)
            for name, kinds in methods.items()
        }

    async def answer(self, request: bytes) -> bytes:
        """Carry out a request and return the answer. Raises nothing but CancelledError."""
        try:
            return wire.write_message(await self._carry_out(wire.read_message(request)))
        except HostFault as fault:
            log.warning("a request failed: %s", fault)
            return wire.write_message({"fault": str(fault)[:500]})
        except TimeoutError:
            log.warning("a request was given up, as its sender waits no longer")
            return wire.write_message({"fault": "it took too long"})
        except Exception as error:
            log.exception("a request failed")
            return wire.write_message({"fault": f"{type(error).__name__}: {error}"[:500]})

    async def _carry_out(self, message: Mapping[str, Any]) -> dict[str, Any]:
        name, sent = message.get("method"), message.get("arguments")
        if not isinstance(name, str) or name not in self.methods or not isinstance(sent, dict):
            return {"fault": "this host does not know the request"}
        carry_out, parameters, _ = self.methods[name]
        arguments = [wire.decode(kind, sent.get(one), one) for one, kind in parameters.items()]
        within = message.get("within")
        try:
            async with asyncio.timeout(within if isinstance(within, int | float) else LONGEST):
                return {"value": await carry_out(*arguments)}
        except LaunchRefused as refused:
            return {"refused": refused.refusal}


# Of each request its name, the types of its arguments, and that of its answer.
Methods = Mapping[str, tuple[Mapping[str, Any], Any]]


def read_methods(protocol: type, *, beside: Collection[str] = ()) -> Methods:
    """Return the requests of a surface, from the annotations of its coroutines. `beside`: those that are none."""
    found = {}
    for name, method in inspect.getmembers(protocol, inspect.iscoroutinefunction):
        if name not in beside:
            hints = get_type_hints(method, include_extras=True)
            answer = hints.pop("return")
            found[name] = hints, answer
    return found


METHODS = read_methods(HostSurface, beside=("open", "close", "wait_until_heard"))


async def ask(channel: Channel, methods: Methods, name: str, arguments: Sequence[Any], *, within: float) -> Any:
    """Send a request, and return its answer. Raises HostSilent, HostFault and LaunchRefused.

    What it cannot read raises HostUnreadable.
    """
    parameters, answer = methods[name]
    sent = wire.write_message(
        {"method": name, "arguments": dict(zip(parameters, arguments, strict=True)), "within": within}
    )
    try:
        async with asyncio.timeout(within):
            received = _read_answer(name, await channel.send(sent))
        if "value" in received:
            return wire.decode(answer, received["value"])
        if "refused" in received:
            refusal = wire.decode(LaunchRefusal, received["refused"])
            raise LaunchRefused(refusal)
    except LaunchRefused:
        raise
    except WireFault as fault:
        raise HostUnreadable(f"{name}: {fault}"[:300]) from fault
    except Exception as error:  # whatever a transport raises, nothing is known of what the host did
        raise HostSilent(f"{name}: {type(error).__name__}: {error}"[:300]) from error
    raise HostFault(str(received.get("fault"))[:500])


def _read_answer(name: str, answer: bytes) -> Mapping[str, Any]:
    most = MOST_ANSWERED.get(name, MOST_ANSWERED["usual"])
    if len(answer) > most:
        raise WireFault(f"an answer of {len(answer)} bytes, more than {most}")
    return wire.read_message(answer)


class RemoteHost:
    """A host behind a channel, in one event loop. It is a HostSurface."""

    def __init__(
        self,
        channel: Channel,
        *,
        limits: Mapping[str, float] = LIMITS,
        silent_after: float = SILENT_AFTER,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.channel = channel
        self.limits = limits
        self.silent_after = silent_after
        self.clock = clock
        self.heard_at = clock()  # when the last request was sent that was answered
        self.heard = asyncio.Event()  # set while the host answers
        # Those that are over as well, also when the host has forgotten them: see `HostSurface.life_of`.
        self.lives: dict[str, Life] = {}
        self.known_at: dict[str, float] = {}  # since when it is known that the host has a run
        self.ooms = 0
        self.listening: asyncio.Task[None] | None = None

    # --- What is known without asking

    def silent_for(self) -> float:
        return 0.0 if self.heard.is_set() and not self._is_overdue() else max(self.clock() - self.heard_at, 1e-9)

    def life_of(self, run_id: str) -> Life | None:
        life = self.lives.get(run_id)
        return life if life in OVER or not self.silent_for() else None

    def oom_kills(self) -> int:
        return self.ooms

    # --- Connection

    async def open(self) -> None:
        if self.listening is None:
            self.heard_at = self.clock()
            self.listening = asyncio.create_task(self._listen(), name="host")

    async def wait_until_heard(self) -> None:
        while self.silent_for():
            self.heard.clear()
            await self.heard.wait()

    async def close(self) -> None:
        if self.listening:
            self.listening.cancel()
            await asyncio.gather(self.listening, return_exceptions=True)
            self.listening = None
        await self.channel.close()

    async def _listen(self) -> None:
        silent, reason = False, ""
        while True:
            asked_at = self.clock()
            try:
                self._note(await self.take_snapshot(), asked_at)
            except HostSilent as silence:
                reason = str(silence)
            except Exception:  # of a host that answers, but not this: it is of no use, and asked again
                log.exception("the host gives no account of its runs")
            if self._is_overdue() != silent:
                silent = not silent
                log.warning(*(("the host is silent (%s)", reason) if silent else ("the host answers again",)))
            await asyncio.sleep(BEAT)

    def _is_overdue(self) -> bool:
        return self.clock() - self.heard_at > self.silent_after

    def _note(self, snapshot: HostSnapshot, asked_at: float) -> None:
        self.ooms = snapshot.oom_kills
        for run_id, life in snapshot.lives.items():
            self._note_life(run_id, life)
        for run_id in self.lives.keys() - snapshot.lives.keys():
            # Unless it was started after the host was asked.
            if self.known_at.get(run_id, asked_at) < asked_at and self.lives[run_id] not in OVER:
                self.lives[run_id] = Life.LOST
        self._forget_oldest(snapshot)
        self.heard_at = asked_at
        self.heard.set()

    def _forget_oldest(self, snapshot: HostSnapshot) -> None:
        """Forget the oldest of those runs that are over, and that the host does not have any more."""
        gone = [run_id for run_id, life in self.lives.items() if life in OVER and run_id not in snapshot.lives]
        for run_id in gone[: max(0, len(gone) - MOST_GONE)]:
            self._forget(run_id)

    def _forget(self, run_id: str) -> None:
        self.lives.pop(run_id, None)
        self.known_at.pop(run_id, None)

    def _note_life(self, run_id: str, life: Life) -> None:
        self.known_at.setdefault(run_id, self.clock())
        if self.lives.get(run_id) not in OVER:
            self.lives[run_id] = life

    def _note_run(self, run: HostedRun) -> HostedRun:
        # From its answer on, as a snapshot that is on its way may not have it yet.
        self.known_at[run.run_id] = self.clock()
        self._note_life(run.run_id, run.life)
        return run

    async def _ask(self, name: str, *arguments: Any, within: float = 0.0) -> Any:
        limit = within or self.limits.get(name, self.limits["usual"])
        return await ask(self.channel, METHODS, name, arguments, within=limit)

    async def take_snapshot(self) -> HostSnapshot:
        found: HostSnapshot = await self._ask("take_snapshot")
        return found

    # --- The machine

    async def inspect(self) -> Inspection:
        found: Inspection = await self._ask("inspect")
        return found

    async def list_installed(self) -> list[Installed]:
        found: list[Installed] = await self._ask("list_installed")
        return found

    async def find_address_fault(self, address: str) -> AddressFault | None:
        found: AddressFault | None = await self._ask("find_address_fault", address)
        return found

    async def find_existing(self, paths: Sequence[str]) -> list[str]:
        found: list[str] = await self._ask("find_existing", paths)
        return found

    async def read_changed_files(self, watched: Sequence[WatchedFiles]) -> list[FilesRead]:
        found: list[FilesRead] = await self._ask("read_changed_files", watched)
        return found

    # --- Memory

    async def measure_room(self, placed: Sequence[PlacedReplica]) -> HostRoom:
        found: HostRoom = await self._ask("measure_room", placed)
        return found

    async def reserve(self, amounts: Mapping[int, int]) -> None:
        await self._ask("reserve", amounts)

    async def has_ram(self, wanted: int, placed: Sequence[PlacedReplica]) -> bool:
        found: bool = await self._ask("has_ram", wanted, placed)
        return found

    async def find_room_to_wake(
        self, given: Allocation, sleeper: PlacedReplica, others: Sequence[PlacedReplica]
    ) -> FitResult:
        found: FitResult = await self._ask("find_room_to_wake", given, sleeper, others)
        return found

    async def keeps_memory_asleep(self, given: Allocation, run_id: str) -> bool:
        found: bool = await self._ask("keeps_memory_asleep", given, run_id)
        return found

    async def measure_use(self, run_id: str, devices: Sequence[int]) -> MemoryUse | None:
        found: MemoryUse | None = await self._ask("measure_use", run_id, devices)
        return found

    async def cpu_seconds(self, run_id: str) -> float:
        found: float = await self._ask("cpu_seconds", run_id)
        return found

    # --- Starting

    async def choose_engine(self, spec: Spec, trials: Sequence[Trial], tried_now: Collection[str]) -> ChosenEngine:
        found: ChosenEngine = await self._ask("choose_engine", spec, trials, tried_now)
        return found

    async def allocate(
        self,
        spec: Spec,
        engine: ChosenEngine,
        placed: Sequence[PlacedReplica],
        measurements: Sequence[Measured],
        versions: Mapping[str, str],
    ) -> Allocation | None:
        found: Allocation | None = await self._ask("allocate", spec, engine, placed, measurements, versions)
        return found

    async def make_offer(
        self,
        spec: Spec,
        replicas: int,
        placed: Sequence[PlacedReplica],
        measurements: Sequence[Measured],
        versions: Mapping[str, str],
    ) -> HostOffer:
        found: HostOffer = await self._ask("make_offer", spec, replicas, placed, measurements, versions)
        return found

    async def launch(self, order: LaunchOrder) -> HostedRun:
        return self._note_run(await self._ask("launch", order))

    async def settle_launch(self, run_id: str) -> HostedRun | None:
        found: HostedRun | None = await self._ask("settle_launch", run_id)
        return self._note_run(found) if found else None

    async def keep_sleep_record(self, run_id: str, record: SleepRecord) -> None:
        await self._ask("keep_sleep_record", run_id, record)

    # --- Runs

    async def kill_strays(self) -> None:
        await self._ask("kill_strays")

    async def list_runs(self) -> list[HostedRun]:
        return [self._note_run(run) for run in await self._ask("list_runs")]

    async def describe_end(self, run_id: str, lines: int) -> RunEnd:
        found: RunEnd = await self._ask("describe_end", run_id, lines)
        return found

    async def log_tail(self, run_id: str, lines: int) -> str:
        found: str = await self._ask("log_tail", run_id, lines)
        return found

    async def stop(self, run_id: str, grace: float) -> str:
        found: str = await self._ask("stop", run_id, grace, within=grace + STOP_BESIDE_GRACE)
        return found

    async def kill(self, run_id: str) -> None:
        await self._ask("kill", run_id)

    async def forget_run(self, run_id: str) -> None:
        await self._ask("forget_run", run_id)
        self._forget(run_id)
