"""Problems of a host, and whether a stopped engine's memory is free again. GPUs are reported as NVML would."""

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from modelregistry.engines.base import EngineCommand
from modelregistry.hostside import inspection
from modelregistry.hostside.inspection import Inspector
from modelregistry.process import gpus, process, shim, stopping
from modelregistry.process.gpus import Device, GpuProcess
from tests.waiting import until

SLEEP = "import time; time.sleep(600)"
GPU = Device(index=0, uuid="GPU-1", name="NVIDIA L40S", kind="gpu", total=48_000_000_000, used=0, free=48_000_000_000)


@pytest.fixture
def run(runs):
    return runs.start("r1", EngineCommand(argv=(sys.executable, "-c", SLEEP), env={}), label={}, grace=1.0)


@pytest.fixture
def inspector(runs, tmp_path):
    return Inspector(runs, tmp_path, {})


@pytest.fixture
def bystander():
    sleeper = subprocess.Popen([sys.executable, "-c", SLEEP])
    yield sleeper
    sleeper.kill()
    sleeper.wait()


def held_by(*pids):
    return replace(GPU, processes=tuple(GpuProcess(pid=pid, bytes=2_000_000_000) for pid in pids))


# --- The memory of an ended engine


def test_memory_that_is_back_is_no_matter(run):
    assert stopping.stop_and_release(run, grace=1, devices=lambda: [GPU]) == ""
    assert not shim.is_alive(run.engine)


def test_memory_that_comes_back_late_is_waited_for(run):
    looks = iter([held_by(run.engine.pid), held_by(run.engine.pid), GPU])
    assert stopping.stop_and_release(run, grace=1, devices=lambda: [next(looks)]) == ""


def test_memory_that_does_not_come_back_is_reported(run, monkeypatch, bystander):
    monkeypatch.setattr(stopping, "BACK_WITHIN", 0.6)
    stuck = held_by(run.engine.pid, bystander.pid)
    left = stopping.stop_and_release(run, grace=1, devices=lambda: [stuck])
    assert re.findall(r"[0-9.]+", left) == ["0", "2.0"]  # of GPU 0, in GB


def test_memory_of_others_is_not_waited_for(run, bystander):
    assert stopping.stop_and_release(run, grace=1, devices=lambda: [held_by(bystander.pid)]) == ""


# --- Strangers


def test_on_a_gpu_everybody_who_is_not_ours_is_named(run, runs, bystander):
    ours = {run.engine.pid, run.shim.pid}
    named = inspection.find_strangers([held_by(run.engine.pid, bystander.pid)], ours, runs.root)
    mine = [each for each in named if each.pid in {*ours, bystander.pid}]
    assert [(each.pid, each.device, each.bytes) for each in mine] == [(bystander.pid, 0, 2_000_000_000)]
    assert mine[0].name.startswith("python")


def test_of_many_strangers_the_largest_are_reported_and_how_many_more_there_are():
    many = [gpus.Stranger(pid=pid, name="x", device=0, bytes=1) for pid in range(inspection.MOST_STRANGERS + 3)]
    assert [each["detail"] for each in inspection.report_more(many)] == ["+3"]
    assert inspection.report_more(many[3:]) == []


