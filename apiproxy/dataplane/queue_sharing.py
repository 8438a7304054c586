"""What a scheduler and those that share engines with it ask of one another; `UnsharedQueue`: there are no others."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

from apiproxy.dataplane.catalogue import Model, Replica
from apiproxy.dataplane.fair_queue import CallFlow
from apiproxy.dataplane.model_queue import NOWHERE, CallClass, ForeignWaits
from apiproxy.dataplane.room import Rooms


def capacity_for_batch(slots: float) -> float:
    """Return how many calls a replica with so many slots may have in flight, one more of batch included."""
    return max(1, slots - 1)


class WaitingClass(NamedTuple):
    """Calls of one class that wait for a model in this worker."""

    call_class: CallClass
    calls: int
    flows: int
    first: CallFlow  # whose turn it is
    counter: float  # of that
    is_aged: bool
    unserved: float  # seconds since it was served


class LocalQueues(Protocol):
    """What this worker has: its scheduler."""

    def bounded_replicas(self, model: Model) -> Iterable[tuple[Replica, float, bool]]:
        """Return the replicas whose room is known, that room, and whether a call may go there now."""

    def running_at(self, replica: int) -> int:
        """Return how many calls this worker has at the replica with this id."""

    def waiting(self, model: str) -> Sequence[WaitingClass]:
        """Return what waits for a credit."""

    def waiting_flows(self, model: str) -> Iterable[tuple[CallClass, CallFlow, float]]:
        """Return the flows that wait, with their counters; the one that was not served for longest comes first."""

    def counter(self, model: str, call_class: CallClass, flow: CallFlow) -> float: ...

    def adopt(self, model: str, call_class: CallClass, flow: CallFlow, counter: float) -> None:
        """Take over what this flow was served by all workers."""

    def advance(self, model: str) -> None:
        """Let those calls go for which there is a credit."""

    def advance_all(self) -> None: ...


class QueueSharing(Protocol):
    """What a scheduler asks, and reports. See `shared_queue.SharedQueue`."""

    is_calm: bool  # no other worker's call waits, and nowhere are too many in flight, as far as is known

    @property
    def is_shared(self) -> bool: ...

    def attach(self, queues: LocalQueues, find_model: Callable[[str], Model | None], rooms: Rooms) -> None: ...

    def calls(self, replica: Replica) -> float:
        """Return how many calls this worker may have in flight there."""

    def calls_with_batch(self, replica: Replica) -> float:
        """Return the same, one more of batch included."""

    def foreign(self, model: str) -> ForeignWaits:
        """Return what waits for the model in other workers, as far as that is known."""

    def is_wanted(self, model: str) -> bool:
        """Return whether calls of other workers wait for the model."""

    def others_running(self, replica: int) -> int:
        """Return how many calls other workers have at the replica with this id."""

    def flow_waits(self, model: str, call_class: CallClass, flow: CallFlow) -> None: ...

    def unbounded_used(self, model: str, replica: int) -> None: ...

    def rooms_changed(self) -> None: ...

    def charge(self, model: str, call_class: CallClass, flow: CallFlow, cost: float) -> None: ...

    def tell(self, model: str, *, loud: bool = False) -> None: ...

    def call_ended(self, name: str) -> None: ...

    def sweep(self, waiting: Iterable[str]) -> None: ...


class UnsharedQueue:
    """That of a worker which shares its engines with none."""

    is_calm = True
    is_shared = False
    calls: Callable[[Replica], float]  # that of the rooms itself: every call of the gateway asks it

    def attach(self, queues: LocalQueues, find_model: Callable[[str], Model | None], rooms: Rooms) -> None:
        self.calls = rooms.calls

    def calls_with_batch(self, replica: Replica) -> float:
        return capacity_for_batch(self.calls(replica))

    def foreign(self, model: str) -> ForeignWaits:
        return NOWHERE

    def is_wanted(self, model: str) -> bool:
        return False

    def others_running(self, replica: int) -> int:
        return 0

    def flow_waits(self, model: str, call_class: CallClass, flow: CallFlow) -> None:
        pass

    def unbounded_used(self, model: str, replica: int) -> None:
        pass

    def rooms_changed(self) -> None:
        pass

    def charge(self, model: str, call_class: CallClass, flow: CallFlow, cost: float) -> None:
        pass

    def tell(self, model: str, *, loud: bool = False) -> None:
        pass

    def call_ended(self, name: str) -> None:
        pass

    def sweep(self, waiting: Iterable[str]) -> None:
        pass
