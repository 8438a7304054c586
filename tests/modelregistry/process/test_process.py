"""Shims and what they hold, with real processes; a script stands for an engine."""

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from modelregistry.engines.base import EngineCommand
from modelregistry.memory import estimate
from modelregistry.process import process, shim
from modelregistry.process.process import ExitStatus, Life, Runs
from modelregistry.process.shim import Identity
from tests.waiting import until

SLEEP = "import time; time.sleep(600)"
# A front with a child that has a child of its own in another session, as vLLM's are; it says who they are.
FAMILY = f"""
    import subprocess, sys, time
    child = subprocess.Popen([sys.executable, "-c", '''
    import subprocess, sys, time
    print(subprocess.Popen([sys.executable, "-c", "{SLEEP}"], start_new_session=True).pid, flush=True)
    time.sleep(600)
    '''.replace("\\n    ", "\\n")])
    print(child.pid, flush=True)
    time.sleep(600)
"""


def start(runs, script, run_id="r1", grace=2.0, **env):
    command = EngineCommand(argv=(sys.executable, "-c", textwrap.dedent(script)), env=env)
    return runs.start(run_id, command, label={"model": 1}, grace=grace)


def printed(run, lines=1):
    text = until(lambda: len(log := process.log_tail(run.directory).splitlines()) >= lines and log)
    return text


def family(run):
    pids = [int(line) for line in printed(run, 2)]
    assert len(process.process_tree(run)) == 3
    return pids


def dead(pids):
    return all(shim.identify(pid) is None for pid in pids)


def test_a_run_is_found_again_by_its_directory(runs):
    run = start(runs, SLEEP)
    assert Runs(runs.root).all() == [run]
    assert run.label == {"model": 1}
    assert process.life_of(run) is Life.RUNNING
    assert process.exit_of(run) is None


def test_the_engine_belongs_only_to_its_shim(runs):
    run = start(runs, SLEEP)
    assert os.getsid(run.engine.pid) == run.engine.pid
    assert shim.read_stat(run.engine.pid).parent == run.shim.pid
    assert shim.read_stat(run.shim.pid).parent != os.getpid()


def test_the_engine_gets_its_own_environment_and_the_mark_only(runs):
    run = start(runs, "import os; print(sorted(os.environ))", COLOUR="blue")
    names = [name for name in eval(printed(run)[0]) if name != "LC_CTYPE"]
    assert names == ["COLOUR", "MADOGUCHI_RUN", "SPT_NOENV"]


def test_what_cannot_be_executed_is_reported(runs):
    with pytest.raises(process.StartFailed, match=f"/no/such/engine: {os.strerror(errno.ENOENT)}"):
        runs.start("r1", EngineCommand(argv=("/no/such/engine",), env={}), label={}, grace=1)
    assert runs.all() == []


def test_files_of_a_run_are_for_its_owner_only(runs):
    run = start(runs, "print('hello')")
    printed(run)
    modes = {path.name: path.stat().st_mode & 0o077 for path in [run.directory, *run.directory.iterdir()]}
    assert set(modes) >= {"spec.json", "state.json", "engine.log"}
    assert set(modes.values()) == {0}


def test_it_records_how_an_engine_ended(runs):
    run = start(runs, "import sys; print('no such flag', file=sys.stderr); sys.exit(7)")
    until(lambda: process.life_of(run) is Life.ENDED)
    assert process.exit_of(run) == ExitStatus(code=7, signal=0, asked=False)
    assert process.log_tail(run.directory) == "no such flag"


def test_it_records_what_killed_an_engine(runs):
    run = start(runs, SLEEP)
    os.kill(run.engine.pid, signal.SIGKILL)
    until(lambda: process.life_of(run) is Life.ENDED)
    assert process.exit_of(run) == ExitStatus(code=0, signal=signal.SIGKILL, asked=False)
    assert "SIGKILL" in str(process.exit_of(run))


