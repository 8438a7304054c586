"""What was logged, found by the constant that it is written from."""

import re

PLACE = re.compile(r"%[-+ #0]*[0-9.]*[a-z]")


def lines_of(message: str, log: str) -> list[str]:
    """Return the lines of a log that were written from this message, whatever was filled in."""
    pattern = re.compile(".*".join(map(re.escape, PLACE.split(message))))
    return [line for line in log.splitlines() if pattern.search(line)]
