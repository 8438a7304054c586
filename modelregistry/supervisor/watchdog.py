"""Background tasks that cannot die unseen: whoever starts one hands it to a `Watchdog`, which owns it from then on.

A task is a step that is run again and again, with its pauses inside it. A step that raises, or that is cancelled by
anybody but its owner, is logged with its cause, counted, shown among those that are `down`, and run again after a
pause that grows up to LONGEST. It lives here because gateways, pages and supervisors all have such tasks.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

log = logging.getLogger("madoguchi.tasks")

Step = Callable[[], Awaitable[None]]
SHORTEST, LONGEST = 0.5, 30.0  # seconds between a failure and the next try
# A cause that goes on is logged again so seldom: a step that always fails would fill the log.
LOG_AGAIN = 600.0
HANGS = "hangs"


@dataclass(frozen=True, slots=True)
class Down:
    """A task whose last step failed, or is late. `why`: a word, with nothing in it that came from outside."""

    task: str
    why: str
    seconds: float


class _Task:
    """What is known of one. `patience`: seconds that a step may take; None: a step never ends."""

    __slots__ = ("began", "cause", "failing", "patience", "pause", "running", "told")

    def __init__(self, patience: float | None) -> None:
        self.patience = patience
        self.running: asyncio.Task[None] | None = None
        self.began: float | None = None  # the step that runs now
        self.failing: float | None = None  # since when
        self.cause = ""
        self.told = 0.0
        self.pause = SHORTEST


class Watchdog:
    """Calls `failed` with the name of a task whenever a step of it fails. Starts and ends in one event loop."""

    def __init__(
        self, failed: Callable[[str], None] = lambda task: None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._failed = failed
        self._clock = clock
        self._tasks: dict[str, _Task] = {}
        self.failures: Counter[str] = Counter()

    def keep(self, name: str, step: Step, *, patience: float | None = None) -> asyncio.Task[None]:
        """Run the step again and again, until `close` or the task's cancellation. It must wait for something.

        A step that takes longer than `patience` seconds counts as down, but goes on: what it waits for may be a thread.
        """
        task = self._tasks[name] = _Task(patience)
        task.running = asyncio.create_task(self._run(name, task, step), name=name)
        return task.running

    @property
    def down(self) -> list[Down]:
        """What does not do its work now, the longest first."""
        now, found = self._clock(), []
        for name, task in self._tasks.items():
            if task.failing is not None:
                found.append(Down(name, task.cause, now - task.failing))
            elif task.patience is not None and task.began is not None and now - task.began > task.patience:
                found.append(Down(name, HANGS, now - task.began))
        return sorted(found, key=lambda down: -down.seconds)

    async def close(self) -> None:
        """Cancel all tasks and wait for them."""
        running = [task.running for task in self._tasks.values() if task.running is not None]
        for one in running:
            one.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        self._tasks.clear()

    async def _run(self, name: str, task: _Task, step: Step) -> None:
        while True:
            task.began = self._clock()
            try:
                await step()
            except asyncio.CancelledError as error:
                if _is_cancelled():
                    raise
                self._fell(name, task, error)  # by what it waited for, which ended under it
            except Exception as error:  # noqa: BLE001 - it is logged, counted and shown
                self._fell(name, task, error)
            else:
                self._works(name, task)
                continue
            task.began = None
            await asyncio.sleep(task.pause)
            task.pause = min(LONGEST, 2 * task.pause)

    def _fell(self, name: str, task: _Task, error: BaseException) -> None:
        now, cause = self._clock(), type(error).__name__
        new = task.failing is None or cause != task.cause
        if new or now - task.told >= LOG_AGAIN:
            task.told = now
            log.error("the task %s has failed (%s) and is run again", name, cause, exc_info=error)
        if task.failing is None:
            task.failing = now
        task.cause = cause
        self.failures[name] += 1
        self._failed(name)

    def _works(self, name: str, task: _Task) -> None:
        if task.failing is not None:
            log.warning("the task %s works again after %.0f s", name, self._clock() - task.failing)
            task.failing, task.pause = None, SHORTEST


def _is_cancelled() -> bool:
    """Return whether the task in which this runs was cancelled by its owner."""
    current = asyncio.current_task()
    return current is not None and current.cancelling() > 0
