"""Amounts as people write and read them: "1,000,000", "100万", "1.5億", "2M"; digits of Japanese input too."""

import re
import unicodedata
from decimal import Decimal

SIGNS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9, "千": 10**3, "万": 10**4, "億": 10**8}
WRITTEN = re.compile(r"(\d+(?:\.\d+)?)([kmgb千万億]?)")
LONGEST = 30  # characters; more is no number of ours


def parse_amount(text: str) -> int:
    """Return the whole number that is meant. Raises ValueError."""
    plain = re.sub(r"[\s,_]", "", unicodedata.normalize("NFKC", text)).lower()
    found = WRITTEN.fullmatch(plain)
    if found is None or len(plain) > LONGEST:
        raise ValueError(f"{text!r} is no amount")
    value = Decimal(found[1]) * SIGNS[found[2]]
    if value != int(value):
        raise ValueError(f"{text!r} is no whole number")
    return int(value)
