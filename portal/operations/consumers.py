"""What operators' sockets say.

/ws/operations/
    snapshot   {at, hosts: [HostNow], models: [ModelNow]}: all there is; the first message, and after a `stale`
    change     {at, hosts: […], models: […], gone: {hosts: [id], models: [id]}}: those that differ, whole
/ws/operations/replicas/<id>/log/
    log        {at, text, append}: the end of the log, or (append) what was added to it; at: null = not read yet
    gone       {}: there is no such replica; the socket is closed

What all sockets say besides, and when they are closed: see portal.web.websockets.
"""

from collections.abc import AsyncGenerator, Iterable
from typing import Any

import orjson
from django.contrib.auth.models import AnonymousUser

from portal.accounts.models import User
from portal.accounts.permissions import may_operate
from portal.operations.live import LiveState, Snapshot, Tail
from portal.web.websockets import LiveConsumer

ANCHOR = 200  # characters by which the end of what was told is looked for in what is there now


class ForOperators(LiveConsumer):
    """What hosts and models do."""

    def __init__(self, live: LiveState) -> None:
        super().__init__()
        self._live = live

    def permits(self, user: User | AnonymousUser) -> bool:
        return may_operate(user)


class State(ForOperators):
    """Hosts and models."""

    async def messages(self) -> AsyncGenerator[dict[str, Any], None]:
        told: Snapshot | None = None
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


def news(told: Snapshot | None, frame: Snapshot) -> dict[str, Any] | None:
    """Return the message that brings who knows `told` up to date; None if there is nothing to tell."""
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


class Log(ForOperators):
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
