"""Spans of whole local days that people ask usage for. Pure but for the filter of records.

Beside those that have a word (NAMES) there are a day ("2026-11-22"), a month ("2026-11") and a fiscal year ("FY2026",
which begins in April 2026): a page leads from a longer one to these.
"""

import re
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from django.db.models import QuerySet
from django.utils.translation import gettext_lazy as _

from portal.usage.models import UsageDay, UsageTenantDay

NAMES = {
    "today": _("today"),
    "yesterday": _("yesterday"),
    "this-month": _("this month"),
    "last-month": _("last month"),
    "14": _("last 14 days"),
    "30": _("last 30 days"),
    "90": _("last 90 days"),
    "fiscal-year": _("this fiscal year"),
    "last-fiscal-year": _("last fiscal year"),
    "years": _("fiscal years"),
}
YEARS = 5  # fiscal years, with the one that runs
FISCAL_MONTH = 4  # a Japanese company's year begins on 1 April
FIRST_YEAR = 2000  # nothing was metered before
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
    def unit(self) -> str:
        """By what it is told: "hour", "day", "month" or "year"."""
        if self.first == self.last:
            return "hour"
        if self.name == "years":
            return "year"
        return "month" if (self.last - self.first).days >= MONTHLY else "day"

    @property
    def slots(self) -> list[date]:
        """The days, first days of months or first days of fiscal years of which it is told; a single day for hours."""
        firsts = {"month": lambda day: day.replace(day=1), "year": fiscal_year}.get(self.unit, lambda day: day)
        return sorted({firsts(day) for day in self.days})

    def of(self, sums: QuerySet[UsageDay] | QuerySet[UsageTenantDay]) -> QuerySet[Any]:
        """Return those of the sums that are of this period's days."""
        return sums.filter(day__range=(self.first, self.last))

    def split(self) -> tuple[list[date], list[tuple[date, date]]]:
        """First days of the months that lie within, and (first, last) of the days around them. The month that runs is
        no whole one: east of here it may be a day longer already."""
        months: list[date] = []
        month = self.first if self.first.day == 1 else following(self.first)
        while following(month) - timedelta(days=1) <= self.last:
            months.append(month)
            month = following(month)
        if not months:
            return [], [(self.first, self.last)]
        around = [(self.first, months[0] - timedelta(days=1)), (month, self.last)]
        return months, [(first, last) for first, last in around if first <= last]


def following(day: date) -> date:
    """Return the first day of the next month."""
    return (day.replace(day=1) + timedelta(days=32)).replace(day=1)


def fiscal_year(day: date) -> date:
    """Return the first day of the fiscal year that holds it."""
    return date(day.year - (day.month < FISCAL_MONTH), FISCAL_MONTH, 1)


def parse_period(name: str, now: datetime, zone: ZoneInfo) -> Period:
    """Return the period of this name as of `now`.

    None goes beyond today. Raises KeyError, also for what has not begun.
    """
    today = now.astimezone(zone).date()
    first, last = span(name, today) if name in NAMES else particular(name)
    if first > today or first.year < FIRST_YEAR:  # what it is compared with lies before it, and no year before 1
        raise KeyError(name)
    return Period(name=name, first=first, last=min(last, today))


def span(name: str, today: date) -> tuple[date, date]:
    """First and last day of one of NAMES."""
    yesterday, month, year = today - timedelta(days=1), today.replace(day=1), fiscal_year(today)
    if name.isdecimal():
        return today - timedelta(days=int(name) - 1), today
    return {
        "today": (today, today),
        "yesterday": (yesterday, yesterday),
        "this-month": (month, today),
        "last-month": ((month - timedelta(days=1)).replace(day=1), month - timedelta(days=1)),
        "fiscal-year": (year, today),
        "last-fiscal-year": (year.replace(year=year.year - 1), year - timedelta(days=1)),
        "years": (year.replace(year=year.year - YEARS + 1), today),
    }[name]


def particular(name: str) -> tuple[date, date]:
    """First and last day of the day, month or fiscal year of this name. Raises KeyError."""
    try:
        if re.fullmatch(r"\d{4}-\d\d-\d\d", name):
            day = date.fromisoformat(name)
            return day, day
        if re.fullmatch(r"\d{4}-\d\d", name):
            first = date.fromisoformat(f"{name}-01")
            return first, following(first) - timedelta(days=1)
        if re.fullmatch(r"FY\d{4}", name):
            first = date(int(name[2:]), FISCAL_MONTH, 1)
            return first, first.replace(year=first.year + 1) - timedelta(days=1)
    except (ValueError, OverflowError) as error:  # a 13th month, the year 0 or 9999
        raise KeyError(name) from error
    raise KeyError(name)


def name_of(slot: date, unit: str) -> str:
    """Return the period that a day, month or fiscal year of a longer one is."""
    if unit == "year":
        return f"FY{slot.year:04}"
    return slot.isoformat() if unit == "day" else slot.isoformat()[:7]


def period_before(period: Period) -> Period:
    """What to compare it with: as many days before it; of a month that runs, the same days of the last one; for a year
    the same days of the year before."""
    yesterday = period.first - timedelta(days=1)
    if period.name in ("this-month", "last-month") or re.fullmatch(r"\d{4}-\d\d", period.name):
        whole = period.last == following(period.first) - timedelta(days=1) and period.name != "this-month"
        last = yesterday if whole else min(yesterday, yesterday.replace(day=1) + (period.last - period.first))
        return Period(name="", first=yesterday.replace(day=1), last=last)
    if period.name in ("fiscal-year", "last-fiscal-year") or period.name.startswith("FY"):
        return Period(name="", first=year_before(period.first), last=year_before(period.last))
    return Period(name="", first=period.first - timedelta(days=len(period.days)), last=yesterday)


def year_before(day: date) -> date:
    return day.replace(year=day.year - 1, day=28 if (day.month, day.day) == (2, 29) else day.day)
