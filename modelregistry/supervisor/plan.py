"""What to do next for each replica of this host: a pure function of what is wanted, what is observed, and the time.

    STARTING -> READY <-> UNHEALTHY        an engine that runs
    READY -> DRAINING -> STOPPED, ASLEEP   off the catalogue, until it has nothing to do
    ASLEEP -> STARTING                     called: started, or woken if its engine lives (`Observed.sleeping`)
    any that runs -> BACKOFF or FAILED     it crashed, or had to be stopped; started again when its time has come

BACKOFF waits for the next try, after 1, 2, 4 … 60 s. FAILED ends a crash loop: the replica is tried again every ten
minutes only (a disk may be mounted late), and at once when an operator changes or restarts the model.

Times are seconds of a monotonic clock: the host's wall clock may jump.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from modelregistry.hostside.replicas import ReplicaKey

ASK_EVERY = 0.5  # seconds between two questions to a starting engine
CHECK_EVERY = 5.0  # seconds between two health checks of a ready one
CHECK_EXTERNAL_EVERY = 10.0  # of an external one, which others pay for
DRAIN_CHECK_EVERY = 0.5
PUBLISHED_FOR = 2.5  # seconds; longer than one catalogue poll (2 s), so no gateway still routes here
DRAIN_LIMIT = 300.0  # seconds for answers that have begun
UNPUBLISHED_LIMIT = 10.0  # seconds for gateways to see that a replica gives its place to another, or it stays
DRAIN_FAILED_CHECKS = 20  # in a row, 10 s at least: an engine that does not even report its health finishes nothing
UNHEALTHY_LIMIT = 120.0  # seconds without an answer before an engine that still runs is stopped
REFUSALS_LIMIT = 10  # of a starting engine: it answers, but not as it should
CHECK_AGAIN = 1.0  # seconds after a failed check
FAILED_CHECKS_LIMIT = 3  # each with an unanswered question, before a ready engine goes off the catalogue
# Of one over several hosts of which one is silent, calls may hang: the first unanswered question takes it off the
# catalogue, which costs little as it is put back by its next answer; so many end it, and it has to load again.
RANK_CHECKS_LIMIT = 2
FUTILE_STARTS = 5  # starts in a row that never answered, before a replica is called failed
QUICK_CRASHES = 10  # the same for an engine that answers each time and then dies: the cause may be temporary
LIVED_WELL = 60.0  # seconds of being ready after which earlier crashes no longer count
LONGEST_BACKOFF = 60.0
ROOM_PAUSE = 30.0  # seconds until a model that did not fit is tried again: adding up the memory again costs some 10 ms
ADDRESS_PAUSE = 10.0  # seconds until a missing address of the host is looked for again: it may come with the network
FAILED_PAUSE = 600.0  # so rarely, as a failed replica needs an operator


class ReplicaState(StrEnum):
    """As in `Replica.State`."""

    STARTING = "starting"
    READY = "ready"
    UNHEALTHY = "unhealthy"
    DRAINING = "draining"
    JOINED = "joined"  # of a rank that does not serve itself: its rank 0 is ready
    STOPPED = "stopped"
    ASLEEP = "asleep"
    BACKOFF = "backoff"
    FAILED = "failed"


WITHOUT_ENGINE = (ReplicaState.STOPPED, ReplicaState.ASLEEP, ReplicaState.BACKOFF, ReplicaState.FAILED)


class Lead(StrEnum):
    """What becomes of rank 0 of the start in which another rank takes part."""

    SERVES = "serves"  # or will
    LEAVES = "leaves"  # it is to stop
    FAILED = "failed"
    GONE = "gone"  # it has stopped, or is lost
    UNKNOWN = "unknown"  # its host is silent, or was not looked at yet


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A replica as operators want it. `idle_after` in seconds, None: never sleeps; `wake_requested`: it was called.

    `address`: where its engine is to listen; empty: wherever it does. `rank`: of those of a replica over several hosts;
    one other than 0 starts only when it is `called_up`.
    """

    fingerprint: str
    address: str = ""
    external: bool = False
    enabled: bool = True
    idle_after: float | None = None
    wake_requested: bool = False
    rank: int = 0
    called_up: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """A replica as it is. `fingerprint` and `address` are of what it runs or last ran; no address: not known.

    `ended`: its engine is gone although it was not stopped. `published_at`: since when gateways can know the state,
    None while the database does not. `running` as in `probe.HealthCheck`. `active_at`: when it was last known to work
    on requests; `reported_at`: when it last reported whether it does. `drain_limit`: seconds for answers that have
    begun. `for_room`: it is drained for another model. `without_room`: it waits until there is room for it.
    `may_sleep`: after its drain its engine can live on asleep; `sleeping`: it does. `unreachable`: its host is silent,
    so nothing can be done there, and nothing is known of its processes; its engine may answer all the same.

    Of a replica over several hosts: `rank`; of rank 0, `broken`: why it cannot go on without the others, and
    `doubtful`: whether it has to prove that they are there; of another one, `engine`: whether it has one, and `lead`.
    """

    key: ReplicaKey
    state: ReplicaState
    fingerprint: str
    since: float
    address: str = ""
    external: bool = False
    ended: bool = False
    published_at: float | None = None
    checked_at: float = 0.0
    reported_at: float = 0.0
    failed_checks: int = 0
    refusals: int = 0
    running: int | None = None
    active_at: float = 0.0
    retry_at: float = 0.0
    drain_limit: float = DRAIN_LIMIT
    for_room: bool = False
    without_room: bool = False
    may_sleep: bool = False
    sleeping: bool = False
    unreachable: bool = False
    rank: int = 0
    broken: str = ""
    doubtful: bool = False
    engine: bool = False
    lead: Lead = Lead.UNKNOWN


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    key: ReplicaKey


