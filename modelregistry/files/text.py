"""Texts out of a model's files, and names of files: what is left of them for a terminal, a page and a database."""

from unicodedata import category

LONGEST = 100  # characters of a name; the longest architecture has 50


def clean_text(value: object, longest: int = LONGEST) -> str:
    """Return a text that can be stored, sent and printed; "": it is none.

    Escape sequences would write on a terminal, lone surrogates ("\\ud800" in JSON) fail wherever they are encoded.
    """
    if not isinstance(value, str):
        return ""
    return "".join(
        # Python counts no space but the plain one as printable; names of folders have the wide one of Japanese.
        letter if letter.isprintable() or category(letter) == "Zs" else "\N{REPLACEMENT CHARACTER}"
        for letter in value[:longest]
    )
