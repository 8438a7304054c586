"""Waiting for what other processes and threads do and report to no one."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Literal, TypeVar

T = TypeVar("T")


def until(condition: Callable[[], T | Literal[False] | None], seconds: float = 60.0) -> T:
    """Return the first true value of `condition`; fails the test if there is none for so long."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not true within {seconds} s"
        time.sleep(0.02)
    return value


async def eventually(condition: Callable[[], T | Awaitable[T]], seconds: float = 60.0) -> T:
    """Wait as `until` does, while this event loop goes on; the condition may be a coroutine function."""
    async with asyncio.timeout(seconds):
        while True:
            found = condition()
            value: T = await found if inspect.isawaitable(found) else found
            if value:
                return value
            await asyncio.sleep(0.02)


def at_rest(read: Callable[[], int], pause: float = 0.5) -> int:
    """Return a growing number once it has begun to grow and grows no more."""
    before = -1
    while before != (before := read()) or not before:
        time.sleep(pause)
    return before
