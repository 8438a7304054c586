"""Periodic tasks, each run by one of several hosts: syncing the directory, notifying people, clearing up.

An app registers a task (`register`, in its AppConfig.ready); the supervisors run it. The supervisor that claims a
task's row runs it as a child process, so that it can neither block nor break the supervision of engines, and records
how it ended. A supervisor that dies meanwhile keeps the others waiting for `limit`, no longer. As a task may be
interrupted anywhere, each is a management command that may simply be run again.
"""

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.apps import apps
from django.conf import settings
from django.db import Error, close_old_connections, connections
from django.utils import timezone

from modelregistry.hostside.executor import Executor
from modelregistry.models import TaskRun
from modelregistry.supervisor.async_helpers import cancel_and_wait

log = logging.getLogger(__name__)

FIRST_CHECK = 20.0  # seconds after the supervisor's start: engines go first
CHECK_EVERY = 10.0
# Seconds between two starts of tasks on a host. Each is a process that takes 1.5 s of CPU and 90 MB to begin with:
# sixteen at once, whenever a supervisor started, took both cores of a small host away from its engines and calls.
START_EVERY = 5.0
RETRY = timedelta(minutes=10)  # after a failure, if the task is not due earlier
LIMIT = timedelta(minutes=15)
GRACE = 5.0  # seconds between TERM and KILL
MOST_OUTPUT = 500  # characters of a task's output that are kept, from its end

