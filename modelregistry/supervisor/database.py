"""The controller's way to the database: one thread, and so one connection, for all that it asks."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

from django.db import Error, InterfaceError, OperationalError, connections

from modelregistry.hostside.executor import Executor

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

DATABASE_AWAY = "the database does not answer; engines keep running as they are: %s"
DATABASE_BACK = "the database answers again"


CONNECTION = "its connection"  # among those that are not answered


class Database(Executor):
    """A thread for the database, which logs once for all that it does not answer.

    A lost connection is seen by whichever call meets it first: calls behind it wait for a new one up to
    `modelregistry.database.POOL_SECONDS` each. Other errors are known only to those who ask, so they `note` them.
    """

    def __init__(self) -> None:
        super().__init__(1, "database")
        self.unanswered: set[str] = set()  # those that it does not answer, as a part of it may be away

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run the function in the thread, and return its result; a connection that broke is replaced for the next."""
        try:
            result = await super().run(function, *args, **kwargs)
        except (OperationalError, InterfaceError) as error:
            if _is_connection_lost(error):
                self.note(CONNECTION, error)
            await super().run(connections.close_all)
            raise
        self.note(CONNECTION, None)
        return result

    async def ask(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """Return what the function does; None: the database does not answer."""
        with contextlib.suppress(Error):
            return await self.run(function, *args, **kwargs)
        return None

    def note(self, who: str, error: Error | None) -> None:
        """Note that the database answered the one called `who`, or with which error it did not."""
        before = bool(self.unanswered)
        if error:
            self.unanswered.add(who)
        else:
            self.unanswered.discard(who)
        if error and not before:
            log.error(DATABASE_AWAY, error)
        elif before and not self.unanswered:
            log.warning(DATABASE_BACK)


def _is_connection_lost(error: Error) -> bool:
    """Return whether a server cannot be reached. SQLite has none: a locked or missing table there is not its file."""
    return hasattr(error.__cause__, "sqlstate") and not _has_answered(error)


def _has_answered(error: Error) -> bool:
    """Return whether the server has sent the error, and not because it goes away (SQLSTATE classes 08 and 57P)."""
    state = getattr(error.__cause__, "sqlstate", None)
    return state is not None and not state.startswith(("08", "57P"))


async def take_turn(work: Callable[[], Awaitable[None]], every: float) -> None:
    """Do some work once and pause, as a watchdog's step. That the database is away is logged by `Database`."""
    try:
        await work()
    except Error as error:
        log.log(logging.WARNING if _has_answered(error) else logging.DEBUG, "left for the next turn: %s", error)
    await asyncio.sleep(every)
