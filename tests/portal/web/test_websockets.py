"""Live pages go on when what reads for them fails; no page waits for ever."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from django.utils import timezone

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
    assert feed._task is None


async def test_m7_a_socket_of_which_a_part_has_failed_is_closed(monkeypatch):
    """Its page connects again, and no reader that was to be cut goes on."""
    closed: list[int] = []

    class Some(websockets.LiveConsumer):
        def permits(self, user) -> bool:
            return True

        async def messages(self):
            await asyncio.Event().wait()
            yield {}

        def _may_still_watch(self) -> bool:
            raise RuntimeError("of something new")

        async def close(self, code: int | None = None, reason: str | None = None) -> None:
            closed.append(code)

        async def accept(self, *words, **more) -> None:
            pass

    monkeypatch.setattr(websockets, "LOOK_AGAIN", 0.0)
    feed = Some()
    feed.scope = {"user": None}
    feed._tasks = []
    await feed._run_task(feed._guard)
    assert closed == [websockets.FAILED]
