"""How much a Japanese company works on a day and in an hour, as shares of a full one. Pure."""

from datetime import date, datetime, time, timedelta
from random import Random
from zoneinfo import ZoneInfo

from portal.web.workdays import is_working_day

# Relative numbers of calls in each local hour: a morning peak, lunch, an afternoon, and people who stay late.
OFFICE = (1, 1, 0, 0, 0, 0, 2, 10, 42, 92, 104, 96, 38, 84, 100, 102, 98, 84, 52, 30, 17, 10, 5, 2)
COUNTER = (4, 3, 2, 1, 1, 2, 6, 18, 55, 96, 105, 98, 82, 92, 96, 95, 92, 88, 74, 58, 42, 28, 16, 8)  # no lunch closing
NIGHT = (60, 100, 100, 85, 40, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 20)
DAWN = (0, 0, 0, 6, 40, 100, 80, 20, 0, 0, 0, 0, 6, 8, 0, 0, 0, 0, 10, 8, 0, 0, 0, 0)
MACHINES = (30, 26, 24, 22, 20, 20, 24, 34, 60, 88, 96, 92, 76, 88, 96, 98, 94, 88, 70, 58, 50, 44, 38, 34)


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
