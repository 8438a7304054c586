"""python -m tests.clients.environment: real clients in an environment of their own, made if it is missing; prints its
Python.

Pinned with hashes in clients.lock (`make lock`). Another lock is another directory.
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from modelregistry.fetching import CannotFetch, once, pip

LOCK = Path(__file__).with_name("clients.lock")


def python() -> Path:
    """The interpreter that can import the clients; blocks for half a minute the first time. Raises SystemExit."""
    cache = Path(os.environ.get("MADOGUCHI_CACHE") or Path.home() / ".cache" / "madoguchi")
    target = cache / "clients" / hashlib.sha256(LOCK.read_bytes()).hexdigest()[:16]
    try:
        return once(target, _make, _say) / "bin" / "python"
    except CannotFetch as error:
        raise SystemExit(str(error)) from error


def _make(workspace: Path) -> Path:
    _say(f"installing clients for the tests under {workspace.parent}")
    made = workspace / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", made], check=True)
    pip("--python", str(made / "bin" / "python"), "install", pins=[LOCK.read_text()])
    return made


def _say(text: str) -> None:
    print(f"→ {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    print(python())
