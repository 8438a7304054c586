"""The hours at which a model is kept awake: "Mon-Fri 08:00-20:00; Sat 9:00-12:00", in the site's time zone.

Within them it never sleeps, and it is started PRELOAD before they begin. Outside them it sleeps when nothing has called
it for a while, and wakes when something does. Days may be in Japanese: "月-金 8:00-20:00". A span without days is of
every day; one that ends before it begins ends on the next day.
"""

import re
import unicodedata
from dataclasses import dataclass
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from django.core.exceptions import ValidationError
from django.utils.translation import gettext_lazy as _

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
JAPANESE = "月火水木金土日"
DAY = 24 * 60  # minutes
PRELOAD = timedelta(minutes=10)  # a 70B in INT4, 40 GB, is read from a disk of 100 MB/s in seven
# Seconds without a request after which a model sleeps outside its hours, if it has no time of its own.
IDLE_AFTER = 600
LONGEST = 200  # characters of a text
SPAN = re.compile(r"(?:(?P<days>[^0-9]*[^0-9\s])\s+)?(?P<begin>\d{1,2}:\d\d)\s*[-–〜~]\s*(?P<end>\d{1,2}:\d\d)")


@dataclass(frozen=True, slots=True)
class Span:
    """Hours of some days. In minutes of the day; `end` is beyond DAY for those that end on the next."""

    days: frozenset[int]  # 0 is Monday
    begin: int
    end: int

    def contains(self, weekday: int, minute: int) -> bool:
        return any((weekday - ago) % 7 in self.days and self.begin <= minute + ago * DAY < self.end for ago in (0, 1))

    def __str__(self) -> str:
        days = "" if len(self.days) == len(DAYS) else f"{_name_days(self.days)} "
        end = self.end if self.end <= DAY else self.end - DAY
        return f"{days}{_name_time(self.begin)}-{_name_time(end)}"


@dataclass(frozen=True, slots=True)
class AwakeHours:
    """Spans in which a model is kept awake."""

    spans: tuple[Span, ...]

    def keep_awake(self, now: datetime, zone: ZoneInfo) -> bool:
        """Return whether the model is to be awake: it is such an hour, or will be within PRELOAD."""
        return any(self._contain(moment.astimezone(zone)) for moment in (now, now + PRELOAD))

    def _contain(self, local: datetime) -> bool:
        return any(span.contains(local.weekday(), local.hour * 60 + local.minute) for span in self.spans)

    def __str__(self) -> str:
        return "; ".join(map(str, self.spans))

    def in_japanese(self) -> str:
        """Return the text with Japanese names of days."""
        return re.sub("|".join(DAYS), lambda found: JAPANESE[DAYS.index(found[0])], str(self))


def parse_hours(text: str) -> AwakeHours:
    """Return the hours that a text means. Raises ValidationError, which names the part that means none."""
    parts = [part.strip() for part in unicodedata.normalize("NFKC", text).split(";")]
    return AwakeHours(tuple(_parse_span(part) for part in parts if part))


def check_hours(text: str) -> None:
    """Raise ValidationError for a text that means no hours."""
    parse_hours(text)


def _parse_span(text: str) -> Span:
    found = SPAN.fullmatch(text)
    if not found:
        raise _refusal(text)
    begin, end = _parse_time(found["begin"], text), _parse_time(found["end"], text)
    if begin in (DAY, end):
        raise _refusal(text)
    days = _parse_days(found["days"], text) if found["days"] else frozenset(range(len(DAYS)))
    return Span(days, begin, end if end > begin else end + DAY)


def _parse_time(text: str, whole: str) -> int:
    hours, minutes = map(int, text.split(":"))
    time = hours * 60 + minutes
    if minutes > 59 or time > DAY:
        raise _refusal(whole)
    return time


def _parse_days(text: str, whole: str) -> frozenset[int]:
    days: set[int] = set()
    for part in re.split(r"[,、・\s]+", text.strip()):
        first, dash, last = re.sub("[–〜~]", "-", part).partition("-")
        begin = _parse_day(first, whole)
        end = _parse_day(last, whole) if dash else begin
        days |= {(begin + number) % 7 for number in range((end - begin) % 7 + 1)}
    return frozenset(days)


def _parse_day(text: str, whole: str) -> int:
    name = text.strip()
    if len(name) == 1 and name in JAPANESE:
        return JAPANESE.index(name)
    short = name[:3].title()
    if short not in DAYS or not name.isalpha():
        raise _refusal(whole)
    return DAYS.index(short)


def _name_days(days: frozenset[int]) -> str:
    """Return the days as runs: "Mon-Fri", "Mon,Wed"."""
    runs: list[list[int]] = []
    for day in sorted(days):
        if runs and runs[-1][-1] == day - 1:
            runs[-1].append(day)
        else:
            runs.append([day])
    return ",".join(DAYS[run[0]] if len(run) == 1 else f"{DAYS[run[0]]}-{DAYS[run[-1]]}" for run in runs)


def _name_time(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"


def _refusal(text: str) -> ValidationError:
    return ValidationError(
        _("“%(part)s” is no span of hours. Write for example: Mon-Fri 08:00-20:00; Sat 09:00-12:00"),
        code="not-hours",
        params={"part": text[:60]},
    )
