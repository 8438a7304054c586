"""Stops a host's engines when no controller has renewed its lease in time. A small process beside the shims.

A host that was cut off serves on, for as long as its lease lasts, those who still reach it; by then a controller has
started its models elsewhere. This process holds to that on the host's side, whatever becomes of the network, of Ray and
of the host agent, which starts it: it leaves its starter by a double fork, as a shim does, and there is one of it for
each release (`CODE`). The agent of another release starts its own, and ends the one before when that runs: two at a
time do no harm, none would.

`python -m modelregistry.cluster.fence DIRECTORY RUNS CODE`: DIRECTORY has the lease and gets `fence.log`, RUNS are the
directories of runs.
"""

import contextlib
import fcntl
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from modelregistry.cluster import lease as lease_module
from modelregistry.cluster.lease import FencingLease, HostClaim
from modelregistry.process import process, shim
from modelregistry.process.process import Life, Run, Runs

EVERY = 0.5  # seconds between two looks
GRACE = 10.0  # seconds between TERM and KILL: callers of a host that is cut off have been served by others
# Seconds after the end of a lease within which no engine of the host is left, unless the kernel cannot end it. A
# controller starts models elsewhere before that: nothing runs twice from then on.
STOPPED_WITHIN = EVERY + GRACE + 2 * process.GONE_WITHIN
# Seconds that engines of a host that never had a lease are left alone: it has just joined with them, and a controller
# that does not know them yet has started nothing elsewhere.
FIRST_LEASE_WITHIN = 600.0
LOG, RECORD = "fence.log", "fenced.json"
LOG_LIMIT = 1_000_000  # bytes


class Fence:
    """Watches one lease. `check` is one look; it returns the runs that it stopped."""

    def __init__(self, lease: FencingLease, runs: Runs, *, wall_clock: Callable[[], float] = time.time) -> None:
        self.lease = lease
        self.runs = runs
        self.wall_clock = wall_clock
        self.began = lease.clock()
        self.last: HostClaim | None = None
        self.seen: tuple[int, int] | None = None  # the state of the lease's file when it was read

    def check(self) -> list[Run]:
        self._look()
        if self.lease.remaining(self.last) > 0:
            return []
        if self.last is None and self.lease.clock() - self.began < FIRST_LEASE_WITHIN:
            return []
        return self.stop_all()

    def _look(self) -> None:
        """Read the lease if it was written since it was read, and before it is taken for over.

        One that cannot be read (a failing disk) is good for as long as it was when it could.
        """
        state = self.lease.find_state()
        if state != self.seen or self.lease.remaining(self.last) <= 0:
            self.last = self.lease.read() or self.last
            self.seen = state

    def stop_all(self) -> list[Run]:
        """Stop all that lives, and return the runs; blocks for GRACE and some seconds at most."""
        living = list(self._living())
        if living:
            _say(f"the lease is over: stopping {', '.join(run.run_id for run in living)}")
            with ThreadPoolExecutor(len(living)) as pool:
                left = [run.run_id for run, gone in zip(living, pool.map(_stop, living), strict=True) if not gone]
            _say(f"stopped, {f'except processes of {left}' if left else 'nothing is left of them'}")
        self._look()
        if self.lease.remaining(self.last) > 0:  # renewed meanwhile: what has the mark may be new
            return self._record(living)
        # Engines whose shims were killed, and what could not be read above: by the mark of their environment.
        strays = [who for who, _ in process.find_marked(f"{self.runs.root}/")]
        process.kill(strays)
        return self._record(living)

    def _record(self, living: list[Run]) -> list[Run]:
        """Keep what was stopped, if anything was, and return it."""
        if not living:
            return []
        term = self.last.term if self.last else 0
        record = {"at": self.wall_clock(), "term": term, "runs": [run.run_id for run in living]}
        with contextlib.suppress(OSError):  # a full disk
            shim.write_atomically(self.lease.directory / RECORD, record)
        return living

    def _living(self) -> Iterator[Run]:
        """Yield the runs that live; what cannot be read hides no other one."""
        try:
            names = list_runs(self.runs.root)
        except FileNotFoundError:
            return
        except OSError as error:  # a failing disk: what runs is found by its mark
            _say(f"the runs cannot be listed: {error}")
            return
        for name in names:
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                run = self.runs.find(name)
                if run and process.life_of(run) in (Life.RUNNING, Life.ENDING):
                    yield run


