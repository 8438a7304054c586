"""Periodic tasks: claimed by one of several hosts, run as child processes, never in the supervisor's way."""

import asyncio
import itertools
import logging
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from asgiref.sync import sync_to_async
from django.apps import apps
from django.conf import settings
from django.db import OperationalError

from modelregistry.models import TaskRun
from modelregistry.supervisor import tasks
from modelregistry.supervisor.tasks import PeriodicTask, TaskRunner, claim, record_end, release
from portal.accounts.models import User
from tests.waiting import eventually, until

NINE = datetime(2026, 11, 2, 9, tzinfo=UTC)
HOURLY = PeriodicTask(name="sweep", every=timedelta(hours=1), argv=("sweep",), limit=timedelta(minutes=15))
ENDLESS = "import time; print('begun', flush=True); time.sleep(600)"


def after(**distance) -> datetime:
    return NINE + timedelta(**distance)


def done(at: datetime, *, succeeded: bool = True, begun: datetime = NINE) -> None:
    mine = claim(HOURLY, "one", begun)
    assert mine
    record_end(mine, at, succeeded=succeeded, output="")


# --- whose it is


def test_a_task_that_was_never_done_is_due(db):
    assert claim(HOURLY, "one", NINE)
    row = TaskRun.objects.get()
    assert (row.name, row.claimed_by, row.claimed_at, row.ended_at) == ("sweep", "one", NINE, None)


def test_two_hosts_do_not_both_get_it(db):
    assert claim(HOURLY, "one", NINE)
    assert claim(HOURLY, "two", after(seconds=1)) is None


def test_who_decided_on_an_old_row_is_too_late(db, monkeypatch):
    """Both looked when it was due; the second claims when the first has done so already."""
    real = tasks.is_due

    def slow(task, row, now):
        TaskRun.objects.filter(pk="sweep").update(claimed_at=NINE, claimed_by="two")
        return real(task, row, now)

    TaskRun.objects.create(name="sweep")
    monkeypatch.setattr(tasks, "is_due", slow)
    assert claim(HOURLY, "one", after(seconds=1)) is None
    assert TaskRun.objects.get().claimed_by == "two"


def test_it_is_due_again_an_hour_after_it_began(db):
    done(after(minutes=4))
    assert claim(HOURLY, "two", after(minutes=59)) is None
    assert claim(HOURLY, "two", after(minutes=60))


def test_what_failed_is_tried_again_sooner(db):
    done(after(seconds=5), succeeded=False)
    assert claim(HOURLY, "one", after(minutes=9)) is None
    assert claim(HOURLY, "one", after(minutes=10))


def test_a_dead_hosts_claim_ends_with_the_time_limit(db):
    assert claim(HOURLY, "dead", NINE)
    assert claim(HOURLY, "two", after(minutes=15)) is None
    assert claim(HOURLY, "two", after(minutes=15, seconds=11))


def test_who_was_taken_over_from_says_nothing_any_more(db):
    slow = claim(HOURLY, "slow", NINE)
    assert claim(HOURLY, "two", after(minutes=16))
    record_end(slow, after(minutes=17), succeeded=False, output="late")
    release(slow)
    row = TaskRun.objects.get()
    assert (row.claimed_by, row.claimed_at, row.ended_at, row.output) == ("two", after(minutes=16), None, "")


def test_a_claim_from_the_future_is_none(db):
    """A host whose clock ran a day ahead must not stop the task for a day."""
    assert claim(HOURLY, "fast", after(days=1))
    assert claim(HOURLY, "two", NINE)


def test_an_end_before_the_beginning_is_an_end(db):
    """The clock was set back while it ran."""
    done(after(minutes=-30))
    assert claim(HOURLY, "one", after(minutes=61))


def test_what_is_given_back_is_due_at_once(db):
    release(claim(HOURLY, "one", NINE))
    assert claim(HOURLY, "two", after(seconds=1))


