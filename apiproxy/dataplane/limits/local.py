"""Hard limits: reserve before a call goes out, settle when it has ended.

`Limits` counts in this process, for one worker; `redis` counts in Redis, for several, by the same rules.
`UsageRecord` is the truth behind both: a counter that is new, or whose window may hold usage that it has not seen (a
clock was set), asks `spent` before it lets anybody through.
"""

import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Protocol
from zoneinfo import ZoneInfo

from apiproxy.dataplane.catalogue import Counter, Limit, Unit
from apiproxy.dataplane.errors import OverQuota, OverRate, Refusal

Bounds = Callable[[str, float, ZoneInfo], tuple[float, float]]
Headers = list[tuple[bytes, bytes]]
HEADERS: dict[Unit, tuple[bytes, bytes, bytes]] = {
    unit: (
        f"x-ratelimit-limit-{unit}".encode(),
        f"x-ratelimit-remaining-{unit}".encode(),
        f"x-ratelimit-reset-{unit}".encode(),
    )
    for unit in ("requests", "tokens")
}
ENDLESS = (0.0, math.inf)  # the window of calls at the same time


@dataclass(frozen=True, slots=True)
class Spending:
    """What was used of a limit since its window began, and when the last of it did (Unix seconds; 0: nothing).

    `read_at`: the event loop's time before the records were read; None: just now.
    """

    used: int
    newest: float
    read_at: float | None = None


