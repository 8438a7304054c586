"""Reads what programs print of the options that they take, as `Options.of` takes it. Pure."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modelregistry.engines.arguments import Options

DESCRIBE = Path(__file__).with_name("options") / "describe.py"
# A line of llama-server's help: names, what follows them, and 40 columns from the margin or below it the words.
_HELP = re.compile(r"(--?[A-Za-z][\w.-]*(?:, +--?[A-Za-z][\w.-]*)*)(?: (\S.*?))?(?: {3,}.*| *)$")
_LIST = re.compile(r"\{([\w,.+-]+)\}")
_INTEGERS = frozenset(["N", "PORT", "INDEX", "SECONDS"])


def describe_command(launcher: str, python: Path | None) -> list[str]:
    """Return the command that has the engine's own argument parser described; empty: its Python is not known."""
    return [str(python), "-I", str(DESCRIBE), launcher] if python else []


def read_description(text: str) -> list[dict[str, Any]]:
    """Return the options that such a command printed; empty: it did not."""
    line = next((line for line in text.splitlines() if line.startswith("OPTIONS ")), "")
    try:
        found = json.loads(line.removeprefix("OPTIONS ") or "[]")
        Options.of(found, exact=True)
    except (ValueError, TypeError, LookupError):
        return []
    return list(found)


def help_options(text: str) -> list[dict[str, Any]]:
    """Return the options in llama-server's `--help` (common_arg::to_string of llama.cpp's common/arg.cpp)."""
    matches = (_HELP.fullmatch(line) for line in text.splitlines())
    return [_make_option(match[1].replace(" ", "").split(","), (match[2] or "").strip()) for match in matches if match]


def _make_option(names: list[str], hint: str) -> dict[str, Any]:
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
    """Return whether it turns an option off: `--no-mmap` beside `--mmap`, but not `--no-host`, which stands alone."""
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
