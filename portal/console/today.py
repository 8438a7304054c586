"""Use of late: a person's for their home page, a tenant's for its own."""

from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from django.db.models import F, QuerySet

from portal.metering import periods, report
from portal.metering.chart import Chart, chart
from portal.metering.usage import by

DAYS = 14


@dataclass(frozen=True, slots=True, kw_only=True)
class Recent:
    """Today, this month, and 14 days with today. `change`: the last 7 days against the 7 before, in per cent."""

    today: dict[str, int]
    month: dict[str, int]
    chart: Chart
    rows: list[dict[str, Any]]
    change: int | None

    @property
    def less(self) -> int | None:
        return -self.change if self.change is not None and self.change < 0 else None


def recent(days: QuerySet[Any], zone: ZoneInfo, now: datetime) -> Recent:
    """Of sums of days, as UsageDay and UsageTenantDay are. One query."""
    month = periods.period("this-month", now, zone)
    fortnight = periods.period(str(DAYS), now, zone)
    both = periods.Period(name="", first=min(month.first, fortnight.first), last=month.last)
    rows = by(both.of(days).annotate(slot=F("day")), "slot", "model")
    recently = [row for row in rows if row["slot"] >= fortnight.first]
    return Recent(
        today=added([row for row in rows if row["slot"] == month.last]),
        month=added([row for row in rows if row["slot"] >= month.first]),
        chart=chart(recently, fortnight.days),
        rows=recently[::-1],
        change=change(recently, month.last),
    )


def added(rows: list[dict[str, Any]]) -> dict[str, int]:
    return {name: sum(row[name] for row in rows) for name in report.NUMBERS}


def change(rows: list[dict[str, Any]], today: date) -> int | None:
    """None when there is nothing to compare with."""
    week = today - timedelta(days=6)
    latest = sum(row["total_tokens"] for row in rows if row["slot"] >= week)
    before = sum(row["total_tokens"] for row in rows if row["slot"] < week)
    return report.change(latest, before)
