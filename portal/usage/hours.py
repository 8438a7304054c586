"""Hours of calendars, and the intervals by which usage is summed so that any reader's hours add up. Pure.

All zones of the world differ from UTC by quarters of an hour: Asia/Kolkata by 5:30, Asia/Kathmandu by 5:45, and
Australia/Lord_Howe moves its clocks by 30 minutes. So usage is summed by hours of UTC while every zone in use is a
whole number of hours away, and otherwise by quarters of an hour.
"""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

HOUR, QUARTER = timedelta(hours=1), timedelta(minutes=15)


def start_of_quarter(moment: datetime) -> datetime:
    """Return the start of the quarter of an hour that contains this moment, in UTC."""
    utc = moment.astimezone(UTC)
    return utc.replace(minute=utc.minute // 15 * 15, second=0, microsecond=0)


def start_of_interval(moment: datetime, zones: Iterable[ZoneInfo]) -> datetime:
    """Return the start of the hour of UTC that contains this moment, or of its quarter if any of these zones needs it.

    In spring the clocks of Lord Howe move by half an hour in the middle of an hour of UTC, so its offset changes within
    that hour.
    """
    quarter = start_of_quarter(moment)
    hour = quarter.replace(minute=0)
    return hour if all(is_whole_hours(hour, zone) and is_whole_hours(quarter, zone) for zone in zones) else quarter


def is_whole_hours(moment: datetime, zone: ZoneInfo) -> bool:
    """Return whether the zone is a whole number of hours from UTC at this moment."""
    return not _offset(moment, zone) % HOUR


def start_of_hour(moment: datetime, zone: ZoneInfo) -> datetime:
    """Return the start of the hour that the zone's clocks showed at this moment, by these clocks.

    It has a fixed offset: when clocks go back, the two hours of the same name are different values, which they would
    not be with a ZoneInfo. Where clocks move within an hour, a new hour starts.
    """
    offset = _offset(moment, zone)
    local = moment.astimezone(timezone(offset))
    began = local.replace(minute=0, second=0, microsecond=0)
    while began < local and _offset(began, zone) != offset:
        began += QUARTER
    return began


def _offset(moment: datetime, zone: ZoneInfo) -> timedelta:
    offset = moment.astimezone(zone).utcoffset()
    assert offset is not None
    return offset


def hours_between(begin: datetime, end: datetime, zone: ZoneInfo) -> list[datetime]:
    """Return the zone's hours (as of `start_of_hour`) between two moments, both at the start of a quarter."""
    quarters = range(round((end.timestamp() - begin.timestamp()) / QUARTER.total_seconds()))
    first = begin.astimezone(UTC)
    return list(dict.fromkeys(start_of_hour(first + number * QUARTER, zone) for number in quarters))
