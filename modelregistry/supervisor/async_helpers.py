"""Waiting for one of several things, and for tasks that were told to end."""

import asyncio
from collections.abc import Sequence
from typing import Any


async def wait_for_either(event: asyncio.Event, seconds: float, other: asyncio.Event | None = None) -> None:
    """Until one of the events is set or the time is over."""
    waits = [asyncio.create_task(each.wait()) for each in (event, other) if each]
    try:
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await cancel_and_wait(waits)


async def cancel_and_wait(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """End them, whatever they say to it."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
