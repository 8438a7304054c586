"""What a usage page and its exports tell of a scope in a period: sums by time and by thing, and how it went."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from django.db.models import Count, F, Q, QuerySet, Sum
from django.db.models.functions import TruncMonth
from django.utils.translation import gettext as _

from portal.accounts.models import Tenant, User
from portal.console.templatetags.figures import person
from portal.keys.models import ApiKey
from portal.metering import rollups, usage
from portal.metering.models import UsageDay
from portal.metering.periods import Period, before
from portal.metering.scopes import Scope

NUMBERS = ("requests", "prompt_tokens", "completion_tokens", "total_tokens", "estimated")
# What went wrong, in the words of UsageRecord.Status.
TROUBLES = ("failed", "interrupted", "refused", "aborted")
COLUMN = {"key": "key_id", "user": "user_id", "tenant": "tenant_id"}
Rows = list[dict[str, Any]]
Slot = date | datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Of a whole period. `speed` in tokens per second; None where nothing tells."""

    sums: dict[str, int]
    people: int
    troubles: dict[str, int]
    speed: float | None

    @property
    def troubled(self) -> int:
        return sum(self.troubles.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """`rows` by "slot" (an hour, a day, the first day of a month) and model. `slots`: all of them, also empty ones."""

    unit: str  # "hour", "day" or "month"
    slots: Sequence[Slot]
    rows: Rows


def series(scope: Scope, period: Period, zone: ZoneInfo) -> Series:
    """One query. A single day is told by the hour, where hours are summed."""
    if len(period.days) == 1 and scope.hours is not None:
        begin = datetime.combine(period.first, time(), zone)
        end = datetime.combine(period.first + timedelta(days=1), time(), zone)
        hours = scope.hours.filter(hour__gte=begin, hour__lt=end)
        rows = [{**row, "slot": row["hour"].astimezone(zone)} for row in usage.by(hours, "hour", "model")]
        count = round((end.timestamp() - begin.timestamp()) / 3600)
        slots = [datetime.fromtimestamp(begin.timestamp() + 3600 * n, zone) for n in range(count)]
        return Series(unit="hour", slots=slots, rows=rows)
    if period.by_month:
        months = period.of(scope.days).annotate(slot=TruncMonth("day"))
        firsts = sorted({day.replace(day=1) for day in period.days})
        return Series(unit="month", slots=firsts, rows=usage.by(months, "slot", "model"))
    days = period.of(scope.days).annotate(slot=F("day"))
    return Series(unit="day", slots=period.days, rows=usage.by(days, "slot", "model"))


def totals(days: QuerySet[UsageDay]) -> Totals:
    """One query."""
    more = ("generated_tokens", "generated_ms", *TROUBLES)
    found = days.aggregate(
        **usage.SUMS,
        **{name: Sum(name, default=0) for name in more},
        people=Count("user", distinct=True, filter=Q(user__isnull=False)),
    )
    found["total_tokens"] = found["prompt_tokens"] + found["completion_tokens"]
    return Totals(
        sums={name: found[name] for name in NUMBERS},
        people=found["people"],
        troubles={name: found[name] for name in TROUBLES if found[name]},
        speed=1000 * found["generated_tokens"] / found["generated_ms"] if found["generated_ms"] else None,
    )


def change(now: int, then: int) -> int | None:
    """In per cent; None when there is nothing to compare with."""
    return round(100 * (now - then) / then) if then else None


def first_tokens(scope: Scope, period: Period, zone: ZoneInfo) -> tuple[float, float] | None:
    """The median and the 95th percentile of the time to the first token, in seconds. One query."""
    if scope.hours is None:
        return None
    hours = scope.hours.filter(
        hour__gte=datetime.combine(period.first, time(), zone),
        hour__lt=datetime.combine(period.last + timedelta(days=1), time(), zone),
    )
    sums = hours.aggregate(**{name: Sum(name, default=0) for name in rollups.FIRST_TOKEN})
    counts = [sums[name] for name in rollups.FIRST_TOKEN]
    half, most = rollups.percentile(counts, 0.5), rollups.percentile(counts, 0.95)
    return (half / 1000, most / 1000) if half is not None and most is not None else None


def grouped(days: QuerySet[UsageDay], group: str) -> Rows:
    """By model, key, user, tenant or end user: "name" beside the numbers, most tokens first. Two queries at most."""
    rows = usage.by(days, COLUMN.get(group, group))
    known = names(group, [row[COLUMN.get(group, group)] for row in rows])
    told = [{"name": known[row[COLUMN.get(group, group)]], **{name: row[name] for name in NUMBERS}} for row in rows]
    return sorted(told, key=lambda row: (-row["total_tokens"], row["name"]))


def names(group: str, values: Iterable[Any]) -> dict[Any, str]:
    """How people call these: rows that are gone keep their number, so that two of them stay two."""
    found: dict[Any, str] = {}
    if group == "key":
        keys = ApiKey.objects.filter(pk__in=list(values)).select_related("user")
        found = {key.pk: called(key) for key in keys}
    elif group == "user":
        people = User.objects.filter(pk__in=[value for value in values if value is not None])
        found = {None: _("service keys"), **{user.pk: person(user) for user in people}}
    elif group == "tenant":
        found = {tenant.pk: tenant.name for tenant in Tenant.objects.filter(pk__in=list(values))}
    elif group == "end_user":
        found = {"": _("not told by the client")}
    gone = _("deleted (%(number)s)") if group in COLUMN else "%(number)s"
    return {value: found[value] if value in found else gone % {"number": value} for value in values}


def called(key: ApiKey) -> str:
    """The text of a playground's key is another one tomorrow, so it is named after its person."""
    return _("Playground of %(person)s") % {"person": person(key.user)} if key.user and key.is_playground else str(key)


def compared(scope: Scope, period: Period) -> Totals:
    """What the period is to be compared with."""
    return totals(before(period).of(scope.days))
