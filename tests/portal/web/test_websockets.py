"""Live pages go on when what reads for them fails; no page waits for ever."""

import asyncio
import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from channels.testing import WebsocketCommunicator
from django.utils import timezone
from uvicorn.protocols.utils import ClientDisconnected

from modelregistry.supervisor import watchdog
from portal.operations.live import LiveOperationsFeed, OperationsSnapshot
from portal.usage.live import LiveUsageFeed, UsageSnapshot
from portal.web import websockets

pytestmark = pytest.mark.django_db(transaction=True)


def reader(snapshot: type, failures: list[BaseException | None]) -> Callable[[], Callable[..., Any]]:
    """Make readers; the first things that they do are these."""

    def read(number: int, **_: Any) -> Any:
        if failures and (error := failures.pop(0)) is not None:
            raise error
        return snapshot(number=number, at=timezone.now())

    def make() -> Callable[..., Any]:
        if failures and isinstance(failures[0], MemoryError):
            raise failures.pop(0)
        return read

    return make


@pytest.mark.parametrize("kind", ["usage", "operations"])
@pytest.mark.parametrize(
    "failures", [[MemoryError()], [None, None, asyncio.CancelledError()], [None, RuntimeError("new"), None]]
)
async def test_m7_who_watches_sees_new_frames_after_any_failure(monkeypatch, kind, failures):
    monkeypatch.setattr(watchdog, "SHORTEST", 0.01)
    feed = {
        "usage": lambda: LiveUsageFeed(reader(UsageSnapshot, list(failures)), poll=0.01),
        "operations": lambda: LiveOperationsFeed(reader(OperationsSnapshot, list(failures)), poll=0.01),
    }[kind]()
    async with feed.watching() as watcher, asyncio.timeout(10):
        number = 0
        for _ in range(8):
            snapshot = await watcher.next()
            assert snapshot.number > number
            number = snapshot.number
        while snapshot.stale:
            snapshot = await watcher.next()
    assert asyncio.all_tasks() == {asyncio.current_task()}


class Socket(websockets.LiveConsumer):
    """For any person, with nothing to send."""

    def permits(self, user) -> bool:
        return True

    async def messages(self):
        await asyncio.Event().wait()
        yield {}


class FailingSocket(Socket):
    async def messages(self):
        raise RuntimeError("of something new")
        yield {}


class LeftSocket(Socket):
    async def messages(self):
        raise ClientDisconnected
        yield {}


async def opened(consumer: type[websockets.LiveConsumer]) -> WebsocketCommunicator:
    communicator = WebsocketCommunicator(consumer.as_asgi(), "/")
    communicator.scope["user"] = SimpleNamespace(pk=1)
    connected, _ = await communicator.connect()
    assert connected
    return communicator


@pytest.mark.parametrize("consumer", [Socket, FailingSocket])
async def test_m7_a_socket_of_which_a_part_has_failed_is_closed(monkeypatch, consumer):
    """Its page connects again, and no reader that was to be cut goes on."""
    # The check whether the person may still watch fails without a session.
    monkeypatch.setattr(websockets, "LOOK_AGAIN", 0.0 if consumer is Socket else 60.0)
    communicator = await opened(consumer)
    closed = await communicator.receive_output()
    assert (closed["type"], closed["code"]) == ("websocket.close", websockets.FAILED)


async def test_p3_a_browser_that_has_gone_is_no_error_of_ours(caplog):
    """Closing 600 tabs at once left 565 tracebacks in the log."""
    communicator = await opened(LeftSocket)
    assert await communicator.receive_nothing()
    await communicator.disconnect()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
