"""Engine processes of this host: start, find, inspect, stop. The supervisor's only access to processes.

Each engine runs under a shim (`shim.py`) in a run directory of its own below one root. The directory records
everything, so a supervisor that restarts after a crash finds the same runs. A process is identified by pid, start time
and boot: no signal is ever sent by pid alone.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Any

from modelregistry.engines.base import EngineCommand
from modelregistry.process import shim
from modelregistry.process.shim import Identity

LOOK_AGAIN = 0.05  # seconds between two checks while waiting for processes to exit
GONE_WITHIN = 5.0  # seconds that killed processes may take to be gone; a GPU driver needs its time


class StartFailed(Exception):
    """The engine could not be executed; the message says why."""


class Life(Enum):
    RUNNING = auto()
    ENDING = auto()  # the front process is gone, the shim is stopping what is left
    ENDED = auto()  # all processes are gone, and the shim has recorded how
    LOST = auto()  # the shim is gone without a record: killed, or the host was restarted


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One start of one engine. `label` is what the starter wrote on it, values that JSON can hold."""

    directory: Path
    label: Mapping[str, Any]
    shim: Identity
    engine: Identity
    of_this_boot: bool
    group: Path | None = None  # its cgroup, if it has one

    @property
    def run_id(self) -> str:
        return self.directory.name


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitStatus:
    """How the front process ended. `asked`: after we had asked it to stop."""

    code: int
    signal: int
    asked: bool

    def __str__(self) -> str:
        if not self.signal:
            return f"ended with code {self.code}"
        with contextlib.suppress(ValueError):
            return f"was killed by {signal.Signals(self.signal).name}"
        return f"was killed by signal {self.signal}"


class Runs:
    """The runs below one directory, which belongs to one supervisor.

    `groups`: the cgroup in which each gets one of its own, if the host allows it; None: they get none.
    """

    def __init__(self, root: Path, *, groups: Path | None = None) -> None:
        self.root = root.resolve()
        self.groups = groups

    def start(self, run_id: str, command: EngineCommand, *, label: Mapping[str, Any], grace: float) -> Run:
        """Execute an engine under a shim of its own; return when it runs (not when it answers), after ~0.1 s.

        `grace`: seconds between TERM and KILL when it is stopped. Raises StartFailed.
        """
        directory = self.root / run_id
        directory.mkdir(mode=0o700, parents=True)
        env = command.env | {
            shim.MARK: str(directory),
            # Processes that rename themselves (vLLM's do) would wipe their environment, and with it the mark.
            "SPT_NOENV": "1",
        }
        group = self.groups and str(self.groups / f"madoguchi-{run_id}")
        spec = {
            "argv": command.argv,
            "env": env,
            "grace": grace,
            "label": label,
            "group": group,
            "filtered": command.filtered,
        }
        shim.write_atomically(directory / "spec.json", spec)
        try:
            starter = subprocess.run(
                [sys.executable, "-I", shim.__file__, directory],
                env={"PATH": os.defpath, "LANG": "C.UTF-8"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                timeout=30,  # a Python start on a host that swaps
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise StartFailed("the shim did not start within 30 s") from error
        run = self.find(run_id)
        if starter.returncode or run is None:
            raise StartFailed(starter.stderr.strip() or f"the shim failed, see {directory / 'shim.log'}")
        return run

    def find(self, run_id: str) -> Run | None:
        """Return a run that was started, ended or not; None if there is none (or a crash left half of one)."""
        directory = self.root / run_id
        try:
            spec, state = _read(directory / "spec.json"), _read(directory / "state.json")
            if spec is None or state is None:
                return None
            return Run(
                directory=directory,
                label=spec["label"],
                shim=Identity(*state["shim"]),
                engine=Identity(*state["engine"]),
                of_this_boot=state["boot"] == shim.boot_id(),
                group=Path(state["group"]) if state.get("group") else None,
            )
        except (ValueError, LookupError, TypeError, AttributeError):  # a loss of power cut them short
            return None

    def all(self) -> list[Run]:
        """Return every run on disk, oldest first. Another thread may be deleting some of them."""
        if not self.root.exists():
            return []
        directories = sorted(self.root.iterdir(), key=_age)
        return [run for directory in directories if (run := self.find(directory.name))]

    def forget(self, run: Run) -> None:
        """Delete the directory of an ended run, log and all."""
        shutil.rmtree(run.directory, ignore_errors=True)

    def find_strays(self) -> list[Identity]:
        """Return living processes that were started below this root and have no living shim."""
        runs = self.all()
        answered = {str(run.directory) for run in runs if life_of(run) in (Life.RUNNING, Life.ENDING)}
        by_mark = {who for who, mark in find_marked(f"{self.root}/") if mark not in answered}
        by_group = {who for run in runs if str(run.directory) not in answered for who in _group_members(run)}
        return sorted(by_mark | by_group)


def life_of(run: Run) -> Life:
    """Read a few files of /proc; blocks on nothing."""
    if (run.directory / "exit.json").exists():
        return Life.ENDED
    if not run.of_this_boot or not shim.is_alive(run.shim):
        # It may have recorded its exit between the two checks.
        return Life.ENDED if (run.directory / "exit.json").exists() else Life.LOST
    return Life.RUNNING if shim.is_alive(run.engine) else Life.ENDING


def exit_of(run: Run) -> ExitStatus | None:
    """Return how a run ended; None while it runs, and for ever if its shim was killed."""
    written = _read(run.directory / "exit.json")
    return ExitStatus(**written) if written else None


def log_tail(directory: Path, lines: int = 20) -> str:
    """Return the last lines that an engine wrote, of its last 64 KB."""
    try:
        with (directory / "engine.log").open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 65536))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


