"""Which ready models give their place to one that callers wait for: a pure function of who holds and who needs memory.

A model that does not fit is given the place of others, by these rules:

- Only a replica that is ready is unloaded, never one that loads or stops, and never one that is kept: pinned by an
  operator, within its hours, or of a model that callers wait for as well.
- All of it happens on one set of devices, the one where it costs least. What is chosen is enough, and no part of it
  would be. Idle ones go before those with running answers; then those whose loss costs least, by `cost_of`; then the
  one that was used longest ago.
- A replica stays for as long as its own load took (MIN_STAY at least), so that no more than half of the time is spent
  loading. One that works stays for BUSY_LOADS times as long, and while the calls for the other have waited for less
  than its reload would take: what its own callers wait for is done first, and one caller who always waits for another
  model leaves a busy one most of the time that is not spent loading.
- After PATIENCE an idle one stays for SURE_STAY at most, and one that works for BUSY_STAY at most, in which those who
  waited for it are served together: so no call waits for ever, and no model is loaded for nothing. The model that has
  been waited for longest is decided first, and what was chosen for it is not given to another.
- A model for which only calls of batches wait takes the place of replicas that have been idle for BATCH_IDLE, after
  BATCH_PATIENCE for USED_LATELY, and never of one that works. What others wait for is decided before. So people keep
  what they use, and a batch gets its model when they pause.

Times are seconds of a monotonic clock, sizes bytes.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations

from modelregistry.hostside.replicas import ReplicaKey
from modelregistry.memory.placement import Space

MIN_STAY = 10.0  # seconds; two health checks, without which it is not known whether a replica works
# Seconds for which calls wait before a replica that has just been loaded, or works, is unloaded for them. With a drain
# of DRAIN_LIMIT this is below the 240 s that a call waits (`apiproxy.dataplane.scheduler.MAX_WAIT`).
PATIENCE = 60.0
SURE_STAY = 30.0  # seconds; a replica whose load took less stays for as long as that
# Beside a caller who asks for another model again and again, the one that all others use serves for half of the time
# then if both load in 10 or 30 s, and for a quarter if they load in 90. Not more: after BUSY_STAY a drain, which takes
# DRAIN_LIMIT at most, and a load of 30 s must end within the 240 s that a call waits.
BUSY_LOADS, BUSY_STAY = 4, 90.0
# Seconds without a request. People read an answer for a minute before they go on; by a pause of five they have gone.
BATCH_IDLE, USED_LATELY = 300.0, 60.0
BATCH_PATIENCE = 120.0  # leaves the other half of the 240 s for the load
DRAIN_LIMIT = 120.0  # seconds for answers that have begun; most take less than one minute
# So many replicas on one set of devices are combined in all ways (1,024); of more, the dearest are left out one by one.
MOST_COMBINED = 10


class Standing(StrEnum):
    """What can become of a replica's memory."""

    READY = "ready"
    LEAVING = "leaving"  # it is free soon
    FIXED = "fixed"  # it loads, or is not well


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldShare:
    """A replica that holds memory."""

    key: ReplicaKey
    held: Mapping[int, int]  # by device: what would be free without it
    standing: Standing = Standing.READY
    kept: bool = False  # it may not be unloaded for others
    ready_at: float = 0.0
    active_at: float = 0.0  # when it was last known to work on requests
    busy: bool = False
    reload_seconds: float = 0.0  # what its next load will take
    calls_per_hour: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RoomDemand:
    """A replica that does not fit. `spaces`: where it could go; one of them is enough.

    `since`: when callers began to wait for it; None: none do, so it takes what is free and nothing of others.
    `batch`: these are calls of batches only.
    """

    key: ReplicaKey
    spaces: Sequence[Space]
    since: float | None
    batch: bool = False


class RoomOutcome(StrEnum):
    """What is decided about a demand."""

    FITS = "fits"  # there is room now
    COMING = "coming"  # those that leave already make enough room
    EVICT = "evict"
    LATER = "later"  # those in its place are protected for a while
    NEVER = "never"  # all that could be unloaded would not be enough


@dataclass(frozen=True, slots=True, kw_only=True)
class RoomDecision:
    """`victims`: those to unload; none unless the outcome is EVICT. `cost`: of their loss, see `cost_of`."""

    demand: RoomDemand
    outcome: RoomOutcome
    victims: tuple[ReplicaKey, ...] = ()
    cost: float = 0.0


def cost_of(share: HeldShare) -> float:
    """Return the seconds per hour that its callers would wait if it were unloaded after each of their calls."""
    return share.calls_per_hour * share.reload_seconds


def evict(
    shares: Iterable[HeldShare], demands: Iterable[RoomDemand], now: float, *, free: Mapping[int, int]
) -> list[RoomDecision]:
    """Decide about each demand, those of batches last, the longest-waiting first.

    `free`: by device, negative where too much is promised.
    """
    everyone = sorted(shares, key=lambda one: one.key)
    queue = sorted(demands, key=lambda one: (one.since is None, one.batch, one.since or 0.0, one.key))
    called = {one.key.model for one in queue if one.since is not None}
    ledger = _Ledger(free, everyone)
    decisions = []
    for demand in queue:
        decision = _decide(demand, everyone, called | {demand.key.model}, now, ledger)
        ledger.chosen.update(decision.victims)
        decisions.append(decision)
    return decisions


