"""python -m tests.clients.environment: real clients in an environment of their own, made if it is missing; prints its
Python.
"""

from pathlib import Path

from tests import locked

LOCK = Path(__file__).with_name("clients.lock")


def python() -> Path:
    """The interpreter that can import the clients."""
    return locked.python(LOCK, "clients")


if __name__ == "__main__":
    print(python())
