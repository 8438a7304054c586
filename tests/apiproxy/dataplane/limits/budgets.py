"""Limits, and what UsageRecord would say of the use of one owner."""

from collections.abc import Callable
from zoneinfo import ZoneInfo

from apiproxy.dataplane.catalogue import Counter, Limit, Scope
from apiproxy.dataplane.limits.local import Spending, Spent
from apiproxy.dataplane.limits.redis import SharedLimits
from apiproxy.dataplane.limits.units import REQUESTS, UNITS
from modelregistry.supervisor.watchdog import Watchdog
from portal.quotas.windows import window_bounds

TOKYO = ZoneInfo("Asia/Tokyo")
NOON = 1_795_402_800.0  # 2026-11-23 12:00 in Tokyo
DAY = 86400.0
MODEL = 1


def limit(unit: str, amount: int, window: str = "day", scope: Scope = "tenant", model: int | None = None) -> Limit:
    return Limit(Counter(scope, 1, model, UNITS[unit], "" if unit == "concurrent" else window), amount, TOKYO)


class Records:
    """What UsageRecord would say, of one owner."""

    def __init__(self) -> None:
        self.rows: list[tuple[float, int, int]] = []
        self.away = False
        self.asked = 0

    def add(self, when: float, *, requests: int = 0, tokens: int = 0) -> None:
        self.rows.append((when, requests, tokens))

    async def spent(self, limit: Limit, now: float) -> Spending | None:
        self.asked += 1
        if self.away:
            return None
        begin, _ = window_bounds(limit.counter.window, now, limit.zone)
        found = [row for row in self.rows if row[0] >= begin]
        used = sum(row[1] if limit.counter.unit is REQUESTS else row[2] for row in found)
        return Spending(used, max((row[0] for row in found), default=0.0))


def shared_limits(
    url: str, spent: Spent, *, workers: int = 1, clock: Callable[[], float] | None = None
) -> SharedLimits:
    """Return limits that are counted in this Redis; the caller starts and closes them."""
    keep = Watchdog().keep_running
    return SharedLimits(url, prefix="test", bounds=window_bounds, spent=spent, workers=workers, keep=keep, clock=clock)
