"""Names and titles are one line: what moves or hides other text on a page, in a mail or a terminal is refused."""

import unicodedata

from django.core.exceptions import ValidationError
from django.utils.translation import gettext_lazy as _

CONTROLS = ("Cc", "Zl", "Zp")  # Unicode's categories of control characters and line breaks
# They turn the direction of the text around them, so that a name could be read as another.
TURNS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


# Letters and symbols that no font draws: fillers of hangul, the braille pattern and the musical note without anything.
BLANKS = frozenset("\u115f\u1160\u3164\uffa0\u2800\U0001d159")


def is_odd(character: str) -> bool:
    """Return whether a line must not have it."""
    return character in TURNS or unicodedata.category(character) in CONTROLS


def is_visible(text: str) -> bool:
    """Return whether a page shows anything of the text: letters, digits, signs, or what fonts of the house add."""
    return any(
        character not in BLANKS
        and (unicodedata.category(character)[0] in "LNPS" or unicodedata.category(character) == "Co")
        for character in text
    )


def check_one_line(text: str) -> None:
    """Raise ValidationError unless a page can show the text as one line and in its order; it may be empty.

    Codes: "not-one-line", and "invisible" for one of which nothing is seen, such as a zero-width space.
    """
    if any(map(is_odd, text)):
        raise ValidationError(_("Give one line without control characters."), code="not-one-line")
    if text.strip() and not is_visible(text):
        raise ValidationError(_("Give at least one visible character."), code="invisible")


def make_one_line(text: str) -> str:
    """Return a text that others store, such as the directory, as one line: with a space for each odd character.

    One of which nothing is seen is empty.
    """
    line = "".join(" " if is_odd(character) else character for character in text)
    return line if is_visible(line) else ""
