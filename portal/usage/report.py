"""What usage pages and their exports show of a scope in a period: sums over time and by group, and failures."""

import operator
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import cached_property
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

from django.db.models import BigIntegerField, Count, F, Q, QuerySet, Sum
from django.db.models.functions import Cast, TruncDate, TruncHour, TruncMinute, TruncMonth
from django.utils import timezone
from django.utils.translation import gettext as _

from portal.accounts.models import Tenant, User
from portal.accounts.tenant_names import read_tenant_names
from portal.keys.models import ApiKey
from portal.usage import failure_reasons, hours, rollups, scopes
from portal.usage.periods import Period, period_before, start_of_fiscal_year
from portal.usage.scopes import Focus, UsageScope
from portal.web.sorting import column_of, is_turned
from portal.web.templatetags.formatting import person

LOOPS = ("looped", "looped_tokens", "saved_tokens")
NUMBERS = ("requests", "prompt_tokens", "completion_tokens", "total_tokens", "estimated", *LOOPS)
# The columns that a table of many groups sums up: to sum up all columns takes three times as long.
DETAIL_COLUMNS = ("requests", "prompt_tokens", "completion_tokens", "estimated", *LOOPS)
# What the rows of groups can be in the order of, the most first.
SORTS = ("total_tokens", "requests", "prompt_tokens", "completion_tokens")
GROUP_COLUMNS = (*DETAIL_COLUMNS, "generated_tokens", "generated_ms")


def sum_as_integer(expression: Any) -> Any:
    """Return the sum of an expression as an integer.

    PostgreSQL's sum of large integers is a decimal, which takes ten times as long to read.
    """
    return Cast(Sum(expression), BigIntegerField())


TOKENS = sum_as_integer(F("prompt_tokens") + F("completion_tokens"))
SUM_COLUMNS = {f"sum_{name}": sum_as_integer(name) for name in rollups.SUMS}
COLUMN = {"key": "key_id", "user": "user_id", "tenant": "tenant_id"}
# Records are kept at least this long (pruneusage); hours that are not summed up can be read from them.
RECORDS_KEPT = timedelta(days=40)
IS_WATCHED = Q(status="looped") | Q(status="finished", watched=True, completion_tokens__gt=0)  # rollups.is_watched
Rows = list[dict[str, Any]]
Slot = date | datetime


PLACE = {name: place for place, name in enumerate(rollups.SUMS)}


@dataclass(frozen=True, slots=True)
class UsageSums:
    """The columns of `models.Sums` summed up, in the order of `rollups.SUMS`."""

    counts: tuple[int, ...] = (0,) * len(rollups.SUMS)

    def __add__(self, other: "UsageSums") -> "UsageSums":
        return UsageSums(tuple(map(operator.add, self.counts, other.counts)))  # a third of the time of a generator

    def __getitem__(self, name: str) -> int:
        return self.counts[PLACE[name]]

    @property
    def numbers(self) -> dict[str, int]:
        """The values of NUMBERS, by name."""
        named = {name: self[name] for name in NUMBERS if name != "total_tokens"}
        total = named["prompt_tokens"] + named["completion_tokens"]
        return {name: total if name == "total_tokens" else named[name] for name in NUMBERS}

    @property
    def speed(self) -> float | None:
        """Tokens per second of one answer, from its first token on; None if not known."""
        return 1000 * self["generated_tokens"] / self["generated_ms"] if self["generated_ms"] else None

    @property
    def first_tokens(self) -> tuple[float, float] | None:
        """Seconds within which 50 % and 95 % of the answers began; None if not known."""
        counts = self.counts[rollups.FIRST_BUCKET :]
        half, most = rollups.percentile(counts, 0.5), rollups.percentile(counts, 0.95)
        return (half / 1000, most / 1000) if half is not None and most is not None else None

    @property
    def answers(self) -> int:
        """How many requests an engine answered to the end, or until the answer fell into a word loop."""
        return self["requests"] - sum(self.failures.values())

    @property
    def failures(self) -> dict[str, int]:
        """How many requests got no complete answer, by how they ended."""
        return {name: self[name] for name in failure_reasons.FAILED_STATUSES if self[name]}


