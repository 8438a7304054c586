"""What a checkpoint's README.md, the card of its publisher, says in the YAML at its beginning: licence and languages.

Only these lines are read, whatever else the YAML holds: `license: apache-2.0`, `language: ja`, `language: [ja, en]`,
and a list with an item to a line.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from modelregistry.files.regular import open_regular_file
from modelregistry.files.text import clean_text

CARD = "README.md"
LONGEST_CARD = 64 * 1024  # bytes; the YAML of a card with 200 languages has 10 KB
MOST_LANGUAGES = 200
LANGUAGE = re.compile(r"[A-Za-z]{2,8}(?:[-_][A-Za-z0-9]{1,8})*")
FRONT = re.compile(r"\A---[ \t]*\n(.*?)\n---[ \t]*(?:\n|\Z)", re.DOTALL)
# Of licences that Hugging Face has no code for, `license` is "other" and `license_name` has the name.
LICENCE = re.compile(r"^license(?:_name)?:[ \t]*(\S[^\n]*)$", re.MULTILINE)
LANGUAGES = re.compile(r"^language:[ \t]*([^\n]*)\n?((?:[ \t]*-[ \t]+[^\n]*(?:\n|\Z))*)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class ModelCard:
    """`licence` as it is named there, `languages` as codes; empty: the card does not say, or there is none."""

    licence: str = ""
    languages: tuple[str, ...] = ()


def read_model_card(directory: Path) -> ModelCard:
    """Read a checkpoint's card. One that cannot be read says nothing: the model works without it."""
    try:
        with open_regular_file(directory / CARD) as file:
            text = file.read(LONGEST_CARD).decode(errors="replace")
    except OSError:
        return ModelCard()
    return parse_model_card(text)


def parse_model_card(text: str) -> ModelCard:
    """Return what the YAML at the beginning of a card says."""
    front = FRONT.match(text.replace("\r\n", "\n"))
    if front is None:
        return ModelCard()
    named = [_unquote(value) for value in LICENCE.findall(front[1])]
    found = LANGUAGES.search(front[1])
    inline, block = (found[1].strip(), found[2]) if found else ("", "")
    languages = re.split(r"[\s,\[\]]+", inline) if inline else _list_items(block)
    return ModelCard(
        licence=clean_text(next((name for name in named if name and name != "other"), "")),
        languages=clean_languages(languages),
    )


def clean_languages(found: object) -> tuple[str, ...]:
    """Return the codes of languages among what a file lists as such, in lower case."""
    texts = [found] if isinstance(found, str) else found if isinstance(found, list) else []
    codes = [_unquote(text) for text in texts[:MOST_LANGUAGES] if isinstance(text, str)]
    return tuple(dict.fromkeys(code.lower() for code in codes if LANGUAGE.fullmatch(code)))


def _list_items(block: str) -> list[str]:
    return [line.strip().removeprefix("-").strip() for line in block.splitlines()]


def _unquote(text: str) -> str:
    return re.sub(r"[ \t]+#.*", "", text).strip().strip("\"'").strip()
