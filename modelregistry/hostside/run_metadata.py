"""What is recorded with a run: what it serves, how it was started, and where it listens."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from modelregistry.hostside import wire
from modelregistry.hostside.replicas import ReplicaKey
from modelregistry.memory.allocation import Allocation
from modelregistry.process.process import Run
from modelregistry.wire_bounds import AtMost, Name

MOST_RANKS = 1000  # hosts of one replica


@dataclass(frozen=True, slots=True, kw_only=True)
class RunMetadata:
    """What is recorded with a run, for the supervisor that adopts it.

    A release adopts engines that another one started: a field that is added later needs a default.
    """

    model: int
    replica: int
    name: Name
    task: Name
    fingerprint: Name
    launcher: Name
    slots: int | None
    port: int
    url: Name
    api_key: Name
    allotment: Annotated[Mapping[str, Any], AtMost(100)] | None = None  # as `Allocation.stored`
    installed: Name = ""  # the installed version that it was started from; "": a program that operators named
    stamp: Name = ""
    trial: bool = False
    fallback: Name = ""
    sleep: Name = ""  # the level at which it can sleep; "": it cannot
    no_sleep: Name = ""  # why it cannot although its model is to, as a code of `failure_advice`
    # Of a replica over several hosts: which rank this is of those on `hosts`, the run of rank 0, and where that is.
    rank: int = 0
    hosts: Annotated[tuple[Name, ...], AtMost(MOST_RANKS)] = ()
    gang: Name = ""
    master_address: Name = ""
    master_port: int = 0
    own_address: Name = ""  # of a rank that does not serve, and so has no URL

    def __post_init__(self) -> None:
        if self.model < 0 or self.replica < 0 or not 0 <= self.rank < max(1, len(self.hosts)):
            raise ValueError("a run has an impossible model, replica or rank")

    @property
    def address(self) -> str:
        """Where its engine listens."""
        return self.own_address or self.url.removeprefix("http://").rpartition(":")[0].strip("[]")

    @property
    def allocation(self) -> Allocation | None:
        try:
            return wire.decode(Allocation, self.allotment) if self.allotment else None
        except wire.WireFault:  # of another release
            return None

    @property
    def key(self) -> ReplicaKey:
        return ReplicaKey(self.model, self.replica)


def metadata_of(run: Run) -> RunMetadata:
    """Return what is recorded with a run of this machine, without fields of a later release. Raises ValueError."""
    found: RunMetadata = wire.decode(RunMetadata, run.label, "label")
    return found
