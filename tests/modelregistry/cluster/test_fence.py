"""The fence: engines end when no controller has renewed the lease in time, whatever else is dead."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from modelregistry.cluster import fence
from modelregistry.cluster.fence import RECORD, STOPPED_WITHIN, Fence
from modelregistry.cluster.lease import FILE, FencingLease
from modelregistry.process import process, shim
from modelregistry.process.process import Life
from tests.waiting import until


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "lease").mkdir()
    return tmp_path / "lease"


@pytest.fixture
def clock():
    class Clock:
        now = 1000.0

        def __call__(self):
            return self.now

    return Clock()


@pytest.fixture
def lease(directory, clock):
    return FencingLease(directory, clock=clock)


def renew(lease: FencingLease, term: int, seconds: float = 30) -> None:
    lease.renew(term=term, holder="one", seconds=seconds, since=lease.show_clock())


def test_engines_run_while_the_lease_is_renewed_and_end_when_it_is_over(lease, clock, runs, sleeper, directory):
    guard = Fence(lease, runs, wall_clock=lambda: 5.0)
    renew(lease, 4)
    run = runs.start("r1", sleeper, label={}, grace=1.0)
    for _ in range(3):
        clock.now += 20
        renew(lease, 4)
        assert guard.check() == []
    clock.now += 31
    assert [each.run_id for each in guard.check()] == ["r1"]
    assert process.life_of(run) is Life.ENDED
    assert json.loads((directory / RECORD).read_text()) == {"at": 5.0, "term": 4, "runs": ["r1"]}


def test_what_is_started_after_the_lease_was_over_is_ended_too(lease, clock, runs, sleeper):
    guard = Fence(lease, runs)
    renew(lease, 1)
    clock.now += 31
    assert guard.check() == []
    runs.start("late", sleeper, label={}, grace=1.0)
    assert [each.run_id for each in guard.check()] == ["late"]


def test_a_host_that_joined_with_engines_keeps_them_until_it_has_its_first_lease(lease, clock, runs, sleeper):
    guard = Fence(lease, runs)
    runs.start("before", sleeper, label={}, grace=1.0)
    clock.now += fence.FIRST_LEASE_WITHIN - 1
    assert guard.check() == []
    renew(lease, 1)
    assert guard.check() == []
    clock.now += 31
    assert [each.run_id for each in guard.check()] == ["before"]


def test_a_host_that_joined_with_engines_does_not_keep_them_for_ever_without_a_lease(lease, clock, runs, sleeper):
    guard = Fence(lease, runs)
    runs.start("before", sleeper, label={}, grace=1.0)
    clock.now += fence.FIRST_LEASE_WITHIN
    assert [each.run_id for each in guard.check()] == ["before"]


def test_a_lease_that_cannot_be_read_is_good_for_as_long_as_it_was(lease, clock, runs, sleeper, directory):
    guard = Fence(lease, runs)
    renew(lease, 1)
    runs.start("r1", sleeper, label={}, grace=1.0)
    guard.check()
    (directory / FILE).write_text("damaged")
    clock.now += 29
    assert guard.check() == []
    clock.now += 2
    assert len(guard.check()) == 1


def test_an_engine_whose_shim_was_killed_ends_with_the_lease(lease, clock, runs, sleeper):
    guard = Fence(lease, runs)
    renew(lease, 1)
    run = runs.start("r1", sleeper, label={}, grace=1.0)
    os.kill(run.shim.pid, signal.SIGKILL)
    until(lambda: process.life_of(run) is Life.LOST)
    guard.check()
    assert process.find_leftovers(run) == [run.engine] or not shim.is_alive(run.engine)
    clock.now += 31
    guard.check()
    until(lambda: not shim.is_alive(run.engine), 10)


def test_what_cannot_be_read_keeps_no_engine_alive(lease, clock, runs, sleeper):
    guard = Fence(lease, runs)
    renew(lease, 1)
    run = runs.start("r1", sleeper, label={}, grace=1.0)
    (runs.root / "a-file").write_text("")
    (runs.root / "damaged").mkdir()
    (runs.root / "damaged" / "spec.json").write_text("{")
    (runs.root / "damaged" / "state.json").write_text("{")
    clock.now += 31
    assert [each.run_id for each in guard.check()] == ["r1"]
    assert process.life_of(run) is Life.ENDED
    shutil.rmtree(runs.root / "damaged")
    (runs.root / "a-file").unlink()


def fence_pids(directory) -> list[int]:
    found = []
    for pid in shim.list_processes():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"modelregistry.cluster.fence" in words and str(directory).encode() in words:
            found.append(pid)
    return found


@pytest.fixture
def fenced(directory, runs):
    """Start a real fence; it is gone afterwards."""
    fence.start(directory, runs.root)
    yield
    for pid in fence_pids(directory):
        os.kill(pid, signal.SIGKILL)


def test_the_process_ends_engines_when_all_else_is_dead(fenced, directory, runs, sleeper):
    renew(FencingLease(directory), 1, seconds=1.5)
    run = runs.start("r1", sleeper, label={}, grace=1.0)
    assert process.life_of(run) is Life.RUNNING
    until(lambda: process.life_of(run) is Life.ENDED, 20)


def test_there_is_one_fence_however_often_it_is_started(fenced, directory, runs):
    [pid] = fence_pids(directory)
    fence.start(directory, runs.root)
    assert fence_pids(directory) == [pid]
    assert fence.is_running(directory)


def test_a_fence_that_was_killed_is_started_again(fenced, directory, runs):
    [pid] = fence_pids(directory)
    os.kill(pid, signal.SIGKILL)
    until(lambda: not fence.is_running(directory), 10)
    fence.start(directory, runs.root)
    assert fence.is_running(directory)
    assert fence_pids(directory) != [pid]


def test_a_fence_of_another_release_is_replaced_without_a_gap(fenced, directory, runs, monkeypatch):
    [pid] = fence_pids(directory)
    before, gaps = shim.identify(pid), []
    send_signal = shim.send_signal

    def send(who, number):
        gaps.append(not fence.is_running(directory, "of-after"))
        return send_signal(who, number)

    monkeypatch.setattr(shim, "send_signal", send)
    fence.start(directory, runs.root, code="of-after")
    until(lambda: not shim.is_alive(before), 10)
    assert gaps == [False]
    assert len(fence_pids(directory)) == 1
    fence.start(directory, runs.root, code="of-after")
    assert gaps == [False]


def test_a_fence_of_another_directory_is_left_alone(fenced, directory, runs, tmp_path):
    [pid] = fence_pids(directory)
    other = tmp_path / "other"
    fence.start(other, runs.root)
    try:
        assert fence_pids(directory) == [pid]
    finally:
        os.kill(fence_pids(other)[0], signal.SIGKILL)


def test_a_fence_ends_with_its_host(fenced, directory):
    shutil.rmtree(directory)
    until(lambda: not fence_pids(directory), 10)


def test_the_lease_is_read_when_it_was_written_and_before_it_is_over(lease, clock, runs, monkeypatch):
    reads = []
    read = lease.read
    monkeypatch.setattr(lease, "read", lambda: reads.append(clock.now) or read())
    guard = Fence(lease, runs)
    renew(lease, 1)
    for _ in range(5):
        guard.check()
    assert len(reads) == 1
    clock.now += 20
    renew(lease, 1)
    guard.check()
    assert len(reads) == 2
    clock.now += 31
    guard.check()
    assert len(reads) == 4  # before it stops what lives, and before it kills what has only the mark


def test_runs_that_cannot_be_listed_keep_no_engine_alive(lease, clock, runs, sleeper, monkeypatch):
    guard = Fence(lease, runs)
    renew(lease, 1)
    run = runs.start("r1", sleeper, label={}, grace=1.0)
    clock.now += 31

    def fail(*_):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as failing:
        failing.setattr(fence, "list_runs", fail)
        guard.check()
    until(lambda: not shim.is_alive(run.engine), 10)


def test_it_is_known_for_how_long_engines_may_outlive_a_lease():
    assert fence.EVERY + fence.GRACE < STOPPED_WITHIN < 30
