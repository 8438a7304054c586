"""Keeps Ray running on a GPU host: what its service runs. Engines are no children of it and stay when it ends.

`python -m modelregistry.cluster.node_service DIRECTORY`: of a host that was joined. Ray ends on a host that was
declared dead and came back, whose head was away too long, or one of whose own processes died; each time it is started
again. TERM ends it all.
"""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

from modelregistry.cluster import bookings, node, node_directory
from modelregistry.cluster.access import NotSecured
from modelregistry.cluster.node import NodeCommand
from modelregistry.process import gpus, shim
from modelregistry.process.gpus import Device

# Seconds before it is started again, after failures in a row; none to speak of after a start that lasted: until Ray is
# back the host is silent.
PAUSES = (0.1, 1.0, 2.0, 5.0, 10.0)
LASTED = 30.0  # seconds after which a start was none of those
LOOK_AGAIN = 0.5
STOP_WITHIN = 15.0  # seconds between TERM and KILL
GONE_WITHIN = 10.0  # seconds that killed processes may take to be gone
READ_WITHIN = 5.0  # seconds for the drivers of cards, of which one that hangs must not keep the host from joining
LOCK = "service.lock"


class RunsAlready(Exception):
    """Another service runs Ray for the same directory."""


class NodeService:
    """Runs a command again and again until `stop`."""

    def __init__(self, command: Callable[[], NodeCommand], *, clock: Callable[[], float] = time.monotonic) -> None:
        self.command = command
        self.clock = clock
        self.stopping = False
        self.process: subprocess.Popen[bytes] | None = None
        self.below: set[shim.Identity] = set()  # what it started in turn, as last seen

    def run(self) -> None:
        failures = 0
        while not self.stopping:
            began = self.clock()
            ended = self._run_once()
            failures = 0 if self.clock() - began > LASTED else failures + 1
            if not self.stopping:
                print(f"Ray {ended}: it is started again", flush=True)
                self._pause(PAUSES[min(failures, len(PAUSES) - 1)])

    def _run_once(self) -> str:
        """Return in words how it ended."""
        try:
            made = self.command()
            self.process = subprocess.Popen(made.argv, env=dict(made.env), stdin=subprocess.DEVNULL)
        except (OSError, NotSecured) as error:  # no memory for a process; a secret that is being replaced
            return f"did not start ({error})"
        return f"ended with status {self._wait()}"

    def stop(self, _number: int = 0, _frame: FrameType | None = None) -> None:
        """Begin to end; called by signals."""
        self.stopping = True

    def _wait(self) -> int:
        """Wait for the end, and see to it that nothing of Ray's is left when it has ended."""
        assert self.process
        self.below = set()
        while (status := self.process.poll()) is None:
            # Noted before: once the parent is gone they have another parent.
            self.below = set(shim.descendants(self.process.pid)) or self.below
            if self.stopping:
                return self._end()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(LOOK_AGAIN)
        _kill(self.below)
        return status

    def _end(self) -> int:
        assert self.process
        self.process.terminate()
        try:
            status = self.process.wait(STOP_WITHIN)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        _kill(self.below)
        return status

    def _pause(self, seconds: float) -> None:
        until = self.clock() + seconds
        while not self.stopping and self.clock() < until:
            time.sleep(0.1)


def find_offer(list_devices: Callable[[], Sequence[Device]] = gpus.list_devices) -> dict[str, float]:
    """Return the memory that this host offers Ray for bookings; nothing if its devices cannot be read in time."""
    found: list[Device] = []
    reading = threading.Thread(target=lambda: found.extend(list_devices()), name="devices", daemon=True)
    reading.start()
    reading.join(READ_WITHIN)
    if not found:
        print(f"the devices were not read within {READ_WITHIN:g} s: Ray cannot book their memory", flush=True)
    visible = gpus.visible_devices(found, os.environ.get("CUDA_VISIBLE_DEVICES"))
    return bookings.offer(visible)


def take_lock(path: Path) -> int:
    """Take the lock of this host's service and return its descriptor, for as long as it is open. Raises RunsAlready."""
    descriptor = os.open(path / LOCK, os.O_RDONLY | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise RunsAlready(f"a service runs Ray for {path} already") from None
    return descriptor


def end_left(path: Path) -> None:
    """End what a service that was killed left of Ray: beside it a second one would join as the same host.

    Engines and the fence do not have the variable by which it is found.
    """
    deadline = time.monotonic() + GONE_WITHIN
    while left := set(_find_left(path)):
        if time.monotonic() >= deadline:
            print(f"Ray's processes {sorted(who.pid for who in left)} cannot be ended", flush=True)
            return
        _kill(left)
        time.sleep(0.1)


def _find_left(path: Path) -> Iterator[shim.Identity]:
    variable = f"{node_directory.VARIABLE}={path}".encode()
    for pid in shim.list_processes():
        who = shim.identify(pid)
        with contextlib.suppress(OSError):
            if who and pid != os.getpid() and variable in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                yield who


def _kill(processes: set[shim.Identity]) -> None:
    for who in processes:
        shim.send_signal(who, signal.SIGKILL)


def main(path: Path) -> int:
    try:
        directory = node_directory.load(path.absolute())
        take_lock(directory.path)
    except (ValueError, OSError, RunsAlready) as error:
        print(error, file=sys.stderr)
        return 1
    end_left(directory.path)
    service = NodeService(lambda: node.host_command(Path(sys.executable), directory, resources=find_offer()))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, service.stop)
    service.run()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
