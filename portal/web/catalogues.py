"""The compiled texts of other languages, which are not in the repository: `make setup` makes them."""

from collections.abc import Iterable
from pathlib import Path


def find_uncompiled(directories: Iterable[Path]) -> list[Path]:
    """Return the catalogues (`.po`) whose compiled form (`.mo`) is missing or older: their pages are half English."""
    found = []
    for directory in directories:
        for texts in sorted(directory.glob("*/LC_MESSAGES/*.po")):
            compiled = texts.with_suffix(".mo")
            if not compiled.exists() or compiled.stat().st_mtime < texts.stat().st_mtime:
                found.append(texts)
    return found
