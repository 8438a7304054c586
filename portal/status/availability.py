"""How available models were, day by day, from the intervals that were recorded.

Of a day counts the time in which the model was offered and watched. It was available where it answered or slept, as a
call wakes it.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from itertools import groupby, pairwise
from zoneinfo import ZoneInfo

from django.db.models import Q

from modelregistry.overview import ModelState
from portal.accounts.models import User
from portal.keys import model_access
from portal.keys.model_access import AvailableModel
from portal.status.models import StatusInterval, StatusWatch
from portal.status.recording import NEW
from portal.web.templatetags.formatting import round_share

Kind = StatusInterval.Kind
Span = tuple[datetime, datetime]

DAYS = 30
MOST_INCIDENTS = 20
# Shorter ones count in the days, but are no incident to list.
LEAST_INCIDENT = timedelta(minutes=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class DayStatus:
    """`share`: of the watched time, 0 to 1; None: the model was not there, not offered or not watched."""

    day: date
    share: float | None

    @property
    def level(self) -> str:
        if self.share is None:
            return "off"
        return "fine" if self.share >= 0.999 else "watch" if self.share >= 0.95 else "broken"

    @property
    def height(self) -> int:
        """Of its bar, of 24: days can be distinguished without their colours."""
        return {"fine": 24, "watch": 17, "broken": 10, "off": 3}[self.level]

    @property
    def top(self) -> int:
        return 24 - self.height


@dataclass(frozen=True, slots=True, kw_only=True)
class DaysAlike:
    """Days in a row with the same share."""

    first: date
    last: date
    share: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStatus:
    offer: AvailableModel
    days: tuple[DayStatus, ...]
    share: float | None  # of all days

    @property
    def name(self) -> str:
        return self.offer.name

    @property
    def days_alike(self) -> list[DaysAlike]:
        """The days, the latest first, with those that look the same in one row: a good month is one row."""
        found: list[DaysAlike] = []
        for _share_shown, days in groupby(reversed(self.days), key=lambda day: day.share and round_share(day.share, 2)):
            latest, *more = days
            found.append(DaysAlike(first=more[-1].day if more else latest.day, last=latest.day, share=latest.share))
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    model: str
    reason: str  # a label of ModelState
    began_at: datetime
    ended_at: datetime | None
    lasted: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedBreaks:
    """When models were down, and when nothing counts of them, by name; of None: of all models."""

    down: Mapping[str | None, list[Span]]
    uncounted: Mapping[str | None, list[Span]]

    def count(self, name: str, begin: datetime, end: datetime) -> tuple[float, float]:
        """Return the seconds in which the model was available, and those that count."""
        gaps = [*self.uncounted.get(None, ()), *self.uncounted.get(name, ())]
        return _count(begin.timestamp(), end.timestamp(), self.down.get(name, []), gaps)


def visible_offers(user: User) -> list[AvailableModel]:
    """Return the models that this person may call, all of them for operators, by name."""
    return sorted(model_access.available_models(model_access.offered_to(user)), key=lambda offer: offer.name)


def read_statuses(offers: Sequence[AvailableModel], zone: ZoneInfo, now: datetime) -> list[ModelStatus]:
    """Return the last DAYS days of these models. Two queries."""
    midnights = _midnights(zone, now)
    breaks = _read_breaks([offer.name for offer in offers], midnights[0], now)
    found = []
    for offer in offers:
        counts = [breaks.count(offer.name, begin, min(end, now)) for begin, end in pairwise(midnights)]
        statuses = tuple(
            DayStatus(day=begin.date(), share=_share(*count)) for begin, count in zip(midnights, counts, strict=False)
        )
        whole = _share(sum(available for available, _ in counts), sum(counted for _, counted in counts))
        found.append(ModelStatus(offer=offer, days=statuses, share=whole))
    return found


def read_shares(names: Sequence[str], zone: ZoneInfo, now: datetime) -> dict[str, float | None]:
    """Return the share of these models over the same days as a whole, by name. Two queries."""
    first = _midnights(zone, now)[0]
    breaks = _read_breaks(names, first, now)
    return {name: _share(*breaks.count(name, first, now)) for name in names}


def _midnights(zone: ZoneInfo, now: datetime) -> list[datetime]:
    """Return the beginnings of the last DAYS days and of tomorrow."""
    today = now.astimezone(zone).date()
    return [datetime.combine(today - timedelta(days=n), time(), zone) for n in range(DAYS - 1, -2, -1)]


def _share(available: float, counted: float) -> float | None:
    return available / counted if counted else None


def _read_breaks(names: Sequence[str], first: datetime, now: datetime) -> RecordedBreaks:
    """Read what was recorded of these models since `first`. Two queries."""
    rows = StatusInterval.objects.filter(
        Q(model__name__in=names) | Q(model=None), Q(ended_at=None) | Q(ended_at__gt=first)
    ).values_list("model__name", "kind", "reason", "began_at", "ended_at")
    down: dict[str | None, list[Span]] = defaultdict(list)
    uncounted: dict[str | None, list[Span]] = defaultdict(list)
    for name, kind, reason, began_at, ended_at in rows:
        # Before its first answer, and before it was registered, nothing counts of a model.
        begin = min(first, began_at) if reason == NEW else began_at
        (down if kind == Kind.DOWN else uncounted)[name].append((begin, ended_at or now))
    watched = StatusWatch.objects.first()
    uncounted[None].append((first, watched.since if watched else now))
    return RecordedBreaks(down=down, uncounted=uncounted)


def _count(begin: float, end: float, down: list[Span], uncounted: list[Span]) -> tuple[float, float]:
    """Return the seconds between begin and end in which the model was available, and those that count."""
    gaps = _merge(uncounted, begin, end)
    seen = end - begin - sum(last - first for first, last in gaps)
    either = _merge([*down, *uncounted], begin, end)
    return max(0.0, end - begin - sum(last - first for first, last in either)), max(0.0, seen)


def _merge(spans: Iterable[Span], begin: float, end: float) -> list[tuple[float, float]]:
    """Return the parts of the spans between begin and end, without overlaps."""
    merged: list[tuple[float, float]] = []
    cut = ((max(first.timestamp(), begin), min(last.timestamp(), end)) for first, last in spans)
    for first, last in sorted(one for one in cut if one[0] < one[1]):
        if merged and first <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], last)
        else:
            merged.append((first, last))
    return merged


def read_incidents(names: Sequence[str], now: datetime) -> list[Incident]:
    """Return the last times in which these models did not answer, the latest first. One query."""
    rows = StatusInterval.objects.filter(
        Q(ended_at=None) | Q(ended_at__gt=now - timedelta(days=DAYS)), model__name__in=names, kind=Kind.DOWN
    ).select_related("model")
    found = []
    for row in rows[: 5 * MOST_INCIDENTS]:
        lasted = (row.ended_at or now) - row.began_at
        if lasted >= LEAST_INCIDENT and row.model and row.reason != NEW:
            label = str(ModelState(row.reason).label) if row.reason in ModelState.values else row.reason
            found.append(
                Incident(
                    model=row.model.name, reason=label, began_at=row.began_at, ended_at=row.ended_at, lasted=lasted
                )
            )
    return found[:MOST_INCIDENTS]