@dataclass(frozen=True, slots=True, kw_only=True)
class AskQuestion:
    """Have it answer one request; then it is ready."""

    key: ReplicaKey


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckHealth:
    """Health and metrics; a question only if they are bad."""

    key: ReplicaKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """Take it off the catalogue; stop it when no requests run, and then enter `next_state`."""

    key: ReplicaKey
    next_state: ReplicaState


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """Have it serve on: no gateway has seen that it was to leave."""

    key: ReplicaKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Sleep:
    """Put its engine to sleep; one that does not sleep is stopped."""

    key: ReplicaKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Wake:
    """Wake its engine and have it prove itself; one that fails to is stopped and started again."""

    key: ReplicaKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Stop the engine, if there is one."""

    key: ReplicaKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Fail:
    """Clean up an engine that crashed or must be stopped; "" as the reason: it ended by itself. Retry later.

    `cause`: a code of `failure_advice`, if it is known without the engine's log.
    """

    key: ReplicaKey
    reason: str
    cause: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Remove:
    """Delete the row of a replica that is not wanted and does not run."""

    key: ReplicaKey


Action = Start | AskQuestion | CheckHealth | Drain | Resume | Sleep | Wake | Stop | Fail | Remove


def plan_actions(
    wanted: Mapping[ReplicaKey, Wanted], observed: Iterable[Observed], now: float, *, start_limit: float
) -> list[Action]:
    """Return at most one action for each replica. `start_limit`: seconds that an engine may take until it answers.

    Leave replicas whose last action is still being carried out out of both arguments.
    """
    seen = {replica.key: replica for replica in observed}
    actions: list[Action] = []
    for key in sorted(wanted.keys() | seen.keys()):
        action = _plan(key, wanted.get(key), seen.get(key), now, start_limit)
        if action:
            actions.append(action)
    return actions


def after_crash(crashes: int, futile: int) -> tuple[ReplicaState, float]:
    """Return the state after so many crashes in a row, and the seconds to wait.

    `futile`: how many of the starts never answered.
    """
    if futile >= FUTILE_STARTS or crashes >= QUICK_CRASHES:
        return ReplicaState.FAILED, FAILED_PAUSE
    return ReplicaState.BACKOFF, backoff(crashes)


def backoff(crashes: int) -> float:
    """Return the seconds to wait after so many crashes in a row: 1, 2, 4 … 60."""
    return float(min(2.0 ** min(crashes - 1, 10), LONGEST_BACKOFF))


def _plan(key: ReplicaKey, want: Wanted | None, seen: Observed | None, now: float, start_limit: float) -> Action | None:
    if seen is None:
        starts = want is not None and want.enabled and (want.rank == 0 or want.called_up)
        return Start(key=key) if starts else None
    if seen.external:
        return _plan_external(want, seen, now)
    if _is_rank(want, seen):
        return None if seen.unreachable else _plan_rank(want, seen)
    if seen.unreachable:
        return _plan_unreachable(want, seen, now)
    if seen.sleeping:
        return _plan_sleeping(want, seen, now)
    if seen.state in WITHOUT_ENGINE:
        return _plan_without_engine(want, seen, now)
    if seen.state == ReplicaState.DRAINING:
        return _plan_draining(want, seen, now)
    return _plan_serving(want, seen, now, start_limit)


def _is_rank(want: Wanted | None, seen: Observed) -> bool:
    """Return whether it is planned as a rank other than 0: as it runs, and without an engine as it is to start."""
    rank = seen.rank if seen.engine or want is None else want.rank
    return rank > 0


def _plan_unreachable(want: Wanted | None, seen: Observed, now: float) -> Action | None:
    """Plan what needs only the engine itself: it is asked, and taken off the catalogue. Nothing starts or stops."""
    serves = seen.state in (ReplicaState.READY, ReplicaState.UNHEALTHY)
    if serves and not seen.sleeping and (want is None or not _is_as_wanted(want, seen)):
        return Drain(key=seen.key, next_state=ReplicaState.STOPPED)
    action: Action
    match seen.state:
        case ReplicaState.STARTING:
            due, action = ASK_EVERY, AskQuestion(key=seen.key)
        case ReplicaState.UNHEALTHY:
            due, action = CHECK_EVERY, AskQuestion(key=seen.key)
        case ReplicaState.READY:
            due, action = CHECK_AGAIN, CheckHealth(key=seen.key)
        case ReplicaState.DRAINING:
            due, action = DRAIN_CHECK_EVERY, CheckHealth(key=seen.key)
        case _:
            return None
    return action if now - seen.checked_at >= due else None


def _plan_rank(want: Wanted | None, seen: Observed) -> Action | None:
    """Plan a rank that does not serve: it starts, and stops, when its rank 0 does."""
    if not seen.engine:
        return _plan_rank_without_engine(want, seen)
    if seen.ended:
        # What was to stop may have ended by itself when its rank 0 did.
        return Stop(key=seen.key) if seen.lead in (Lead.LEAVES, Lead.GONE) else Fail(key=seen.key, reason="")
    if seen.lead in (Lead.GONE, Lead.FAILED):
        return Stop(key=seen.key)
    lost = seen.lead == Lead.UNKNOWN and (want is None or not _is_as_wanted(want, seen))
    return Stop(key=seen.key) if lost else None


def _plan_rank_without_engine(want: Wanted | None, seen: Observed) -> Action | None:
    if want is None:
        return Remove(key=seen.key)
    if not want.enabled:
        return None if seen.state == ReplicaState.STOPPED else Stop(key=seen.key)
    return Start(key=seen.key) if want.called_up else None


def _plan_serving(want: Wanted | None, seen: Observed, now: float, start_limit: float) -> Action | None:
    if seen.ended or seen.broken:
        return Fail(key=seen.key, reason="" if seen.ended else seen.broken, cause="gang-broken" if seen.broken else "")
    if want is None or not _is_as_wanted(want, seen):
        # The answers of one that has lost a rank's host, and was asked, would never end: a drain would last its limit.
        hangs = seen.state == ReplicaState.UNHEALTHY and seen.doubtful
        return (
            Stop(key=seen.key)
            if seen.state == ReplicaState.STARTING or hangs
            else Drain(key=seen.key, next_state=ReplicaState.STOPPED)
        )
    if seen.state == ReplicaState.STARTING:
        return _plan_starting(seen, now, start_limit)
    if seen.state == ReplicaState.UNHEALTHY:
        return _plan_unhealthy(seen, now)
    return _plan_ready(want, seen, now)


def _is_as_wanted(want: Wanted, seen: Observed) -> bool:
    return want.enabled and not want.external and not _differs(want, seen)


def _differs(want: Wanted, seen: Observed) -> bool:
    """Return whether what is wanted, or its address, differs from what runs or last ran."""
    moved = want.address != "" and seen.address != "" and want.address != seen.address
    return moved or want.fingerprint != seen.fingerprint


def _plan_starting(seen: Observed, now: float, start_limit: float) -> Action | None:
    if now - seen.since > start_limit:
        reason = f"did not answer within {start_limit:g} s of its start"
        return Fail(key=seen.key, reason=reason, cause="too-slow")
    if seen.refusals >= REFUSALS_LIMIT:
        return Fail(key=seen.key, reason="runs, but does not do its work")
    return AskQuestion(key=seen.key) if now - seen.checked_at >= ASK_EVERY else None


def _plan_ready(want: Wanted, seen: Observed, now: float) -> Action | None:
    # Nothing is known of the time since its last report: it may be working.
    if want.idle_after is not None and not want.wake_requested and seen.reported_at - seen.active_at >= want.idle_after:
        return Drain(key=seen.key, next_state=ReplicaState.ASLEEP)
    every = CHECK_AGAIN if seen.failed_checks or seen.doubtful else CHECK_EVERY
    return CheckHealth(key=seen.key) if now - seen.checked_at >= every else None


def _plan_unhealthy(seen: Observed, now: float) -> Action | None:
    if now - seen.since > UNHEALTHY_LIMIT:
        return Fail(key=seen.key, reason=f"did not answer for {UNHEALTHY_LIMIT:g} s")
    every = CHECK_AGAIN if seen.doubtful else CHECK_EVERY
    return AskQuestion(key=seen.key) if now - seen.checked_at >= every else None


def _plan_draining(want: Wanted | None, seen: Observed, now: float) -> Action | None:
    if seen.ended or seen.broken:
        return Stop(key=seen.key)  # it was to stop anyway
    unseen = seen.published_at is None and now - seen.since > UNPUBLISHED_LIMIT
    if unseen and seen.for_room and want is not None and _is_as_wanted(want, seen):
        return Resume(key=seen.key)  # without the database: its callers would be cut off at the limit
    known = seen.published_at is not None and now - seen.published_at >= PUBLISHED_FOR
    # An earlier check may have been followed by a request.
    checked_since = seen.published_at is not None and seen.checked_at >= seen.published_at + PUBLISHED_FOR
    given_up = now - seen.since > seen.drain_limit or seen.failed_checks >= DRAIN_FAILED_CHECKS
    if (known and checked_since and seen.running == 0) or given_up:
        well = seen.failed_checks < DRAIN_FAILED_CHECKS
        return Sleep(key=seen.key) if seen.may_sleep and well else Stop(key=seen.key)
    return CheckHealth(key=seen.key) if now - seen.checked_at >= DRAIN_CHECK_EVERY else None


def _plan_sleeping(want: Wanted | None, seen: Observed, now: float) -> Action | None:
    if seen.ended or want is None or not _is_as_wanted(want, seen):
        return Stop(key=seen.key)  # it is started when it is called, as if it had been stopped before
    called = not seen.without_room and (want.wake_requested or want.idle_after is None)
    return Wake(key=seen.key) if called and now >= seen.retry_at else None


def _plan_without_engine(want: Wanted | None, seen: Observed, now: float) -> Action | None:
    if want is None:
        return Remove(key=seen.key)
    if not want.enabled:
        return None if seen.state == ReplicaState.STOPPED else Stop(key=seen.key)
    if seen.state == ReplicaState.ASLEEP:
        if seen.without_room and not _differs(want, seen):
            return None
        called = want.wake_requested or want.idle_after is None
        return Start(key=seen.key) if called and (now >= seen.retry_at or _differs(want, seen)) else None
    if seen.state == ReplicaState.STOPPED or _differs(want, seen) or now >= seen.retry_at:
        return Start(key=seen.key)
    return None


def _plan_external(want: Wanted | None, seen: Observed, now: float) -> Action | None:
    if want is None:
        return Remove(key=seen.key)
    if not want.enabled:
        return None if seen.state == ReplicaState.STOPPED else Stop(key=seen.key)
    if want.fingerprint != seen.fingerprint or seen.state == ReplicaState.STOPPED:
        return Start(key=seen.key)
    return CheckHealth(key=seen.key) if now - seen.checked_at >= CHECK_EXTERNAL_EVERY else None
