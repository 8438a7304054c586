"""Sockets that tell people what is new, for as long as they may know it.

Every message is a JSON object with `version` (1) and `type`. Of all feeds:
    stale      {since}: the database does not answer; what was told is as it was then
    heartbeat  {at}: nothing else was to be told for 15 s

Whatever a client sends is ignored. Closed with 4403: the person may not look any more; with 1011: connect again.
"""

import asyncio
import logging
from abc import abstractmethod
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from importlib import import_module
from typing import TYPE_CHECKING, Any

import orjson
from channels.db import database_sync_to_async
from channels.generic.websocket import AsyncWebsocketConsumer
from django.conf import settings
from django.contrib.auth import get_user
from django.contrib.auth.models import AnonymousUser
from django.db import Error
from django.http import HttpRequest
from django.utils import timezone
from uvicorn.protocols.utils import ClientDisconnected

if TYPE_CHECKING:
    from portal.accounts.models import User

VERSION = 1
HEARTBEAT = 15.0  # seconds; proxies cut what is silent for 60
LOOK_AGAIN = 5.0  # seconds between two looks at whether the person may look still
MOST = 20  # of one person's at a time in each process: with 600 every page of everybody took a second
MAY_NOT = 4403
FAILED = 1011  # RFC 6455: something that was not foreseen

log = logging.getLogger("madoguchi.live")

_open: Counter[int] = Counter()  # sockets by person


class LiveConsumer(AsyncWebsocketConsumer):  # type: ignore[misc]  # has no types
    """A socket that tells what is new to whom it permits."""

    def __init__(self) -> None:
        super().__init__()
        self._tasks: list[asyncio.Task[None]] = []
        self._told_at = 0.0  # loop time of the last message
        self._counted: int | None = None  # whose it is, once it is open

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            for task in self._tasks:
                task.cancel()
            if self._counted is not None:
                _open[self._counted] -= 1
                if not _open[self._counted]:
                    del _open[self._counted]
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def connect(self) -> None:
        person = self.scope["user"]
        if not await database_sync_to_async(self.permits)(person) or _open[person.pk] >= MOST:
            await self.close()
            return
        self._counted = person.pk
        _open[person.pk] += 1
        await self.accept()
        self._tasks = [asyncio.create_task(self._owned(work)) for work in (self._tell_all, self._guard)]

    async def _owned(self, work: Callable[[], Awaitable[None]]) -> None:
        """A socket of which a part has failed is closed, so that its page connects again."""
        try:
            await work()
        except ClientDisconnected:  # the browser has gone; so will this, as soon as it is told
            pass
        except Exception:
            log.exception("a live page cannot go on")
            await self.close(FAILED)

    @abstractmethod
    def permits(self, user: "User | AnonymousUser") -> bool:
        """Whether this person may look, as it is now. Called in a thread; may raise django.db.Error."""

    @abstractmethod
    def messages(self) -> AsyncGenerator[dict[str, Any], None]:
        """What to tell. Ends when there is no more."""

    async def _tell_all(self) -> None:
        async with aclosing(self.messages()) as messages:
            async for message in messages:
                await self._tell(message)
        await self.close()

    async def _tell(self, message: dict[str, Any]) -> None:
        self._told_at = asyncio.get_running_loop().time()
        await self.send(text_data=orjson.dumps({"version": VERSION, **message}).decode())

    async def _guard(self) -> None:
        """Cut who signed out, was signed out or may not look any more. While nobody can say, nobody is cut."""
        while True:
            await asyncio.sleep(LOOK_AGAIN)
            try:
                stays = await database_sync_to_async(self._still)()
            except Error:  # and nothing that is new can be told either
                stays = True
            if not stays:
                self._tasks[0].cancel()
                await self.close(MAY_NOT)
                return
            if asyncio.get_running_loop().time() - self._told_at > HEARTBEAT - LOOK_AGAIN:
                await self._tell({"type": "heartbeat", "at": timezone.now()})

    def _still(self) -> bool:
        """Return whether the person of this session may look, as a page would find it now."""
        request = HttpRequest()
        request.session = import_module(settings.SESSION_ENGINE).SessionStore(self.scope["session"].session_key)
        return self.permits(get_user(request))
