"""Background tasks whose failures are noticed: a `Watchdog` owns each task that is handed to it.

A task is a step that is run again and again, with its pauses inside it. A step that raises, or that is cancelled by
anything but its owner, is logged with its cause, counted, listed in `down`, and run again after a pause that grows up
to LONGEST. It is here because gateways, pages and supervisors all have such tasks.
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
# A persisting cause is logged again this rarely: a step that always fails would fill the log.
LOG_AGAIN = 600.0
HANGS = "hangs"


@dataclass(frozen=True, slots=True)
class Down:
    """A task whose last step failed, or is late. `why`: one word, without anything from outside."""

    task: str
    why: str
    seconds: float


class _Task:
    """The state of one task. `patience`: seconds that a step may take; None: without limit."""

    __slots__ = ("began", "cause", "failing", "logged_at", "patience", "pause", "running")

    def __init__(self, patience: float | None) -> None:
        self.patience = patience
        self.running: asyncio.Task[None] | None = None
        self.began: float | None = None  # when the current step did
        self.failing: float | None = None  # since when
        self.cause = ""
        self.logged_at = 0.0
        self.pause = SHORTEST


class Watchdog:
    """Runs tasks, in one event loop, and calls `failed` with the name of a task whenever a step of it fails."""

    def __init__(
        self, failed: Callable[[str], None] = lambda task: None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._failed = failed
        self._clock = clock
        self._tasks: dict[str, _Task] = {}
        self.failures: Counter[str] = Counter()

    def keep_running(self, name: str, step: Step, *, patience: float | None = None) -> asyncio.Task[None]:
        """Run the step again and again, until `close` or the task's cancellation. The step must await something.

        A step that takes longer than `patience` seconds counts as down, but is not cancelled: it may wait for a thread.
        """
        task = self._tasks[name] = _Task(patience)
        task.running = asyncio.create_task(self._run(name, task, step), name=name)
        return task.running

    @property
    def down(self) -> list[Down]:
        """The tasks that fail or hang now, the longest first."""
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
                self._record_failure(name, task, error)  # what it awaited was cancelled, not the task
            except Exception as error:  # noqa: BLE001 - it is logged, counted and shown
                self._record_failure(name, task, error)
            else:
                self._record_recovery(name, task)
                continue
            task.began = None
            await asyncio.sleep(task.pause)
            task.pause = min(LONGEST, 2 * task.pause)

    def _record_failure(self, name: str, task: _Task, error: BaseException) -> None:
        now, cause = self._clock(), type(error).__name__
        new = task.failing is None or cause != task.cause
        if new or now - task.logged_at >= LOG_AGAIN:
            task.logged_at = now
            log.error("the task %s has failed (%s) and is run again", name, cause, exc_info=error)
        if task.failing is None:
            task.failing = now
        task.cause = cause
        self.failures[name] += 1
        self._failed(name)

    def _record_recovery(self, name: str, task: _Task) -> None:
        if task.failing is not None:
            log.warning("the task %s works again after %.0f s", name, self._clock() - task.failing)
            task.failing, task.pause = None, SHORTEST


def _is_cancelled() -> bool:
    """Return whether the task in which this runs was cancelled by its owner."""
    current = asyncio.current_task()
    return current is not None and current.cancelling() > 0
