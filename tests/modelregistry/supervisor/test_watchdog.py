"""Tasks that fail are logged, counted, listed and run again; only the clock is faked."""

import asyncio
import logging

import pytest

from modelregistry.supervisor import watchdog
from modelregistry.supervisor.watchdog import HANGS, LONGEST, Watchdog
from tests.clock import Clock


class Work:
    """A step that raises `error` if that is set; waits for one `go` a turn."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.turns = 0
        self.go = asyncio.Event()
        self.turned = asyncio.Event()

    async def step(self) -> None:
        await self.go.wait()
        self.go.clear()
        self.turns += 1
        self.turned.set()
        if self.error is not None:
            raise self.error

    async def turn(self) -> None:
        """Run one turn, and let the watchdog handle its result."""
        self.turned.clear()
        self.go.set()
        await self.turned.wait()
        for _ in range(4):
            await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch):
    monkeypatch.setattr(watchdog, "SHORTEST", 0.0)


@pytest.fixture
async def kept():
    clock, failed = Clock(), []
    dog, work = Watchdog(failed.append, clock), Work()
    dog.keep_running("digging", work.step, patience=60)
    yield dog, work, clock, failed
    await dog.close()


async def test_m7_a_task_that_falls_is_counted_shown_and_run_again(kept):
    dog, work, clock, failed = kept
    await work.turn()
    assert (dog.down, failed) == ([], [])
    work.error = OverflowError("too large")
    await work.turn()
    clock.now += 7
    (down,) = dog.down
    assert (down.task, down.why, down.seconds) == ("digging", "OverflowError", 7.0)
    work.error = None
    await work.turn()
    assert dog.down == []
    assert (failed, dog.failures["digging"], work.turns) == (["digging"], 1, 3)


async def test_m7_a_cause_is_logged_once_until_it_changes_or_ends(kept, caplog):
    _, work, clock, _ = kept
    work.error = ValueError("one")
    for _ in range(5):
        await work.turn()
    work.error = KeyError("another")
    await work.turn()
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [type(record.exc_info[1]) for record in errors] == [ValueError, KeyError]
    clock.now += watchdog.LOG_AGAIN
    await work.turn()
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 3


async def test_m7_a_task_that_is_cancelled_by_what_it_waits_for_goes_on(kept):
    dog, work, _, failed = kept
    work.error = asyncio.CancelledError()
    await work.turn()
    assert failed == ["digging"]
    work.error = None
    await work.turn()
    assert dog.down == []


async def test_m7_a_step_that_takes_too_long_is_shown(kept):
    dog, work, clock, _ = kept
    await asyncio.sleep(0)
    clock.now += 61
    assert [(down.task, down.why) for down in dog.down] == [("digging", HANGS)]
    await work.turn()
    assert dog.down == []


async def test_m7_pauses_between_failures_grow_and_end(monkeypatch):
    monkeypatch.setattr(watchdog, "SHORTEST", 0.5)
    pauses: list[float] = []

    async def no_time(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 12:
            await asyncio.Event().wait()
        await real(0)

    async def falls() -> None:
        raise OSError

    real = asyncio.sleep
    monkeypatch.setattr(watchdog.asyncio, "sleep", no_time)
    dog = Watchdog()
    dog.keep_running("digging", falls)
    while len(pauses) < 12:
        await real(0)
    assert pauses[:3] == [0.5, 1.0, 2.0]
    assert pauses[-1] == LONGEST
    await dog.close()
