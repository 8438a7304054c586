"""Lets other packages record that this machine has a controller, one that waits to be elected included.

Receivers of `controller_runs` are called in a thread of their own.
"""

import asyncio
import logging

from django.db import Error, connections
from django.dispatch import Signal

from modelregistry.hostside.executor import Executor

log = logging.getLogger(__name__)

EVERY = 20.0  # seconds
controller_runs = Signal()


async def report_often() -> None:
    """Have receivers record it again and again, until cancelled."""
    executor = Executor(1, "reports")
    try:
        while True:
            await executor.run(_report)
            await asyncio.sleep(EVERY)
    finally:
        executor.close()


def _report() -> None:
    try:
        controller_runs.send(sender=None)
    except Error as error:
        log.warning("the database does not answer: %s", error)
    finally:
        connections.close_all()
