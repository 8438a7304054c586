"""Hours at which models are kept awake: what operators write, and when that is."""

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from django.core.exceptions import ValidationError

from modelregistry.awake_hours import parse_hours

TOKYO = ZoneInfo("Asia/Tokyo")


def at(text: str) -> datetime:
    """Return a moment of the week that begins on Monday, 2026-11-23: "2026-11-23 08:00"."""
    return datetime.fromisoformat(text).replace(tzinfo=TOKYO)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Mon-Fri 08:00-20:00", "Mon-Fri 08:00-20:00"),
        (" mon–fri 8:00 – 20:00 ;sat 9:00-12:00; ", "Mon-Fri 08:00-20:00; Sat 09:00-12:00"),
        ("月-金 8:00-20:00；土 9:00〜12:00", "Mon-Fri 08:00-20:00; Sat 09:00-12:00"),
        ("月－金　８：００－２０：００", "Mon-Fri 08:00-20:00"),
        ("月、水・金 8:00-9:30", "Mon,Wed,Fri 08:00-09:30"),
        ("Monday, Wednesday 8:00-9:30", "Mon,Wed 08:00-09:30"),
        ("08:00-20:00", "08:00-20:00"),
        ("Sat-Mon 22:00-06:00", "Mon,Sat-Sun 22:00-06:00"),
        ("00:00-24:00", "00:00-24:00"),
    ],
)
def test_it_is_read_as_operators_write_it(text, shown):
    assert str(parse_hours(text)) == shown
    assert parse_hours(shown) == parse_hours(text)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("always", "always"),
        ("Mon-Fri", "Mon-Fri"),
        ("Mon-Fri 8-20", "Mon-Fri 8-20"),
        ("Mon-Fry 08:00-20:00", "Mon-Fry 08:00-20:00"),
        ("Mon-Fri 08:00-20:00; Sa 9:00-25:00", "Sa 9:00-25:00"),
        ("Mon-Fri 08:70-20:00", "Mon-Fri 08:70-20:00"),
        ("08:00-08:00", "08:00-08:00"),
        ("24:00-08:00", "24:00-08:00"),
        ("Mon-Fri 08:00-20:00 Sat 09:00-12:00", "Mon-Fri 08:00-20:00 Sat 09:00-12:00"),
        ("Mon- 08:00-20:00", "Mon- 08:00-20:00"),
    ],
)
def test_what_means_no_hours_is_refused_by_its_part(text, part):
    with pytest.raises(ValidationError) as refused:
        parse_hours(text)
    assert (refused.value.code, refused.value.params) == ("not-hours", {"part": part})


@pytest.mark.parametrize(
    ("moment", "awake"),
    [
        ("2026-11-23 07:49", False),
        ("2026-11-23 07:50", True),  # loaded ten minutes before
        ("2026-11-23 08:00", True),
        ("2026-11-23 19:59", True),
        ("2026-11-23 20:00", False),
        ("2026-11-27 12:00", True),
        ("2026-11-28 12:00", False),
    ],
)
def test_on_weekdays_in_the_day(moment, awake):
    assert parse_hours("Mon-Fri 08:00-20:00").keep_awake(at(moment), TOKYO) is awake


@pytest.mark.parametrize(
    ("moment", "awake"),
    [
        ("2026-11-27 21:00", False),
        ("2026-11-27 23:00", True),
        ("2026-11-28 05:59", True),
        ("2026-11-28 06:00", False),
        ("2026-11-29 23:00", False),
        ("2026-11-23 03:00", False),  # of the night before, which is none of these
    ],
)
def test_a_night_belongs_to_the_day_on_which_it_begins(moment, awake):
    assert parse_hours("Fri 22:00-06:00").keep_awake(at(moment), TOKYO) is awake


def test_pages_in_japanese_name_the_days_so():
    hours = parse_hours("Mon-Fri 8:00-20:00; Sat,Sun 9:00-12:00")
    assert hours.in_japanese() == "月-金 08:00-20:00; 土-日 09:00-12:00"
    assert parse_hours(hours.in_japanese()) == hours


def test_the_week_is_a_circle():
    hours = parse_hours("Sun 22:00-06:00")
    assert hours.keep_awake(at("2026-11-23 03:00"), TOKYO)
    assert hours.keep_awake(at("2026-11-29 21:55"), TOKYO)


def test_they_are_those_of_the_site_also_when_its_clocks_change():
    berlin, hours = ZoneInfo("Europe/Berlin"), parse_hours("08:00-20:00")
    for day in ("2026-03-28", "2026-03-29", "2026-10-25"):
        assert not hours.keep_awake(datetime.fromisoformat(f"{day} 07:40").replace(tzinfo=berlin), berlin)
        assert hours.keep_awake(datetime.fromisoformat(f"{day} 08:00").replace(tzinfo=berlin), berlin)
        assert not hours.keep_awake(datetime.fromisoformat(f"{day} 20:00").replace(tzinfo=berlin), berlin)
