"""Work that recurs, and that one host of several does: following the directory, telling people, clearing up.

An app names it (`register`, in its AppConfig.ready); the supervisors run it. Who claims a chore's row runs it as a
child process, so that it can neither block nor break the supervising of engines, and writes how it ended. A claimer
that dies keeps the others waiting for `limit`, no longer. As it may be cut off anywhere, each chore is a management
command that may simply be run again.
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

from modelregistry.models import TaskRun
from modelregistry.supervisor.async_helpers import cancel_and_wait
from modelregistry.supervisor.executor import Executor

log = logging.getLogger(__name__)

FIRST_LOOK = 20.0  # seconds after the supervisor's start: engines go first
LOOK_EVERY = 10.0
RETRY = timedelta(minutes=10)  # after a failure, if the chore is not due earlier
LIMIT = timedelta(minutes=15)
GRACE = 5.0  # seconds between TERM and KILL
OUTPUT_KEPT = 500  # characters of a chore's last words that are kept

Start = Callable[[tuple[str, ...]], Awaitable[asyncio.subprocess.Process]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PeriodicTask:
    """A chore as its app registered it. `argv`: what follows `manage.py`; after `limit` it is ended."""

    name: str
    every: timedelta
    argv: tuple[str, ...]
    limit: timedelta = LIMIT


@dataclass(frozen=True, slots=True)
class Claim:
    name: str
    at: datetime


def register(name: str, every: timedelta, argv: tuple[str, ...], limit: timedelta = LIMIT) -> None:
    """From now on the supervisors run `manage.py <argv>` this often, counted from start to start."""
    _registered()[name] = PeriodicTask(name=name, every=every, argv=argv, limit=limit)


def registered_tasks() -> tuple[PeriodicTask, ...]:
    return tuple(_registered().values())


def _registered() -> dict[str, PeriodicTask]:
    known: dict[str, PeriodicTask] = apps.get_app_config("modelregistry").periodic_tasks  # type: ignore[attr-defined]
    return known


# --- whose it is: these block on the database and raise django.db.Error


def claim(work: PeriodicTask, who: str, now: datetime) -> Claim | None:
    """Return the chore, for who is to run it now; None if it is not due, is being run, or somebody else was quicker."""
    row, _ = TaskRun.objects.get_or_create(pk=work.name)
    if not find_due(work, row, now):
        return None
    mine = TaskRun.objects.filter(pk=work.name, claimed_at=row.claimed_at)
    return Claim(work.name, now) if mine.update(claimed_at=now, claimed_by=who[:100]) else None


def find_due(work: PeriodicTask, row: TaskRun, now: datetime) -> bool:
    begun = row.claimed_at
    # In the future: by a host whose clock is wrong. Clocks that are apart by less than `limit` do no harm.
    if begun is None or begun > now + work.limit:
        return True
    if row.ended_at is None or row.ended_at < begun:
        return now - begun > work.limit + timedelta(seconds=2 * GRACE)
    return now - begun >= (work.every if row.succeeded else min(work.every, RETRY))


def record_end(claim: Claim, now: datetime, *, succeeded: bool, output: str) -> None:
    """Write down how it went, unless somebody else has taken it over by now."""
    mine = TaskRun.objects.filter(pk=claim.name, claimed_at=claim.at)
    # Not before the claim, or a clock that was set back would leave it claimed.
    mine.update(ended_at=max(now, claim.at), succeeded=succeeded, output=output[-OUTPUT_KEPT:])


def give_back(claim: Claim) -> None:
    """It was cut off by us, so it is due at once for whoever comes next."""
    TaskRun.objects.filter(pk=claim.name, claimed_at=claim.at).update(claimed_at=None)


# --- running it


async def start(argv: tuple[str, ...]) -> asyncio.subprocess.Process:
    """Return a management command in a session of its own, ended by the kernel should we be killed.

    By setpriv (util-linux) rather than a preexec_fn: that may hang in a process with threads.
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
    """One host's share of the chores, for as long as `keep` runs. Each has a loop of its own, so none waits for
    another, and a thread for the database that engines' books do not share."""

    def __init__(
        self,
        works: Collection[PeriodicTask],
        host: str,
        *,
        clock: Callable[[], datetime] = timezone.now,
        start: Start = start,
        first_look: float = FIRST_LOOK,
        look_every: float = LOOK_EVERY,
    ) -> None:
        self.works = works
        self.host = host
        self.clock = clock
        self.start = start
        self.first_look = first_look
        self.look_every = look_every

    async def keep(self) -> None:
        """Until cancelled; then ends what it started, within 2 × GRACE, and gives it back."""
        self.hands = Executor(1, "periodic tasks")
        loops = [asyncio.create_task(self._keep(work)) for work in self.works]
        try:
            await asyncio.gather(*loops)
        finally:
            await cancel_and_wait(loops)
            with contextlib.suppress(Error):
                await self.hands.do(connections.close_all)
            self.hands.close()

    async def _keep(self, work: PeriodicTask) -> None:
        await asyncio.sleep(self.first_look)
        while True:
            try:
                await self.look(work)
            except Error as error:
                log.warning("%s: the database does not answer: %s", work.name, error)
            except Exception:
                log.exception("%s could not be run", work.name)
            await asyncio.sleep(self.look_every)

    async def look(self, work: PeriodicTask) -> None:
        """Run it to its end if it is due and nobody else does. Raises django.db.Error."""
        await self.hands.do(close_old_connections)
        claiming = asyncio.ensure_future(self.hands.do(claim, work, self.host, self.clock()))
        try:
            mine = await asyncio.shield(claiming)
            if mine is None:
                return
            succeeded, output = await self._run(work)
        except asyncio.CancelledError:
            await self._give_back(claiming)
            raise
        log.log(logging.INFO if succeeded else logging.WARNING, "%s: %s", work.name, output or "done")
        await self.hands.do(close_old_connections)
        await self.hands.do(record_end, mine, self.clock(), succeeded=succeeded, output=output)

    async def _give_back(self, claiming: "asyncio.Future[Claim | None]") -> None:
        """The database is asked in a thread, which goes on when we are cancelled."""
        with contextlib.suppress(Error):
            if mine := await claiming:
                await self.hands.do(give_back, mine)

    async def _run(self, work: PeriodicTask) -> tuple[bool, str]:
        """(ended well, its last words). Never raises but when cancelled."""
        try:
            process = await self.start(work.argv)
        except OSError as error:
            return False, f"could not be started: {error}"
        try:
            async with asyncio.timeout(work.limit.total_seconds()):
                output = await _last_words(process)
                code = await process.wait()
        except TimeoutError:
            return False, f"was ended, as it took longer than {work.limit}"
        finally:
            await asyncio.shield(_end(process))
        return code == 0, output or ("" if code == 0 else f"ended with code {code}")


async def _last_words(process: asyncio.subprocess.Process) -> str:
    assert process.stdout
    tail = b""
    while piece := await process.stdout.read(4096):
        tail = (tail + piece)[-4 * OUTPUT_KEPT :]  # UTF-8 takes up to four bytes for a character
    return tail.decode(errors="replace").strip()[-OUTPUT_KEPT:]


async def _end(process: asyncio.subprocess.Process) -> None:
    """With what it may have started: TERM, GRACE seconds, KILL. Nothing if it has ended."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), GRACE)