class _Ledger:
    """What is free now, and what will be when all have left who are to; less what was given to earlier demands.

    `alone`: the latter for a demand that had no others before it.
    """

    def __init__(self, free: Mapping[int, int], shares: Iterable[HeldShare]) -> None:
        self.now = dict(free)
        self.soon = dict(free)
        self.chosen: set[ReplicaKey] = set()
        for share in shares:
            if share.standing is Standing.LEAVING:
                self.add(share)
        self.alone = dict(self.soon)

    def add(self, share: HeldShare) -> None:
        for device, size in share.held.items():
            if device in self.soon:
                self.soon[device] += size

    def claim(self, space: Space) -> None:
        for device, size in space.needs.items():
            self.now[device] = self.now.get(device, 0) - size
            self.soon[device] = self.soon.get(device, 0) - size


def _decide(
    demand: RoomDemand, shares: Sequence[HeldShare], called: Collection[int], now: float, ledger: _Ledger
) -> RoomDecision:
    for outcome, free in ((RoomOutcome.FITS, ledger.now), (RoomOutcome.COMING, ledger.soon)):
        for space in demand.spaces:
            if not _lacking(space, free):
                ledger.claim(space)
                return RoomDecision(demand=demand, outcome=outcome)
    left = [one for one in shares if one.key not in ledger.chosen]
    may_leave = [one for one in left if _may_leave(one, demand, called, now)]
    found = [
        (_rank(some), number, some)
        for number, space in enumerate(demand.spaces)
        if (some := _cheapest(space, may_leave, ledger.soon))
    ]
    if found:
        _, number, some = min(found)
        for share in some:
            ledger.add(share)
        ledger.claim(demand.spaces[number])
        victims = tuple(share.key for share in some)
        return RoomDecision(demand=demand, outcome=RoomOutcome.EVICT, victims=victims, cost=sum(map(cost_of, some)))
    # Those that leave already are counted in the ledger.
    all_of_them = [
        one
        for one in shares
        if not one.kept and one.standing is not Standing.LEAVING and one.key.model != demand.key.model
    ]
    possible = any(_is_enough(space, all_of_them, ledger.alone) for space in demand.spaces)
    return RoomDecision(demand=demand, outcome=RoomOutcome.LATER if possible else RoomOutcome.NEVER)


def _may_leave(share: HeldShare, demand: RoomDemand, called: Collection[int], now: float) -> bool:
    if demand.since is None or share.kept or share.standing is not Standing.READY or share.key.model in called:
        return False
    waited, stayed = now - demand.since, now - share.ready_at
    if demand.batch:
        idle = min(stayed, now - share.active_at)
        return not share.busy and idle >= (USED_LATELY if waited >= BATCH_PATIENCE else BATCH_IDLE)
    if share.busy:
        stay = min(max(BUSY_LOADS * share.reload_seconds, MIN_STAY), BUSY_STAY)
        return stayed >= stay and waited >= min(share.reload_seconds, PATIENCE)
    stay = max(share.reload_seconds, MIN_STAY)
    return stayed >= (min(stay, SURE_STAY) if waited >= PATIENCE else stay)


def _rank(some: Sequence[HeldShare]) -> tuple[object, ...]:
    """Return what orders sets of replicas to unload: the least is the best, and no set is better than its part."""
    return (
        sum(one.busy for one in some),
        sum(map(cost_of, some)),
        max(one.active_at for one in some),
        len(some),
        sum(sum(one.held.values()) for one in some),
        tuple(one.key for one in some),
    )


def _cheapest(space: Space, shares: Sequence[HeldShare], free: Mapping[int, int]) -> tuple[HeldShare, ...]:
    """Return the cheapest of these without which the space has room; () if there are not enough."""
    lacking = _lacking(space, free)
    helpful = [one for one in shares if any(one.held.get(device) for device in lacking)]
    if not _is_enough(space, helpful, free):
        return ()
    if len(helpful) > MOST_COMBINED:
        return _leave_out(space, helpful, free)
    enough = [
        some
        for count in range(1, len(helpful) + 1)
        for some in combinations(helpful, count)
        if _is_enough(space, some, free)
    ]
    return min(enough, key=_rank)


def _leave_out(space: Space, shares: Sequence[HeldShare], free: Mapping[int, int]) -> tuple[HeldShare, ...]:
    some = sorted(shares, key=lambda one: _rank([one]), reverse=True)
    for share in list(some):
        rest = [one for one in some if one is not share]
        if _is_enough(space, rest, free):
            some = rest
    return tuple(some)


def _lacking(space: Space, free: Mapping[int, int]) -> dict[int, int]:
    """Return the bytes that the space lacks, by device. A device that cannot be read now has none."""
    short = {device: size - free.get(device, 0) for device, size in space.needs.items()}
    return {device: size for device, size in short.items() if size > 0}


def _is_enough(space: Space, gone: Collection[HeldShare], free: Mapping[int, int]) -> bool:
    lacking = _lacking(space, free)
    return all(
        device in free and size <= sum(share.held.get(device, 0) for share in gone) for device, size in lacking.items()
    )