@dataclass(frozen=True, kw_only=True)
class UsageSeries:
    """Sums over time, by model. What it gives is summed up once: a page asks for most of it two times or more."""

    unit: str  # of a slot: "hour", "day", "month" or "year" (a fiscal year)
    slots: Sequence[Slot]  # an hour, a day, or the first day of a month or fiscal year; empty ones too
    sums: dict[tuple[Slot, str], UsageSums]  # by slot and model

    @cached_property
    def rows(self) -> Rows:
        """A row for each slot and model that has any usage, in their order: "slot", "model" and NUMBERS."""
        return [{"slot": slot, "model": model, **self.sums[slot, model].numbers} for slot, model in sorted(self.sums)]

    @cached_property
    def totals(self) -> UsageSums:
        return sum(self.sums.values(), UsageSums())

    @cached_property
    def by_slot(self) -> dict[Slot, UsageSums]:
        found: dict[Slot, UsageSums] = defaultdict(UsageSums)
        for (slot, _model), sums in self.sums.items():
            found[slot] += sums
        return found

    @cached_property
    def by_model(self) -> dict[str, UsageSums]:
        found: dict[str, UsageSums] = defaultdict(UsageSums)
        for (_slot, model), sums in self.sums.items():
            found[model] += sums
        return found


# --- Over time
def read_series(scope: UsageScope, period: Period, zone: ZoneInfo) -> UsageSeries:
    """Read the sums of each slot of the period. One query."""
    if period.unit == "hour" and (scope.hours is not None or period.first > timezone.now().date() - RECORDS_KEPT):
        return _read_hours(scope, period, zone)
    if period.unit in ("month", "year"):
        days = period.filter_days(scope.sums).annotate(slot=TruncMonth("day"))
    else:
        days = period.filter_days(scope.sums).annotate(slot=F("day"))
    rows = days.order_by().values_list("slot", "model").annotate(**SUM_COLUMNS)
    slot_of = start_of_fiscal_year if period.unit == "year" else None
    unit = "day" if period.unit == "hour" else period.unit
    return UsageSeries(unit=unit, slots=period.slots, sums=_sum_by_slot(rows, slot_of))


def _read_hours(scope: UsageScope, period: Period, zone: ZoneInfo) -> UsageSeries:
    begin, end = period_bounds(period, zone)
    if scope.hours is not None:
        intervals: QuerySet[Any] = scope.hours.filter(hour__gte=begin, hour__lt=end).annotate(slot=F("hour"))
        rows: Iterable[Any] = intervals.order_by().values_list("slot", "model").annotate(**SUM_COLUMNS)
    else:
        records = scope.records.filter(started_at__gte=begin, started_at__lt=end)
        rows = _sum_records(records, begin, end, zone)
    sums = _sum_by_slot(rows, lambda interval: hours.start_of_hour(interval, zone))
    return UsageSeries(unit="hour", slots=hours.hours_between(begin, end, zone), sums=sums)


def _sum_records(records: QuerySet[Any], begin: datetime, end: datetime, zone: ZoneInfo) -> Iterator[tuple[Any, ...]]:
    """Yield (start of an interval, model, sums in the order of `rollups.SUMS`).

    Each interval lies within one of the zone's hours.
    """
    whole = hours.is_whole_hours(begin, zone) and hours.is_whole_hours(end, zone)
    start = TruncHour("started_at", tzinfo=UTC) if whole else TruncMinute("started_at", tzinfo=UTC)
    found = records.annotate(slot=start).order_by().values_list("slot", "model").annotate(**RECORD_COLUMNS)
    for slot, model, *counts in found:
        yield (slot, model, *(int(count or 0) for count in counts))


def _build_record_columns() -> dict[str, Any]:
    """Return the columns of `models.Sums` as sums over records: what `rollups.add_records` does, in SQL."""
    is_timed = Q(first_token_ms__isnull=False, duration_ms__gt=F("first_token_ms"))
    edges = (-1, *rollups.TTFT_BOUNDS_MS)
    buckets = [Q(first_token_ms__gt=low, first_token_ms__lte=high) for low, high in pairwise(edges)]
    buckets.append(Q(first_token_ms__gt=edges[-1]))
    found = {
        "requests": Count("pk"),
        **{name: Sum(name) for name in ("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens")},
        "estimated": Count("pk", filter=Q(estimated=True)),
        **{name: Count("pk", filter=Q(status=name)) for name in rollups.STATES},
        "looped": Count("pk", filter=Q(status="looped")),
        "looped_tokens": Sum("looped_tokens", filter=Q(status="looped")),
        "saved_tokens": Sum("saved_tokens", filter=Q(status="looped")),
        "watched": Count("pk", filter=IS_WATCHED),
        "generated_tokens": Sum("completion_tokens", filter=is_timed),
        "generated_ms": Sum(F("duration_ms") - F("first_token_ms"), filter=is_timed),
        **{name: Count("pk", filter=bucket) for name, bucket in zip(rollups.TTFT_BUCKETS, buckets, strict=True)},
    }
    return {f"sum_{name}": found[name] for name in rollups.SUMS}


