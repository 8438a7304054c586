"""What operators see of one worker's queue: who waits how long for what, never what they ask. Plain values."""

from dataclasses import dataclass

# Calls that are shown of each worker: those that have waited longest. The others are in the sums.
MAX_SHOWN = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingCall:
    """A call that waits. `place`: how many go up to it, itself included. `expected`: seconds; None: unknown."""

    model: str
    call_class: str
    tenant: int
    user: int | None
    key: int
    end_user: str
    waited: float
    place: int
    expected: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingModel:
    """The calls that wait for a model, by class. `loading`: seconds since it is being loaded; None: it is not.

    `expected`: seconds until the last interactive call that waits has begun; None: none waits, or it is not known.
    """

    model: str
    waiting: dict[str, int]
    longest: float  # seconds that the first of them has waited
    loading: float | None
    usual_loading: float | None  # seconds that it took last
    expected: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaRoom:
    """The calls that a replica works on for this worker. `room`: how many it may have; None: without a bound."""

    replica: int
    model: str
    running: int
    room: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSnapshot:
    """One worker's queue. `calls`: at most MAX_SHOWN, those that have waited longest first."""

    calls: tuple[WaitingCall, ...] = ()
    models: tuple[WaitingModel, ...] = ()
    replicas: tuple[ReplicaRoom, ...] = ()

    @property
    def waiting(self) -> int:
        """How many calls wait."""
        return sum(sum(one.waiting.values()) for one in self.models)
