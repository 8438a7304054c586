"""Locks on files: held by a descriptor for as long as its process lives, however that ends."""

import fcntl
import os
from pathlib import Path


def acquire(path: Path) -> int:
    """Return a descriptor that holds the lock on this file; make the file if needed, wait for the lock."""
    return _acquire(path, fcntl.LOCK_EX)


def try_to_acquire(path: Path) -> int | None:
    """Return the same without waiting: None if another process holds it."""
    try:
        return _acquire(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None


def _acquire(path: Path, operation: int) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, operation)
        except BaseException:
            os.close(descriptor)
            raise
        if _is_current(descriptor, path):
            return descriptor
        os.close(descriptor)  # its last holder has deleted it: a lock on it would mean nothing


def _is_current(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
