"""Engines that Madoguchi can install by itself, each in a virtual environment of its own under the cache.

Never in ours: engines pin what they like, and a new one must not change the portal. Standard library only.
"""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from modelregistry.fetching import CannotFetch, Say, once, pip


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineEnvironment:
    """What is installed. Another version is another directory, so a running engine keeps the one it started from."""

    name: str
    version: str
    module: str  # what its Python must be able to import
    pins: tuple[str, ...]  # requirements with their hashes; everything that is needed, dependencies are not followed

    def directory(self, cache: Path) -> Path:
        return cache / "engines" / f"{self.name}-{self.version}"

    def python(self, cache: Path) -> Path:
        """The interpreter that can import the engine, if `installed`."""
        return self.directory(cache) / "bin" / "python"

    def installed(self, cache: Path) -> bool:
        # False also when the Python that it was made from is gone: its link leads nowhere.
        return self.python(cache).exists()


# llama.cpp b11549's own HTTP server as a Python module: 34 MB, no compiler. The hashes are those of the wheels for
# Linux (glibc ≥ 2.17, Python ≥ 3.10) on x86-64 and on arm64.
XLLAMACPP = EngineEnvironment(
    name="xllamacpp",
    version="2026.10.11549",
    module="xllamacpp",
    pins=(
        "xllamacpp==2026.10.11549"
        " --hash=sha256:c54e7d13520ecc989c63dc99d55de3065e2f343a91f43f053d16b5e62077c261"
        " --hash=sha256:e2a3e79e775515de4ad197e667f874070446ef9ac9cf2044bc9866bc4c72289e",
    ),
)
INSTALLABLE = {environment.name: environment for environment in (XLLAMACPP,)}


def install(environment: EngineEnvironment, cache: Path, say: Say) -> Path:
    """Its Python, after installing what is missing (seconds to a minute). Raises CannotFetch."""

    def make(workspace: Path) -> Path:
        say(f"installing {environment.name} {environment.version} under {workspace.parent}")
        made = workspace / "environment"
        # An environment may be renamed as long as only its Python is used: that finds its packages from where it
        # stands. (Scripts such as pip hold the path where they were built: none of ours is called.)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", made], check=True)
        python = made / "bin" / "python"
        pip("--python", str(python), "install", pins=environment.pins)
        _check(python, environment)
        return made

    once(environment.directory(cache), make, say, whole=lambda _: environment.installed(cache))
    return environment.python(cache)


def _check(python: Path, environment: EngineEnvironment) -> None:
    # 120 s: a first import reads 100 MB, perhaps from a network disk. Dies here rather than at each start of a model.
    command = [str(python), "-c", f"import {environment.module}"]
    test = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if test.returncode:
        reason = (test.stderr.strip().splitlines() or [f"exit status {test.returncode}"])[-1]
        raise CannotFetch(f"{environment.name} {environment.version} does not run on this machine: {reason}")
