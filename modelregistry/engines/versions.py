"""Which version of each launcher this host has, asked of the programs themselves. An engine is never imported: 10 s."""

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

from modelregistry.engines.registry import launched_by

WITHIN = 20.0  # seconds; a Python's start from a cold disk
ASK = """
import importlib.metadata, sys
for name in sys.argv[1:]:
    try:
        print(importlib.metadata.version(name))
        break
    except importlib.metadata.PackageNotFoundError:
        pass
"""


class EngineVersions:
    """Remembers a program's version until its file changes."""

    def __init__(self) -> None:
        self.known: dict[tuple[str, tuple[str, ...], int], str] = {}

    def of(self, found: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
        """Return them by launcher, of what `programs.find_engines` found; "" for one that reports none.

        Blocks, WITHIN for each.
        """
        asked = {(launcher, program, _changed_at(program[0])): launcher for launcher, program in found.items()}
        self.known = {key: self.known[key] if key in self.known else _ask_version(key[0], key[1]) for key in asked}
        return {launcher: self.known[key] for key, launcher in asked.items()}


def _ask_version(launcher: str, program: tuple[str, ...]) -> str:
    engine = launched_by(launcher)
    if command := engine.version_command(program):
        return engine.read_version(_run_command(command))
    if not engine.packages:
        return ""
    python = program[0]
    if not re.match(r"python[\d.]*$", Path(python).name):  # a script of an environment: its Python is beside it
        python = str(Path(python).resolve().with_name("python"))
    return _run_command([python, "-I", "-c", ASK, *engine.packages]).strip()


def _run_command(argv: list[str]) -> str:
    try:
        done = subprocess.run(
            argv,
            env={"PATH": os.defpath, "LANG": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,  # where llama-server prints it
            text=True,
            timeout=WITHIN,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _changed_at(program: str) -> int:
    try:
        return Path(program).stat().st_mtime_ns
    except OSError:
        return 0
