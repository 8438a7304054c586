"""What logs and commands write, read by constants and numbers instead of words."""

import re

PLACE = re.compile(r"%[-+ #0]*[0-9.]*[a-z]")


def lines_of(message: str, log: str) -> list[str]:
    """Return the lines of a log that were written from this message, whatever was filled in."""
    pattern = re.compile(".*".join(map(re.escape, PLACE.split(message))))
    return [line for line in log.splitlines() if pattern.search(line)]


def numbers_in(text: str) -> list[int]:
    """Return the whole numbers in a text; 1.5 is two."""
    return [int(number) for number in re.findall("[0-9]+", text)]
