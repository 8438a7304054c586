"""Whether the company directory, rather than the person who sent the request, decided a change."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

# Set while entries of the company directory are applied, no matter whose sign-in or which command caused it.
_by_directory: ContextVar[bool] = ContextVar("decided by the directory", default=False)


@contextmanager
def by_directory() -> Iterator[None]:
    """Attribute the changes made inside to the directory: audit events carry no person's name or address."""
    token = _by_directory.set(True)
    try:
        yield
    finally:
        _by_directory.reset(token)


def is_by_directory() -> bool:
    """Return whether the changes being made now are attributed to the directory."""
    return _by_directory.get()
