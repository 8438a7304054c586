"""What operators' sockets say. Every message is a JSON object with `version` (1) and `type`.

/ws/operations/
    snapshot   {at, hosts: [HostNow], models: [ModelNow]}: all there is; the first message, and after a `stale`
    change     {at, hosts: […], models: […], gone: {hosts: [id], models: [id]}}: those that differ, whole
/ws/operations/replicas/<id>/log/
    log        {at, text, append}: the end of the log, or (append) what was added to it; at: null = not read yet
    gone       {}: there is no such replica; the socket is closed
both
    stale      {since}: the database does not answer; what was told is as it was then
    heartbeat  {at}: nothing else was to be told for 15 s

Whatever a client sends is ignored. Closed with 4403: not an operator any more.
"""

import asyncio
from abc import abstractmethod
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from importlib import import_module
from typing import Any

import orjson
from channels.db import database_sync_to_async
from channels.generic.websocket import AsyncWebsocketConsumer
from django.conf import settings
from django.contrib.auth import get_user
from django.db import Error
from django.http import HttpRequest
from django.utils import timezone

from portal.accounts.tenancy import may_operate
from portal.operations.live import Frame, Live, Tail

VERSION = 1
HEARTBEAT = 15.0  # seconds; proxies cut what is silent for 60
LOOK_AGAIN = 5.0  # seconds between two looks at whether the person is an operator still
NO_OPERATOR = 4403
ANCHOR = 200  # characters by which the end of what was told is looked for in what is there now


class Feed(AsyncWebsocketConsumer):  # type: ignore[misc]  # has no types
    """A socket that tells operators what is new, for as long as they are operators."""

    def __init__(self, live: Live) -> None:
        super().__init__()
        self._live = live
        self._tasks: list[asyncio.Task[None]] = []
        self._told_at = 0.0  # loop time of the last message

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def connect(self) -> None:
        if not may_operate(self.scope["user"]):
            await self.close()
            return
        await self.accept()
        self._tasks = [asyncio.create_task(work()) for work in (self._tell_all, self._guard)]

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
        """Cuts who signed out, was signed out or operates no more. While nobody can say, nobody is cut."""
        while True:
            await asyncio.sleep(LOOK_AGAIN)
            try:
                stays = await is_operator(self.scope["session"].session_key)
            except Error:  # and nothing that is new can be told either
                stays = True
            if not stays:
                self._tasks[0].cancel()
                await self.close(NO_OPERATOR)
                return
            if asyncio.get_running_loop().time() - self._told_at > HEARTBEAT - LOOK_AGAIN:
                await self._tell({"type": "heartbeat", "at": timezone.now()})


@database_sync_to_async  # type: ignore[untyped-decorator]
def is_operator(session_key: str) -> bool:
    """Whether this session is an operator's, as a page would find it now. Raises django.db.Error."""
    request = HttpRequest()
    request.session = import_module(settings.SESSION_ENGINE).SessionStore(session_key)
    return may_operate(get_user(request))


class State(Feed):
    """Hosts and models."""

    async def messages(self) -> AsyncGenerator[dict[str, Any], None]:
        told: Frame | None = None
        stale = False
        async with self._live.watching() as watcher:
            while True:
                frame = await watcher.next()
                if frame.stale:
                    if not stale:
                        yield {"type": "stale", "since": frame.at}
                    told, stale = None, True
                elif message := news(told, frame):
                    yield message
                    told, stale = frame, False


def news(told: Frame | None, frame: Frame) -> dict[str, Any] | None:
    """The message that brings who knows `told` up to date; None if there is nothing to tell."""
    if frame.hosts is None or frame.models is None:
        return None
    if told is None or told.hosts is None or told.models is None:
        hosts, models = _items(frame.hosts.values()), _items(frame.models.values())
        return {"type": "snapshot", "at": frame.at, "hosts": hosts, "models": models}
    hosts, models = _items(_new(told.hosts, frame.hosts)), _items(_new(told.models, frame.models))
    gone = {"hosts": sorted(told.hosts.keys() - frame.hosts), "models": sorted(told.models.keys() - frame.models)}
    if not (hosts or models or gone["hosts"] or gone["models"]):
        return None
    return {"type": "change", "at": frame.at, "hosts": hosts, "models": models, "gone": gone}


def _new(told: dict[int, bytes], seen: dict[int, bytes]) -> Iterable[bytes]:
    return (item for number, item in seen.items() if told.get(number) != item)


def _items(items: Iterable[bytes]) -> list[orjson.Fragment]:
    return [orjson.Fragment(item) for item in items]


class Log(Feed):
    """The end of one replica's log."""

    async def messages(self) -> AsyncGenerator[dict[str, Any], None]:
        replica = int(self.scope["url_route"]["kwargs"]["replica"])
        told: Tail | None = None
        stale = False
        async with self._live.watching(replica=replica) as watcher:
            while True:
                frame = await watcher.next()
                if frame.stale:
                    if not stale:
                        yield {"type": "stale", "since": frame.at}
                    stale = True
                elif replica in frame.tails:
                    tail = frame.tails[replica]
                    if tail is None:
                        yield {"type": "gone"}
                        return
                    if stale or told is None or tail.text != told.text:
                        yield {"type": "log", "at": tail.at, **addition(told.text if told else "", tail.text)}
                    told, stale = tail, False


def addition(told: str, text: str) -> dict[str, Any]:
    """What must be appended to `told` for it to end as `text` does; all of `text` where the two do not meet.

    Both are the last lines of one growing file, so the end of the earlier one stands somewhere in the later one.
    """
    end = told[-ANCHOR:]
    at = text.rfind(end) if end else -1
    while at >= 0:
        if told.endswith(text[: at + len(end)]):
            return {"text": text[at + len(end) :], "append": True}
        at = text.rfind(end, 0, at + len(end) - 1)
    return {"text": text, "append": False}
