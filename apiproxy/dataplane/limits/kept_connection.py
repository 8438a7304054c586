"""One worker's connection to Redis for as long as there is one: made, tried, watched, and made again.

What runs over it is a subclass's: one of `KeptConnection` counts limits, another shares the queue.
"""

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable

from apiproxy.dataplane.limits.redis_connection import RedisConnection, RedisUnavailable, connect

RETRY = 0.5  # seconds between two attempts to reach Redis
BEAT = 1.0  # seconds; a lease of five beats outlives a worker that is busy for a moment

KeepConnected = Callable[[str, Callable[[], Awaitable[None]]], asyncio.Task[None]]


class KeptConnection(ABC):
    """`keep` runs a step again and again whatever becomes of it, under a `name`. `script`: what runs in Redis.

    While `_connection` is None, Redis is away: a subclass does what it can alone.
    """

    def __init__(self, url: str, script: str, *, name: str, keep: KeepConnected) -> None:
        self._url = url
        self._script = script
        self._name = name
        self._keep = keep
        self._connection: RedisConnection | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Return when Redis has answered, or has not for CONNECT_TIMEOUT seconds: then this worker goes on alone."""
        self._loop = asyncio.get_running_loop()
        await self._connect(first=True)
        self._task = self._keep(self._name, self._monitor)

    async def close(self) -> None:
        """Give back what this worker holds in Redis, and close the connection."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if (connection := self._connection) is None:
            return
        with contextlib.suppress(RedisUnavailable):
            await self._leave(connection)
        self._connection = None
        connection.close("this worker has stopped")

    @abstractmethod
    async def _try(self, connection: RedisConnection) -> None:
        """Write something: a server that takes no writes would be lost again at once. Raises RedisUnavailable."""

    @abstractmethod
    def _on_connected(self, connection: RedisConnection) -> None:
        """Enter what this worker holds, by what is `_connection` from now on."""

    @abstractmethod
    def _beat(self, connection: RedisConnection) -> None:
        """Renew the lease."""

    @abstractmethod
    def _on_away(self, why: str) -> None:
        """Go on alone: the first attempt failed, or the connection is lost."""

    @abstractmethod
    async def _leave(self, connection: RedisConnection) -> None:
        """Give everything back. Raises RedisUnavailable."""

    async def _monitor(self) -> None:
        """Keep the lease for a beat while Redis is there; try once to connect while it is not."""
        if (connection := self._connection) is None:
            await asyncio.sleep(RETRY)
            await self._connect()
            return
        await asyncio.wait([connection.lost], timeout=BEAT)
        if not connection.lost.done():
            self._beat(connection)

    async def _connect(self, *, first: bool = False) -> None:
        try:
            connection = await connect(self._url, self._script)
            try:
                await self._try(connection)
            except BaseException:
                connection.close("it cannot be used")
                raise
        except RedisUnavailable as error:
            if first:
                self._on_away(str(error))
            return
        self._connection = connection
        connection.lost.add_done_callback(lambda _: self._on_connection_lost(connection))
        self._on_connected(connection)

    def _on_connection_lost(self, connection: RedisConnection) -> None:
        if self._connection is connection:
            self._connection = None
            self._on_away(connection.lost.result())
