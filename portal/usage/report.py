"""What a usage page and its exports tell of a scope in a period: sums by time and by thing, and how it went."""

import operator
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

from django.db.models import BigIntegerField, Count, F, Q, QuerySet, Sum
from django.db.models.functions import Cast, TruncDate, TruncHour, TruncMinute, TruncMonth
from django.utils import timezone
from django.utils.translation import gettext as _

from portal.accounts.models import Tenant, User
from portal.keys.models import ApiKey
from portal.usage import failure_reasons, hours, rollups, scopes
from portal.usage.periods import Period, fiscal_year, period_before
from portal.usage.scopes import Focus, Scope
from portal.web.templatetags.formatting import person

NUMBERS = ("requests", "prompt_tokens", "completion_tokens", "total_tokens", "estimated")
# The columns of the sums that a table of many rows adds up: all of them take three times as long.
ADDED = ("requests", "prompt_tokens", "completion_tokens", "estimated", "generated_tokens", "generated_ms")


def added(what: Any) -> Any:
    """Return the sum as a whole number: PostgreSQL's of large ones is a decimal.

    Which takes ten times as long to read.
    """
    return Cast(Sum(what), BigIntegerField())


TOKENS = added(F("prompt_tokens") + F("completion_tokens"))
SUMMED = {f"sum_{name}": added(name) for name in rollups.SUMS}
COLUMN = {"key": "key_id", "user": "user_id", "tenant": "tenant_id"}
# For so long records are kept at least (pruneusage), from which hours can be told that nothing sums up.
KEPT = timedelta(days=40)
Rows = list[dict[str, Any]]
Slot = date | datetime


