"""Unexpected exceptions, described in text that any database accepts."""

import traceback


def describe_exception(error: Exception) -> str:
    """Describe an exception in one line; the log has its traceback."""
    line = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]
    # It may quote a lone surrogate of a JSON file, or a NUL, both of which PostgreSQL refuses.
    return line.encode("utf-8", "replace").decode().replace("\0", "?")[:300]
