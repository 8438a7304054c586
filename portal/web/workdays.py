"""Which days are worked in Japan. Pure."""

from datetime import date, timedelta
from functools import cache

FIXED = {(1, 1), (2, 11), (2, 23), (4, 29), (5, 3), (5, 4), (5, 5), (8, 11), (11, 3), (11, 23)}
HAPPY_MONDAYS = {(1, 2), (7, 3), (9, 3), (10, 2)}  # (month, which Monday)


@cache
def holidays(year: int) -> frozenset[date]:
    """Return the national holidays, with moved ones and the days between two others."""
    days = {date(year, month, day) for month, day in FIXED}
    days |= {nth_monday(year, month, number) for month, number in HAPPY_MONDAYS}
    # Valid from 1980 to 2099: 20.8431 March and 23.2488 September of 1980, plus the excess of the tropical year.
    leaps = 0.242194 * (year - 1980) - (year - 1980) // 4
    days |= {date(year, 3, int(20.8431 + leaps)), date(year, 9, int(23.2488 + leaps))}
    moved = set()
    for day in sorted(days):
        if day.weekday() == 6:
            while day in days or day in moved:
                day += timedelta(days=1)
            moved.add(day)
    between = {day + timedelta(days=1) for day in days if day + timedelta(days=2) in days}
    return frozenset(days | moved | between)


def nth_monday(year: int, month: int, number: int) -> date:
    first = date(year, month, 1)
    return first + timedelta(days=(7 - first.weekday()) % 7 + 7 * (number - 1))


def is_holiday(day: date) -> bool:
    """Return whether the company is closed: on national holidays and at the turn of the year."""
    return day in holidays(day.year) or (day.month, day.day) >= (12, 29) or (day.month, day.day) <= (1, 3)


def is_working_day(day: date) -> bool:
    return day.weekday() < 5 and not is_holiday(day)