def test_the_engine_outlives_the_process_that_started_it(runs, tmp_path):
    starter = textwrap.dedent(f"""
        import os, signal
        from pathlib import Path
        from modelregistry.engines.base import EngineCommand
        from modelregistry.process.process import Runs
        runs = Runs(Path({str(runs.root)!r}))
        runs.start("r1", EngineCommand(argv=({sys.executable!r}, "-c", {SLEEP!r}), env={{}}), label={{}}, grace=1)
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    killed = subprocess.run([sys.executable, "-c", starter], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert process.life_of(runs.find("r1")) is Life.RUNNING


def test_stopping_ends_the_whole_tree(runs):
    run = start(runs, FAMILY)
    pids = family(run)
    assert process.stop(run, grace=2)
    assert dead([*pids, run.engine.pid, run.shim.pid])
    assert process.exit_of(run).asked


def test_an_engine_may_take_its_grace(runs):
    run = start(
        runs,
        """
        import os, signal, sys, time
        def end(*_):
            # Not by print: the signal may come while it is under way.
            time.sleep(1); os.write(1, b"bye\\n"); sys.exit(0)
        signal.signal(signal.SIGTERM, end)
        print("up", flush=True)
        time.sleep(600)
        """,
        grace=5,
    )
    printed(run)
    assert process.stop(run, grace=5)
    assert process.exit_of(run) == ExitStatus(code=0, signal=0, asked=True)
    assert process.log_tail(run.directory).endswith("bye")


STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"


def test_an_engine_that_takes_more_than_its_grace_is_killed(runs):
    run = start(runs, STUBBORN, grace=0.5)
    printed(run)
    assert process.stop(run, grace=0.5)
    assert process.exit_of(run) == ExitStatus(code=0, signal=signal.SIGKILL, asked=True)


def test_told_so_it_kills_at_once(runs):
    run = start(runs, STUBBORN, grace=600)
    printed(run)
    process.terminate(run)
    process.terminate(run)
    assert process.life_of(run) is Life.RUNNING
    process.terminate_at_once(run)
    until(lambda: process.life_of(run) is Life.ENDED, 30)


def test_what_a_dead_front_leaves_behind_is_ended(runs):
    run = start(runs, FAMILY)
    pids = family(run)
    os.kill(run.engine.pid, signal.SIGKILL)
    until(lambda: process.life_of(run) is Life.ENDED, 30)
    assert dead([*pids, run.shim.pid])


def test_the_tree_of_a_killed_shim_is_found_by_its_mark(runs):
    run, other = start(runs, FAMILY), start(runs, SLEEP, "r2")
    pids = family(run)
    os.kill(run.shim.pid, signal.SIGKILL)
    until(lambda: process.life_of(run) is Life.LOST)
    assert {who.pid for who in runs.find_strays()} == {run.engine.pid, *pids}
    assert process.stop(run, grace=1)
    assert dead([run.engine.pid, *pids])
    assert process.life_of(other) is Life.RUNNING


def test_engines_of_another_installation_are_not_ours(runs, tmp_path):
    start(runs, SLEEP)
    assert Runs(tmp_path / "elsewhere").find_strays() == []


def test_a_process_that_got_the_pid_later_is_never_touched(runs):
    bystander = subprocess.Popen([sys.executable, "-c", SLEEP])
    who = shim.identify(bystander.pid)
    run = start(runs, SLEEP)
    assert process.stop(run, grace=1)
    (run.directory / "exit.json").unlink()
    state = run.directory / "state.json"
    earlier = [bystander.pid, who.start - 1]  # as if the bystander had been given the pid of a dead shim
    state.write_text(json.dumps({"boot": shim.boot_id(), "shim": earlier, "engine": earlier}))
    recycled = runs.find("r1")
    assert process.life_of(recycled) is Life.LOST
    assert process.stop(recycled, grace=0)
    assert not shim.send_signal(Identity(bystander.pid, who.start - 1), signal.SIGKILL)
    assert bystander.poll() is None
    assert shim.send_signal(who, signal.SIGKILL)
    assert bystander.wait(5) == -signal.SIGKILL


def test_a_run_of_an_earlier_boot_is_lost_and_its_pids_mean_nothing(runs):
    bystander = subprocess.Popen([sys.executable, "-c", SLEEP])
    run = start(runs, SLEEP)
    assert process.stop(run, grace=1)
    (run.directory / "exit.json").unlink()
    who = shim.identify(bystander.pid)  # the same pid and the same start, counted from another boot
    (run.directory / "state.json").write_text(json.dumps({"boot": "another", "shim": who, "engine": who}))
    old = runs.find("r1")
    assert process.life_of(old) is Life.LOST
    assert process.stop(old, grace=0)
    assert process.process_tree(old) == []
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()


def test_a_half_made_run_is_no_run(runs):
    (runs.root / "r1").mkdir(parents=True)
    (runs.root / "r1" / "spec.json").write_text('{"label": {}}')
    assert runs.all() == []


def test_a_forgotten_run_leaves_nothing(runs):
    run = start(runs, "pass")
    until(lambda: process.life_of(run) is Life.ENDED)
    runs.forget(run)
    assert not run.directory.exists()


def test_the_log_is_cut_when_it_is_too_long(tmp_path):
    (tmp_path / "spec.json").write_text(json.dumps({"argv": ["x"], "env": {}, "grace": 1}))
    holder = shim.Shim(tmp_path)
    with holder.log.open("ab") as engine:
        engine.write(b"a" * (shim.LOG_LIMIT + 1))
        engine.flush()
        holder.cut_log()
        engine.write(b"after\n")
    assert holder.log.read_bytes() == b"after\n"
    assert (tmp_path / "engine.log.1").stat().st_size == shim.LOG_LIMIT + 1


def test_processes_of_a_run_are_measured(runs):
    run = start(runs, "x = bytearray(50_000_000); print(1, flush=True)\nwhile True: pass")
    printed(run)
    assert 50_000_000 < estimate.measure_held(process.process_tree(run)).taken < 90_000_000
    before = process.cpu_seconds(run)
    until(lambda: process.cpu_seconds(run) > before + 0.2)
    assert estimate.measure_held([Identity(2**22, 1)]).taken == 0


# --- Cgroups


@pytest.mark.parametrize(
    ("mounts", "groups", "expected"),
    [
        (
            "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw",
            "0::/system.slice/m.service\n",
            "/sys/fs/cgroup/system.slice/m.service",
        ),
        (
            "36 35 0:31 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw",
            "4:memory:/x\n0::/\n",
            "/sys/fs/cgroup/unified",
        ),
        # A container that sees its part of the host's tree only.
        ("36 35 0:31 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup rw", "0::/docker/abc/d\n", "/sys/fs/cgroup/d"),
        ("36 35 0:31 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup rw", "0::/elsewhere\n", None),
        ("36 35 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory", "4:memory:/x\n", None),
        ("", "", None),
    ],
)
def test_our_own_cgroup_is_found(mounts, groups, expected):
    found = shim.own_group(mounts, groups)
    assert (found and str(found)) == expected


# A child that no mark and no parent leads to: without an environment, in a session of its own.
HERMIT = """
    import os, subprocess, sys, time
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], env={}, start_new_session=True)
    print(child.pid, flush=True)
    time.sleep(600)
