"""Spans of whole local days that people ask usage for. Pure but for the filter of records."""

from dataclasses import dataclass
from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

from django.db.models import QuerySet
from django.utils.translation import gettext_lazy as _

from portal.metering.models import UsageDay

NAMES = {
    "today": _("today"),
    "this-month": _("this month"),
    "last-month": _("last month"),
    "14": _("last 14 days"),
    "30": _("last 30 days"),
    "90": _("last 90 days"),
    "fiscal-year": _("this fiscal year"),
    "last-fiscal-year": _("last fiscal year"),
}
FISCAL_MONTH = 4  # a Japanese company's year begins on 1 April
MONTHLY = 100  # days; a longer period is shown by month


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """The days from `first` to `last`, both included."""

    name: str
    first: date
    last: date

    @property
    def days(self) -> list[date]:
        return [self.first + timedelta(days=n) for n in range((self.last - self.first).days + 1)]

    @property
    def by_month(self) -> bool:
        return len(self.days) > MONTHLY

    def of(self, sums: QuerySet[UsageDay]) -> QuerySet[UsageDay]:
        """Those of the sums that are of this period's days."""
        return sums.filter(day__range=(self.first, self.last))


def period(name: str, now: datetime, zone: ZoneInfo) -> Period:
    """The period of this name (see NAMES) as of `now`. All but those called last-… end with today. Raises KeyError."""
    if name not in NAMES:
        raise KeyError(name)
    today = now.astimezone(zone).date()
    first_of_month = today.replace(day=1)
    if name == "this-month":
        return Period(name=name, first=first_of_month, last=today)
    if name == "last-month":
        last = first_of_month - timedelta(days=1)
        return Period(name=name, first=last.replace(day=1), last=last)
    year = today.year - (today.month < FISCAL_MONTH)
    if name == "fiscal-year":
        return Period(name=name, first=date(year, FISCAL_MONTH, 1), last=today)
    if name == "last-fiscal-year":
        last = date(year, FISCAL_MONTH, 1) - timedelta(days=1)
        return Period(name=name, first=date(year - 1, FISCAL_MONTH, 1), last=last)
    if name == "today":
        return Period(name=name, first=today, last=today)
    return Period(name=name, first=today - timedelta(days=int(name) - 1), last=today)


def before(period: Period) -> Period:
    """What to compare it with: as many days before it; of a month that runs, the same days of the last one; for a year
    the same days of the year before."""
    if period.name == "this-month":
        end = period.first - timedelta(days=1)
        return Period(
            name="", first=end.replace(day=1), last=min(end, end.replace(day=1) + (period.last - period.first))
        )
    if period.name == "last-month":
        end = period.first - timedelta(days=1)
        return Period(name="", first=end.replace(day=1), last=end)
    if period.name in ("fiscal-year", "last-fiscal-year"):
        return Period(name="", first=year_before(period.first), last=year_before(period.last))
    length = len(period.days)
    return Period(name="", first=period.first - timedelta(days=length), last=period.first - timedelta(days=1))


def year_before(day: date) -> date:
    return day.replace(year=day.year - 1, day=28 if (day.month, day.day) == (2, 29) else day.day)
