"""Output on terminals: tables, and text from files and hosts that may hold anything.

That is escapes that colour a terminal, move its cursor or set its title, line breaks that fake a row, characters that
reverse the reading direction. One function makes such text harmless and bounds its length.
"""

import unicodedata
from collections.abc import Collection, Iterable, Sequence

WIDEST = 60  # columns that one cell may give to its column; a longer one moves only its own row
MAX_CELL = 200  # characters of a cell
MAX_FIRST_CELL = 4096  # of the first one, which names what a row is about and is copied, as a path
IDEOGRAPHIC_SPACE = "\u3000"  # not printable to Python, and common in Japanese


def format_table(head: Sequence[str], rows: Iterable[Sequence[str]], *, numeric: Collection[str] = ()) -> Iterable[str]:
    """Yield the lines of a table with cleaned cells, each column as wide as its widest cell, within bounds.

    Columns whose heads are in `numeric` are aligned to the right.
    """
    lines = [
        [clean(cell, MAX_CELL if at else MAX_FIRST_CELL) for at, cell in enumerate(line)] for line in [head, *rows]
    ]
    widths = [_width(column) for column in zip(*lines, strict=True)]
    for line in lines:
        yield "  ".join(
            _pad(cell, width, right=name in numeric) for name, cell, width in zip(head, line, widths, strict=True)
        ).rstrip()


def _pad(cell: str, width: int, *, right: bool) -> str:
    space = " " * (width - _columns(cell))
    return space + cell if right else cell + space


def _width(column: Sequence[str]) -> int:
    widths = list(map(_columns, column))
    return max(width for at, width in enumerate(widths) if width <= WIDEST or not at)  # the head, however long


def clean(text: str, most: int = MAX_FIRST_CELL) -> str:
    """Return the text on one line, with unprintable characters written out (`\\x1b`), cut to `most` characters."""
    shown = "".join(map(_escape, text[: most + 1]))
    return shown if len(shown) <= most else shown[: most - 1] + "…"


def clean_lines(text: str) -> str:
    """Return text of several lines, each cleaned."""
    return "\n".join(map(clean, text.split("\n")))


def is_printable(text: str) -> bool:
    """Return whether `clean` leaves the text as it is."""
    return all(character.isprintable() or character == IDEOGRAPHIC_SPACE for character in text)


def _escape(character: str) -> str:
    return character if is_printable(character) else ascii(character)[1:-1]


def _columns(text: str) -> int:
    """Return the width on a terminal: Chinese and Japanese characters take two columns, combining accents none."""
    return sum(
        0 if unicodedata.combining(character) else 1 + (unicodedata.east_asian_width(character) in "WF")
        for character in text
    )
