"""Hard limits: reserve before a call goes out, settle when it has ended.

Counters live in this process; `UsageRecord` is the truth from which a new counter is seeded. All methods run in the
event loop's thread; a check and its reservation have no `await` between them, so they cannot be torn apart.
"""

import math
from collections.abc import Callable, Sequence
from datetime import datetime
from zoneinfo import ZoneInfo

from apiproxy.catalogue import Counter, Limit, Unit
from apiproxy.errors import OverQuota, OverRate, Refusal

Bounds = Callable[[str, float, ZoneInfo], tuple[float, float]]


class Tally:
    """What one counter holds in its present window."""

    __slots__ = ("begin", "end", "reserved", "used")

    def __init__(self, begin: float, end: float) -> None:
        self.begin, self.end = begin, end
        self.used = 0
        self.reserved = 0


class Hold:
    """A reservation. Settle it once; later calls do nothing."""

    __slots__ = ("_open", "estimate", "limits", "tallies")

    def __init__(self, limits: Sequence[Limit], tallies: list[Tally], estimate: int) -> None:
        self.limits = limits
        self.tallies = tallies
        self.estimate = estimate
        self._open = True

    def settle(self, tokens: int) -> None:
        """The call used so many tokens."""
        self._end(requests=1, tokens=tokens)

    def release(self) -> None:
        """The call never reached an engine: nothing was used."""
        self._end(requests=0, tokens=0)

    def _end(self, *, requests: int, tokens: int) -> None:
        if not self._open:
            return
        self._open = False
        for limit, tally in zip(self.limits, self.tallies, strict=True):
            unit = limit.counter.unit
            tally.reserved -= self.estimate if unit == "tokens" else 1
            if unit != "concurrent":
                tally.used += tokens if unit == "tokens" else requests


class Limits:
    """`bounds(window, now, zone)` gives the begin and end of a calendar window, all in Unix seconds."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._tallies: dict[Counter, Tally] = {}

    async def admit(self, limits: Sequence[Limit], model: int, estimate: int, now: float) -> Hold:
        """Reserves one request and `estimate` tokens under every limit that applies to this model, or under none.

        Raises OverRate or OverQuota for the limit that lasts longest among those that are reached.
        """
        mine = [limit for limit in limits if limit.counter.model is None or limit.counter.model == model]
        tallies = [self._tally(limit, now) for limit in mine]
        reached = [
            (tally.end, limit) for limit, tally in zip(mine, tallies, strict=True) if not fits(limit, tally, estimate)
        ]
        if reached:
            end, limit = max(reached, key=lambda pair: pair[0])
            raise refusal(limit, end, now)
        for limit, tally in zip(mine, tallies, strict=True):
            tally.reserved += estimate if limit.counter.unit == "tokens" else 1
        return Hold(mine, tallies, estimate)

    def unknown(self, limits: Sequence[Limit]) -> list[Limit]:
        """Those that have no counter yet and need `seed` (concurrent ones never do)."""
        return [limit for limit in limits if limit.counter.window and limit.counter not in self._tallies]

    def seed(self, limit: Limit, used: int, now: float) -> None:
        """What was used in the present window before `now`, according to the database.

        Calls that are open while a limit is first made are not counted under it.
        """
        if limit.counter not in self._tallies:
            self._tally(limit, now).used += used

    def headers(self, hold: Hold, now: float) -> list[tuple[bytes, bytes]]:
        """OpenAI's rate headers for the tightest request limit and the tightest token limit."""
        tightest: dict[Unit, tuple[int, Limit, Tally]] = {}
        for limit, tally in zip(hold.limits, hold.tallies, strict=True):
            unit = limit.counter.unit
            if unit == "concurrent":
                continue
            left = max(0, limit.amount - tally.used - tally.reserved)
            if unit not in tightest or left < tightest[unit][0]:
                tightest[unit] = (left, limit, tally)
        rows = [rate_headers(limit, left, tally.end - now) for left, limit, tally in tightest.values()]
        return [(name.encode(), value.encode()) for row in rows for name, value in row.items()]

    def _tally(self, limit: Limit, now: float) -> Tally:
        counter = limit.counter
        tally = self._tallies.get(counter)
        if tally is None or now >= tally.end:
            begin, end = self._bounds(counter.window, now, limit.zone) if counter.window else (0.0, math.inf)
            tally = self._tallies[counter] = Tally(begin, end)
        elif now < tally.begin:  # the clock was set back: what was counted stays, and returns when this window ends
            tally.begin, tally.end = self._bounds(counter.window, now, limit.zone)
        return tally


def fits(limit: Limit, tally: Tally, estimate: int) -> bool:
    spent = tally.used + tally.reserved
    if limit.counter.unit != "tokens":
        return spent < limit.amount
    # An estimate is the most that a call could use. A person with something left may make a call that is larger
    # than it while nothing else is under way; otherwise the last part of every quota could never be used.
    return spent + estimate <= limit.amount or (tally.reserved == 0 and spent < limit.amount)


def rate_headers(limit: Limit, left: int, seconds: float) -> dict[str, str]:
    """What is left of a limit, and in how many seconds all of it returns."""
    unit = limit.counter.unit
    return {
        f"x-ratelimit-limit-{unit}": str(limit.amount),
        f"x-ratelimit-remaining-{unit}": str(left),
        f"x-ratelimit-reset-{unit}": duration(seconds),
    }


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
    none_left = rate_headers(limit, 0, seconds)
    if counter.window == "minute":
        headers = {"retry-after": str(seconds), "retry-after-ms": str(seconds * 1000), **none_left}
        return OverRate("rate_limit_exceeded", unit=counter.unit, headers=headers, seconds=seconds, **facts)
    returns = datetime.fromtimestamp(end, limit.zone).strftime("%Y-%m-%d %H:%M %Z")
    # SDKs retry a 429 twice; a quota that returns tomorrow is not worth it.
    headers = {"retry-after": str(seconds), "x-should-retry": "false", **none_left}
    return OverQuota("insufficient_quota", headers=headers, unit=counter.unit, returns=returns, **facts)


def duration(seconds: float) -> str:
    """As Go prints it, which OpenAI's clients expect: "1s", "6m0s", "23h59m8s"."""
    whole = max(0, math.ceil(seconds))
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    if hours:
        return f"{hours}h{minutes}m{left}s"
    return f"{minutes}m{left}s" if minutes else f"{left}s"
