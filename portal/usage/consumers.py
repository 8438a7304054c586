"""What the socket of the live view says: /ws/usage/?of=… (a scope's name, see `scopes`; mine if it is left out).

    pulse  {at, slots, tokens, requests, models, last}: a `live.Picture` of what is the reader's, whole, every 2 s

What all sockets say besides, and when they are closed: see portal.web.websockets.
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


class Usage(LiveConsumer):
    """The last five minutes of a scope."""

    def __init__(self, pulse: LiveUsageFeed) -> None:
        super().__init__()
        self._pulse = pulse
        self._owner: Owner = ("user", 0)  # nobody's, until it was found

    def permits(self, user: User | AnonymousUser) -> bool:
        if not isinstance(user, User) or not user.is_active:
            return False
        asked = parse_qs(self.scope["query_string"].decode("ascii", "replace"))
        try:
            self._owner = scopes.find_scope(user, asked.get("of", [scopes.ME])[0]).owner
        except Http404:
            return False
        return True

    async def messages(self) -> AsyncGenerator[dict[str, Any], None]:
        number, stale = 0, False
        async with self._pulse.watching() as pulse:
            while True:
                frame = await pulse.after(number)
                number = frame.number
                if frame.stale:
                    if not stale:
                        yield {"type": "stale", "since": frame.at}
                    stale = True
                else:
                    # 20 ms of 20,000 answers: not in the loop that others wait for.
                    seen = await asyncio.to_thread(usage_view, frame, self._owner)
                    yield {"type": "pulse", "at": frame.at, **asdict(seen)}
                    stale = False