def list_runs(root: Path) -> list[str]:
    return os.listdir(root)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # a full disk
        print(text, flush=True)


def _stop(run: Run) -> bool:
    return process.stop(run, grace=GRACE)


def code_version() -> str:
    """Return a text that differs between releases whose fences act differently."""
    files = [Path(module.__file__ or "") for module in (lease_module, process, shim)]
    content = b"".join(path.read_bytes() for path in (Path(__file__), *files))
    return hashlib.sha256(content).hexdigest()[:16]


CODE = code_version()


def is_running(directory: Path, code: str = CODE) -> bool:
    """Return whether a process holds the lock of a fence of this release."""
    try:
        lock = os.open(_lock_of(directory, code), os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def prepare(directory: Path) -> None:
    """Create what a fence opens, while the disk has room for it."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in (_lock_of(directory, CODE), directory / LOG):
        path.touch(mode=0o600)


def start(directory: Path, runs: Path, *, code: str = CODE) -> None:
    """Leave a fence of this release running, and no other; return when it has left this process.

    Raises OSError, SubprocessError.
    """
    if is_running(directory, code):
        return
    root = Path(__file__).resolve().parent.parent.parent
    subprocess.run(
        [sys.executable, "-m", "modelregistry.cluster.fence", directory, runs, code],
        env={"PATH": os.defpath, "LANG": "C.UTF-8", "PYTHONPATH": str(root)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=60,  # a Python start on a host that swaps
        check=True,
    )
    if is_running(directory, code):
        _end_others(directory, code)


def _end_others(directory: Path, own: str) -> None:
    """End the fences of other releases on this directory; ours runs already."""
    for pid in shim.list_processes():
        who = shim.identify(pid)
        code = _code_of(pid, directory)
        if who and code is not None and code != own:
            shim.send_signal(who, signal.SIGKILL)
            _lock_of(directory, code).unlink(missing_ok=True)


def _code_of(pid: int, directory: Path) -> str | None:
    """Return the release of a fence on this directory, "" if it does not say; None: the process is no such fence."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return None
    if b"modelregistry.cluster.fence" not in words:
        return None
    after = words[words.index(b"modelregistry.cluster.fence") + 1 :]
    if not after or after[0] != os.fsencode(directory):
        return None
    return os.fsdecode(after[2]) if len(after) > 2 else ""


def _lock_of(directory: Path, code: str) -> Path:
    return directory / f"fence-{code}.lock"


def main(arguments: Sequence[str]) -> int:
    directory, runs = map(Path, arguments[:2])
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.umask(0o077)
    # Held for as long as this process lives, across both forks.
    lock = os.open(_lock_of(directory, arguments[2]), os.O_RDONLY | os.O_CREAT, 0o600)
    if not _take(lock):
        return 0
    if os.fork():
        os._exit(0)
    os.setsid()
    if os.fork():
        os._exit(0)
    os.chdir("/")
    _redirect(directory / LOG)
    fence = Fence(FencingLease(directory), Runs(runs))
    while directory.exists():  # where a host was removed, this ends as well
        try:
            fence.check()
        except Exception as error:  # noqa: BLE001 - whatever fails, engines must not outlive the lease for it
            _say(f"a look failed: {type(error).__name__}: {error}")
        time.sleep(EVERY)
    return 0


def _take(lock: int) -> bool:
    """Take the lock unless a fence has it; who only looks (`is_running`) has it for a moment."""
    for _ in range(5):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.1)
        else:
            return True
    return False


def _redirect(log: Path) -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    try:
        if log.exists() and log.stat().st_size > LOG_LIMIT:
            os.truncate(log, 0)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError:  # a full disk: better no log than no fence
        output = nothing
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