# What is recorded of this limit in the window that holds this moment; None: nobody can tell now. It sees to it that
# asking again and again costs little, whether or not there is an answer.
Spent = Callable[[Limit, float], Awaitable[Spending | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counting:
    """How the counting goes, for /metrics."""

    alone: bool = False  # this worker counts for itself although there are others, because Redis is away
    unsent: int = 0  # settlements that Redis has not confirmed
    admitted_alone: int = 0  # calls, so far


class Reservation(Protocol):
    """Settle or release it once; later calls do nothing."""

    def settle(self, tokens: int) -> None:
        """The call used so many tokens."""

    def release(self) -> None:
        """The call never reached an engine: nothing was used."""

    def headers(self, now: float) -> Headers:
        """OpenAI's rate headers for the tightest request limit and the tightest token limit."""


class Admission(Protocol):
    async def admit(self, limits: Sequence[Limit], model: int, estimate: int, now: float) -> Reservation:
        """Reserve one request and `estimate` tokens under every limit that applies to this model, or under none.

        Raises OverRate or OverQuota for the limit that lasts longest among those that are reached.
        """

    @property
    def counting(self) -> Counting: ...


class CounterState:
    """What one counter holds in its present window.

    `high`: the latest window that it has been in; any later one is empty. `floor`: what was spent when the process
    began to count alone. `doubtful`: there may be usage that is not in `used`.
    """

    __slots__ = ("begin", "doubtful", "end", "floor", "high", "reserved", "used")

    def __init__(self, begin: float, end: float, *, high: float, doubtful: bool) -> None:
        self.begin, self.end = begin, end
        self.high = max(begin, high)
        self.doubtful = doubtful
        self.used = 0
        self.reserved = 0
        self.floor = 0


class ApplicableLimits:
    """Limits that apply to a call and their tallies, sorted by what is done with them."""

    __slots__ = ("begin", "concurrent", "counted", "end", "limits", "requests", "source", "tallies", "tokens")

    def __init__(self, source: Sequence[Limit], limits: Sequence[Limit], tallies: Sequence[CounterState]) -> None:
        """`source`: what `limits` were chosen from. The plan is good while no window of a tally begins or ends."""
        self.source = source
        self.limits, self.tallies = limits, tallies
        self.begin = max((tally.begin for tally in tallies), default=0.0)
        self.end = min((tally.end for tally in tallies), default=math.inf)
        pairs = list(zip(limits, tallies, strict=True))
        self.concurrent = [pair for pair in pairs if pair[0].counter.unit == "concurrent"]
        self.requests = [pair for pair in pairs if pair[0].counter.unit == "requests"]
        self.tokens = [pair for pair in pairs if pair[0].counter.unit == "tokens"]
        self.counted = [*self.concurrent, *self.requests]


class HeldReservation:
    """A reservation in this process."""

    __slots__ = ("_open", "_plan", "_share", "estimate")

    def __init__(self, plan: ApplicableLimits, estimate: int, share: int = 1) -> None:
        """Reserve: one request, and `estimate` tokens."""
        self._plan = plan
        self.estimate = estimate
        self._share = share
        self._open = True

    def settle(self, tokens: int) -> None:
        self._end(requests=1, tokens=tokens)

    def release(self) -> None:
        self._end(requests=0, tokens=0)

    def headers(self, now: float) -> Headers:
        plan, share = self._plan, self._share
        return [*tightest("requests", plan.requests, share, now), *tightest("tokens", plan.tokens, share, now)]

    def _end(self, *, requests: int, tokens: int) -> None:
        if not self._open:
            return
        self._open = False
        estimate = self.estimate
        for _, tally in self._plan.concurrent:
            tally.reserved -= 1
        for _, tally in self._plan.requests:
            tally.reserved -= 1
            tally.used += requests
        for _, tally in self._plan.tokens:
            tally.reserved -= estimate
            tally.used += tokens


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
        self._tallies: dict[Counter, CounterState] = {}
        self._plans: dict[tuple[int, int], ApplicableLimits] = {}  # by the limits' identity and the model
        self._latest = 0.0

    async def admit(self, limits: Sequence[Limit], model: int, estimate: int, now: float) -> HeldReservation:
        plan = self._plans.get((id(limits), model))
        if plan is None or plan.source is not limits or not plan.begin <= now < plan.end or now < self._latest:
            plan = await self._plan(limits, model, now)
        # From here on there is no `await`: a check and its reservation cannot be torn apart.
        self._latest = now
        if not self._fits(plan, estimate):
            raise self._refusal(plan, estimate, now)
        for _, tally in plan.concurrent:
            tally.reserved += 1
        for _, tally in plan.requests:
            tally.reserved += 1
        for _, tally in plan.tokens:
            tally.reserved += estimate
        return HeldReservation(plan, estimate, self._share)

    def _fits(self, plan: ApplicableLimits, estimate: int) -> bool:
        share = self._share
        if share != 1:
            return all(
                fits(limit.counter.unit, allowance(limit, tally, share), tally, estimate)
                for limit, tally in zip(plan.limits, plan.tallies, strict=True)
            )
        # As `fits` says, without its calls: a key may have a dozen limits (3 µs).
        for limit, tally in plan.counted:
            if tally.used + tally.reserved >= limit.amount:
                return False
        for limit, tally in plan.tokens:
            left = limit.amount - tally.used - tally.reserved
            if estimate > left and (tally.reserved or left <= 0):
                return False
        return True

    def _refusal(self, plan: ApplicableLimits, estimate: int, now: float) -> Refusal:
        """For the limit that lasts longest among those that are reached."""
        reached = [
            (tally.end, limit)
            for limit, tally in zip(plan.limits, plan.tallies, strict=True)
            if not fits(limit.counter.unit, allowance(limit, tally, self._share), tally, estimate)
        ]
        end, limit = max(reached, key=lambda pair: pair[0])
        return refusal(limit, end, now)

    async def _plan(self, limits: Sequence[Limit], model: int, now: float) -> ApplicableLimits:
        if now < self._latest or len(self._plans) >= PLANS:  # a clock that is set back gives tallies other windows
            self._plans.clear()
        mine = applicable_limits(limits, model)
        tallies = [self._tally(limit, now) for limit in mine]
        for limit, tally in zip(mine, tallies, strict=True):
            if tally.doubtful:
                await self._ask(limit, tally, now)
        plan = ApplicableLimits(limits, mine, tallies)
        # A list was made for this call only (`redis`, counting alone).
        if isinstance(limits, tuple) and not any(tally.doubtful for tally in tallies):
            self._plans[id(limits), model] = plan
        return plan

    @property
    def counting(self) -> Counting:
        return Counting()

    def adopt(self, limit: Limit, begin: float, used: int) -> CounterState:
        """Return the tally of this limit; a new one goes on from what is known to be used since `begin`, ahead of
        `spent`.
        """
        tally = self._tallies.get(limit.counter)
        if tally is None:
            window = limit.counter.window
            end = self._bounds(window, begin, limit.zone)[1] if window else math.inf
            tally = self._tallies[limit.counter] = CounterState(begin, end, high=begin, doubtful=False)
            tally.used = tally.floor = used
        return tally

    def knows(self, counter: Counter) -> bool:
        return counter in self._tallies

    async def _ask(self, limit: Limit, tally: CounterState, now: float) -> None:
        """Count what is recorded, if it can be told: else the tally stays in doubt and the next caller asks again."""
        assert self._spent is not None
        spending = await self._spent(limit, now)
        if spending is None or not tally.doubtful:
            return
        tally.doubtful = False
        # Not added: what was counted here is recorded as well.
        tally.used = tally.floor = max(tally.used, spending.used)
        if spending.newest >= tally.end:
            tally.high = max(tally.high, self._bounds(limit.counter.window, spending.newest, limit.zone)[0])

    def _tally(self, limit: Limit, now: float) -> CounterState:
        counter = limit.counter
        tally = self._tallies.get(counter)
        if tally is not None and tally.begin <= now < tally.end:
            return tally
        begin, end = self._bounds(counter.window, now, limit.zone) if counter.window else ENDLESS
        if tally is None:
            tally = CounterState(begin, end, high=begin, doubtful=self._spent is not None and counter.window != "")
            self._tallies[counter] = tally
        elif now >= tally.end:  # a window that the clock has been in before may hold usage
            doubtful = self._spent is not None and begin <= tally.high
            tally = self._tallies[counter] = CounterState(begin, end, high=tally.high, doubtful=doubtful)
        else:  # the clock was set back: what was counted stays, and returns when this window ends
            tally.begin, tally.end = begin, end
            tally.doubtful = self._spent is not None
        return tally


def applicable_limits(limits: Sequence[Limit], model: int) -> list[Limit]:
    return [limit for limit in limits if limit.counter.model is None or limit.counter.model == model]


def fits(unit: Unit, amount: int, tally: CounterState, estimate: int) -> bool:
    spent = tally.used + tally.reserved
    if unit != "tokens":
        return spent < amount
    # An estimate is the most that a call could use. A person with something left may make a call that is larger
    # than it while nothing else is under way; otherwise the last part of every quota could never be used.
    return spent + estimate <= amount or (tally.reserved == 0 and spent < amount)


def allowance(limit: Limit, tally: CounterState, share: int) -> int:
    """Up to what this process may let the tally grow."""
    if share == 1 or tally.floor >= limit.amount:
        return limit.amount
    return tally.floor - (tally.floor - limit.amount) // share  # rounded up: of 1 each worker may have 1, not 0


def tightest(unit: Unit, pairs: Sequence[tuple[Limit, CounterState]], share: int, now: float) -> Headers:
    """OpenAI's rate headers for the limit of which least is left; none without limits."""
    found: tuple[Limit, CounterState] | None = None
    least = 0
    for limit, tally in pairs:
        amount = limit.amount if share == 1 else allowance(limit, tally, share)
        left = amount - tally.used - tally.reserved
        if found is None or left < least:
            found, least = (limit, tally), left
    return [] if found is None else encoded_headers(unit, found[0].amount, least, found[1].end - now)


def headers(state: Iterable[tuple[Limit, int, float]], now: float) -> Headers:
    """OpenAI's rate headers from what is left of each limit and when its window ends."""
    least: dict[Unit, tuple[int, Limit, float]] = {}
    for limit, left, end in state:
        unit = limit.counter.unit
        if unit != "concurrent" and (unit not in least or left < least[unit][0]):
            least[unit] = (left, limit, end)
    rows: Headers = []
    for unit, (left, limit, end) in least.items():
        rows += encoded_headers(unit, limit.amount, left, end - now)
    return rows


def encoded_headers(unit: Unit, amount: int, left: int, seconds: float) -> Headers:
    """What is left of a limit, and in how many seconds all of it returns."""
    of, remaining, reset = HEADERS[unit]
    return [(of, b"%d" % amount), (remaining, b"%d" % max(0, left)), (reset, duration(math.ceil(seconds)).encode())]


def refusal(limit: Limit, end: float, now: float) -> Refusal:
    counter = limit.counter
    if counter.unit == "concurrent":
        return OverRate(
            "too_many_concurrent",
            unit="requests",
            headers={"retry-after": "1"},
            scope=counter.scope,
            amount=limit.amount,
        )
    seconds = max(1, math.ceil(end - now))
    facts = {"scope": counter.scope, "amount": f"{limit.amount:,}", "window": counter.window}
    none_left = {
        name.decode(): value.decode() for name, value in encoded_headers(counter.unit, limit.amount, 0, seconds)
    }
    if counter.window == "minute":
        headers = {"retry-after": str(seconds), "retry-after-ms": str(seconds * 1000), **none_left}
        return OverRate("rate_limit_exceeded", unit=counter.unit, headers=headers, seconds=seconds, **facts)
    returns = datetime.fromtimestamp(end, limit.zone).strftime("%Y-%m-%d %H:%M %Z")
    # SDKs retry a 429 twice; a quota that returns tomorrow is not worth it.
    headers = {"retry-after": str(seconds), "x-should-retry": "false", **none_left}
    return OverQuota("insufficient_quota", headers=headers, unit=counter.unit, returns=returns, **facts)


@lru_cache(maxsize=8192)
def duration(seconds: int) -> str:
    """As Go prints it, which OpenAI's clients expect: "1s", "6m0s", "23h59m8s"."""
    hours, rest = divmod(max(0, seconds), 3600)
    minutes, left = divmod(rest, 60)
    if hours:
        return f"{hours}h{minutes}m{left}s"
    return f"{minutes}m{left}s" if minutes else f"{left}s"
