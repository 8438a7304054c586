"""What to do next for each replica of this host: a pure function of what is wanted, what is seen, and the time.

    STARTING -> READY <-> UNHEALTHY        an engine that runs
    READY -> DRAINING -> STOPPED, ASLEEP   off the catalogue, until it has nothing to do
    any that runs -> BACKOFF or FAILED     it ended, or had to be ended; started again when its time has come

BACKOFF is waiting for the next try, after 1, 2, 4 … 60 s. FAILED is the end of a crash loop: it is tried again every
ten minutes only (a disk may be mounted late), and at once when an operator changes or restarts the model.

Times are seconds of a monotonic clock: the host's wall clock may jump.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

ASK_EVERY = 0.5  # seconds between two questions to a starting engine
LOOK_EVERY = 5.0  # seconds between two looks at a ready one
LOOK_OUTSIDE_EVERY = 10.0  # at an external one, which is somebody else's
DRAIN_LOOK_EVERY = 0.5
PUBLISHED_FOR = 2.5  # seconds; longer than one catalogue poll (2 s), so no gateway still routes here
DRAIN_LIMIT = 300.0  # seconds that answers which were begun have left
DRAIN_BAD_LOOKS = 20  # in a row, 10 s at least: who does not even tell its health has nothing to finish
UNWELL_LIMIT = 120.0  # seconds without an answer before an engine that still runs is ended
REFUSALS_LIMIT = 10  # answers "no" of a starting engine: it works, but not as it should
LOOK_AGAIN = 1.0  # seconds after a bad look
BAD_LOOKS_LIMIT = 3  # bad looks with an unanswered question each, before a ready engine goes off the catalogue
FUTILE_STARTS = 5  # starts in a row that never answered, before a replica is called failed
QUICK_CRASHES = 10  # the same for an engine that answers each time and then dies: its trouble may be a passing one
LIVED_WELL = 60.0  # seconds of being ready that make the crashes before forgotten
LONGEST_BACKOFF = 60.0
ROOM_PAUSE = 30.0  # seconds until a model that did not fit is tried again: reading the sum anew costs some 10 ms
ADDRESS_PAUSE = 10.0  # seconds until a missing address of the host is looked for again: it may come with the network
FAILED_PAUSE = 600.0  # a failed replica is tried that rarely: what it needs is an operator


class State(StrEnum):
    """As in `Replica.State`."""

    STARTING = "starting"
    READY = "ready"
    UNHEALTHY = "unhealthy"
    DRAINING = "draining"
    STOPPED = "stopped"
    ASLEEP = "asleep"
    BACKOFF = "backoff"
    FAILED = "failed"


class Key(NamedTuple):
    """A replica: the model's id and the replica's number."""

    model: int
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A replica as operators want it. `idle_after` in seconds, None: never sleeps; `wake_requested`: it was called.

    `address`: where its engine is to listen; empty: wherever it does.
    """

    fingerprint: str
    address: str = ""
    external: bool = False
    enabled: bool = True
    idle_after: float | None = None
    wake_requested: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """A replica as it is. `fingerprint` and `address` are of what it runs or last ran; no address: not known.

    `ended`: its engine is gone although nobody stopped it. `published_at`: since when gateways can know the state,
    None while the database does not. `running` as in `probe.Look`. `active_at`, `told_at`: when it was last known to
    work, and to be able to tell.
    """

    key: Key
    state: State
    fingerprint: str
    since: float
    address: str = ""
    external: bool = False
    ended: bool = False
    published_at: float | None = None
    looked_at: float = 0.0
    told_at: float = 0.0
    bad_looks: int = 0
    refusals: int = 0
    running: int | None = None
    active_at: float = 0.0
    retry_at: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    key: Key


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """Have it do its work once; then it is ready."""

    key: Key


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckHealth:
    """Health and metrics; a question only if they are bad."""

    key: Key


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """Off the catalogue; to be stopped when it has nothing to do, and then in state `then`."""

    key: Key
    then: State


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """End the engine, if there is one."""

    key: Key


@dataclass(frozen=True, slots=True, kw_only=True)
class Fail:
    """It ended by itself or must be ended: clean up, say why, try again later."""

    key: Key
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Remove:
    """Nobody wants it and nothing runs: delete its row."""

    key: Key


Action = Start | Ask | CheckHealth | Drain | Stop | Fail | Remove


def plan_actions(
    wanted: Mapping[Key, Wanted], observed: Iterable[Observed], now: float, *, start_limit: float
) -> list[Action]:
    """At most one action for each replica. `start_limit`: seconds that an engine may take until it answers.

    Replicas whose last action is still being carried out must be left out of both.
    """
    seen = {replica.key: replica for replica in observed}
    actions: list[Action] = []
    for key in sorted(wanted.keys() | seen.keys()):
        action = _next(key, wanted.get(key), seen.get(key), now, start_limit)
        if action:
            actions.append(action)
    return actions


