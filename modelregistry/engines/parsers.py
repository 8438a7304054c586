"""What the engines of this host take: the argument parser of each version itself, asked once and kept in the cache.

No Django. Asking starts the engine's program or its Python for as long as it takes to print its options: vLLM's imports
take 10 to 20 s, the others less than a second. What cannot be asked (a program in a container) is noted as well, so
that nobody waits for it again; then arguments are not checked before a start.
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

from modelregistry.engines import arguments, base
from modelregistry.engines.arguments import Options
from modelregistry.engines.base import Spec
from modelregistry.engines.versions import PACKAGES

DESCRIBE = Path(__file__).with_name("options") / "describe.py"
WITHIN = 120.0  # seconds; vLLM's first import from a cold network disk
MOST = 4 * 2**20  # bytes that are read of what it prints; vLLM's are 40 kB
FEWEST = 10  # options; a program that shows less has no parser that we can read
# A line of llama-server's help: names, what follows them, and 40 columns from the margin or below it the words.
_HELP = re.compile(r"(--?[A-Za-z][\w.-]*(?:, +--?[A-Za-z][\w.-]*)*)(?: (\S.*?))?(?: {3,}.*| *)$")
_LIST = re.compile(r"\{([\w,.+-]+)\}")
_INTEGERS = frozenset(["N", "PORT", "INDEX", "SECONDS"])


def options_of(launcher: str, program: Sequence[str], cache: Path) -> Options | None:
    """What is kept of this very program; None: it was not asked yet, or cannot be. Starts nothing."""
    if launcher == "xllamacpp":
        return arguments.shipped_options(launcher)  # its parser is ours
    path = _place(launcher, program, cache)
    try:
        return _loaded(path, path.stat().st_mtime_ns)
    except (OSError, ValueError, TypeError, LookupError):
        return None


def load_options(launcher: str, program: Sequence[str], cache: Path, *, within: float = WITHIN) -> Options | None:
    """Return the same, after asking it unless that was done before.

    Blocks for its imports, at most `within` seconds.
    """
    path = _place(launcher, program, cache)
    if launcher != "xllamacpp" and not path.exists():
        found = _asked(launcher, program, within)
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f"{path.name}.{os.getpid()}.{time.monotonic_ns()}")
        draft.write_text(json.dumps(found))
        draft.replace(path)
    return options_of(launcher, program, cache)


def options_of_host(
    spec: Spec, commands: Mapping[str, str], cache: Path, search_path: str, *, asking: bool
) -> tuple[str, Options | None]:
    """The launcher that this host would start it with, and what that takes; "" and None: it has none, or cannot tell.

    `asking`: blocks as `ask` does if this version was not asked yet.
    """
    found = base.find_engines(commands, cache, search_path)
    try:
        launcher = base.choose_launcher(spec, found)
    except base.NoLauncher:
        return spec.launcher, None
    pinned = [one.program for one in base.installed_versions(launcher, cache) if one.version == spec.version]
    program = pinned[0] if pinned else found[launcher]
    return launcher, (load_options if asking else options_of)(launcher, program, cache)


@lru_cache(maxsize=16)
def _loaded(path: Path, _changed: int) -> Options | None:
    stored = json.loads(path.read_text())
    return Options.of(stored, exact=True) if len(stored) >= FEWEST else None


def _place(launcher: str, program: Sequence[str], cache: Path) -> Path:
    mark = sha256(json.dumps([*_stamp(launcher, program)]).encode()).hexdigest()[:24]
    return cache / "options" / f"{launcher}-{mark}.json"


def _stamp(launcher: str, program: Sequence[str]) -> Iterator[str]:
    """Change when the engine does, or how we ask it."""
    yield from program
    yield sha256(DESCRIBE.read_bytes() + Path(__file__).read_bytes()).hexdigest()
    for word in program:
        if os.path.isabs(word) and os.path.isfile(word):
            found = os.stat(word)
            yield f"{found.st_size} {found.st_mtime_ns}"
    if python := _python(program):
        # An environment of a package is the same Python after an upgrade.
        packages = PACKAGES.get(launcher, ())
        for package in packages:
            name = package.replace("-", "_")
            places = python.parent.parent.glob(f"lib/python*/site-packages/{name}-*.dist-info")
            yield from sorted(place.name for place in places)


def _python(program: Sequence[str]) -> Path | None:
    """Return the Python of its environment, if the program is one or a script that lies beside one."""
    first = Path(program[0]) if program else Path()
    if re.fullmatch(r"python[\d.]*", first.name):
        return first
    beside = first.resolve().with_name("python")
    return beside if first.is_absolute() and beside.exists() else None


def _asked(launcher: str, program: Sequence[str], within: float) -> list[dict[str, Any]]:
    """Empty: it does not tell."""
    if launcher == "llama-server":
        return help_options(_output([*program, "--help"], within))
    python = _python(program)
    text = _output([str(python), "-I", str(DESCRIBE), launcher], within) if python else ""
    line = next((line for line in text.splitlines() if line.startswith("OPTIONS ")), "")
    try:
        found = json.loads(line.removeprefix("OPTIONS ") or "[]")
        Options.of(found, exact=True)
    except (ValueError, TypeError, LookupError):
        return []
    return list(found)


def _output(argv: Sequence[str], within: float) -> str:
    environment = {name: os.environ[name] for name in ("HOME", "LD_LIBRARY_PATH") if name in os.environ}
    environment |= {"PATH": os.defpath, "LANG": "C.UTF-8", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    try:
        done = subprocess.run(
            argv, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=within, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout[:MOST].decode(errors="replace") if done.returncode == 0 else ""


def help_options(text: str) -> list[dict[str, Any]]:
    """llama-server's `--help` (common_arg::to_string of llama.cpp's common/arg.cpp), as `Options.of` reads it."""
    matches = (_HELP.fullmatch(line) for line in text.splitlines())
    return [_option(match[1].replace(" ", "").split(","), (match[2] or "").strip()) for match in matches if match]


def _option(names: list[str], hint: str) -> dict[str, Any]:
    off = [name for name in names if _is_opposite(name, names)]
    # Two values are two words, as no hint of one value has them: START END. Those in brackets are one.
    words = [] if hint.startswith(("<", "{", "[")) else hint.split()
    found: dict[str, Any] = {"names": [name for name in names if name not in off], "off": off}
    found["values"] = "0" if not hint else "2" if len(words) == 2 and all(word.isupper() for word in words) else "1"
    if hint:
        # Not of [on|off|auto]: true, 1 and others mean the same there.
        choices = _LIST.fullmatch(hint)
        found["choices"] = choices[1].split(",") if choices else []
        found["kind"] = "int" if hint in _INTEGERS and not _takes_words(names) else "text"
    return found


def _is_opposite(name: str, names: Sequence[str]) -> bool:
    """`--no-mmap` beside `--mmap`, and `-nkvo` with it; not `--no-host`, which has no other side."""
    long = [other for other in names if other.startswith("--")]
    two_sided = {other.startswith("--no-") for other in long} == {True, False}
    return two_sided and name.startswith(("--no-", "-n")) and not name.startswith("--n-")


# llama.cpp writes N for these, too, and takes words (auto, all) and decimals.
_WORDS = re.compile(
    r"--(n-gpu-layers.*|gpu-layers.*|spec-draft-ngl|temp|top-p|min-p|typical.*|xtc-.*|top-n-?sigma|repeat-penalty|"
    r"presence-penalty|frequency-penalty|dry-(multiplier|base)|adaptive-.*|dynatemp-.*|mirostat-(lr|ent)|rope-.*|"
    r"yarn-(ext|attn|beta).*|defrag-thold|video-fps)"
)


def _takes_words(names: Sequence[str]) -> bool:
    return any(_WORDS.fullmatch(name) for name in names)