Start = Callable[[tuple[str, ...]], Awaitable[asyncio.subprocess.Process]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PeriodicTask:
    """A task as its app registered it."""

    name: str
    every: timedelta  # from start to start
    argv: tuple[str, ...]  # what follows `manage.py`
    limit: timedelta = LIMIT  # after which it is stopped


@dataclass(frozen=True, slots=True)
class TaskClaim:
    name: str
    at: datetime


def register(name: str, every: timedelta, argv: tuple[str, ...], limit: timedelta = LIMIT) -> None:
    """Have the supervisors run `manage.py <argv>` this often, counted from start to start."""
    _registered()[name] = PeriodicTask(name=name, every=every, argv=argv, limit=limit)


def registered_tasks() -> tuple[PeriodicTask, ...]:
    return tuple(_registered().values())


def _registered() -> dict[str, PeriodicTask]:
    known: dict[str, PeriodicTask] = apps.get_app_config("modelregistry").periodic_tasks  # type: ignore[attr-defined]
    return known


# --- Claims: these functions block on the database and raise django.db.Error


def claim(task: PeriodicTask, host: str, now: datetime) -> TaskClaim | None:
    """Claim the task for this host; None if it is not due, is running, or another host was quicker."""
    row, _ = TaskRun.objects.get_or_create(pk=task.name)
    if not is_due(task, row, now):
        return None
    mine = TaskRun.objects.filter(pk=task.name, claimed_at=row.claimed_at)
    return TaskClaim(task.name, now) if mine.update(claimed_at=now, claimed_by=host[:100]) else None


def is_due(task: PeriodicTask, row: TaskRun, now: datetime) -> bool:
    begun = row.claimed_at
    # In the future: claimed by a host whose clock is wrong. Clocks that differ by less than `limit` do no harm.
    if begun is None or begun > now + task.limit:
        return True
    if row.ended_at is None or row.ended_at < begun:
        return now - begun > task.limit + timedelta(seconds=2 * GRACE)
    return now - begun >= (task.every if row.succeeded else min(task.every, RETRY))


def record_end(claim: TaskClaim, now: datetime, *, succeeded: bool, output: str) -> None:
    """Record how the run ended, unless another host has claimed the task since."""
    mine = TaskRun.objects.filter(pk=claim.name, claimed_at=claim.at)
    # Not before the claim, or a clock that was set back would leave it claimed.
    mine.update(ended_at=max(now, claim.at), succeeded=succeeded, output=output[-MOST_OUTPUT:])


def release(claim: TaskClaim) -> None:
    """Give up the claim of an interrupted run, so that the task is due at once."""
    TaskRun.objects.filter(pk=claim.name, claimed_at=claim.at).update(claimed_at=None)


# --- Runs


async def start(argv: tuple[str, ...]) -> asyncio.subprocess.Process:
    """Start a management command in a session of its own, which the kernel stops if this process is killed.

    With setpriv (util-linux) rather than a preexec_fn, which may hang in a process with threads.
    """
    return await asyncio.create_subprocess_exec(
        *("setpriv", "--pdeathsig", "TERM", sys.executable, str(settings.BASE_DIR / "manage.py"), *argv),
        cwd=settings.BASE_DIR,
        start_new_session=True,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


class TaskRunner:
    """One host's runs of periodic tasks, for as long as `run` lasts.

    Each task has a loop of its own, so none waits for another's end; only its start waits, for `start_every` seconds
    after the last one. Their database thread is not the one of `StateSync`.
    """

    def __init__(
        self,
        periodic_tasks: Collection[PeriodicTask],
        host: str,
        *,
        clock: Callable[[], datetime] = timezone.now,
        start: Start = start,
        first_check: float = FIRST_CHECK,
        check_every: float = CHECK_EVERY,
        start_every: float = START_EVERY,
    ) -> None:
        self.periodic_tasks = periodic_tasks
        self.host = host
        self.clock = clock
        self.start = start
        self.first_check = first_check
        self.check_every = check_every
        self.start_every = start_every
        self._turn = asyncio.Lock()
        self._next_start = 0.0  # by the loop's clock

    async def run(self) -> None:
        """Run tasks until cancelled; then stop the running ones, within 2 × GRACE, and release their claims."""
        self.executor = Executor(1, "periodic tasks")
        loops = [asyncio.create_task(self._run_forever(task)) for task in self.periodic_tasks]
        try:
            await asyncio.gather(*loops)
        finally:
            await cancel_and_wait(loops)
            with contextlib.suppress(Error):
                await self.executor.run(connections.close_all)
            self.executor.close()

    async def _run_forever(self, task: PeriodicTask) -> None:
        await asyncio.sleep(self.first_check)
        while True:
            try:
                await self.run_if_due(task)
            except Error as error:
                log.warning("%s: the database does not answer: %s", task.name, error)
            except Exception:
                log.exception("%s could not be run", task.name)
            await asyncio.sleep(self.check_every)

    async def run_if_due(self, task: PeriodicTask) -> None:
        """Run the task to its end if it is due and this host gets the claim. Raises django.db.Error."""
        async with self._turn:
            loop = asyncio.get_running_loop()
            await asyncio.sleep(self._next_start - loop.time())
            await self.executor.run(close_old_connections)
            claiming = asyncio.ensure_future(self.executor.run(claim, task, self.host, self.clock()))
            try:
                mine = await asyncio.shield(claiming)
            except asyncio.CancelledError:
                await self._release(claiming)
                raise
            if mine is None:
                return
            self._next_start = loop.time() + self.start_every
        try:
            succeeded, output = await self._run_once(task)
        except asyncio.CancelledError:
            await self._release(claiming)
            raise
        log.log(logging.INFO if succeeded else logging.WARNING, "%s: %s", task.name, output or "done")
        await self.executor.run(close_old_connections)
        await self.executor.run(record_end, mine, self.clock(), succeeded=succeeded, output=output)

    async def _release(self, claiming: "asyncio.Future[TaskClaim | None]") -> None:
        """Release the claim that a thread may still be making: a cancellation does not stop it."""
        with contextlib.suppress(Error):
            if mine := await claiming:
                await self.executor.run(release, mine)

    async def _run_once(self, task: PeriodicTask) -> tuple[bool, str]:
        """Run the command, and return whether it succeeded and the end of its output. Raises only when cancelled."""
        try:
            process = await self.start(task.argv)
        except OSError as error:
            return False, f"could not be started: {error}"
        try:
            async with asyncio.timeout(task.limit.total_seconds()):
                output = await _read_output(process)
                code = await process.wait()
        except TimeoutError:
            return False, f"was stopped, as it took longer than {task.limit}"
        finally:
            await asyncio.shield(_stop_process(process))
        return code == 0, output or ("" if code == 0 else f"ended with code {code}")


async def _read_output(process: asyncio.subprocess.Process) -> str:
    assert process.stdout
    tail = b""
    while piece := await process.stdout.read(4096):
        tail = (tail + piece)[-4 * MOST_OUTPUT :]  # UTF-8 takes up to four bytes for a character
    return tail.decode(errors="replace").strip()[-MOST_OUTPUT:]


async def _stop_process(process: asyncio.subprocess.Process) -> None:
    """Stop the process and its children: TERM, GRACE seconds, KILL. Does nothing if it has ended."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), GRACE)
