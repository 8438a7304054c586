"""Calendar windows of quotas: when the minute, day or month began and when the next begins. Pure."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo


def window_bounds(window: str, now: float, zone: ZoneInfo) -> tuple[float, float]:
    """Return (begin, end) of the window that holds `now`, both Unix seconds.

    Minutes are the same everywhere; days and months begin at local midnight, so a day may last 23 or 25 hours.
    """
    if window == "minute":
        begin = now - now % 60
        return begin, begin + 60
    local = datetime.fromtimestamp(now, zone).replace(hour=0, minute=0, second=0, microsecond=0)
    if window == "day":
        following = local + timedelta(days=1)
    elif window == "month":
        local = local.replace(day=1)
        following = (local + timedelta(days=32)).replace(day=1)
    else:
        raise ValueError(f"no such window: {window}")
    return local.astimezone(UTC).timestamp(), following.astimezone(UTC).timestamp()
