from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from portal.quotas.windows import window_bounds

TOKYO, BERLIN = ZoneInfo("Asia/Tokyo"), ZoneInfo("Europe/Berlin")


def at(zone: ZoneInfo, *when: int) -> float:
    return datetime(*when, tzinfo=zone).timestamp()


@pytest.mark.parametrize(
    ("window", "zone", "now", "begin", "end"),
    [
        ("minute", TOKYO, (2026, 11, 22, 9, 5, 59), (2026, 11, 22, 9, 5), (2026, 11, 22, 9, 6)),
        ("day", TOKYO, (2026, 11, 22, 0, 0), (2026, 11, 22), (2026, 11, 23)),
        ("day", TOKYO, (2026, 11, 22, 23, 59, 59), (2026, 11, 22), (2026, 11, 23)),
        ("month", TOKYO, (2026, 12, 31, 23, 59), (2026, 12, 1), (2027, 1, 1)),
        ("month", TOKYO, (2028, 2, 29, 12, 0), (2028, 2, 1), (2028, 3, 1)),
        ("day", BERLIN, (2026, 10, 25, 12, 0), (2026, 10, 25), (2026, 10, 26)),  # 25 hours
    ],
)
def test_windows_are_calendar_windows_of_the_zone(window, zone, now, begin, end):
    assert window_bounds(window, at(zone, *now), zone) == (at(zone, *begin), at(zone, *end))


def test_a_day_of_25_hours_lasts_25_hours():
    begin, end = window_bounds("day", at(BERLIN, 2026, 10, 25, 12), BERLIN)
    assert end - begin == 25 * 3600


def test_an_unknown_window_is_an_error():
    with pytest.raises(ValueError, match="fortnight"):
        window_bounds("fortnight", 0, TOKYO)
