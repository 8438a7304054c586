"""python -m tests.bench.tools: the environment of the harness, made if it is missing; prints its Python.

It holds the Rust router that we are compared with, the profiler and what draws the plot (300 MB).
"""

from pathlib import Path

from tests import locked

LOCK = Path(__file__).with_name("tools.lock")


def python() -> Path:
    """Return the interpreter that can import the tools."""
    return locked.python(LOCK, "bench")


def program(name: str) -> Path:
    """Return a compiled program among the tools: scripts would hold the path where they were built."""
    return python().with_name(name)


if __name__ == "__main__":
    print(python())
