"""Django's pages under ASGI, with what its handler leaves open."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from asgiref.sync import ThreadSensitiveContext, sync_to_async
from django.core.handlers.asgi import ASGIHandler
from django.db import connections

Message = Mapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

# Seconds that a client may leave a piece of its answer unread: an export holds a connection of the database meanwhile.
UNREAD_SECONDS = 30.0


class Pages:
    """Serves `django`. A request's database connection is given back also when its answer breaks off: Django does so
    at the end of an answer, and the pool would have one less for good."""

    def __init__(self, django: ASGIHandler) -> None:
        self._django = django

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(UNREAD_SECONDS):
                await send(message)

        # The outermost context counts: Django's thread for this request is the one that gives back.
        async with ThreadSensitiveContext():
            try:
                await self._django(scope, receive, send_in_time)
            except BaseException:
                await asyncio.shield(sync_to_async(connections.close_all)())
                raise