def terminate(run: Run) -> None:
    """Begin to stop: TERM, the run's grace, KILL. Does not wait."""
    _signal_shim(run, signal.SIGTERM)


def terminate_at_once(run: Run) -> None:
    """Begin to stop without any grace: KILL to all processes of the run. Does not wait."""
    _signal_shim(run, signal.SIGUSR1)


def stop(run: Run, *, grace: float) -> bool:
    """Stop all of a run's processes, and return whether none is left, the shim included.

    Blocks until they are gone, at most `grace` + 2 × GONE_WITHIN seconds.
    """
    terminate(run)
    if not _wait_until(lambda: life_of(run) in (Life.ENDED, Life.LOST), grace):
        terminate_at_once(run)
        if not _wait_until(lambda: life_of(run) in (Life.ENDED, Life.LOST), GONE_WITHIN):
            _signal_shim(run, signal.SIGKILL)
    return kill_leftovers(run)


def kill_leftovers(run: Run) -> bool:
    """Kill all processes that carry this run's mark or are in its cgroup, whatever its shim knows.

    Returns whether none is left within GONE_WITHIN.
    """

    def are_none_left() -> bool:
        left = find_leftovers(run)
        if left and run.group:
            shim.kill_group(run.group)
        for who in left:
            shim.send_signal(who, signal.SIGKILL)
        return not left

    all_gone = _wait_until(are_none_left, GONE_WITHIN)
    if all_gone and run.group:
        shim.remove_group(run.group)
    return all_gone


def kill(strays: Iterable[Identity]) -> None:
    """Kill exactly these processes."""
    for who in strays:
        shim.send_signal(who, signal.SIGKILL)


def find_leftovers(run: Run) -> list[Identity]:
    """Return the living processes that carry this run's mark or are in its cgroup: all except the shim."""
    return leftovers_of([run])[run.run_id]


def leftovers_of(runs: Sequence[Run]) -> dict[str, list[Identity]]:
    """Return the same for many runs, by their ids, in one scan of /proc (14 ms for 500 processes)."""
    found = {str(run.directory): set(_group_members(run)) for run in runs}
    for who, mark in find_marked(""):
        if mark in found:
            found[mark].add(who)
    return {run.run_id: sorted(found[str(run.directory)]) for run in runs}


def process_tree(run: Run) -> list[Identity]:
    """Return the living processes below this run's shim, without the shim itself."""
    return shim.descendants(run.shim.pid) if run.of_this_boot and shim.is_alive(run.shim) else []


def cpu_seconds(run: Run) -> float:
    """Return the CPU time that the living processes of a run have used."""
    ticks = sum(found.ticks for who in process_tree(run) if (found := shim.read_stat(who.pid)))
    return ticks / os.sysconf("SC_CLK_TCK")


def own_group() -> Path | None:
    """Return where cgroups of runs may be created, as far as is known without trying."""
    try:
        return shim.own_group(Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text())
    except OSError:
        return None


def _group_members(run: Run) -> Iterator[Identity]:
    if run.group and run.of_this_boot:
        for pid in shim.group_members(run.group):
            if (who := shim.identify(pid)) and who != run.shim:
                yield who


def oom_kills() -> int:
    """Return how many processes of this machine the kernel has killed for lack of memory since it booted."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def _age(directory: Path) -> int:
    try:
        return directory.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _signal_shim(run: Run, number: int) -> None:
    if run.of_this_boot:
        shim.send_signal(run.shim, number)


def _wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(LOOK_AGAIN)
    return True


def find_marked(prefix: str) -> Iterator[tuple[Identity, str]]:
    """Yield living processes of this user (of all, for root) whose mark begins so, with their mark."""
    begin = f"{shim.MARK}={prefix}".encode()
    for pid in shim.list_processes():
        who = shim.identify(pid)
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:  # gone, or of another user
            continue
        for entry in environment.split(b"\0"):
            # Checked again: the pid may have been reused between the two reads.
            if entry.startswith(begin) and who and shim.is_alive(who):
                yield who, entry.decode(errors="replace").partition("=")[2]


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
