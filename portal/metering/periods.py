"""Spans of whole local days that people ask usage for. Pure but for the filter of records."""

from dataclasses import dataclass
from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

from django.db.models import QuerySet
from django.utils.translation import gettext_lazy as _

from portal.metering.models import UsageDay

NAMES = {
    "this-month": _("this month"),
    "last-month": _("last month"),
    "14": _("last 14 days"),
    "30": _("last 30 days"),
    "90": _("last 90 days"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """The days from `first` to `last`, both included."""

    name: str
    first: date
    last: date

    @property
    def days(self) -> list[date]:
        return [self.first + timedelta(days=n) for n in range((self.last - self.first).days + 1)]

    def of(self, sums: QuerySet[UsageDay]) -> QuerySet[UsageDay]:
        """Those of the sums that are of this period's days."""
        return sums.filter(day__range=(self.first, self.last))


def period(name: str, now: datetime, zone: ZoneInfo) -> Period:
    """The period of this name (see NAMES) as of `now`. All but "last-month" end with today. Raises KeyError."""
    if name not in NAMES:
        raise KeyError(name)
    today = now.astimezone(zone).date()
    first_of_month = today.replace(day=1)
    if name == "this-month":
        return Period(name=name, first=first_of_month, last=today)
    if name == "last-month":
        last = first_of_month - timedelta(days=1)
        return Period(name=name, first=last.replace(day=1), last=last)
    return Period(name=name, first=today - timedelta(days=int(name) - 1), last=today)
