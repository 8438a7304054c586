"""Hard limits: reserve before a call goes out, settle when it has ended.

`Limits` counts in this process, for one worker; `redis` counts in Redis, for several, by the same rules.
`UsageRecord` is the truth behind both: a counter that is new, or whose window may hold usage that it has not seen (a
clock was set), asks `spent` before it admits a call.
"""

import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, Protocol
from zoneinfo import ZoneInfo

from apiproxy.dataplane.catalogue import Counter, Limit
from apiproxy.dataplane.errors import OverQuota, OverRate, Refusal
from apiproxy.dataplane.limits.units import Consumption, HeaderNames, Unit

Bounds = Callable[[str, float, ZoneInfo], tuple[float, float]]
Headers = list[tuple[bytes, bytes]]
ENDLESS = (0.0, math.inf)  # the window of calls at the same time


@dataclass(frozen=True, slots=True)
class Spending:
    """What was used of a limit since its window began, and when the last of it did (Unix seconds; 0: nothing).

    `read_at`: the event loop's time before the records were read; None: just now.
    """

    used: int
    newest: float
    read_at: float | None = None


# What is recorded of this limit in the window that holds this moment; None: that is unknown now. It makes sure that
# asking again and again costs little, whether or not there is an answer.
Spent = Callable[[Limit, float], Awaitable[Spending | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counting:
    """How the counting goes, for /metrics."""

    local_fallback: bool = False  # this worker counts for itself although there are others, because Redis is away
    unsent: int = 0  # settlements that Redis has not confirmed
    admitted_locally: int = 0  # calls, so far


class Reservation(Protocol):
    """Settle or release it once; later calls do nothing."""

    def settle(self, used: Consumption) -> None:
        """Replace what was reserved by what the call used."""

    def release(self) -> None:
        """Give back what was reserved: the call has reached no engine, so nothing was used."""

    def headers(self, now: float) -> Headers:
        """Return OpenAI's rate headers: for each unit those of the limit of which least is left."""


class Admission(Protocol):
    async def admit(self, limits: Sequence[Limit], model: int, most: Consumption, now: float) -> Reservation:
        """Reserve the `most` that a call may use under every limit that applies to this model, or under none.

        Raises OverRate or OverQuota: for the one that lasts longest of the limits that are used up, or at once for what
        calls under way hold.
        """

    @property
    def counting(self) -> Counting: ...


class CounterState:
    """What one counter holds in its current window.

    `high`: the latest window that it has been in; any later one is empty. `floor`: what was spent when the process
    began to count alone. `unseeded`: there may be usage that is not in `used`.
    """

    __slots__ = ("begin", "end", "floor", "high", "reserved", "unseeded", "used")

    def __init__(self, begin: float, end: float, *, high: float, unseeded: bool) -> None:
        self.begin, self.end = begin, end
        self.high = max(begin, high)
        self.unseeded = unseeded
        self.used = 0
        self.reserved = 0
        self.floor = 0


class ApplicableLimits:
    """Limits that apply to a call, with their counters, and by unit what is done with these for every call."""

    __slots__ = ("begin", "end", "limits", "share", "source", "states", "to_reserve", "to_settle", "to_show")

    def __init__(
        self, source: Sequence[Limit], limits: Sequence[Limit], states: Sequence[CounterState], share: int = 1
    ) -> None:
        """`source`: what `limits` were chosen from. Valid from `begin` to `end`, while no counter's window changes."""
        self.source = source
        self.limits, self.states = limits, states
        self.share = share
        self.begin = max((state.begin for state in states), default=0.0)
        self.end = min((state.end for state in states), default=math.inf)
        by_unit: dict[Unit, list[tuple[int, CounterState]]] = {}
        for limit, state in zip(limits, states, strict=True):
            by_unit.setdefault(limit.counter.unit, []).append((limit.amount, state))
        # With a unit's index and not its methods: calling them takes a tenth of the time of an admission.
        self.to_reserve = [(unit.index, counters) for unit, counters in by_unit.items()]
        self.to_settle = [
            (unit.index, unit.while_running, [state for _, state in counters]) for unit, counters in by_unit.items()
        ]
        self.to_show = [(unit.headers, counters) for unit, counters in by_unit.items() if unit.headers is not None]


class HeldReservation:
    """A reservation in this process."""

    __slots__ = ("_most", "_plan")

    def __init__(self, plan: ApplicableLimits, most: Consumption) -> None:
        """`most`: what has been reserved."""
        self._plan = plan
        self._most: Consumption | None = most  # None: settled or released

    def settle(self, used: Consumption) -> None:
        most, self._most = self._most, None
        if most is None:
            return
        for index, while_running, states in self._plan.to_settle:
            reserved, amount = most[index], 0 if while_running else used[index]
            for state in states:
                state.reserved -= reserved
                state.used += amount

    def release(self) -> None:
        most, self._most = self._most, None
        if most is None:
            return
        for index, _, states in self._plan.to_settle:
            for state in states:
                state.reserved -= most[index]

    def headers(self, now: float) -> Headers:
        plan = self._plan
        rows: Headers = []
        for names, counters in plan.to_show:
            rows += tightest(names, counters, plan.share, now)
        return rows


@dataclass(frozen=True, slots=True)
class ReachedLimit:
    """A limit under which a call does not fit. `unused`: before what calls under way have `reserved` is subtracted."""

    limit: Limit
    end: float  # of its window
    unused: int
    reserved: int

    @property
    def is_held(self) -> bool:
        """Whether only what calls under way may use is in the way: most of them use less, and the rest is free again.

        What a unit counts exactly, such as requests, is as good as used when it is reserved.
        """
        return self.limit.counter.unit.bounds_answer and self.unused > 0


# Plans that are remembered: one takes 600 bytes and saves a call 10 µs.
PLANS = 20_000


class Limits:
    """`bounds(window, now, zone)` gives the begin and end of a calendar window, all in Unix seconds.

    Without `spent` every counter begins at zero. `share`: as many workers divide what is left of each limit, because
    none of them knows what the others let through.
    """

    def __init__(self, bounds: Bounds, spent: Spent | None = None, *, share: int = 1) -> None:
        self._bounds = bounds
        self._spent = spent
        self._share = share
        self._states: dict[Counter, CounterState] = {}
        self._plans: dict[tuple[int, int], ApplicableLimits] = {}  # by the limits' identity and the model
        self._latest = 0.0

    async def admit(self, limits: Sequence[Limit], model: int, most: Consumption, now: float) -> HeldReservation:
        plan = self._plans.get((id(limits), model))
        if plan is None or plan.source is not limits or not plan.begin <= now < plan.end or now < self._latest:
            plan = await self._make_plan(limits, model, now)
        # From here on there is no `await`: a check and its reservation cannot be torn apart.
        self._latest = now
        # Each limit is checked and reserved in one go, as `fits` says but without its calls: a key may have a dozen.
        reached = self._share != 1 and bool(self._find_reached(plan, most))
        for index, counters in plan.to_reserve:
            wanted = most[index]
            for amount, state in counters:
                used, reserved = state.used, state.reserved
                if wanted and used + reserved + wanted > amount and (reserved or used >= amount):
                    reached = True
                state.reserved = reserved + wanted
        reservation = HeldReservation(plan, most)
        if reached:
            reservation.release()
            raise refusal(self._find_reached(plan, most), now)
        return reservation

    def _find_reached(self, plan: ApplicableLimits, most: Consumption) -> list[ReachedLimit]:
        """Return the limits under which the call does not fit."""
        return [
            ReachedLimit(limit, state.end, allowed - state.used, state.reserved)
            for limit, state in zip(plan.limits, plan.states, strict=True)
            for allowed in (allowance(limit.amount, state, self._share),)
            if not fits(limit.counter.unit.reserve(most), allowed, state)
        ]

    async def _make_plan(self, limits: Sequence[Limit], model: int, now: float) -> ApplicableLimits:
        if now < self._latest or len(self._plans) >= PLANS:  # a clock that is set back gives states other windows
            self._plans.clear()
        mine = applicable_limits(limits, model)
        states = [self._current_state(limit, now) for limit in mine]
        for limit, state in zip(mine, states, strict=True):
            if state.unseeded:
                await self._seed_from_records(limit, state, now)
        plan = ApplicableLimits(limits, mine, states, self._share)
        # A list was made for this call only (`redis`, counting alone).
        if isinstance(limits, tuple) and not any(state.unseeded for state in states):
            self._plans[id(limits), model] = plan
        return plan

    @property
    def counting(self) -> Counting:
        return Counting()

    def seed_again(self) -> None:
        """Have every counter look at what is recorded once more: another process has recorded what it let through."""
        self._plans.clear()
        for state in self._states.values():
            state.unseeded = self._spent is not None and state.end != math.inf

    def adopt(self, limit: Limit, begin: float, used: int) -> CounterState:
        """Return the counter of this limit.

        A new one goes on from what is known to be used since `begin`, without asking `spent`.
        """
        state = self._states.get(limit.counter)
        if state is None:
            window = limit.counter.window
            end = self._bounds(window, begin, limit.zone)[1] if window else math.inf
            state = self._states[limit.counter] = CounterState(begin, end, high=begin, unseeded=False)
            state.used = state.floor = used
        return state

    async def _seed_from_records(self, limit: Limit, state: CounterState, now: float) -> None:
        """Count what is recorded, if that is known: else the counter stays unseeded and the next call asks again."""
        assert self._spent is not None
        spending = await self._spent(limit, now)
        if spending is None or not state.unseeded:
            return
        state.unseeded = False
        # Not added: what was counted here is recorded as well.
        state.used = state.floor = max(state.used, spending.used)
        if spending.newest >= state.end:
            state.high = max(state.high, self._bounds(limit.counter.window, spending.newest, limit.zone)[0])

    def _current_state(self, limit: Limit, now: float) -> CounterState:
        counter = limit.counter
        state = self._states.get(counter)
        if state is not None and state.begin <= now < state.end:
            return state
        begin, end = self._bounds(counter.window, now, limit.zone) if counter.window else ENDLESS
        if state is None:
            state = CounterState(begin, end, high=begin, unseeded=self._spent is not None and counter.window != "")
            self._states[counter] = state
        elif now >= state.end:  # a window that the clock has been in before may hold usage
            unseeded = self._spent is not None and begin <= state.high
            state = self._states[counter] = CounterState(begin, end, high=state.high, unseeded=unseeded)
        else:  # the clock was set back: what was counted stays, and returns when this window ends
            state.begin, state.end = begin, end
            state.unseeded = self._spent is not None
        return state


def applicable_limits(limits: Sequence[Limit], model: int) -> list[Limit]:
    """Return the limits that apply to calls of this model: of several with one counter the lowest.

    A call is counted once by each counter; the others cannot be reached before it.
    """
    lowest: dict[Counter, Limit] = {}
    for limit in limits:
        counter = limit.counter
        if counter.model is not None and counter.model != model:
            continue
        known = lowest.get(counter)
        if known is None or limit.amount < known.amount:
            lowest[counter] = limit
    return list(lowest.values())


def fits(wanted: int, amount: int, state: CounterState) -> bool:
    left = amount - state.used - state.reserved
    # What is wanted is the most that a call could use. A caller with something left may make a call that is larger
    # than it while no other is under way; otherwise the last part of every quota could never be used.
    # A call that uses nothing of the unit is not refused for those that used it up.
    return not wanted or wanted <= left or (state.reserved == 0 and left > 0)


def allowance(amount: int, state: CounterState, share: int) -> int:
    """Return up to what this process may let a counter of this limit grow."""
    if share == 1 or state.floor >= amount:
        return amount
    return state.floor - (state.floor - amount) // share  # rounded up: of 1 each worker may have 1, not 0


def tightest(names: HeaderNames, counters: Sequence[tuple[int, CounterState]], share: int, now: float) -> Headers:
    """Return OpenAI's rate headers for the limit of which least is left."""
    limit, end, least = 0, 0.0, None
    for amount, state in counters:
        left = (amount if share == 1 else allowance(amount, state, share)) - state.used - state.reserved
        if least is None or left < least:
            limit, end, least = amount, state.end, left
    return encoded_headers(names, limit, least or 0, end - now)


def headers(state: Iterable[tuple[Limit, int, float]], now: float) -> Headers:
    """Return OpenAI's rate headers from what is left of each limit and when its window ends."""
    least: dict[Unit, tuple[int, Limit, float]] = {}
    for limit, left, end in state:
        unit = limit.counter.unit
        if unit not in least or left < least[unit][0]:
            least[unit] = (left, limit, end)
    rows: Headers = []
    for unit, (left, limit, end) in least.items():
        if unit.headers is not None:
            rows += encoded_headers(unit.headers, limit.amount, left, end - now)
    return rows


def encoded_headers(names: HeaderNames, amount: int, left: int, seconds: float) -> Headers:
    """Return what is left of a limit, and in how many seconds all of it returns."""
    of, remaining, reset = names
    return [(of, b"%d" % amount), (remaining, b"%d" % max(0, left)), (reset, duration(math.ceil(seconds)))]


def refusal(reached: Sequence[ReachedLimit], now: float) -> Refusal:
    """Return the refusal for the limit that keeps the call away for the longest time."""
    longest = max(reached, key=lambda one: now if one.is_held else one.end)
    limit, end = longest.limit, longest.end
    counter, unit = limit.counter, limit.counter.unit
    if not limit.amount:  # nothing that ends or returns changes that
        no_retry = {"x-should-retry": "false"}
        return OverQuota("blocked_by_quota", headers=no_retry, scope=counter.scope, unit=unit.words)
    if unit.while_running:
        return OverRate(
            "too_many_concurrent",
            type=unit.error_type,
            headers={"retry-after": "1"},
            **{"scope": counter.scope, "amount": limit.amount, "unit": unit.words},
        )
    seconds = max(1, math.ceil(end - now))
    facts: dict[str, Any] = {"scope": counter.scope, "window": counter.window}
    facts |= {"amount": f"{limit.amount:,}", "unit": unit.words}
    left = longest.unused - longest.reserved if longest.is_held else 0
    rows = encoded_headers(unit.headers, limit.amount, left, seconds) if unit.headers else []
    what_is_left = {name.decode(): value.decode() for name, value in rows}
    if longest.is_held:
        headers = {"retry-after": "1", "retry-after-ms": "1000", "x-should-retry": "true", **what_is_left}
        return OverRate("held_by_running_requests", type=unit.error_type, headers=headers, **facts)
    if counter.window == "minute":
        headers = {"retry-after": str(seconds), "retry-after-ms": str(seconds * 1000), **what_is_left}
        return OverRate("rate_limit_exceeded", type=unit.error_type, headers=headers, seconds=seconds, **facts)
    returns = datetime.fromtimestamp(end, limit.zone).strftime("%Y-%m-%d %H:%M %Z")
    # SDKs retry a 429 twice; a quota that returns tomorrow is not worth it.
    headers = {"retry-after": str(seconds), "x-should-retry": "false", **what_is_left}
    return OverQuota("insufficient_quota", headers=headers, returns=returns, **facts)


@lru_cache(maxsize=8192)
def duration(seconds: int) -> bytes:
    """Write it as Go does, which OpenAI's clients expect: "1s", "6m0s", "23h59m8s"."""
    hours, rest = divmod(max(0, seconds), 3600)
    minutes, left = divmod(rest, 60)
    if hours:
        return b"%dh%dm%ds" % (hours, minutes, left)
    return b"%dm%ds" % (minutes, left) if minutes else b"%ds" % left