"""


def test_a_run_gets_a_cgroup_where_the_host_allows_it_and_is_quietly_without_elsewhere(tmp_path):
    runs = Runs(tmp_path / "engines", groups=process.own_group())
    run = start(runs, HERMIT)
    hermit = shim.identify(int(printed(run)[0]))
    allowed = run.group is not None
    assert allowed == (process.own_group() is not None and os.access(process.own_group() / "cgroup.procs", os.W_OK))
    assert not process.log_tail(run.directory).endswith("cgroup")
    os.kill(run.shim.pid, signal.SIGKILL)
    until(lambda: process.life_of(run) is Life.LOST)
    assert (hermit in process.find_leftovers(run)) == allowed
    assert (hermit in runs.find_strays()) == allowed
    assert process.stop(run, grace=1)
    if not allowed:
        assert shim.send_signal(hermit, signal.SIGKILL)
    until(lambda: dead([hermit.pid]))
    assert run.group is None or not run.group.exists()


def test_a_stopped_run_leaves_no_cgroup(tmp_path):
    runs = Runs(tmp_path / "engines", groups=process.own_group())
    run = start(runs, HERMIT)
    hermit = int(printed(run)[0])
    assert process.stop(run, grace=1)
    assert dead([hermit, run.engine.pid, run.shim.pid])
    assert run.group is None or not run.group.exists()


def test_the_engine_is_born_in_its_cgroup_and_the_shim_stays_outside(tmp_path):
    """A directory stands for the host's cgroups: the kernel would move who is written into cgroup.procs."""
    groups = tmp_path / "groups"
    groups.mkdir()
    runs = Runs(tmp_path / "engines", groups=groups)
    run = start(runs, SLEEP)
    assert run.group == groups / "madoguchi-r1"
    assert (run.group / "cgroup.procs").read_text() == str(run.shim.pid)
    assert (groups / "cgroup.procs").read_text() == str(run.shim.pid)
    assert process.find_leftovers(run) == [run.engine]
    (run.group / "cgroup.kill").write_text("")
    process.terminate_at_once(run)
    until(lambda: process.life_of(run) is Life.ENDED)
    assert (run.group / "cgroup.kill").read_text() == "1"
    assert process.stop(run, grace=1)


def test_without_leave_to_make_cgroups_a_run_has_none(tmp_path):
    runs = Runs(tmp_path / "engines", groups=tmp_path / "nowhere")
    run = start(runs, SLEEP)
    assert run.group is None
    assert process.life_of(run) is Life.RUNNING
    assert process.stop(run, grace=1)


def test_a_cgroup_that_goes_while_it_is_looked_at_has_no_members(tmp_path, monkeypatch):
    group = tmp_path / "group"
    group.mkdir()

    def gone(*_: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(os, "scandir", gone)
    assert shim.group_members(group) == []


def test_t7_a_run_s_log_is_cut_while_its_engine_writes_and_goes_on_at_its_new_end(runs):
    """By the shim itself, of a descriptor that the engine keeps open; a child's end makes it look at once."""
    run = start(
        runs,
        f"""
        import os, subprocess, sys, time
        os.write(1, b"a" * {shim.LOG_LIMIT + 1})
        while os.fstat(1).st_size > {shim.LOG_LIMIT}:
            subprocess.run(["sh", "-c", "(sleep 0.05) & exit"])
            time.sleep(0.05)
        os.write(1, b"after\\n")
        time.sleep(60)
        """,
    )
    log = run.directory / "engine.log"
    until(lambda: log.stat().st_size <= shim.LOG_LIMIT and b"after" in log.read_bytes())
    assert log.read_bytes() == b"after\n"  # no hole before it: it is written at the end, wherever that is by now
    assert (run.directory / "engine.log.1").stat().st_size == shim.LOG_LIMIT + 1
