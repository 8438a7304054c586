"""Keeps Ray running on a GPU host: what its service runs. Engines are no children of it and stay when it ends.

`python -m modelregistry.cluster.keeper DIRECTORY`: of a host that was joined. Ray ends on a host that was declared dead
and came back, whose head was away too long, or one of whose own processes died; each time it is started again. TERM
ends it all.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from modelregistry.cluster import host_home, node
from modelregistry.cluster.access import NotSecured
from modelregistry.cluster.node import NodeCommand
from modelregistry.process import shim

PAUSES = (1.0, 2.0, 5.0, 10.0)  # seconds before it is started again, after failures in a row
LASTED = 30.0  # seconds after which a start was none of those
LOOK_AGAIN = 0.5
STOP_WITHIN = 15.0  # seconds between TERM and KILL


class Keeper:
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
            time.sleep(LOOK_AGAIN)
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


def _kill(processes: set[shim.Identity]) -> None:
    for who in processes:
        shim.send_signal(who, signal.SIGKILL)


def main(directory: Path) -> int:
    home = host_home.load(directory)
    keeper = Keeper(lambda: node.host_command(Path(sys.executable), home))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, keeper.stop)
    keeper.run()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
