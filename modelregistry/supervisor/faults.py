"""What went wrong on our side, in words that any database takes."""

import traceback


def describe_exception(error: Exception) -> str:
    """Describe it in one line. The log has all of it."""
    line = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]
    # It may quote what was stumbled over: a lone surrogate of a JSON file, or a NUL, which PostgreSQL refuses.
    return line.encode("utf-8", "replace").decode().replace("\0", "?")[:300]
