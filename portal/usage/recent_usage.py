"""Recent usage, of a person for their home page and of a tenant for its page."""

from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from django.db.models import F, QuerySet

from portal.usage import periods, report
from portal.usage.chart import Chart, token_chart
from portal.usage.records import sum_by

DAYS = 14


@dataclass(frozen=True, slots=True, kw_only=True)
class RecentUsage:
    """Usage of today, of this month, and of 14 days including today."""

    today: dict[str, int]
    month: dict[str, int]
    chart: Chart
    rows: list[dict[str, Any]]  # by day and model, the latest first
    change: int | None  # of the last 7 days against the 7 before, in per cent

    @property
    def decrease(self) -> int | None:
        return -self.change if self.change is not None and self.change < 0 else None


def read_recent_usage(days: QuerySet[Any], zone: ZoneInfo, now: datetime) -> RecentUsage:
    """Read the recent part of sums of days (UsageDay or UsageTenantDay). One query."""
    month = periods.parse_period("this-month", now, zone)
    fortnight = periods.parse_period(str(DAYS), now, zone)
    both = periods.Period(name="", first=min(month.first, fortnight.first), last=month.last)
    rows = sum_by(both.filter_days(days).annotate(slot=F("day")), "slot", "model")
    recent = [row for row in rows if row["slot"] >= fortnight.first]
    return RecentUsage(
        today=sum_rows([row for row in rows if row["slot"] == month.last]),
        month=sum_rows([row for row in rows if row["slot"] >= month.first]),
        chart=token_chart(recent, fortnight.days),
        rows=recent[::-1],
        change=weekly_change(recent, month.last),
    )


def sum_rows(rows: list[dict[str, Any]]) -> dict[str, int]:
    return {name: sum(row[name] for row in rows) for name in report.NUMBERS}


def weekly_change(rows: list[dict[str, Any]], today: date) -> int | None:
    """Return the change in per cent; None if there is nothing to compare with."""
    week = today - timedelta(days=6)
    latest = sum(row["total_tokens"] for row in rows if row["slot"] >= week)
    before = sum(row["total_tokens"] for row in rows if row["slot"] < week)
    return report.percent_change(latest, before)
