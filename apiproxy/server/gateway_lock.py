"""The lock that keeps a second gateway from counting the same limits in a memory of its own.

Gateways that count in Redis share it; one that counts in its memory has it alone. A gateway that takes the place of
another (they are of one group, see `succession.GROUP`) serves without the lock for as long as that one finishes its
answers: what it counts itself is recorded as well, and counted here when the lock is free.
"""

import fcntl
import os
from pathlib import Path

HELD = "another gateway holds %s: limits are counted in the memory of one process. Run one, or set REDIS_URL"


class SecondGateway(Exception):
    """Another gateway serves from the same state directory, and one of them counts limits in its memory."""


class GatewayLock:
    """`shared`: with others that share it. `group`: of the processes that may follow each other; "": none may."""

    def __init__(self, path: Path, *, shared: bool, group: str) -> None:
        self._path = path
        self._kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        self._group = group.encode()
        self._file = -1
        self.held = False

    def acquire(self) -> None:
        """Take the lock, or leave it with another of the same group for now. Raises SecondGateway."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        if not self.retry() and not (self._group and os.pread(self._file, 100, 0) == self._group):
            self.release()
            raise SecondGateway(HELD % self._path)

    def retry(self) -> bool:
        """Return whether the lock is held now."""
        try:
            fcntl.flock(self._file, self._kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        self.held = True
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, self._group, 0)
        return True

    def release(self) -> None:
        os.close(self._file)
        self._file, self.held = -1, False