def after_crash(crashes: int, futile: int) -> tuple[State, float]:
    """What a replica is after so many crashes in a row, so many of them without ever answering; seconds to wait."""
    if futile >= FUTILE_STARTS or crashes >= QUICK_CRASHES:
        return State.FAILED, FAILED_PAUSE
    return State.BACKOFF, backoff(crashes)


def backoff(crashes: int) -> float:
    """Return seconds to wait after that many crashes in a row: 1, 2, 4 … 60."""
    return float(min(2.0 ** min(crashes - 1, 10), LONGEST_BACKOFF))


def _next(key: Key, want: Wanted | None, seen: Observed | None, now: float, start_limit: float) -> Action | None:
    if seen is None:
        return Start(key=key) if want and want.enabled else None
    if seen.external:
        return _external(want, seen, now)
    if seen.state in (State.STOPPED, State.ASLEEP, State.BACKOFF, State.FAILED):
        return _resting(want, seen, now)
    if seen.ended:
        # While it drained it was to go anyway.
        return Stop(key=key) if seen.state == State.DRAINING else Fail(key=key, why="")
    if seen.state == State.DRAINING:
        return _draining(seen, now)
    if not _as_wanted(want, seen):
        return Stop(key=key) if seen.state == State.STARTING else Drain(key=key, then=State.STOPPED)
    if seen.state == State.STARTING:
        return _starting(seen, now, start_limit)
    if seen.state == State.UNHEALTHY:
        return _unhealthy(seen, now)
    return _ready(want, seen, now)


def _as_wanted(want: Wanted | None, seen: Observed) -> bool:
    return want is not None and want.enabled and not want.external and not _is_other(want, seen)


def _is_other(want: Wanted, seen: Observed) -> bool:
    """Something else is wanted than what runs, or last ran, or it is wanted elsewhere."""
    moved = want.address != "" and seen.address != "" and want.address != seen.address
    return moved or want.fingerprint != seen.fingerprint


def _starting(seen: Observed, now: float, start_limit: float) -> Action | None:
    if now - seen.since > start_limit:
        return Fail(key=seen.key, why=f"did not answer within {start_limit:g} s of its start")
    if seen.refusals >= REFUSALS_LIMIT:
        return Fail(key=seen.key, why="runs, but does not do its work")
    return Ask(key=seen.key) if now - seen.looked_at >= ASK_EVERY else None


def _ready(want: Wanted | None, seen: Observed, now: float) -> Action | None:
    assert want, "looked at by the caller"
    # Of the time since it last told nothing is known: it may be at work.
    if want.idle_after is not None and not want.wake_requested and seen.told_at - seen.active_at >= want.idle_after:
        return Drain(key=seen.key, then=State.ASLEEP)
    every = LOOK_AGAIN if seen.bad_looks else LOOK_EVERY
    return CheckHealth(key=seen.key) if now - seen.looked_at >= every else None


def _unhealthy(seen: Observed, now: float) -> Action | None:
    if now - seen.since > UNWELL_LIMIT:
        return Fail(key=seen.key, why=f"did not answer for {UNWELL_LIMIT:g} s")
    return Ask(key=seen.key) if now - seen.looked_at >= LOOK_EVERY else None


def _draining(seen: Observed, now: float) -> Action | None:
    known = seen.published_at is not None and now - seen.published_at >= PUBLISHED_FOR
    # A look before that may have been followed by a request.
    looked_since = seen.published_at is not None and seen.looked_at >= seen.published_at + PUBLISHED_FOR
    given_up = now - seen.since > DRAIN_LIMIT or seen.bad_looks >= DRAIN_BAD_LOOKS
    if (known and looked_since and seen.running == 0) or given_up:
        return Stop(key=seen.key)
    return CheckHealth(key=seen.key) if now - seen.looked_at >= DRAIN_LOOK_EVERY else None


def _resting(want: Wanted | None, seen: Observed, now: float) -> Action | None:
    if want is None:
        return Remove(key=seen.key)
    if not want.enabled:
        return None if seen.state == State.STOPPED else Stop(key=seen.key)
    if seen.state == State.ASLEEP:
        return Start(key=seen.key) if want.wake_requested or want.idle_after is None else None
    if seen.state == State.STOPPED or _is_other(want, seen) or now >= seen.retry_at:
        return Start(key=seen.key)
    return None


def _external(want: Wanted | None, seen: Observed, now: float) -> Action | None:
    if want is None:
        return Remove(key=seen.key)
    if not want.enabled:
        return None if seen.state == State.STOPPED else Stop(key=seen.key)
    if want.fingerprint != seen.fingerprint or seen.state == State.STOPPED:
        return Start(key=seen.key)
    return CheckHealth(key=seen.key) if now - seen.looked_at >= LOOK_OUTSIDE_EVERY else None
