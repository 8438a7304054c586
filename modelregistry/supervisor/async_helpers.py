"""Waiting for one of several events, and for cancelled tasks."""

import asyncio
from collections.abc import Sequence
from typing import Any


async def wait_for_either(event: asyncio.Event, seconds: float, other: asyncio.Event | None = None) -> None:
    """Wait until one of the events is set or the time is over."""
    waits = [asyncio.create_task(each.wait()) for each in (event, other) if each]
    try:
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await cancel_and_wait(waits)


async def cancel_and_wait(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Cancel the tasks and wait for their end, whatever they raise."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
