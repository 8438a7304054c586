"""Which programs of engines this host has, and which launcher a model is started with. Starts nothing."""

import os
import re
import shlex
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from modelregistry.engines.base import Spec
from modelregistry.engines.registry import all_launchers, engine_named, launched_by
from modelregistry.engines.version_trials import Installed


class NoLauncher(LookupError):
    """The host has no program for the engine. The message says how to get one."""


def find_engines(commands: Mapping[str, str], cache: Path, search_path: str) -> dict[str, tuple[str, ...]]:
    """Return the program of each launcher that this host has: as named by operators, else in the cache, else on PATH.

    For Python modules the program is a Python that can import them. Looks at the disk.
    """
    found = {}
    for launcher in all_launchers():
        named = tuple(shlex.split(commands.get(launcher, "")))
        if program := named or _find_installed(launcher, cache) or _on_path(launcher, search_path):
            found[launcher] = program
    return found


def _find_installed(launcher: str, cache: Path) -> tuple[str, ...]:
    return next((one.program for one in installed_versions(launcher, cache)), ())


def _on_path(launcher: str, search_path: str) -> tuple[str, ...]:
    program = shutil.which(launcher, path=search_path) if launched_by(launcher).on_search_path else None
    return (program,) if program else ()


def installed_versions(launcher: str, cache: Path) -> list[Installed]:
    """Return the versions of it that we installed, the newest first. Looks at the disk."""
    engine = launched_by(launcher)
    pattern = f"engines/{launcher}-[0-9]*/bin/{engine.installed_program}"
    found = [path for path in cache.glob(pattern) if path.exists()]
    return [
        Installed(
            launcher=launcher,
            version=path.parts[-3].removeprefix(f"{launcher}-"),
            stamp=_stamp(path),
            program=engine.program(path),
        )
        for path in sorted(found, key=_version_key, reverse=True)
    ]


def all_installed(cache: Path) -> list[Installed]:
    """Return what we installed of all launchers."""
    return [one for launcher in all_launchers() for one in installed_versions(launcher, cache)]


def group_versions(there: Iterable[Installed]) -> dict[str, list[str]]:
    """Group installations by launcher, in the order in which they come."""
    found: dict[str, list[str]] = {}
    for one in there:
        found.setdefault(one.launcher, []).append(one.version)
    return found


def group_stamps(there: Iterable[Installed]) -> dict[str, dict[str, str]]:
    """Return the stamp of each installation by launcher and version."""
    found: dict[str, dict[str, str]] = {}
    for one in there:
        found.setdefault(one.launcher, {})[one.version] = one.stamp
    return found


def default_versions(found: Mapping[str, tuple[str, ...]], there: Iterable[Installed]) -> dict[str, str]:
    """Return which installation each launcher's usual program is; "": none of ours, operators named it."""
    versions = {one.program: one.version for one in there}
    return {launcher: versions.get(program, "") for launcher, program in found.items()}


def _stamp(program: Path) -> str:
    """Return what changes when it is installed again: an installation appears by one rename of what was made for it."""
    directory = os.stat(program.parents[1])
    return f"{directory.st_ino} {directory.st_mtime_ns}"


def _version_key(program: Path) -> tuple[bool, list[int]]:
    # vLLM's build for GPUs is installed only where there is one, so it comes before the build for CPUs.
    name = program.parts[-3]
    return "+cpu" not in name, [int(number) for number in re.findall(r"\d+", name)]


def choose_launcher(
    spec: Spec, found: Mapping[str, tuple[str, ...]], *, prefer: Sequence[str] = (), avoid: Collection[str] = ()
) -> str:
    """Return the launcher for this model: the one it names, or the first that the host has. Raises NoLauncher.

    Where none is named, those of `prefer` come first, in that order, and those of `avoid` last.
    """
    launchers = engine_named(spec.engine).launchers()
    candidates = [name for name, engine in launchers.items() if name and engine.serves(spec.task)]
    if spec.launcher and len(launchers) > 1:
        candidates = [spec.launcher]
    first = [name for name in prefer if name in candidates]
    last = [name for name in candidates if name in avoid]
    for launcher in [*first, *(name for name in candidates if name not in avoid), *last]:
        if launcher in found:
            return launcher
    raise NoLauncher(engine_named(spec.engine).how_to_get(spec.launcher))
