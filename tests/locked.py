"""Environments of programs that are no part of the product, in the user's cache: made once for each lock."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from modelregistry.install.build_cache import CannotFetch, build_once, download_with_pip


def python(lock: Path, kind: str) -> Path:
    """Return the interpreter that can import what the lock pins (with hashes, see `make lock`).

    Blocks for up to a minute the first time. Another lock is another directory, under `kind`. Raises SystemExit.
    """
    cache = Path(os.environ.get("MADOGUCHI_CACHE") or Path.home() / ".cache" / "madoguchi")
    target = cache / kind / hashlib.sha256(lock.read_bytes()).hexdigest()[:16]

    def make(workspace: Path) -> Path:
        say(f"installing what {lock.name} pins under {workspace.parent}")
        made = workspace / "environment"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", made], check=True)
        download_with_pip("--python", str(made / "bin" / "python"), "install", pins=[lock.read_text()])
        return made

    try:
        return build_once(target, make, say) / "bin" / "python"
    except CannotFetch as error:
        raise SystemExit(str(error)) from error


def say(text: str) -> None:
    print(f"→ {text}", file=sys.stderr, flush=True)