@dataclass(frozen=True, slots=True)
class Sums:
    """Columns of Sums added up, in the order of `rollups.SUMS`."""

    counts: tuple[int, ...] = (0,) * len(rollups.SUMS)

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(tuple(map(operator.add, self.counts, other.counts)))  # a third of the time of a generator

    def __getitem__(self, name: str) -> int:
        return self.counts[rollups.SUMS.index(name)]

    @property
    def numbers(self) -> dict[str, int]:
        """By the words of NUMBERS."""
        named = {name: self[name] for name in NUMBERS if name != "total_tokens"}
        total = named["prompt_tokens"] + named["completion_tokens"]
        return {name: total if name == "total_tokens" else named[name] for name in NUMBERS}

    @property
    def speed(self) -> float | None:
        """Tokens a second of one answer, from its first token on; None where nothing tells."""
        return 1000 * self["generated_tokens"] / self["generated_ms"] if self["generated_ms"] else None

    @property
    def first_tokens(self) -> tuple[float, float] | None:
        """Seconds in which half and 95 % of the answers had begun; None where nothing tells."""
        counts = self.counts[rollups.FIRST_BUCKET :]
        half, most = rollups.percentile(counts, 0.5), rollups.percentile(counts, 0.95)
        return (half / 1000, most / 1000) if half is not None and most is not None else None

    @property
    def troubles(self) -> dict[str, int]:
        """Requests without a whole answer, by how they ended."""
        return {name: self[name] for name in failure_reasons.ENDED if self[name]}

    @property
    def troubled(self) -> int:
        return sum(self.troubles.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """`sums` by (slot, model), a slot being an hour, a day, the first day of a month or of a fiscal year (`unit`).
    `slots`: all of them, also empty ones."""

    unit: str
    slots: Sequence[Slot]
    sums: dict[tuple[Slot, str], Sums]

    @property
    def rows(self) -> Rows:
        """One for each slot and model with anything, in their order: "slot", "model" and NUMBERS."""
        return [{"slot": slot, "model": model, **self.sums[slot, model].numbers} for slot, model in sorted(self.sums)]

    @property
    def totals(self) -> Sums:
        return sum(self.sums.values(), Sums())

    @property
    def by_slot(self) -> dict[Slot, Sums]:
        found: dict[Slot, Sums] = defaultdict(Sums)
        for (slot, _model), sums in self.sums.items():
            found[slot] += sums
        return found

    @property
    def by_model(self) -> dict[str, Sums]:
        found: dict[str, Sums] = defaultdict(Sums)
        for (_slot, model), sums in self.sums.items():
            found[model] += sums
        return found


# --- Over time
def series(scope: Scope, period: Period, zone: ZoneInfo) -> Series:
    """Return one query."""
    if period.unit == "hour" and (scope.hours is not None or period.first > timezone.now().date() - KEPT):
        return _hours(scope, period, zone)
    if period.unit in ("month", "year"):
        days = period.of(scope.sums).annotate(slot=TruncMonth("day"))
    else:
        days = period.of(scope.sums).annotate(slot=F("day"))
    rows = days.order_by().values_list("slot", "model").annotate(**SUMMED)
    of = fiscal_year if period.unit == "year" else _itself
    unit = "day" if period.unit == "hour" else period.unit
    return Series(unit=unit, slots=period.slots, sums=_summed(rows, of))


def _hours(scope: Scope, period: Period, zone: ZoneInfo) -> Series:
    begin, end = bounds(period, zone)
    if scope.hours is not None:
        pieces: QuerySet[Any] = scope.hours.filter(hour__gte=begin, hour__lt=end).annotate(slot=F("hour"))
        rows: Iterable[Any] = pieces.order_by().values_list("slot", "model").annotate(**SUMMED)
    else:
        records = scope.records.filter(started_at__gte=begin, started_at__lt=end)
        rows = _by_piece(records, begin, end, zone)
    sums = _summed(rows, lambda piece: hours.hour_of(piece, zone))
    return Series(unit="hour", slots=hours.between(begin, end, zone), sums=sums)


def _by_piece(records: QuerySet[Any], begin: datetime, end: datetime, zone: ZoneInfo) -> Iterator[tuple[Any, ...]]:
    """(piece, model, sums as of `rollups.SUMS`) of records; pieces of time that lie within the zone's hours."""
    whole = hours.is_whole(begin, zone) and hours.is_whole(end, zone)
    pieces = TruncHour("started_at", tzinfo=UTC) if whole else TruncMinute("started_at", tzinfo=UTC)
    found = records.annotate(slot=pieces).order_by().values_list("slot", "model").annotate(**OF_RECORDS)
    for slot, model, *counts in found:
        yield (slot, model, *(int(count or 0) for count in counts))


def _of_records() -> dict[str, Any]:
    """Return the columns of Sums as sums of records: what `rollups.add` does, in SQL."""
    told = Q(first_token_ms__isnull=False, duration_ms__gt=F("first_token_ms"))
    edges = (-1, *rollups.TTFT_BOUNDS_MS)
    firsts = [Q(first_token_ms__gt=low, first_token_ms__lte=high) for low, high in pairwise(edges)]
    firsts.append(Q(first_token_ms__gt=edges[-1]))
    found = {
        "requests": Count("pk"),
        **{name: Sum(name) for name in ("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens")},
        "estimated": Count("pk", filter=Q(estimated=True)),
        **{name: Count("pk", filter=Q(status=name)) for name in rollups.STATES},
        "generated_tokens": Sum("completion_tokens", filter=told),
        "generated_ms": Sum(F("duration_ms") - F("first_token_ms"), filter=told),
        **{name: Count("pk", filter=of) for name, of in zip(rollups.TTFT_BUCKETS, firsts, strict=True)},
    }
    return {f"sum_{name}": found[name] for name in rollups.SUMS}


OF_RECORDS = _of_records()


def _itself(slot: Any) -> Any:
    return slot


def _summed(rows: Iterable[Any], of: Any) -> dict[tuple[Slot, str], Sums]:
    """Of rows (slot, model, counts): by (`of` the slot, model)."""
    found: dict[tuple[Slot, str], Sums] = {}
    for slot, model, *counts in rows:
        key, sums = (of(slot), model), Sums(tuple(counts))
        found[key] = found[key] + sums if key in found else sums
    return found


def bounds(period: Period, zone: ZoneInfo) -> tuple[datetime, datetime]:
    """Return the moments at which it begins and at which it is over."""
    begin = datetime.combine(period.first, time(), zone)
    return begin, datetime.combine(period.last + timedelta(days=1), time(), zone)


# --- Whole periods
def then_by_model(scope: Scope, period: Period) -> dict[str, int]:
    """Return tokens of each model in what the period is to be compared with. One query."""
    rows = period_before(period).of(scope.sums).order_by().values_list("model")
    return dict(rows.annotate(tokens=TOKENS))


def change(now: int, then: int) -> int | None:
    """In per cent; None when there is nothing to compare with."""
    return round(100 * (now - then) / then) if then else None


def parts(scope: Scope, period: Period) -> list[QuerySet[Any]]:
    """Return rows by key, model and end user that add up to the period: whole months, and the days around them."""
    months, around = period.split()
    found: list[QuerySet[Any]] = [scope.days.filter(day__range=days) for days in around]
    return [*found, scope.months.filter(month__range=(months[0], months[-1]))] if months else found


def people(scope: Scope, period: Period) -> int:
    """Return how many used anything. Three queries at most."""
    found: set[int] = set()
    for rows in parts(scope, period):
        found.update(rows.filter(user__isnull=False).order_by().values_list("user", flat=True).distinct())
    return len(found)


def people_by_slot(scope: Scope, period: Period) -> dict[Slot, int]:
    """Return how many used anything in each day, month or fiscal year; hours are not told. One query, for years as
    many.
    """
    counted = {"people": Count("user", distinct=True)}
    if period.unit == "hour":
        return {}
    if period.unit == "day":
        return dict(period.of(scope.days).order_by().values_list("day").annotate(**counted))
    whole = scope.months.filter(month__range=(period.first.replace(day=1), period.last))
    if period.unit == "month":
        return dict(whole.order_by().values_list("month").annotate(**counted))
    years = [(slot, slot.replace(year=slot.year + 1)) for slot in period.slots]
    return {first: whole.filter(month__gte=first, month__lt=end).aggregate(**counted)["people"] for first, end in years}


# --- Without a whole answer
def rejections(scope: Scope, period: Period, zone: ZoneInfo) -> dict[tuple[Slot, str], int]:
    """Return how many calls the gateway refused, by slot (as of `series`) and code. One query."""
    begin, end = bounds(period, zone)
    slot = {
        "hour": F("hour"),
        "day": TruncDate("hour", tzinfo=zone),
    }.get(period.unit, TruncMonth("hour", tzinfo=zone))
    rows = scope.rejections.filter(hour__gte=begin, hour__lt=end).annotate(slot=slot).order_by()
    found: Counter[tuple[Slot, str]] = Counter()
    for at, code, number in rows.values_list("slot", "code").annotate(number=added("requests")):
        found[_slot(at, period.unit, zone), code] += number
    return found


def _slot(at: Any, unit: str, zone: ZoneInfo) -> Slot:
    if unit == "hour":
        return hours.hour_of(at, zone)
    day: date = at.date() if isinstance(at, datetime) else at
    return fiscal_year(day) if unit == "year" else day


def troubles(series: Series, refused: dict[tuple[Slot, str], int]) -> list[tuple[Slot, str, int]]:
    """(slot, reason, requests) of all without a whole answer: what the gateway refused and what ended otherwise."""
    ended = [(slot, name, number) for slot, sums in series.by_slot.items() for name, number in sums.troubles.items()]
    slots = set(series.slots)
    # A day of which no hours are told is one slot.
    only = next(iter(series.slots)) if len(series.slots) == 1 else None
    return ended + [
        (slot if slot in slots or only is None else only, code, number) for (slot, code), number in refused.items()
    ]


def why(troubles: Iterable[tuple[Slot, str, int]]) -> list[failure_reasons.FailureReason]:
    """Return the most frequent first."""
    counted: Counter[str] = Counter()
    for _at, name, number in troubles:
        counted[name] += number
    return [failure_reasons.explain_failure(name, number) for name, number in counted.most_common()]


# --- By thing
def grouped(scope: Scope, period: Period, group: str, most: int | None = None) -> tuple[Rows, int]:
    """By key, user, tenant or end user, most tokens first: "name", "id" (what Focus or the address takes for it),
    NUMBERS, "speed", and "change" against the period before in per cent; and how many rows there are beyond `most`.

    Seven queries at most.
    """
    column = COLUMN.get(group, group)
    sums: dict[Any, list[int]] = {}
    for part in parts(scope, period):
        for value, *counts in (
            part.order_by().values_list(column).annotate(**{f"sum_{name}": added(name) for name in ADDED})
        ):
            known = sums.get(value)
            sums[value] = counts if known is None else list(map(operator.add, known, counts))
    shown = sorted(sums, key=lambda value: (-_tokens(sums[value]), str(value)))[:most]
    then: Counter[Any] = Counter()
    # Of a hundred out of thousands only those are added up.
    same = Q(**{f"{column}__in": [value for value in shown if value is not None]})
    if most is not None and None in shown:
        same |= Q(**{f"{column}__isnull": True})
    for part in parts(scope, period_before(period)) if shown else ():
        if most is not None:
            part = part.filter(same)
        then.update(dict(part.order_by().values_list(column).annotate(tokens=TOKENS)))
    known_as = names(group, shown)
    rows = []
    for value in shown:
        name, number = known_as[value]
        rows.append({"name": name, "id": number, **_row(sums[value], then[value])})
    return rows, len(sums) - len(shown)


def _tokens(counts: Sequence[int]) -> int:
    """Of what was added up in the order of ADDED."""
    return counts[1] + counts[2]


def _row(counts: list[int], then: int) -> dict[str, Any]:
    row: dict[str, Any] = dict(zip(ADDED, counts, strict=True))
    generated, took = row.pop("generated_tokens"), row.pop("generated_ms")
    row["total_tokens"] = row["prompt_tokens"] + row["completion_tokens"]
    return {**row, "speed": 1000 * generated / took if took else None, "change": change(row["total_tokens"], then)}


def by_model(series: Series, then: dict[str, int]) -> Rows:
    """As `grouped`, by model, with "first_tokens" as well. No query."""
    rows = [
        {
            "name": model,
            "id": model,
            **sums.numbers,
            "speed": sums.speed,
            "first_tokens": sums.first_tokens,
            "change": change(sums.numbers["total_tokens"], then.get(model, 0)),
        }
        for model, sums in series.by_model.items()
    ]
    return sorted(rows, key=lambda row: (-row["total_tokens"], row["name"]))


def names(group: str, values: Iterable[Any]) -> dict[Any, tuple[str, str]]:
    """(how people call it, what the address takes for it; "" where nothing more is told) of each. One query.

    Rows that are gone keep their number, so that two of them stay two.
    """
    values = list(values)
    if group == "end_user":
        return {value: (value or _("not told by the client"), value) for value in values}
    found: dict[Any, tuple[str, str]] = {}
    if group == "key":
        keys = ApiKey.objects.select_related("user").in_bulk(values).values()
        found = {key.pk: (called(key), str(key.pk)) for key in keys}
    elif group == "user":
        people = User.objects.in_bulk([value for value in values if value is not None]).values()
        found = {None: (_("service keys"), scopes.SERVICE), **{one.pk: (person(one), str(one.pk)) for one in people}}
    elif group == "tenant":
        found = {one.pk: (one.name, one.slug) for one in Tenant.objects.in_bulk(values).values()}
    gone = _("deleted (%(number)s)")
    # What has no name any more can be looked at still, but for a tenant, whose address was its name.
    return {
        value: found.get(value) or (gone % {"number": value}, "" if group == "tenant" else str(value))
        for value in values
    }


def called(key: ApiKey) -> str:
    """Return the text of a playground's key is another one tomorrow, so it is named after its person."""
    return _("Playground of %(person)s") % {"person": person(key.user)} if key.user and key.is_playground else str(key)


def focused(focus: Focus) -> list[tuple[str, str]]:
    """(which part, how people call it) of what is looked at alone. Only for what `scopes.narrowed` let pass."""
    told = []
    for part, value in focus.asked.items():
        if part in ("user", "key") and value != scopes.SERVICE:
            told.append((part, names(part, [int(value)])[int(value)][0]))
        else:
            told.append((part, _("service keys") if part == "user" else value))
    return told


# --- In full
def details(scope: Scope, period: Period) -> Iterator[dict[str, Any]]:
    """Yield each day by tenant, user, key, model and end user, as they are in the table; read as it is asked for."""
    tenants = dict(Tenant.objects.values_list("pk", "slug"))
    users = dict(User.objects.values_list("pk", "username"))
    keys = {pk: (prefix, name) for pk, prefix, name in ApiKey.objects.values_list("pk", "prefix", "name")}
    # Not joined: what points at something that is gone would be left out.
    columns = ("day", "tenant_id", "user_id", "key_id", "model", "end_user", *ADDED[:4])
    rows = period.of(scope.days).order_by("day", "tenant_id", "key_id", "model", "end_user").values_list(*columns)
    for day, tenant, user, key, model, end_user, requests, prompt, completion, estimated in rows.iterator(2000):
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
        }
