"""`HostSurface`: all that a supervisor may do on a host, so that the host can be another machine.

A supervisor decides; what it decides on and what it does reach a host through these methods alone. There are two forms:
the machine on which the supervisor runs (`local.LocalHost`), and any other, by messages (`remote.RemoteHost`, whose
transport is a `remote.Channel`: in production the actor of a node, in tests a pipe). On the other end of a channel a
`remote.HostServer` has a `LocalHost`; it needs no Django, no settings and no database.

Four rules make it safe over a network.

1. Runs are named by their ids. A host looks a run up each time: processes that a supervisor remembers may be of an
   earlier boot. Values are plain dataclasses, which `wire` writes as JSON: pickles would tie the versions of both ends
   to each other, and could run code.
2. Silence is not an end. A host that does not answer in time raises `HostSilent`, and `life_of` returns None. Neither
   says that an engine is over, or that a request was not carried out; nothing may be concluded from them.
3. Every request may be repeated, and may arrive late. `stop`, `kill` and `forget_run` of what is over do nothing. A
   supervisor chooses the id of a run before it launches it, and after a silence asks `settle_launch` what became of it:
   from then on that run exists or never will. Beside that a host never has two living runs of one replica.
4. No request waits without a limit. The limit of each is in `remote`.

Why one protocol rather than a class of requests each: mypy holds both forms and their callers to it, and `remote` takes
the types of what it sends from its annotations, so there is no second description that could differ.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Protocol

from modelregistry.engines.arguments import ArgumentFault
from modelregistry.engines.base import CallerIsolation, Spec
from modelregistry.engines.selection import ChosenEngine
from modelregistry.engines.version_trials import Installed, NoVersion, Trial
from modelregistry.files.metadata import ModelMetadata
from modelregistry.files.unreadable import UnreadableModel
from modelregistry.hostside.inspection import Inspection
from modelregistry.hostside.own_address import AddressFault
from modelregistry.hostside.replicas import ReplicaKey
from modelregistry.hostside.run_metadata import RunMetadata
from modelregistry.hostside.sleep_record import NEVER_SLEPT, SleepRecord
from modelregistry.memory import placement
from modelregistry.memory.allocation import Allocation, FitResult, MemoryUse, Occupant
from modelregistry.memory.estimate import Measured
from modelregistry.memory.placement import Space
from modelregistry.process.gpus import MOST_DEVICES, Device
from modelregistry.process.process import ExitStatus, Life
from modelregistry.wire_bounds import AtMost, Line, Name

MOST_LOG = 1_000_000  # characters of the end of a log
MOST_RUNS = 10_000  # of a host, those included that are over and kept; and of all else of which it has several


class HostSilent(Exception):
    """The host did not answer in time. What was asked of it may be done already, be done later, or never be done."""


class HostUnreadable(HostSilent):
    """The host answered what is not of the types and bounds of this surface, which says as little as silence."""


class HostFault(Exception):
    """The host answered that it could not do what was asked, for a reason that is not foreseen. `str()` says which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchRefusal:
    """Why a host starts no engine for a model; exactly one is set. The supervisor words it for operators."""

    unreadable: UnreadableModel | None = None  # its files
    path_exists: bool = False  # whether there is something at their path
    no_launcher: Line = ""  # the sentence on how to get one
    no_version: NoVersion | None = None
    no_room: FitResult | None = None
    bad_argument: ArgumentFault | None = None  # which its engine would refuse
    no_port: tuple[int, int] | None = None  # the range of ports, all of which are in use
    failed: Line = ""  # what the system said when it was executed


class LaunchRefused(Exception):
    """The host starts no engine now, and has started none."""

    def __init__(self, refusal: LaunchRefusal) -> None:
        super().__init__(refusal)
        self.refusal = refusal


