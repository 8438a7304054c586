"""Who decided a change, where that is not whoever asked for it."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

# Set while what the company directory says is written down, whoever's sign-in or command was the occasion.
_by_directory: ContextVar[bool] = ContextVar("decided by the directory", default=False)


@contextmanager
def by_directory() -> Iterator[None]:
    """Attribute what changes inside to the directory: no person's name and address stands on it."""
    token = _by_directory.set(True)
    try:
        yield
    finally:
        _by_directory.reset(token)


def is_by_directory() -> bool:
    """Tell whether the directory decided what is being written now."""
    return _by_directory.get()
