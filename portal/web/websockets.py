"""Sockets that send people what is new, for as long as they may see it.

Every message is a JSON object with `version` (1) and `type`. All feeds send:
    stale      {since}: the database does not answer; what was sent is as of that time
    heartbeat  {at}: no other message was sent for 15 s

Whatever a client sends is ignored. Closed with 4403: the person may not watch any more; with 1011: connect again.
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
LOOK_AGAIN = 5.0  # seconds between two checks whether the person may still watch
MAX_SOCKETS = 20  # sockets of one person in each process at a time: with 600, every page of every person took a second
MAY_NOT = 4403
FAILED = 1011  # RFC 6455: something that was not foreseen

log = logging.getLogger("madoguchi.live")

_open: Counter[int] = Counter()  # sockets by person


class LiveConsumer(AsyncWebsocketConsumer):  # type: ignore[misc]  # has no types
    """A socket that sends what is new to a person who may see it."""

    def __init__(self) -> None:
        super().__init__()
        self._tasks: list[asyncio.Task[None]] = []
        self._sent_at = 0.0  # loop time of the last message
        self._person_id: int | None = None  # once it is open and counted

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            for task in self._tasks:
                task.cancel()
            if self._person_id is not None:
                _open[self._person_id] -= 1
                if not _open[self._person_id]:
                    del _open[self._person_id]
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def connect(self) -> None:
        person = self.scope["user"]
        if not await database_sync_to_async(self.permits)(person) or _open[person.pk] >= MAX_SOCKETS:
            await self.close()
            return
        self._person_id = person.pk
        _open[person.pk] += 1
        await self.accept()
        self._tasks = [asyncio.create_task(self._run_task(work)) for work in (self._send_all, self._guard)]

    async def _run_task(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run one of the socket's tasks; close the socket if it fails, so that the page connects again."""
        try:
            await work()
        except ClientDisconnected:  # the browser has gone, and Channels will close the socket
            pass
        except Exception:
            log.exception("a live page cannot go on")
            await self.close(FAILED)

    @abstractmethod
    def permits(self, user: "User | AnonymousUser") -> bool:
        """Return whether this person may watch now. Called in a thread; may raise django.db.Error."""

    @abstractmethod
    def messages(self) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the messages to send. The socket is closed after the last one."""

    async def _send_all(self) -> None:
        async with aclosing(self.messages()) as messages:
            async for message in messages:
                await self._send_message(message)
        await self.close()

    async def _send_message(self, message: dict[str, Any]) -> None:
        self._sent_at = asyncio.get_running_loop().time()
        await self.send(text_data=orjson.dumps({"version": VERSION, **message}).decode())

    async def _guard(self) -> None:
        """Close the socket of a person who is signed out or may not watch any more, but not while that is unknown."""
        while True:
            await asyncio.sleep(LOOK_AGAIN)
            try:
                stays = await database_sync_to_async(self._may_still_watch)()
            except Error:  # then nothing new can be read, either
                stays = True
            if not stays:
                self._tasks[0].cancel()
                await self.close(MAY_NOT)
                return
            if asyncio.get_running_loop().time() - self._sent_at > HEARTBEAT - LOOK_AGAIN:
                await self._send_message({"type": "heartbeat", "at": timezone.now()})

    def _may_still_watch(self) -> bool:
        """Return whether the person of this session may watch, read from the database as a page would."""
        request = HttpRequest()
        request.session = import_module(settings.SESSION_ENGINE).SessionStore(self.scope["session"].session_key)
        return self.permits(get_user(request))