RECORD_COLUMNS = _build_record_columns()


def _sum_by_slot(rows: Iterable[Any], slot_of: Callable[[Any], Slot] | None) -> dict[tuple[Slot, str], UsageSums]:
    """Sum up rows of (time, model, counts) by slot and model. `slot_of` gives the slot of a time; None: it is one."""
    found: dict[tuple[Slot, str], UsageSums] = {}
    for at, model, *counts in rows:
        key, sums = (slot_of(at) if slot_of else at, model), UsageSums(tuple(counts))
        found[key] = found[key] + sums if key in found else sums
    return found


def period_bounds(period: Period, zone: ZoneInfo) -> tuple[datetime, datetime]:
    """Return the moments at which the period begins and at which it is over."""
    begin = datetime.combine(period.first, time(), zone)
    return begin, datetime.combine(period.last + timedelta(days=1), time(), zone)


# --- Whole periods
def read_tokens_before(scope: UsageScope, period: Period) -> dict[str, int]:
    """Read each model's tokens in the period with which this one is compared. One query."""
    rows = period_before(period).filter_days(scope.sums).order_by().values_list("model")
    return dict(rows.annotate(tokens=TOKENS))


def percent_change(now: int, before: int) -> int | None:
    """Return the change in per cent; None if there is nothing to compare with."""
    return round(100 * (now - before) / before) if before else None


def split_rows(scope: UsageScope, period: Period, column: str = "") -> list[QuerySet[Any]]:
    """Return rows by key, model and end user that add up to the period: whole months, and the days around them.

    Rows by tenant and model if only these are to be summed up by `column`: they are the fewest of any period.
    """
    if column == "tenant_id":
        return [period.filter_days(scope.sums)]
    months, around = period.split_months()
    found: list[QuerySet[Any]] = [scope.days.filter(day__range=days) for days in around]
    return [*found, scope.months.filter(month__range=(months[0], months[-1]))] if months else found


def count_people(scope: UsageScope, period: Period) -> int:
    """Count the people who used anything. Three queries at most."""
    found: set[int] = set()
    for rows in split_rows(scope, period):
        found.update(rows.filter(user__isnull=False).order_by().values_list("user", flat=True).distinct())
    return len(found)


def count_people_by_slot(scope: UsageScope, period: Period) -> dict[Slot, int]:
    """Count the people who used anything in each day, month or fiscal year; not by hours.

    One query, for fiscal years one each.
    """
    counted = {"people": Count("user", distinct=True)}
    if period.unit == "hour":
        return {}
    if period.unit == "day":
        return dict(period.filter_days(scope.people).order_by().values_list("day").annotate(**counted))
    months = scope.months.filter(month__range=(period.first.replace(day=1), period.last))
    if period.unit == "month":
        return dict(months.order_by().values_list("month").annotate(**counted))
    years = [(slot, slot.replace(year=slot.year + 1)) for slot in period.slots]
    return {
        first: months.filter(month__gte=first, month__lt=end).aggregate(**counted)["people"] for first, end in years
    }


# --- Without a complete answer
def count_rejections(scope: UsageScope, period: Period, zone: ZoneInfo) -> dict[tuple[Slot, str], int]:
    """Count the calls that the gateway rejected, by slot (as in `read_series`) and code. One query."""
    begin, end = period_bounds(period, zone)
    slot = {
        "hour": F("hour"),
        "day": TruncDate("hour", tzinfo=zone),
    }.get(period.unit, TruncMonth("hour", tzinfo=zone))
    rows = scope.rejections.filter(hour__gte=begin, hour__lt=end).annotate(slot=slot).order_by()
    found: Counter[tuple[Slot, str]] = Counter()
    for at, code, number in rows.values_list("slot", "code").annotate(number=sum_as_integer("requests")):
        found[_slot_of(at, period.unit, zone), code] += number
    return found


