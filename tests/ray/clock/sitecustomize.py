"""Gives a Python another time of day, for tests: it is on the path of those processes only.

MADOGUCHI_TEST_CLOCK: by how many seconds. What C++ of Ray's reads of the clock stays as it is, and so do monotonic
clocks, as on a machine whose clock was set.
"""

import datetime
import os
import time
from typing import Self

SHIFT = float(os.environ.get("MADOGUCHI_TEST_CLOCK", "0"))
REAL_TIME, REAL_NANOSECONDS, REAL_DATETIME = time.time, time.time_ns, datetime.datetime


class AnyDatetime(type):
    """Takes real instances for those of the class that stands for them."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, REAL_DATETIME)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, REAL_DATETIME)


class ShiftedDatetime(datetime.datetime, metaclass=AnyDatetime):
    __slots__ = ()  # extensions compare its size

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> Self:
        return cls.fromtimestamp(REAL_TIME() + SHIFT, tz)

    @classmethod
    def utcnow(cls) -> Self:
        return cls.now(datetime.UTC).replace(tzinfo=None)


if SHIFT:
    time.time = lambda: REAL_TIME() + SHIFT
    time.time_ns = lambda: REAL_NANOSECONDS() + int(SHIFT * 1e9)
    vars(datetime)["datetime"] = ShiftedDatetime
