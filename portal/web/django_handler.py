"""Django's pages under ASGI, with time-outs and clean-up that its handler lacks."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from asgiref.sync import ThreadSensitiveContext, sync_to_async
from django.core.handlers.asgi import ASGIHandler
from django.db import connections

Message = Mapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

# Seconds that a client may leave a part of its response unread: an export holds a database connection meanwhile.
UNREAD_SECONDS = 30.0


class DjangoHandler:
    """Serves `django`, and returns a request's database connection to the pool also when its response breaks off.

    Django returns it only at the end of a response; without this, the pool would lose it for good.
    """

    def __init__(self, django: ASGIHandler) -> None:
        self._django = django

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(UNREAD_SECONDS):
                await send(message)

        # The outermost context counts: the thread that Django uses for this request must close the connection.
        async with ThreadSensitiveContext():
            try:
                await self._django(scope, receive, send_in_time)
            except BaseException:
                await asyncio.shield(sync_to_async(connections.close_all)())
                raise
