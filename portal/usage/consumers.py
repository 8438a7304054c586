"""The socket of the live view: /ws/usage/?of=… (a scope's name, see `scopes`; the person's own usage without it).

    usage  {at, slots, tokens, requests, models, last}: the `live.UsageView` of that scope, as a whole, every 2 s

portal.web.websockets describes the messages that all sockets send, and when sockets are closed.
"""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import asdict
from typing import Any
from urllib.parse import parse_qs

from django.contrib.auth.models import AnonymousUser
from django.http import Http404

from portal.accounts.models import User
from portal.usage import scopes
from portal.usage.live import LiveUsageFeed, Owner, usage_view
from portal.web.websockets import LiveConsumer


class UsageConsumer(LiveConsumer):
    """Sends the last five minutes of a scope."""

    def __init__(self, feed: LiveUsageFeed) -> None:
        super().__init__()
        self._feed = feed
        self._owner: Owner = ("user", 0)  # no user has this number; `permits` finds the owner

    def permits(self, user: User | AnonymousUser) -> bool:
        if not isinstance(user, User) or not user.is_active:
            return False
        query = parse_qs(self.scope["query_string"].decode("ascii", "replace"))
        try:
            self._owner = scopes.find_scope(user, query.get("of", [scopes.ME])[0]).owner
        except Http404:
            return False
        return True

    async def messages(self) -> AsyncGenerator[dict[str, Any], None]:
        stale = False
        async with self._feed.watching() as watcher:
            while True:
                snapshot = await watcher.next()
                if snapshot.stale:
                    if not stale:
                        yield {"type": "stale", "since": snapshot.at}
                    stale = True
                else:
                    # 20 ms for 20,000 answers: not in the event loop, where others would wait.
                    view = await asyncio.to_thread(usage_view, snapshot, self._owner)
                    yield {"type": "usage", "at": snapshot.at, **asdict(view)}
                    stale = False
