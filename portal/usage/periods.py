"""Periods of whole local days for which usage is shown. Pure except for the filter of rows.

Beside those named by a word (NAMES) there are days ("2026-11-22"), months ("2026-11") and fiscal years ("FY2026", which
begins in April 2026): the page of a longer period links to these. And any days ("2026-11-03..2026-11-20").
"""

import re
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from django.db.models import QuerySet
from django.utils.translation import gettext_lazy as _

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
YEARS = 5  # fiscal years, including the current one
FISCAL_MONTH = 4  # a Japanese company's year begins on 1 April
FIRST_YEAR = 2000  # nothing was metered before
LONGEST = 366 * YEARS  # days of a period of any days
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
        """The unit in which it is shown: "hour", "day", "month" or "year"."""
        if self.first == self.last:
            return "hour"
        if self.name == "years":
            return "year"
        return "month" if (self.last - self.first).days >= MONTHLY else "day"

    @property
    def slots(self) -> list[date]:
        """The days, or first days of months or fiscal years, that are shown; a single day for hours."""
        firsts = {"month": lambda day: day.replace(day=1), "year": start_of_fiscal_year}.get(self.unit, lambda day: day)
        return sorted({firsts(day) for day in self.days})

    def filter_days(self, rows: QuerySet[Any]) -> QuerySet[Any]:
        """Return the rows of this period's days."""
        return rows.filter(day__range=(self.first, self.last))

    def split_months(self) -> tuple[list[date], list[tuple[date, date]]]:
        """Return the first days of the whole months within, and (first, last) of the days around them.

        The current month is not a whole one: further east it may already be a day longer.
        """
        months: list[date] = []
        month = self.first if self.first.day == 1 else next_month(self.first)
        while next_month(month) - timedelta(days=1) <= self.last:
            months.append(month)
            month = next_month(month)
        if not months:
            return [], [(self.first, self.last)]
        around = [(self.first, months[0] - timedelta(days=1)), (month, self.last)]
        return months, [(first, last) for first, last in around if first <= last]


def next_month(day: date) -> date:
    """Return the first day of the next month."""
    return (day.replace(day=1) + timedelta(days=32)).replace(day=1)


def start_of_fiscal_year(day: date) -> date:
    """Return the first day of the fiscal year that contains this day."""
    return date(day.year - (day.month < FISCAL_MONTH), FISCAL_MONTH, 1)


def parse_period(name: str, now: datetime, zone: ZoneInfo) -> Period:
    """Return the period of this name as of `now`, up to today.

    Raises KeyError for unknown names and for periods that have not begun.
    """
    today = now.astimezone(zone).date()
    first, last = days_of_word(name, today) if name in NAMES else days_of_date(name)
    if first > today or first.year < FIRST_YEAR:  # the period it is compared with must not be before year 1
        raise KeyError(name)
    return Period(name=name, first=first, last=min(last, today))


def days_of_word(name: str, today: date) -> tuple[date, date]:
    """Return the first and last day of one of NAMES."""
    yesterday, month, year = today - timedelta(days=1), today.replace(day=1), start_of_fiscal_year(today)
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


def days_of_date(name: str) -> tuple[date, date]:
    """Return the first and last day of a day, month, fiscal year or any days, by its name. Raises KeyError."""
    try:
        if re.fullmatch(r"\d{4}-\d\d-\d\d\.\.\d{4}-\d\d-\d\d", name):
            first, last = map(date.fromisoformat, name.split(".."))
            if 0 <= (last - first).days < LONGEST:
                return first, last
        if re.fullmatch(r"\d{4}-\d\d-\d\d", name):
            day = date.fromisoformat(name)
            return day, day
        if re.fullmatch(r"\d{4}-\d\d", name):
            first = date.fromisoformat(f"{name}-01")
            return first, next_month(first) - timedelta(days=1)
        if re.fullmatch(r"FY\d{4}", name):
            first = date(int(name[2:]), FISCAL_MONTH, 1)
            return first, first.replace(year=first.year + 1) - timedelta(days=1)
    except (ValueError, OverflowError) as error:  # a 13th month, the year 0 or 9999
        raise KeyError(name) from error
    raise KeyError(name)


def name_of_slot(slot: date, unit: str) -> str:
    """Return the name of the period that is one day, month or fiscal year of a longer period."""
    if unit == "year":
        return f"FY{slot.year:04}"
    return slot.isoformat() if unit == "day" else slot.isoformat()[:7]


def period_before(period: Period) -> Period:
    """Return the period to compare with: as many days, just before.

    For the current month: the same days of the last one; for a fiscal year: the same days of the year before.
    """
    yesterday = period.first - timedelta(days=1)
    if period.name in ("this-month", "last-month") or re.fullmatch(r"\d{4}-\d\d", period.name):
        whole = period.last == next_month(period.first) - timedelta(days=1) and period.name != "this-month"
        last = yesterday if whole else min(yesterday, yesterday.replace(day=1) + (period.last - period.first))
        return Period(name="", first=yesterday.replace(day=1), last=last)
    if period.name in ("fiscal-year", "last-fiscal-year") or period.name.startswith("FY"):
        return Period(name="", first=same_day_last_year(period.first), last=same_day_last_year(period.last))
    return Period(name="", first=period.first - timedelta(days=len(period.days)), last=yesterday)


def same_day_last_year(day: date) -> date:
    return day.replace(year=day.year - 1, day=28 if (day.month, day.day) == (2, 29) else day.day)
