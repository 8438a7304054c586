"""How often answers fall into word loops: counted by what matters for it, with the uncertainty of the rate.

The rate is looped ÷ (finished + looped), of answers with any tokens. Answers in which loops were not looked for, as
their model, key or call says, do not count: they would lower it. Nor do those of gateways that did not know of loops.
"""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from django.conf import settings
from django.db.backends.utils import CursorWrapper
from django.db.models import F, QuerySet, Sum, Value
from django.db.models.fields.json import KT
from django.utils import timezone

from modelregistry.models import FileReport, Replica
from portal.usage.models import LoopDay, UsageHour
from portal.usage.rollups import Group, Row, is_watched, upsert

LEAST_ANSWERS = 20  # with fewer the interval is wider than 0.16 even without a single loop
USUAL_DAYS = 28
GROUP = ("model", "day", "quantisation", "launcher", "version", "temperature")
Z = 1.96  # of the normal distribution, for 95 in 100
# The upper bounds of the bands of temperature, in hundredths.
BANDS = (
    (0, LoopDay.Temperature.ZERO),
    (30, LoopDay.Temperature.LOW),
    (70, LoopDay.Temperature.MIDDLE),
    (100, LoopDay.Temperature.HIGH),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopRate:
    """How many of so many answers fell into word loops."""

    answers: int = 0
    looped: int = 0

    @property
    def known(self) -> bool:
        """Whether there are enough answers to say anything."""
        return self.answers >= LEAST_ANSWERS

    @property
    def share(self) -> float | None:
        return self.looped / self.answers if self.answers else None

    @property
    def interval(self) -> tuple[float, float]:
        """The shares between which the true one lies, in 95 of 100 cases."""
        return wilson_interval(self.looped, self.answers)

    def is_above(self, usual: "LoopRate") -> bool:
        """Return whether this rate is surely higher: both are known and their intervals do not overlap."""
        return self.known and usual.known and self.interval[0] > usual.interval[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class RaisedRate:
    """A model that loops more often than it used to."""

    model: str
    recent: LoopRate
    usual: LoopRate


def wilson_interval(hits: int, trials: int) -> tuple[float, float]:
    """Return the bounds of Wilson's score interval of 95 % for a share, which holds for few trials and no hits too."""
    if not trials:
        return 0.0, 1.0
    share, square = hits / trials, Z * Z
    scale = 1 + square / trials
    centre = (share + square / (2 * trials)) / scale
    spread = Z * math.sqrt(share * (1 - share) / trials + square / (4 * trials * trials)) / scale
    # Without hits, and with nothing else, a bound is exact: rounding must not leave 1e-18.
    return max(0.0, centre - spread) if hits else 0.0, min(1.0, centre + spread) if hits < trials else 1.0


def band_of(temperature: int | None) -> LoopDay.Temperature:
    """Return the band of a temperature in hundredths."""
    if temperature is None:
        return LoopDay.Temperature.NONE
    return next((band for bound, band in BANDS if temperature <= bound), LoopDay.Temperature.HIGHEST)


# --- Counting
def add_loops(rows: Iterable[Row], cursor: CursorWrapper) -> None:
    """Add new records to the counts of loops, once each, in the transaction that writes them. Three queries."""
    answers = [row for row in rows if is_watched(row) or row.get("observer_failed")]
    if not answers:
        return
    quantisations = _read_quantisations({row["model"] for row in answers})
    engines = _read_engines({row["replica_id"] for row in answers} - {None})
    zone, days = ZoneInfo(settings.TIME_ZONE), dict[datetime, date]()
    groups: dict[Group, list[int]] = defaultdict(lambda: [0, 0, 0])
    for row in answers:
        quantisation = quantisations.get(row["model"], "")
        launcher, version = engines.get(row["replica_id"], ("", ""))
        day = _find_day(row["started_at"], zone, days)
        band = band_of(row["temperature"]).value
        counts = groups[row["model"], day, quantisation, launcher, version, band]
        if is_watched(row):
            counts[row["status"] == "looped"] += 1
        else:
            counts[2] += 1
    upsert(cursor, LoopDay, groups, unique=GROUP, counters=("finished", "looped", "failed"))


def _read_quantisations(names: set[str]) -> dict[str, str]:
    """Return the quantisations of models; those that are gone or have no report are missing."""
    reports = FileReport.objects.filter(model__name__in=names).annotate(quantisation=KT("facts__quantisation"))
    found = reports.values_list("model__name", "quantisation")
    return {name: (quantisation or "")[:60] for name, quantisation in found}


def _read_engines(replicas: set[int]) -> dict[int, tuple[str, str]]:
    """Return (launcher, version) by replica; those that are gone are missing."""
    found = Replica.objects.filter(pk__in=replicas).values_list("pk", "launcher", "version")
    return {pk: (launcher, version) for pk, launcher, version in found}


def _find_day(started: datetime, zone: ZoneInfo, known: dict[datetime, date]) -> date:
    """Return the site's day. Cached by quarters of an hour: zone arithmetic is slow."""
    quarter = started.replace(minute=started.minute // 15 * 15, second=0, microsecond=0)
    if quarter not in known:
        known[quarter] = quarter.astimezone(zone).date()
    return known[quarter]


# --- Reading
def sum_rates(rows: QuerySet[LoopDay], *fields: str) -> dict[tuple[Any, ...], LoopRate]:
    """Return the rates of these rows grouped by fields, in their order. One query."""
    rows = rows.exclude(finished=0, looped=0)
    sums = rows.order_by().values_list(*fields).annotate(Sum("finished"), Sum("looped")).order_by(*fields)
    return {tuple(key): LoopRate(answers=finished + looped, looped=looped) for *key, finished, looped in sums}


def recent_days(now: datetime) -> tuple[date, ...]:
    """Return the days of the site that the usual rate is of, and those since, until today."""
    zone = ZoneInfo(settings.TIME_ZONE)
    first, today = _last_day_before(now, zone) - timedelta(days=USUAL_DAYS - 1), now.astimezone(zone).date()
    return tuple(first + timedelta(days=n) for n in range((today - first).days + 1))


def read_usual_rates(now: datetime, model: str = "") -> dict[str, LoopRate]:
    """Return the rates of the 28 days before the last 24 hours, by model. One query."""
    rows = _usual_days(now)
    found = sum_rates(rows.filter(model=model) if model else rows, "model")
    return {name: rate for (name,), rate in found.items()}


def _usual_days(now: datetime) -> QuerySet[LoopDay]:
    last = _last_day_before(now, ZoneInfo(settings.TIME_ZONE))
    return LoopDay.objects.filter(day__range=(last - timedelta(days=USUAL_DAYS - 1), last))


def _watched_lately(now: datetime) -> QuerySet[UsageHour]:
    return UsageHour.objects.filter(hour__gte=now - timedelta(hours=24), watched__gt=0)


def _failed_lately(now: datetime) -> QuerySet[LoopDay]:
    today = timezone.localdate(now, timezone.get_default_timezone())
    return LoopDay.objects.filter(day__gte=today - timedelta(days=1), failed__gt=0)


def read_recent_rates(now: datetime, model: str = "") -> dict[str, LoopRate]:
    """Return the rates of the last 24 hours, from their first whole hour on, by model. One query."""
    rows = _watched_lately(now)
    rows = rows.filter(model=model) if model else rows
    counted = rows.order_by().values_list("model").annotate(Sum("watched"), Sum("looped"))
    return {name: LoopRate(answers=answers, looped=loops) for name, answers, loops in counted}


def read_failures(now: datetime) -> dict[str, int]:
    """Return how many answers of today and yesterday could not be watched to their end, by model. One query."""
    return dict(_failed_lately(now).order_by().values_list("model").annotate(Sum("failed")).order_by("model"))


def _last_day_before(now: datetime, zone: ZoneInfo) -> date:
    """Return the last day of the site that was over 24 hours ago."""
    day = (now - timedelta(hours=24)).astimezone(zone).date()
    return day - timedelta(days=1)


def find_raised(now: datetime) -> list[RaisedRate]:
    """Return the models whose rate of the last 24 hours is above their usual one. One query."""
    return read_loop_troubles(now)[0]


def read_loop_troubles(now: datetime) -> tuple[list[RaisedRate], dict[str, int]]:
    """Return what `find_raised` and `read_failures` do. One query."""
    parts: list[QuerySet[Any, tuple[Any, ...]]] = [
        rows.order_by()
        .annotate(part=Value(part), name=F("model"))
        .values_list("part", "name")
        .annotate(one=Sum(first), other=Sum("looped"))
        for part, rows, first in [
            ("recent", _watched_lately(now), "watched"),
            ("usual", _usual_days(now), "finished"),
            ("failed", _failed_lately(now), "failed"),
        ]
    ]
    found: dict[str, dict[str, tuple[int, int]]] = {"recent": {}, "usual": {}, "failed": {}}
    for part, name, one, other in parts[0].union(*parts[1:], all=True):
        found[part][name] = int(one), int(other)
    recent = {name: LoopRate(answers=answers, looped=looped) for name, (answers, looped) in found["recent"].items()}
    usual = {
        name: LoopRate(answers=finished + looped, looped=looped)
        for name, (finished, looped) in found["usual"].items()
        if finished or looped
    }
    raised = [
        RaisedRate(model=name, recent=rate, usual=usual[name])
        for name, rate in sorted(recent.items())
        if rate.known and rate.looped and name in usual and rate.is_above(usual[name])
    ]
    return raised, {name: failed for name, (failed, _) in sorted(found["failed"].items())}