def _slot_of(at: Any, unit: str, zone: ZoneInfo) -> Slot:
    if unit == "hour":
        return hours.start_of_hour(at, zone)
    day: date = at.date() if isinstance(at, datetime) else at
    return start_of_fiscal_year(day) if unit == "year" else day


def list_failures(series: UsageSeries, rejected: dict[tuple[Slot, str], int]) -> list[tuple[Slot, str, int]]:
    """Return (slot, reason, requests) of all requests without a complete answer: rejected, or ended early."""
    ended = [(slot, name, number) for slot, sums in series.by_slot.items() for name, number in sums.failures.items()]
    slots = set(series.slots)
    # A day whose hours are not known is one slot.
    only = next(iter(series.slots)) if len(series.slots) == 1 else None
    return ended + [
        (slot if slot in slots or only is None else only, code, number) for (slot, code), number in rejected.items()
    ]


def explain_failures(failures: Iterable[tuple[Slot, str, int]]) -> list[failure_reasons.FailureReason]:
    """Return the reasons with their requests, the most frequent first."""
    counted: Counter[str] = Counter()
    for _at, name, number in failures:
        counted[name] += number
    return [failure_reasons.explain_failure(name, number) for name, number in counted.most_common()]


# --- By group
def read_groups(
    scope: UsageScope, period: Period, group: str, most: int | None = None, sort: str = SORTS[0]
) -> tuple[Rows, int]:
    """Read the sums by key, user, tenant or end user, the most of `sort` first, and count the rows beyond `most`.

    `sort`: one of SORTS, or "-" and one for the least first.

    A row has "value" (what is summed up by), "name", "id" (what Focus or the address takes for it), NUMBERS, "speed",
    and "change" in per cent against the period before. Seven queries at most.
    """
    column = COLUMN.get(group, group)
    sums: dict[Any, list[int]] = {}
    for rows in split_rows(scope, period, column):
        for value, *counts in (
            rows.order_by()
            .values_list(column)
            .annotate(**{f"sum_{name}": sum_as_integer(name) for name in GROUP_COLUMNS})
        ):
            known = sums.get(value)
            sums[value] = counts if known is None else list(map(operator.add, known, counts))
    ranked = sorted(sums, key=str)
    ranked.sort(key=lambda value: _number(sums[value], column_of(sort)), reverse=not is_turned(sort))
    shown = ranked[:most]
    before: Counter[Any] = Counter()
    # With `most`, only these are summed up: a hundred out of thousands.
    same = Q(**{f"{column}__in": [value for value in shown if value is not None]})
    if most is not None and None in shown:
        same |= Q(**{f"{column}__isnull": True})
    for rows in split_rows(scope, period_before(period), column) if shown else ():
        if most is not None:
            rows = rows.filter(same)
        before.update(dict(rows.order_by().values_list(column).annotate(tokens=TOKENS)))
    labels = label_values(group, shown)
    found = []
    for value in shown:
        name, number = labels[value]
        found.append({"value": value, "name": name, "id": number, **_build_row(sums[value], before[value])})
    return found, len(sums) - len(shown)


def _number(counts: Sequence[int], sort: str) -> int:
    """Return one of SORTS from counts in the order of GROUP_COLUMNS."""
    return counts[1] + counts[2] if sort == "total_tokens" else counts[GROUP_COLUMNS.index(sort)]


def _build_row(counts: list[int], before: int) -> dict[str, Any]:
    row: dict[str, Any] = dict(zip(GROUP_COLUMNS, counts, strict=True))
    generated, took = row.pop("generated_tokens"), row.pop("generated_ms")
    row["total_tokens"] = row["prompt_tokens"] + row["completion_tokens"]
    speed = 1000 * generated / took if took else None
    return {**row, "speed": speed, "change": percent_change(row["total_tokens"], before)}


def group_by_model(series: UsageSeries, before: dict[str, int], sort: str = SORTS[0]) -> Rows:
    """Return the rows that `read_groups` would give by model, with "first_tokens" as well. No query."""
    rows = [
        {
            "value": model,
            "name": model,
            "id": model,
            **sums.numbers,
            "speed": sums.speed,
            "first_tokens": sums.first_tokens,
            "change": percent_change(sums.numbers["total_tokens"], before.get(model, 0)),
        }
        for model, sums in series.by_model.items()
    ]
    rows.sort(key=operator.itemgetter("name"))
    return sorted(rows, key=operator.itemgetter(column_of(sort)), reverse=not is_turned(sort))


