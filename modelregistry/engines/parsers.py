"""What the engines of this host take: the argument parser of each version itself, asked once and kept in the cache.

No Django. Asking starts the engine's program or its Python for as long as it takes to print its options: vLLM's imports
take 10 to 20 s, the others less than a second. What cannot be asked (a program in a container) is noted as well, so
that no caller waits for it again; then arguments are not checked before a start.
"""

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from modelregistry.engines import arguments, option_listings, programs
from modelregistry.engines.arguments import Options
from modelregistry.engines.base import Engine, Spec
from modelregistry.engines.registry import launched_by

WITHIN = 120.0  # seconds; vLLM's first import from a cold network disk
MAX_OUTPUT = 4 * 2**20  # bytes that are read of what it prints; vLLM's are 40 kB
FEWEST = 10  # options; a program that shows less has no parser that we can read


def options_of(launcher: str, program: Sequence[str], cache: Path) -> Options | None:
    """Return what is kept of this very program; None: it was not asked yet, or cannot be. Starts nothing."""
    if launched_by(launcher).parser_is_ours:
        return arguments.shipped_options(launcher)
    path = _cache_path(launcher, program, cache)
    try:
        return _load_table(path, path.stat().st_mtime_ns)
    except (OSError, ValueError, TypeError, LookupError):
        return None


def load_options(launcher: str, program: Sequence[str], cache: Path, *, within: float = WITHIN) -> Options | None:
    """Return the same, after asking it unless that was done before.

    Blocks for its imports, at most `within` seconds.
    """
    engine, path = launched_by(launcher), _cache_path(launcher, program, cache)
    if not engine.parser_is_ours and not path.exists():
        found = _ask_options(engine, program, within)
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f"{path.name}.{os.getpid()}.{time.monotonic_ns()}")
        draft.write_text(json.dumps(found))
        draft.replace(path)
    return options_of(launcher, program, cache)


def options_of_host(
    spec: Spec, commands: Mapping[str, str], cache: Path, search_path: str, *, asking: bool
) -> tuple[str, Options | None]:
    """Return the launcher that this host would start it with, and the options of that; "" and None: not known.

    `asking`: blocks as `load_options` does if this version was not asked yet.
    """
    found = programs.find_engines(commands, cache, search_path)
    try:
        launcher = programs.choose_launcher(spec, found)
    except programs.NoLauncher:
        return spec.launcher, None
    pinned = [one.program for one in programs.installed_versions(launcher, cache) if one.version == spec.version]
    program = pinned[0] if pinned else found[launcher]
    return launcher, (load_options if asking else options_of)(launcher, program, cache)


@lru_cache(maxsize=16)
def _load_table(path: Path, _changed: int) -> Options | None:
    stored = json.loads(path.read_text())
    return Options.of(stored, exact=True) if len(stored) >= FEWEST else None


def _cache_path(launcher: str, program: Sequence[str], cache: Path) -> Path:
    mark = sha256(json.dumps([*_stamp_parts(launcher, program)]).encode()).hexdigest()[:24]
    return cache / "options" / f"{launcher}-{mark}.json"


def _stamp_parts(launcher: str, program: Sequence[str]) -> Iterator[str]:
    """Change when the engine does, or how we ask it."""
    yield from program
    yield sha256(option_listings.DESCRIBE.read_bytes() + Path(option_listings.__file__).read_bytes()).hexdigest()
    for word in program:
        if os.path.isabs(word) and os.path.isfile(word):
            found = os.stat(word)
            yield f"{found.st_size} {found.st_mtime_ns}"
    if python := _find_python(program):
        # An environment of a package is the same Python after an upgrade.
        for package in launched_by(launcher).packages:
            name = package.replace("-", "_")
            places = python.parent.parent.glob(f"lib/python*/site-packages/{name}-*.dist-info")
            yield from sorted(place.name for place in places)


def _find_python(program: Sequence[str]) -> Path | None:
    """Return the Python of its environment, if the program is one or a script that lies beside one."""
    first = Path(program[0]) if program else Path()
    if re.fullmatch(r"python[\d.]*", first.name):
        return first
    beside = first.resolve().with_name("python")
    return beside if first.is_absolute() and beside.exists() else None


def _ask_options(engine: Engine, program: Sequence[str], within: float) -> list[dict[str, Any]]:
    """Return the options that the program prints; empty: it prints none."""
    command = engine.options_command(program, _find_python(program))
    return engine.read_options(_run_command(command, within)) if command else []


def _run_command(argv: Sequence[str], within: float) -> str:
    environment = {name: os.environ[name] for name in ("HOME", "LD_LIBRARY_PATH") if name in os.environ}
    environment |= {"PATH": os.defpath, "LANG": "C.UTF-8", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    try:
        done = subprocess.run(
            argv, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=within, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout[:MAX_OUTPUT].decode(errors="replace") if done.returncode == 0 else ""