@dataclass(frozen=True, slots=True, kw_only=True)
class HostedRun:
    """One start of one engine, as its host describes it. The run may be over."""

    run_id: Name
    label: RunMetadata
    pid: int  # of the engine's front process
    of_this_boot: bool
    life: Life  # when this was written; later ones are `HostSurface.life_of`
    sleep_record: SleepRecord = NEVER_SLEPT


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedReplica:
    """A replica of this host that others have to reckon with: what it was granted, and its run if it was started.

    `settled`: it has been ready, so it holds what it wants.
    """

    name: str
    allocation: Allocation
    run_id: str
    settled: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RankOrder:
    """To which start of a replica over several hosts a rank belongs: the run of rank 0, and where that is found.

    `port` 0: this is rank 0, and its host chooses the port.
    """

    gang: str
    address: str
    port: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchOrder:
    """An engine that is to be started. `grace`: seconds between TERM and KILL when it is stopped."""

    run_id: str  # random, chosen by the supervisor: see `HostSurface.settle_launch`
    key: ReplicaKey
    spec: Spec
    engine: ChosenEngine
    address: str
    grace: float
    granted: Allocation | None = None
    no_sleep: str = ""  # why it is started without its sleep mode, as a code of `failure_advice`
    isolation: CallerIsolation = field(default_factory=CallerIsolation)
    rank: RankOrder | None = None  # None: it is on this host alone


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnd:
    """What is known of how a run ended. `exit`: None while it runs, and for ever if its shim was killed."""

    exit: ExitStatus | None
    log: Annotated[str, AtMost(MOST_LOG)]  # its last lines
    oom_kills: int  # as `HostSurface.oom_kills`


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRoom:
    """The memory of a host now. `occupants`: in the order in which they were given; `free`: by device."""

    devices: Annotated[Sequence[Device], AtMost(MOST_DEVICES)]
    occupants: Annotated[Sequence[Occupant], AtMost(MOST_RUNS)]
    free: Annotated[Mapping[int, int], AtMost(MOST_DEVICES)]

    def spaces_for(self, granted: Allocation, spec: Spec) -> tuple[Space, ...]:
        """Return where a replica that runs could go another time."""
        kind = "gpu" if granted.devices else "ram"
        return placement.find_spaces(granted.prediction, kind, self.devices, gpus=spec.gpus)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostOffer:
    """Whether a model fits on a host, the free bytes where it would go, and where it could go if others made room."""

    fits: bool
    free: int
    spaces: Annotated[tuple[Space, ...], AtMost(placement.MOST_SPACES)] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchedFiles:
    """The files of a model. `seen`: `FilesRead.seen` of when they were last read; "": they never were."""

    model: int
    spec: Spec
    seen: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFacts:
    """What the files of a model say, as `FileReport`, without its time."""

    facts: ModelMetadata | None
    fault: Line
    stamp: Name = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesRead:
    """What the files of a model say. `seen` changes when they do, or the risks that an operator allows."""

    model: int
    seen: Name
    facts: FileFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSnapshot:
    """The runs that a host has now, by their ids, and `HostSurface.oom_kills`."""

    lives: Annotated[Mapping[str, Life], AtMost(MOST_RUNS)]
    oom_kills: int


