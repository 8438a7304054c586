"""Hours of calendars, and the pieces of time by which usage is summed so that any reader's hours add up. Pure.

All zones of the world differ from UTC by quarters of an hour: Asia/Kolkata by 5:30, Asia/Kathmandu by 5:45, and
Australia/Lord_Howe moves its clocks by 30 minutes. So usage is summed by hours of UTC while every zone that is in use
is a whole number of hours away, and by quarters else.
"""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

HOUR, QUARTER = timedelta(hours=1), timedelta(minutes=15)


def quarter_of(moment: datetime) -> datetime:
    """When the quarter of an hour that holds this moment began, in UTC."""
    utc = moment.astimezone(UTC)
    return utc.replace(minute=utc.minute // 15 * 15, second=0, microsecond=0)


def piece_of(moment: datetime, zones: Iterable[ZoneInfo]) -> datetime:
    """When the hour of UTC that holds this moment began, or its quarter if any of these zones needs it.

    In Lord Howe's spring the clocks move by half an hour in the middle of an hour of UTC, which begins with another
    offset than it ends with.
    """
    quarter = quarter_of(moment)
    hour = quarter.replace(minute=0)
    return hour if all(is_whole(hour, zone) and is_whole(quarter, zone) for zone in zones) else quarter


def is_whole(moment: datetime, zone: ZoneInfo) -> bool:
    """Return whether the zone's clocks show the same minutes as those of UTC at this moment."""
    return not _offset(moment, zone) % HOUR


def hour_of(moment: datetime, zone: ZoneInfo) -> datetime:
    """When the hour that the zone's clocks showed at this moment began, by these clocks.

    With a fixed offset: of the two hours of the same name when clocks go back each is a value of its own, which a
    datetime with a ZoneInfo would not be. Where clocks move within an hour, another begins.
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


def between(begin: datetime, end: datetime, zone: ZoneInfo) -> list[datetime]:
    """Return the zone's hours (as `hour_of`) from one moment to the other, both at the beginning of a quarter."""
    quarters = range(round((end.timestamp() - begin.timestamp()) / QUARTER.total_seconds()))
    first = begin.astimezone(UTC)
    return list(dict.fromkeys(hour_of(first + number * QUARTER, zone) for number in quarters))
