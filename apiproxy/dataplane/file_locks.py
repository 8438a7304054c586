"""Locks on files: held by a descriptor for as long as its process lives, however that ends."""

import fcntl
import os
from pathlib import Path


def take(path: Path) -> int:
    """Return a descriptor that holds the lock on this file, made if it is not there; waits for it."""
    return _take(path, fcntl.LOCK_EX)


def try_to_take(path: Path) -> int | None:
    """Return the same without waiting: None if somebody else holds it."""
    try:
        return _take(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None


def _take(path: Path, operation: int) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, operation)
        except BaseException:
            os.close(descriptor)
            raise
        if _still_there(descriptor, path):
            return descriptor
        os.close(descriptor)  # whoever held it before us has removed it: a lock on it would say nothing


def _still_there(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