class HostSurface(Protocol):
    """One host. Each coroutine raises HostSilent or HostFault; the other methods answer at once and never raise."""

    # --- What is known without asking

    def silent_for(self) -> float:
        """Return for how many seconds the host has not answered; 0.0: it answers."""

    def life_of(self, run_id: str) -> Life | None:
        """Return the state of a run as last heard of; None: it is not known, as the host is silent or never had it.

        What was once said to be over stays so, also while the host is silent. LOST also if an answering host does not
        have it any more.
        """

    def oom_kills(self) -> int:
        """Return how many processes its kernel has killed for lack of memory since it booted, as last heard of."""

    # --- Connection

    async def open(self) -> None:
        """Begin to listen to the host. Returns at once, whether it answers or not."""

    async def wait_until_heard(self) -> None:
        """Wait until the host answers, however long that takes."""

    async def close(self) -> None:
        """Stop listening. Engines keep running."""

    async def take_snapshot(self) -> HostSnapshot:
        """Return the lives of all runs; `life_of` of a remote host is its last snapshot."""

    # --- The machine

    async def inspect(self) -> Inspection: ...

    async def list_installed(self) -> Annotated[list[Installed], AtMost(MOST_RUNS)]:
        """Return the engines that we installed on it."""

    async def find_address_fault(self, address: str) -> AddressFault | None:
        """Return why engines cannot listen at this address; None: they can."""

    async def find_existing(self, paths: Sequence[str]) -> Annotated[list[Line], AtMost(MOST_RUNS)]:
        """Return those of the paths at which it has something."""

    async def read_changed_files(
        self, watched: Sequence[WatchedFiles]
    ) -> Annotated[list[FilesRead], AtMost(MOST_RUNS)]:
        """Read the files of those models whose files changed since they were `seen`."""

    # --- Memory

    async def measure_room(self, placed: Sequence[PlacedReplica]) -> HostRoom:
        """Return what is free of its devices, and who holds the rest."""

    async def reserve(self, amounts: Mapping[int, int]) -> None:
        """Count so many bytes of each device as taken by others from now on, whether they hold them yet or not.

        An agent that is started again has forgotten it.
        """

    async def has_ram(self, wanted: int, placed: Sequence[PlacedReplica]) -> bool:
        """Return whether so many bytes of its RAM are neither held nor promised."""

    async def find_room_to_wake(
        self, given: Allocation, sleeper: PlacedReplica, others: Sequence[PlacedReplica]
    ) -> FitResult:
        """Return whether a sleeping engine can wake on the cards to which it is bound. `given`: what it wants awake."""

    async def keeps_memory_asleep(self, given: Allocation, run_id: str) -> bool:
        """Return whether a sleeping engine holds more than half of what it should have given back to a card."""

    async def measure_use(self, run_id: str, devices: Sequence[int]) -> MemoryUse | None:
        """Return what a run holds on these devices (indices; none: RAM); None: its driver does not report that."""

    async def cpu_seconds(self, run_id: str) -> float:
        """Return the CPU time that the living processes of a run have used."""

    # --- Starting

    async def choose_engine(self, spec: Spec, trials: Sequence[Trial], tried_now: Collection[str]) -> ChosenEngine:
        """Return what a model would be started with here. Raises LaunchRefused.

        `trials`: what is known of versions with it here; `tried_now`: those that its other replicas are trying.
        """

    async def allocate(
        self,
        spec: Spec,
        engine: ChosenEngine,
        placed: Sequence[PlacedReplica],
        measurements: Sequence[Measured],
        versions: Mapping[str, str],
    ) -> Allocation | None:
        """Return the share of its memory that a replica gets; None: its need cannot be predicted. Raises LaunchRefused.

        `versions`: of the engines, by launcher.
        """

    async def make_offer(
        self,
        spec: Spec,
        replicas: int,
        placed: Sequence[PlacedReplica],
        measurements: Sequence[Measured],
        versions: Mapping[str, str],
    ) -> HostOffer:
        """Return what the host offers for a model that no host has."""

    async def launch(self, order: LaunchOrder) -> HostedRun:
        """Start an engine, on a port that the host chooses; return when it is executed. Raises LaunchRefused.

        A run of the same replica that still lives is returned instead of a second one: its id is another one then.
        """

    async def settle_launch(self, run_id: str) -> HostedRun | None:
        """Return the run if it was started; else it never will be, also if the request to launch it arrives later."""

    async def keep_sleep_record(self, run_id: str, record: SleepRecord) -> None:
        """Keep what is known of an engine's sleep with its run, for the supervisor that adopts it."""

    # --- Runs

    async def kill_strays(self) -> None:
        """Kill processes of ours that belong to no living shim."""

    async def list_runs(self) -> Annotated[list[HostedRun], AtMost(MOST_RUNS)]:
        """Return all runs that the host still has, living or over, the oldest first."""

    async def describe_end(self, run_id: str, lines: int) -> RunEnd: ...

    async def log_tail(self, run_id: str, lines: int) -> Annotated[str, AtMost(MOST_LOG)]:
        """Return the last lines that an engine wrote; of a run that is not there none."""

    async def stop(self, run_id: str, grace: float) -> Line:
        """Stop all of a run's processes; return what is left of it, in words, or "" when nothing is."""

    async def kill(self, run_id: str) -> None:
        """Begin to stop a run without any grace; `stop` then takes less long."""

    async def forget_run(self, run_id: str) -> None:
        """Delete what is kept of a run that is over, its log with it."""