def test_an_app_registers_its_task(monkeypatch):
    monkeypatch.setattr(apps.get_app_config("modelregistry"), "periodic_tasks", {})
    tasks.register("sweep", timedelta(hours=1), ("sweep", "--all"))
    assert tasks.registered_tasks() == (PeriodicTask(name="sweep", every=timedelta(hours=1), argv=("sweep", "--all")),)


# --- running it


class Children:
    """Starts a Python program instead of a management command, and remembers the processes."""

    def __init__(self, *programs: str) -> None:
        self.programs = list(programs)
        self.started: list[asyncio.subprocess.Process] = []

    async def __call__(self, argv: tuple[str, ...]) -> asyncio.subprocess.Process:
        program = self.programs[min(len(self.started), len(self.programs) - 1)]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", program, *argv),
            start_new_session=True,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        self.started.append(process)
        return process


def host(start, *periodic_tasks: PeriodicTask, clock=lambda: NINE, start_every: float = 0.0) -> TaskRunner:
    return TaskRunner(
        periodic_tasks or (HOURLY,),
        "here",
        clock=clock,
        start=start,
        first_check=0,
        check_every=0.05,
        start_every=start_every,
    )


@sync_to_async
def row() -> TaskRun:
    return TaskRun.objects.get()


async def has_ended() -> TaskRun | None:
    found = await sync_to_async(TaskRun.objects.first)()
    return found if found and found.ended_at else None


