"""Stops a host's engines when no controller has renewed its lease in time. A small process beside the shims.

A host that was cut off serves on, for as long as its lease lasts, those who still reach it; by then a controller has
started its models elsewhere. This process holds to that on the host's side, whatever becomes of the network, of Ray and
of the host agent, which starts it: it leaves its starter by a double fork, as a shim does, and there is one of it.

`python -m modelregistry.cluster.fence DIRECTORY RUNS`: DIRECTORY has the lease and gets `fence.log`, RUNS are the
directories of runs.
"""

import contextlib
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from modelregistry.cluster.lease import FencingLease, HostClaim
from modelregistry.process import process, shim
from modelregistry.process.process import Life, Run, Runs

EVERY = 0.5  # seconds between two looks
GRACE = 10.0  # seconds between TERM and KILL: callers of a host that is cut off have been served by others
LOCK, LOG, RECORD = "fence.lock", "fence.log", "fenced.json"
LOG_LIMIT = 1_000_000  # bytes


class Fence:
    """Watches one lease. `check` is one look; it returns the runs that it stopped."""

    def __init__(self, lease: FencingLease, runs: Runs, *, wall_clock: Callable[[], float] = time.time) -> None:
        self.lease = lease
        self.runs = runs
        self.wall_clock = wall_clock
        self.last: HostClaim | None = None

    def check(self) -> list[Run]:
        # A lease that cannot be read (a full or failing disk) is good for as long as it was when it could.
        self.last = self.lease.read() or self.last
        if self.lease.remaining(self.last) > 0:
            return []
        return self.stop_all()

    def stop_all(self) -> list[Run]:
        """Stop all that lives, and return the runs; blocks for GRACE and some seconds at most."""
        living = list(self._living())
        if living:
            _say(f"the lease is over: stopping {', '.join(run.run_id for run in living)}")
            with ThreadPoolExecutor(len(living)) as pool:
                left = [run.run_id for run, gone in zip(living, pool.map(_stop, living), strict=True) if not gone]
            _say(f"stopped, {f'except processes of {left}' if left else 'nothing is left of them'}")
        # Engines whose shims were killed, and what could not be read above: by the mark of their environment.
        strays = [who for who, _ in process.find_marked(f"{self.runs.root}/")]
        process.kill(strays)
        if not living:
            return []
        term = self.last.term if self.last else 0
        record = {"at": self.wall_clock(), "term": term, "runs": [run.run_id for run in living]}
        with contextlib.suppress(OSError):  # a full disk
            shim.write_atomically(self.lease.directory / RECORD, record)
        return living

    def _living(self) -> Iterator[Run]:
        """Yield the runs that live; what cannot be read hides no other one."""
        for name in os.listdir(self.runs.root) if self.runs.root.exists() else ():
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                run = self.runs.find(name)
                if run and process.life_of(run) in (Life.RUNNING, Life.ENDING):
                    yield run


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # a full disk
        print(text, flush=True)


def _stop(run: Run) -> bool:
    return process.stop(run, grace=GRACE)


def is_running(directory: Path) -> bool:
    """Return whether a process holds the lock of a fence."""
    try:
        with (directory / LOCK).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def start(directory: Path, runs: Path) -> None:
    """Leave a fence running, if none is; return when it has left this process."""
    if is_running(directory):
        return
    code = Path(__file__).resolve().parent.parent.parent
    subprocess.run(
        [sys.executable, "-m", "modelregistry.cluster.fence", directory, runs],
        env={"PATH": os.defpath, "LANG": "C.UTF-8", "PYTHONPATH": str(code)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=60,  # a Python start on a host that swaps
        check=True,
    )


def main(arguments: Sequence[str]) -> int:
    directory, runs = map(Path, arguments)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.umask(0o077)
    # Held for as long as this process lives, across both forks.
    lock = os.open(directory / LOCK, os.O_WRONLY | os.O_CREAT, 0o600)
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
    with contextlib.suppress(OSError):
        if log.stat().st_size > LOG_LIMIT:
            os.truncate(log, 0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
