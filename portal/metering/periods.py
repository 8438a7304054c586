"""Spans of whole local days that people ask usage for. Pure but for the filter of records."""

from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from django.db.models import QuerySet
from django.utils.translation import gettext_lazy as _

from portal.metering.models import UsageRecord

NAMES = {
    "this-month": _("this month"),
    "last-month": _("last month"),
    "14": _("last 14 days"),
    "30": _("last 30 days"),
    "90": _("last 90 days"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Period:
    """From the midnight that begins `first` to the midnight that ends `last`, in `zone`."""

    name: str
    first: date
    last: date
    zone: ZoneInfo

    @property
    def days(self) -> list[date]:
        return [self.first + timedelta(days=n) for n in range((self.last - self.first).days + 1)]

    def midnight(self, day: date) -> datetime:
        return datetime.combine(day, time(), self.zone)

    def of(self, records: QuerySet[UsageRecord]) -> QuerySet[UsageRecord]:
        """Those of the records that began in this period."""
        return records.filter(
            started_at__gte=self.midnight(self.first), started_at__lt=self.midnight(self.last + timedelta(days=1))
        )


def period(name: str, now: datetime, zone: ZoneInfo) -> Period:
    """The period of this name (see NAMES) as of `now`. All but "last-month" end with today. Raises KeyError."""
    if name not in NAMES:
        raise KeyError(name)
    today = now.astimezone(zone).date()
    first_of_month = today.replace(day=1)
    if name == "this-month":
        return Period(name=name, first=first_of_month, last=today, zone=zone)
    if name == "last-month":
        last = first_of_month - timedelta(days=1)
        return Period(name=name, first=last.replace(day=1), last=last, zone=zone)
    return Period(name=name, first=today - timedelta(days=int(name) - 1), last=today, zone=zone)