async def ended_tasks(*tasks: "asyncio.Task[None]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_it_runs_and_records_how_it_ended(transactional_db):
    children = Children("import sys; print('swept', *sys.argv[1:])")
    keeping = asyncio.create_task(host(children).run())
    found = await eventually(has_ended)
    await ended_tasks(keeping)
    assert (found.succeeded, found.output, found.claimed_by) == (True, "swept sweep", "here")
    assert len(children.started) == 1


async def test_tasks_start_one_after_the_other_and_wait_for_no_end(transactional_db):
    started: list[float] = []
    children = Children("import time; time.sleep(60)")

    async def start(argv: tuple[str, ...]) -> asyncio.subprocess.Process:
        started.append(asyncio.get_running_loop().time())
        return await children(argv)

    several = [replace(HOURLY, name=name) for name in ("first", "second", "third")]
    keeping = asyncio.create_task(host(start, *several, start_every=0.4).run())
    await eventually(lambda: len(started) == 3)
    await ended_tasks(keeping)
    assert all(later - before >= 0.4 for before, later in itertools.pairwise(started))


async def test_a_failure_is_recorded_with_its_last_output(transactional_db, caplog):
    caplog.set_level(logging.INFO)
    children = Children("import sys; sys.stderr.write('ば' * 5000 + 'no broom'); sys.exit(3)")
    keeping = asyncio.create_task(host(children).run())
    found = await eventually(has_ended)
    await ended_tasks(keeping)
    assert found.succeeded is False
    assert found.output == "ば" * 492 + "no broom"
    assert [record.levelname for record in caplog.records if "no broom" in record.message] == ["WARNING"]


async def test_a_task_that_cannot_be_started_is_recorded(transactional_db):
    async def start(argv):
        raise OSError("no memory")

    keeping = asyncio.create_task(host(start).run())
    found = await eventually(has_ended)
    await ended_tasks(keeping)
    assert found.succeeded is False
    assert "no memory" in found.output


async def test_what_takes_too_long_is_ended(transactional_db):
    """Also if it does not listen to TERM."""
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    children = Children(stubborn)
    short = PeriodicTask(name="sweep", every=timedelta(hours=1), argv=(), limit=timedelta(seconds=1))
    keeping = asyncio.create_task(host(children, short).run())
    found = await eventually(has_ended)
    await ended_tasks(keeping)
    assert found.succeeded is False
    assert str(short.limit) in found.output
    assert children.started[0].returncode in (-signal.SIGTERM, -signal.SIGKILL)


async def test_a_task_that_hangs_keeps_no_other_waiting(transactional_db):
    slow = PeriodicTask(name="slow", every=timedelta(hours=1), argv=("slow",))
    children = Children(f"import sys\nif 'slow' in sys.argv:\n    {ENDLESS}")
    keeping = asyncio.create_task(host(children, slow, HOURLY).run())
    sweep = await eventually(sync_to_async(TaskRun.objects.filter(name="sweep", succeeded=True).first))
    assert sweep.ended_at
    await ended_tasks(keeping)


async def test_of_two_hosts_one_does_it(transactional_db):
    """Until it is due again."""
    now, looks = [NINE], Counter()
    children = Children("print('swept')")

    def look(number: int) -> datetime:
        looks[number] += 1
        return now[0]

    hosts = [asyncio.create_task(host(children, clock=partial(look, number)).run()) for number in range(2)]
    await eventually(has_ended)
    before = looks.copy()

    async def have_looked_again() -> bool:
        return all(looks[number] >= before[number] + 10 for number in range(2))

    await eventually(have_looked_again)
    assert len(children.started) == 1
    now[0] = after(hours=1)
    await eventually(sync_to_async(TaskRun.objects.filter(ended_at=after(hours=1)).first))
    await ended_tasks(*hosts)
    assert len(children.started) == 2


async def test_the_end_of_the_supervisor_ends_it_and_leaves_it_to_the_next(transactional_db):
    children = Children(ENDLESS, "print('swept')")
    keeping = asyncio.create_task(host(children).run())

    async def runs() -> bool:
        return bool(children.started)

    await eventually(runs)
    await ended_tasks(keeping)
    assert children.started[0].returncode == -signal.SIGTERM
    assert (await row()).claimed_at is None
    keeping = asyncio.create_task(host(children).run())
    assert (await eventually(has_ended)).output == "swept"
    await ended_tasks(keeping)


async def test_it_outlasts_a_database_that_is_away(transactional_db, monkeypatch):
    real, failed = tasks.claim, []

    def away(*given):
        if len(failed) < 3:
            failed.append(given)
            raise OperationalError("away")
        return real(*given)

    monkeypatch.setattr(tasks, "claim", away)
    keeping = asyncio.create_task(host(Children("print('swept')")).run())
    assert (await eventually(has_ended)).output == "swept"
    await ended_tasks(keeping)
    assert len(failed) == 3


async def test_a_management_command_is_run():
    """The real way to start one, which knows this installation's settings."""
    process = await tasks.start(("version",))
    output, _ = await process.communicate()
    assert process.returncode == 0
    assert output.decode().startswith("Madoguchi ")


KEEPER = """
import asyncio, sys
import django
django.setup()
from modelregistry.supervisor import tasks

async def main():
    process = await tasks.start(("shell", "-c", "import time; print('begun', flush=True); time.sleep(600)"))
    await process.stdout.readline()
    print(process.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


def test_a_killed_supervisors_task_ends_with_it():
    with subprocess.Popen(
        [sys.executable, "-c", KEEPER], cwd=settings.BASE_DIR, stdout=subprocess.PIPE, text=True
    ) as keeper:
        pid = int(keeper.stdout.readline())
        assert Path(f"/proc/{pid}").exists()
        keeper.send_signal(signal.SIGKILL)
    until(lambda: not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2])


def test_the_supervisor_looks_after_engines_while_a_task_hangs(site):
    """`syncdirectory` against a directory that accepts connections and says nothing."""
    User.objects.create(username="alice", directory_id="1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        site.supervise(
            LDAP_SERVER_URI=f"ldap://127.0.0.1:{silent.getsockname()[1]}",
            LDAP_START_TLS="false",
            LDAP_USER_BASE="ou=people,dc=example",
            LDAP_TIMEOUT="60",
        )
        site.model()
        site.reaches("ready")
        until(lambda: TaskRun.objects.filter(name="syncdirectory", claimed_at__isnull=False).exists())
        os.kill(site.replica().pid, signal.SIGKILL)
        until(lambda: site.replica().restarts == 1 and site.replica().state == "ready", 90)
        assert TaskRun.objects.get(name="syncdirectory").ended_at is None
        [supervisor] = site.processes
        supervisor.terminate()
        assert supervisor.wait(30) == 0
        assert TaskRun.objects.get(name="syncdirectory").claimed_at is None
