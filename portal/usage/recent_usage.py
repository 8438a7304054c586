"""Use of late: a person's for their home page, a tenant's for its own."""

from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from django.db.models import F, QuerySet

from portal.usage import periods, report
from portal.usage.chart import Chart, chart
from portal.usage.records import usage_by

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


def recent_usage(days: QuerySet[Any], zone: ZoneInfo, now: datetime) -> Recent:
    """Of sums of days, as UsageDay and UsageTenantDay are. One query."""
    month = periods.parse_period("this-month", now, zone)
    fortnight = periods.parse_period(str(DAYS), now, zone)
    both = periods.Period(name="", first=min(month.first, fortnight.first), last=month.last)
    rows = usage_by(both.of(days).annotate(slot=F("day")), "slot", "model")
    recently = [row for row in rows if row["slot"] >= fortnight.first]
    return Recent(
        today=sum_usage([row for row in rows if row["slot"] == month.last]),
        month=sum_usage([row for row in rows if row["slot"] >= month.first]),
        chart=chart(recently, fortnight.days),
        rows=recently[::-1],
        change=change(recently, month.last),
    )


def sum_usage(rows: list[dict[str, Any]]) -> dict[str, int]:
    return {name: sum(row[name] for row in rows) for name in report.NUMBERS}


def change(rows: list[dict[str, Any]], today: date) -> int | None:
    """None when there is nothing to compare with."""
    week = today - timedelta(days=6)
    latest = sum(row["total_tokens"] for row in rows if row["slot"] >= week)
    before = sum(row["total_tokens"] for row in rows if row["slot"] < week)
    return report.change(latest, before)