def test_on_a_host_without_gpus_the_large_ones_are_named(runs):
    large = "x = bytearray(1_100_000_000); x[::4096] = b'1' * len(x[::4096]); print(1, flush=True); input()"
    hog = subprocess.Popen([sys.executable, "-c", large], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    small = subprocess.Popen(["/bin/sleep", "600"])
    try:
        hog.stdout.readline()
        ram = Device(index=-1, uuid="", name="RAM", kind="ram", total=1, used=1, free=0)
        named = {each.pid: each for each in inspection.find_strangers([ram], set(), runs.root)}
        assert named[hog.pid].bytes > 1_100_000_000
        assert small.pid not in named
        assert hog.pid not in {each.pid for each in inspection.find_strangers([GPU, ram], set(), runs.root)}
    finally:
        small.kill()
        small.wait()
        hog.kill()
        hog.communicate()


# --- Problems


def test_a_clock_that_was_set_is_reported_once(inspector):
    assert inspector.report_clock_jump(1_000_000.0, 50.0) == []
    assert inspector.report_clock_jump(1_000_010.0, 60.0) == []
    assert inspector.report_clock_jump(996_420.0, 70.0) == [{"code": "clock-jumped", "detail": "-3600 s"}]
    assert inspector.report_clock_jump(996_430.0, 80.0) == []


def test_a_disk_with_little_room_is_reported():
    disks = [{"path": "/models", "total": 10**13, "free": 2 * 10**9}, {"path": "/var", "total": 10**13, "free": 10**8}]
    [problem] = inspection.disk_problems(disks)
    assert (problem["code"], problem["detail"].split(":")[0]) == ("disk-full", "/var")


def test_the_disk_of_a_directory_that_is_still_to_be_created_is_that_of_what_is_there(tmp_path):
    [disk] = inspection.read_disks([tmp_path / "not" / "there", tmp_path])
    usage = shutil.disk_usage(tmp_path)
    assert (disk["path"], disk["total"]) == (str(tmp_path), usage.total)
    assert disk["free"] == pytest.approx(usage.free, rel=0.1)


def test_each_disk_is_reported_once_and_one_that_does_not_answer_not_at_all(tmp_path, monkeypatch):
    shm = Path("/dev/shm")
    assert [disk["path"] for disk in inspection.read_disks([tmp_path, shm, tmp_path])] == [str(tmp_path), str(shm)]
    monkeypatch.setattr(inspection.shutil, "disk_usage", Mock(side_effect=OSError("stale file handle")))
    assert inspection.read_disks([tmp_path, shm]) == []


def test_a_disk_that_hangs_keeps_nothing_else_from_being_reported(inspector, tmp_path, monkeypatch):
    answers = threading.Event()

    def hang(path):
        answers.wait(30)
        return SimpleNamespace(total=100, used=90, free=10)

    monkeypatch.setattr(inspection.shutil, "disk_usage", hang)
    found = inspector.inspect()
    assert (found.disks, bool(found.devices)) == ([], True)
    assert inspector.disks.read(patience=0.01) == []
    answers.set()
    assert [disk["free"] for disk in inspector.disks.read(patience=30)] == [10]


def test_what_is_left_of_an_ended_run_is_reported_if_it_stays(inspector, run):
    def leftovers() -> list[dict[str, str]]:
        return inspector.report_leftovers([run], process.leftovers_of([run]))

    assert leftovers() == []
    os.kill(run.shim.pid, signal.SIGKILL)
    until(lambda: process.life_of(run) is process.Life.LOST)
    assert leftovers() == []
    [problem] = leftovers()
    assert problem["code"] == "remains"
    assert problem["detail"].startswith(f"{run.engine.pid} (python")


def test_memory_that_a_dead_process_of_ours_holds_is_reported(inspector, run, bystander):
    device = held_by(run.engine.pid, bystander.pid)
    assert inspector.report_ghosts([device], {run.engine.pid}) == []
    assert process.stop(run, grace=1)
    assert inspector.report_ghosts([device], set()) == [{"code": "memory-not-back", "detail": "GPU 0: 2.0 GB"}]
    assert inspector.report_ghosts([GPU], set()) == []


# --- A full disk


def test_an_engine_that_cannot_be_written_down_is_not_left_running(tmp_path):
    """/dev/full in the place of the draft: the kernel says that there is no space left."""
    (tmp_path / "spec.json").write_text(f'{{"argv": ["{sys.executable}", "-c", "{SLEEP}"], "env": {{}}, "grace": 1}}')
    script = f"""
        import os
        from pathlib import Path
        from modelregistry.process import shim
        directory = Path({str(tmp_path)!r})
        (directory / f".state.json.{{os.getpid()}}").symlink_to("/dev/full")
        try:
            shim.Shim(directory).start()
        except OSError as error:
            print(error.errno, shim.descendants(os.getpid()))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60)
    assert done.stdout == f"{errno.ENOSPC} []\n", done.stderr
    assert not (tmp_path / "state.json").exists()


def test_an_engines_exit_is_recorded_although_the_disk_is_full(tmp_path):
    (tmp_path / "spec.json").write_text('{"argv": ["x"], "env": {}, "grace": 1}')
    (tmp_path / shim.RESERVE).write_text(" ")
    (tmp_path / f".exit.json.{os.getpid()}").symlink_to("/dev/full")
    holder = shim.Shim(tmp_path)
    holder.status = 3 << 8
    holder.write_exit()
    assert (tmp_path / "exit.json").read_text() == '{"code": 3, "signal": 0, "asked": false}'
    assert not (tmp_path / shim.RESERVE).exists()


@pytest.mark.parametrize(
    ("device", "held", "words"),
    [(gpus.RAM, 347_365_376, "0.3 GB of RAM"), (1, 2_000_000_000, "2.0 GB of GPU 1"), (0, None, "memory of GPU 0")],
)
def test_a_stranger_is_logged_with_what_it_holds_where(device, held, words):
    found = asdict(gpus.Stranger(pid=7, name="python", device=device, bytes=held))
    line = inspection.describe_stranger(found)
    assert line.endswith(words)
    assert "7 (python)" in line
