"""Names that people give are one line: what moves or hides other text on a page, in a mail or a terminal is refused."""

import unicodedata

from django.core.exceptions import ValidationError
from django.utils.translation import gettext_lazy as _

CONTROLS = ("Cc", "Zl", "Zp")  # Unicode's categories of control characters and line breaks
# They turn the direction of the text around them, so that a name could be read as another.
TURNS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def check_one_line(text: str) -> None:
    """Raise ValidationError, code "not-one-line", unless a page can show the text as one line and in its order."""
    if any(character in TURNS or unicodedata.category(character) in CONTROLS for character in text):
        raise ValidationError(_("Give one line without control characters."), code="not-one-line")
