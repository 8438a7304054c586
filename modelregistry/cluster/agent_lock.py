"""One agent of a host acts, also where Ray lost sight of one that still lives and started another.

Two of them would choose the same port twice, and each would take for strays what the other just starts. The later one
wins: nothing is known to reach the earlier one any more. It waits a moment for it to end, kills it otherwise, and holds
the lock for as long as it lives.
"""

import contextlib
import fcntl
import json
import os
import signal
import time
from pathlib import Path

from modelregistry.process import shim
from modelregistry.process.shim import Identity

FILE = "agent.lock"
PATIENCE = 0.5  # seconds for one that Ray is ending just now; a kill loses nothing, as shims carry on
GONE_WITHIN = 10.0  # seconds for one that was killed
LOOK_AGAIN = 0.05


class HeldByAnother(Exception):
    """Another agent of this host holds the lock, and cannot be ended."""


def take(directory: Path, *, patience: float = PATIENCE) -> int:
    """Take the lock of this host and return its descriptor, for as long as it is open. Raises HeldByAnother."""
    descriptor = os.open(directory / FILE, os.O_RDWR | os.O_CREAT, 0o600)
    if not _take_within(descriptor, patience):
        holder = _read_holder(descriptor)
        if holder and holder.pid != os.getpid():
            shim.send_signal(holder, signal.SIGKILL)
        if not _take_within(descriptor, GONE_WITHIN):
            os.close(descriptor)
            raise HeldByAnother(f"process {holder.pid if holder else '?'} holds {directory / FILE} and cannot be ended")
    _write_holder(descriptor)
    return descriptor


def _take_within(descriptor: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(LOOK_AGAIN)
        else:
            return True


def _read_holder(descriptor: int) -> Identity | None:
    try:
        pid, start = json.loads(os.pread(descriptor, 4096, 0))
        return Identity(int(pid), int(start))
    except (OSError, ValueError, TypeError):
        return None


def _write_holder(descriptor: int) -> None:
    with contextlib.suppress(OSError):  # a full disk: the lock holds, but no later one can end this one
        os.pwrite(descriptor, json.dumps(shim.identify(os.getpid())).encode().ljust(64), 0)
