"""How fast models answer today: over the calls of all tenants, but for the canary's, which wait for all others.

Read from the sums by the hour (UsageHour), a thousandth of the records: a day of 50 tenants and 12 models has 14,400.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from django.db.models import F, QuerySet

from portal.accounts.models import Tenant
from portal.keys import canary_key
from portal.usage import hours
from portal.usage.chart import Chart, Measure, Slot, choose_shades, line_chart
from portal.usage.models import UsageHour
from portal.usage.report import SUM_COLUMNS, UsageSums


@dataclass(frozen=True, slots=True, kw_only=True)
class TodaySpeed:
    """Of today's answers: the median of the seconds to the first token, and tokens per second from then on.

    None: no answer had any, as embeddings have none.
    """

    first_token: float | None
    rate: float | None


def start_of_today(now: datetime, zone: ZoneInfo) -> datetime:
    """Return the beginning of the zone's day."""
    return now.astimezone(zone).replace(hour=0, minute=0, second=0, microsecond=0)


def read_speeds(now: datetime, zone: ZoneInfo) -> dict[str, TodaySpeed]:
    """Return today's speeds by model; one that was not called is missing. One query."""
    rows = _hours_of_today(now, zone).order_by().values_list("model").annotate(**SUM_COLUMNS)
    return {model: summarise(_to_sums(counts)) for model, *counts in rows}


def summarise(sums: UsageSums) -> TodaySpeed:
    first = sums.first_tokens
    return TodaySpeed(first_token=first[0] if first else None, rate=sums.speed)


@dataclass(frozen=True, slots=True, kw_only=True)
class TodayCharts:
    """Charts over the hours of today, of one model. None: nothing of the kind was measured."""

    first_token: Chart | None
    rate: Chart | None


def read_charts(model: str, now: datetime, zone: ZoneInfo, *, first_token: str, rate: str) -> TodayCharts:
    """Return the charts of a model, with these labels. One query."""
    begin = start_of_today(now, zone)
    rows = _hours_of_today(now, zone).filter(model=model).annotate(slot=F("hour"))
    by_hour: dict[datetime, UsageSums] = {}
    for slot, *counts in rows.order_by().values_list("slot").annotate(**SUM_COLUMNS):
        hour = hours.start_of_hour(slot, zone)
        by_hour[hour] = by_hour.get(hour, UsageSums()) + _to_sums(counts)
    end = hours.start_of_quarter(now) + timedelta(minutes=15)
    slots = hours.hours_between(begin, end, zone)
    speeds = {hour: summarise(sums) for hour, sums in by_hour.items()}
    firsts: dict[Slot, float | None] = {hour: speed.first_token for hour, speed in speeds.items()}
    rates: dict[Slot, float | None] = {hour: speed.rate for hour, speed in speeds.items()}
    return TodayCharts(
        first_token=_draw(model, {first_token: firsts}, slots, "first-token", "seconds"),
        rate=_draw(model, {rate: rates}, slots, "rate", "tokens/s"),
    )


def _draw(
    model: str, lines: dict[str, dict[Slot, float | None]], slots: list[datetime], name: str, measure: Measure
) -> Chart | None:
    known = any(value is not None for values in lines.values() for value in values.values())
    shade = choose_shades([model])[model]
    return line_chart(lines, slots, "hour", name=name, measure=measure, first_shade=shade) if known else None


def _hours_of_today(now: datetime, zone: ZoneInfo) -> QuerySet[UsageHour]:
    canary = Tenant.objects.filter(slug=canary_key.TENANT).values("pk")
    return UsageHour.objects.filter(hour__gte=start_of_today(now, zone), hour__lte=now).exclude(tenant__in=canary)


def _to_sums(counts: list[Any]) -> UsageSums:
    return UsageSums(tuple(int(count or 0) for count in counts))
