"""The sockets of operators' pages.

/ws/operations/
    snapshot   {at, hosts: [HostNow], models: [ModelNow]}: everything; the first message, and the first after `stale`
    change     {at, hosts: […], models: […], gone: {hosts: [id], models: [id]}}: what has changed, each as a whole
/ws/operations/queue/
    queue      {at, …}: the queue.QueueNow as a whole, whenever it has changed
/ws/operations/replicas/<id>/log/
    log        {at, text, append}: the end of the log, or (append) what was added to it; at: null = not read yet
    gone       {}: there is no such replica; the socket is closed

portal.web.websockets describes the messages that all sockets send, and when sockets are closed.
"""

from collections.abc import AsyncGenerator, Iterable
from typing import Any

import orjson
from django.contrib.auth.models import AnonymousUser

from portal.accounts.models import User
from portal.accounts.permissions import may_operate
from portal.operations.live import QUEUE, LiveOperationsFeed, OperationsSnapshot, Tail
from portal.web.websockets import LiveConsumer

ANCHOR = 200  # characters of the end of the text that was sent, by which it is found in the current one


class OperatorConsumer(LiveConsumer):
    """A socket for operators only."""

    def __init__(self, feed: LiveOperationsFeed) -> None:
        super().__init__()
        self._feed = feed

    def permits(self, user: User | AnonymousUser) -> bool:
        return may_operate(user)


class OverviewConsumer(OperatorConsumer):
    """Sends the state of hosts and models."""

    async def messages(self) -> AsyncGenerator[dict[str, Any], None]:
        sent: OperationsSnapshot | None = None
        stale = False
        async with self._feed.watching() as watcher:
            while True:
                snapshot = await watcher.next()
                if snapshot.stale:
                    if not stale:
                        yield {"type": "stale", "since": snapshot.at}
                    sent, stale = None, True
                elif message := overview_message(sent, snapshot):
                    yield message
                    sent, stale = snapshot, False


def overview_message(sent: OperationsSnapshot | None, snapshot: OperationsSnapshot) -> dict[str, Any] | None:
    """Return the message that updates a client from `sent` to `snapshot`; None if nothing has changed."""
    if snapshot.hosts is None or snapshot.models is None:
        return None
    if sent is None or sent.hosts is None or sent.models is None:
        hosts, models = _to_json(snapshot.hosts.values()), _to_json(snapshot.models.values())
        return {"type": "snapshot", "at": snapshot.at, "hosts": hosts, "models": models}
    hosts = _to_json(_find_changed(sent.hosts, snapshot.hosts))
    models = _to_json(_find_changed(sent.models, snapshot.models))
    gone = {"hosts": sorted(sent.hosts.keys() - snapshot.hosts), "models": sorted(sent.models.keys() - snapshot.models)}
    if not (hosts or models or gone["hosts"] or gone["models"]):
        return None
    return {"type": "change", "at": snapshot.at, "hosts": hosts, "models": models, "gone": gone}


def _find_changed(sent: dict[int, bytes], current: dict[int, bytes]) -> Iterable[bytes]:
    return (item for number, item in current.items() if sent.get(number) != item)


def _to_json(items: Iterable[bytes]) -> list[orjson.Fragment]:
    return [orjson.Fragment(item) for item in items]


class QueueConsumer(OperatorConsumer):
    """Sends who waits."""

    async def messages(self) -> AsyncGenerator[dict[str, Any], None]:
        sent: bytes | None = None
        stale = False
        async with self._feed.watching(QUEUE) as watcher:
            while True:
                snapshot = await watcher.next()
                if snapshot.stale:
                    if not stale:
                        yield {"type": "stale", "since": snapshot.at}
                    sent, stale = None, True
                elif snapshot.queue is not None and snapshot.queue != sent:
                    yield {"type": "queue", "at": snapshot.at, **orjson.loads(snapshot.queue)}
                    sent, stale = snapshot.queue, False


class LogConsumer(OperatorConsumer):
    """Sends the end of one replica's log."""

    async def messages(self) -> AsyncGenerator[dict[str, Any], None]:
        replica = int(self.scope["url_route"]["kwargs"]["replica"])
        sent: Tail | None = None
        stale = False
        async with self._feed.watching(replica) as watcher:
            while True:
                snapshot = await watcher.next()
                if snapshot.stale:
                    if not stale:
                        yield {"type": "stale", "since": snapshot.at}
                    stale = True
                elif replica in snapshot.tails:
                    tail = snapshot.tails[replica]
                    if tail is None:
                        yield {"type": "gone"}
                        return
                    if stale or sent is None or tail.text != sent.text:
                        yield {"type": "log", "at": tail.at, **find_addition(sent.text if sent else "", tail.text)}
                    sent, stale = tail, False


def find_addition(sent: str, text: str) -> dict[str, Any]:
    """Return what to append to `sent` so that it ends as `text` does; all of `text` where the two do not overlap.

    Both are the last lines of one growing file, so the end of the earlier one occurs somewhere in the later one.
    """
    end = sent[-ANCHOR:]
    at = text.rfind(end) if end else -1
    while at >= 0:
        if sent.endswith(text[: at + len(end)]):
            return {"text": text[at + len(end) :], "append": True}
        at = text.rfind(end, 0, at + len(end) - 1)
    return {"text": text, "append": False}
