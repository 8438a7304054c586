"""Days and times that a template or Django's admin writes without a format."""

from datetime import datetime

import pytest
from django.utils import translation
from django.utils.formats import date_format
from django.utils.translation import pgettext

from portal.operations.templatetags.machines import per_cent

MOMENT = datetime(2026, 12, 3, 9, 5)


@pytest.mark.parametrize("language", ["en", "ja"])
def test_a_day_without_a_format_is_written_as_all_days(language):
    with translation.override(language):
        assert date_format(MOMENT) == date_format(MOMENT, pgettext("day with year", "j M Y"))


def test_an_english_time_has_24_hours():
    with translation.override("en"):
        assert date_format(MOMENT, "DATETIME_FORMAT").endswith("09:05")


@pytest.mark.parametrize(
    ("share", "digits", "shown"),
    [(1.0, 2, "100.00%"), (0.99999, 2, "99.99%"), (0.99994, 2, "99.99%"), (0.9981, 2, "99.81%"), (0.996, 0, "99%")],
)
def test_less_than_all_is_never_shown_as_all(share, digits, shown):
    with translation.override("en"):
        assert per_cent(share, digits) == shown
