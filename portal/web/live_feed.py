"""What open sockets of this process show, read once for all of them: a thread reads the database while anyone watches.

Watchers keep no queue: each asks for the newest snapshot when it has sent the one before, so a slow client gets fewer
snapshots, each complete.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Generic, TypeVar

from django.db import Error, close_old_connections, connections
from django.utils import timezone

from modelregistry.supervisor.watchdog import Watchdog

log = logging.getLogger("madoguchi.live")


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What was read at one time; later ones have higher numbers. `stale`: the database has not answered since `at`."""

    number: int
    at: datetime
    stale: bool = False


S = TypeVar("S", bound=Snapshot)


class LiveFeed(Generic[S]):
    """Reads snapshots for its watchers. Its task and its thread start with the first watcher and stop with the last."""

    def __init__(
        self,
        name: str,
        make_reader: Callable[[], Callable[..., S]],
        empty: Callable[..., S],
        *,
        poll: float,
        patience: float,
    ) -> None:
        """Prepare a feed; nothing is read before the first watcher comes.

        `make_reader` is called whenever the task starts. What it returns is called in the thread as `read_options` say,
        blocks on the database and may raise django.db.Error. `empty`: makes the snapshot that stands for none. `poll`:
        seconds between two reads; a database that takes longer than `patience` seconds counts as away.
        """
        self._name = name
        self._make_reader = make_reader
        self._empty = empty
        self._poll = poll
        self._patience = patience
        self._watchers = 0
        self._newest: S | None = None
        self._published = asyncio.Event()
        self._watchdog = Watchdog()
        self._task: asyncio.Task[None] | None = None

    def read_options(self) -> dict[str, Any]:
        """Return what to pass to the reader beside the number of its snapshot."""
        return {}

    @asynccontextmanager
    async def watching(self) -> AsyncIterator["Watcher[S]"]:
        """Provide a watcher; the feed reads as long as there is one."""
        self._watchers += 1
        if self._task is None:
            self._published, self._newest = asyncio.Event(), None
            self._task = self._watchdog.keep_running(self._name, self._run)
        try:
            yield Watcher(self)
        finally:
            self._watchers -= 1
            if not self._watchers:
                task, self._task = self._task, None
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def wait_for(self, number: int) -> S:
        """Return the newest snapshot, as soon as its number is higher than this one."""
        while self._newest is None or self._newest.number <= number:
            await self._published.wait()
        return self._newest

    async def _run(self) -> None:
        # A thread of its own: a database that hangs delays no other work.
        thread = ThreadPoolExecutor(1, thread_name_prefix=self._name)
        loop, away = asyncio.get_running_loop(), False
        number = self._newest.number if self._newest is not None else 0  # watchers wait for higher ones
        try:
            read = self._make_reader()
            while True:
                number += 2  # one for a stale snapshot that is published while the read is late
                next_read = loop.time() + self._poll
                job = loop.run_in_executor(thread, _read, read, number, self.read_options())
                try:
                    done, _ = await asyncio.wait([job], timeout=self._patience)
                    if not done:
                        self._publish_stale(number - 1)
                    self._publish(await job)
                    away = False
                except Exception as error:  # the loop must go on for its watchers
                    if not away:
                        log.warning(
                            "live %s cannot be read: %s", self._name, error, exc_info=not isinstance(error, Error)
                        )
                    away = True
                    self._publish_stale(number)
                await asyncio.sleep(max(0.0, next_read - loop.time()))
        finally:
            thread.submit(connections.close_all)
            thread.shutdown(wait=False)

    def _publish(self, snapshot: S) -> None:
        self._newest = snapshot
        self._published.set()
        self._published = asyncio.Event()

    def _publish_stale(self, number: int) -> None:
        """Publish the newest snapshot once more, as one that is not confirmed any more."""
        last = self._newest or self._empty(number=0, at=timezone.now())
        self._publish(replace(last, number=number, stale=True))


def _read(read: Callable[..., S], number: int, options: dict[str, Any]) -> S:
    """Read a snapshot in a thread that lives long: its connection may have timed out since the last read."""
    close_old_connections()
    try:
        return read(number, **options)
    finally:
        close_old_connections()  # for others, between two reads


class Watcher(Generic[S]):
    """One who watches a feed: `next` gives the newest snapshot that it has not given yet, at first the current one."""

    def __init__(self, feed: LiveFeed[S]) -> None:
        self._feed = feed
        self._last = 0

    async def next(self) -> S:
        snapshot = await self._feed.wait_for(self._last)
        self._last = snapshot.number
        return snapshot
