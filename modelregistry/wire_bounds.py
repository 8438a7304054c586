"""How much a host may send in one field: `Annotated[str, AtMost(200)]`, which `hostside.wire` enforces."""

from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True, slots=True)
class AtMost:
    """Characters of a text, entries of a list or mapping."""

    number: int


MOST_IN_LINE = 5_000
Name = Annotated[str, AtMost(300)]
Line = Annotated[str, AtMost(MOST_IN_LINE)]
Names = Annotated[tuple[Name, ...], AtMost(1_000)]
Lines = Annotated[tuple[Line, ...], AtMost(1_000)]


def shorten(text: str, most: int = MOST_IN_LINE) -> str:
    """Return a text, cut to so many characters; then "…" is its last one."""
    return text if len(text) <= most else f"{text[: most - 1]}…"
