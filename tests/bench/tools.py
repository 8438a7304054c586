"""python -m tests.bench.tools: the environment of the harness, made if it is missing; prints its Python.

It holds the Rust router that we are compared with, the profiler and what draws the plot (300 MB), pinned with hashes
in tools.lock (`make lock`). Another lock is another directory.
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from modelregistry.fetching import CannotFetch, once, pip

LOCK = Path(__file__).with_name("tools.lock")


def python() -> Path:
    """The interpreter that can import the tools; blocks for a minute the first time. Raises SystemExit."""
    cache = Path(os.environ.get("MADOGUCHI_CACHE") or Path.home() / ".cache" / "madoguchi")
    target = cache / "bench" / hashlib.sha256(LOCK.read_bytes()).hexdigest()[:16]
    try:
        return once(target, _make, _say) / "bin" / "python"
    except CannotFetch as error:
        raise SystemExit(str(error)) from error


def program(name: str) -> Path:
    """A compiled program among the tools. (Scripts would hold the path where they were built.)"""
    return python().with_name(name)


def _make(workspace: Path) -> Path:
    _say(f"installing the tools of the harness under {workspace.parent}")
    made = workspace / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", made], check=True)
    pip("--python", str(made / "bin" / "python"), "install", pins=[LOCK.read_text()])
    return made


def _say(text: str) -> None:
    print(f"→ {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    print(python())
