"""Waiting for what other processes and threads do and report to no one."""

import time
from collections.abc import Callable
from typing import Literal, TypeVar

T = TypeVar("T")


def until(condition: Callable[[], T | Literal[False] | None], seconds: float = 60.0) -> T:
    """Return the first true value of `condition`; fails the test if there is none for so long."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not true within {seconds} s"
        time.sleep(0.02)
    return value