def list_loops(series: UsageSeries) -> Rows:
    """Return the models whose answers fell into word loops, most loops first: "name", "answers" and LOOPS. No query."""
    found = [
        {"name": model, "answers": sums["watched"], **{name: sums[name] for name in LOOPS}}
        for model, sums in series.by_model.items()
        if sums["looped"]
    ]
    return sorted(found, key=lambda row: (-row["looped"], row["name"]))


# What labels are made of: an export reads two thousand rows of thirty columns otherwise, which takes 100 ms.
OF_PERSON_LABEL = ("username", "first_name", "last_name")
OF_KEY_LABEL = ("prefix", "name", "is_playground", *(f"user__{name}" for name in OF_PERSON_LABEL))


def label_values(group: str, values: Iterable[Any]) -> dict[Any, tuple[str, str]]:
    """Return for each value (what people call it, what the address takes for it; "" if there is no page of it).

    One query. Deleted rows are named by their numbers, so that two of them remain distinct.
    """
    values = list(values)
    if group == "end_user":
        return {value: (value or _("not given by the client"), value) for value in values}
    found: dict[Any, tuple[str, str]] = {}
    if group == "key":
        keys = ApiKey.objects.select_related("user").only(*OF_KEY_LABEL).in_bulk(values).values()
        found = {key.pk: (label_key(key), str(key.pk)) for key in keys}
    elif group == "user":
        people = User.objects.only(*OF_PERSON_LABEL).in_bulk([one for one in values if one is not None]).values()
        found = {None: (_("service keys"), scopes.SERVICE), **{one.pk: (person(one), str(one.pk)) for one in people}}
    elif group == "tenant":
        found = {**read_tenant_names()}
    gone = _("deleted (%(number)s)")
    # Usage of deleted rows can still be looked at, except a tenant's, whose address was its name.
    return {
        value: found.get(value) or (gone % {"number": value}, "" if group == "tenant" else str(value))
        for value in values
    }


def label_key(key: ApiKey) -> str:
    """Return what people call the key. A playground's key is named after its person: its text changes daily."""
    return _("Playground of %(person)s") % {"person": person(key.user)} if key.user and key.is_playground else str(key)


def label_focus(focus: Focus) -> list[tuple[str, str]]:
    """Return (part, what people call its value) for each part of a focus that `scopes.narrow_scope` has accepted."""
    labels = []
    for part, value in focus.parts.items():
        if part in ("user", "key") and value != scopes.SERVICE:
            labels.append((part, label_values(part, [int(value)])[int(value)][0]))
        else:
            labels.append((part, _("service keys") if part == "user" else value))
    return labels


# --- In full
DETAIL_EXPORT = (
    *("day", "tenant", "user", "key", "key_name", "model", "end_user", "requests"),
    *("prompt_tokens", "completion_tokens", "total_tokens", "estimated", *LOOPS),
)


def read_details(scope: UsageScope, period: Period) -> Iterator[dict[str, Any]]:
    """Yield each day by tenant, user, key, model and end user, as in the table, while it is read: DETAIL_EXPORT."""
    tenants = dict(Tenant.objects.values_list("pk", "slug"))
    users = dict(User.objects.values_list("pk", "username"))
    keys = {pk: (prefix, name) for pk, prefix, name in ApiKey.objects.values_list("pk", "prefix", "name")}
    # Without joins, which would leave out rows that refer to something deleted.
    columns = ("day", "tenant_id", "user_id", "key_id", "model", "end_user", *DETAIL_COLUMNS)
    rows = period.filter_days(scope.days).order_by("day", "tenant_id", "key_id", "model", "end_user")
    for day, tenant, user, key, model, end_user, *counts in rows.values_list(*columns).iterator(2000):
        requests, prompt, completion, estimated, *loops = counts
        prefix, name = keys.get(key, ("", ""))
        yield {
            "day": day.isoformat(),
            "tenant": tenants.get(tenant, ""),
            "user": users.get(user, ""),
            "key": prefix,
            "key_name": name,
            "model": model,
            "end_user": end_user,
            "requests": requests,
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "estimated": estimated,
            **dict(zip(LOOPS, loops, strict=True)),
        }
