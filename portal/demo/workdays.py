"""How much a Japanese company works on a day and in an hour, as shares of a full one. Pure."""

from datetime import date, datetime, time, timedelta
from functools import cache
from random import Random
from zoneinfo import ZoneInfo

# Relative numbers of calls in each local hour: a morning peak, lunch, an afternoon, and people who stay late.
OFFICE = (1, 1, 0, 0, 0, 0, 2, 10, 42, 92, 104, 96, 38, 84, 100, 102, 98, 84, 52, 30, 17, 10, 5, 2)
COUNTER = (4, 3, 2, 1, 1, 2, 6, 18, 55, 96, 105, 98, 82, 92, 96, 95, 92, 88, 74, 58, 42, 28, 16, 8)  # no lunch closing
NIGHT = (60, 100, 100, 85, 40, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 20)
DAWN = (0, 0, 0, 6, 40, 100, 80, 20, 0, 0, 0, 0, 6, 8, 0, 0, 0, 0, 10, 8, 0, 0, 0, 0)
MACHINES = (30, 26, 24, 22, 20, 20, 24, 34, 60, 88, 96, 92, 76, 88, 96, 98, 94, 88, 70, 58, 50, 44, 38, 34)
FIXED = {(1, 1), (2, 11), (2, 23), (4, 29), (5, 3), (5, 4), (5, 5), (8, 11), (11, 3), (11, 23)}
HAPPY_MONDAYS = {(1, 2), (7, 3), (9, 3), (10, 2)}  # (month, which Monday)


@cache
def holidays(year: int) -> frozenset[date]:
    """Return the national holidays, including moved ones (but not citizen's holidays between two others)."""
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
    return frozenset(days | moved)


def nth_monday(year: int, month: int, number: int) -> date:
    first = date(year, month, 1)
    return first + timedelta(days=(7 - first.weekday()) % 7 + 7 * (number - 1))


def is_holiday(day: date) -> bool:
    """Return whether the company is closed: on national holidays and at the turn of the year."""
    return day in holidays(day.year) or (day.month, day.day) >= (12, 29) or (day.month, day.day) <= (1, 3)


def is_working_day(day: date) -> bool:
    return day.weekday() < 5 and not is_holiday(day)


def office_activity(day: date) -> float:
    """Return the activity of an office in Japan: 1 on a usual working day."""
    if not is_working_day(day):
        return 0.03 if day.weekday() == 6 else 0.05
    if day.month == 8 and 12 <= day.day <= 16:  # Obon: half of them are away
        return 0.4
    by_weekday = (1.02, 1.08, 1.05, 1.0, 0.88)[day.weekday()]
    return by_weekday * (1.22 if closes_month(day) else 1.0)


def closes_month(day: date) -> bool:
    """Return whether this is one of the last three working days of its month."""
    following = [day + timedelta(days=n) for n in range(1, 12)]
    left = sum(is_working_day(other) for other in following if other.month == day.month)
    return left < 3


def office_activity_abroad(day: date) -> float:
    """Return the activity of an office without Japanese holidays."""
    return 1.0 if day.weekday() < 5 else 0.02


def at_work(chance: Random, now: datetime, ago: float) -> datetime:
    """Return a moment in the working hours of Tokyo, about so many days ago and before now."""
    day = (now - timedelta(days=ago)).astimezone(ZoneInfo("Asia/Tokyo")).date()
    while True:
        while not is_working_day(day):
            day -= timedelta(days=1)
        hour = chance.choices(range(24), weights=OFFICE)[0]
        midnight = datetime.combine(day, time(), ZoneInfo("Asia/Tokyo"))
        at = midnight + timedelta(hours=hour, seconds=3600 * chance.random())
        if at < now:
            return at
        day -= timedelta(days=1)
