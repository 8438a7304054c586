"""Days and times that a template or Django's admin writes without a format."""

from datetime import datetime

import pytest
from django.utils import translation
from django.utils.formats import date_format
from django.utils.translation import pgettext

MOMENT = datetime(2026, 12, 3, 9, 5)


@pytest.mark.parametrize("language", ["en", "ja"])
def test_a_day_without_a_format_is_written_as_all_days(language):
    with translation.override(language):
        assert date_format(MOMENT) == date_format(MOMENT, pgettext("day with year", "j M Y"))


def test_an_english_time_has_24_hours():
    with translation.override("en"):
        assert date_format(MOMENT, "DATETIME_FORMAT").endswith("09:05")
