"""How the steps of a release run programs and say what they do."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import IO


def say(text: str) -> None:
    print(f"→ {text}", flush=True)


def run(
    *command: str | Path, cwd: Path | None = None, stdin: IO[bytes] | None = None, env: Mapping[str, str] | None = None
) -> str:
    """Return what the command prints, without the end of its last line; `env` is added to its environment.

    Ends this process with a sentence if it fails; its errors are on stderr.
    """
    words = [str(word) for word in command]
    done = subprocess.run(
        words, cwd=cwd, stdin=stdin, stdout=subprocess.PIPE, env={**os.environ, **(env or {})}, check=False
    )
    if done.returncode:
        raise SystemExit(f"{done.stdout.decode()}This failed (exit status {done.returncode}): {' '.join(words)}")
    return done.stdout.decode().strip()
