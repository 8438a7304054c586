"""Numbers that people type on command lines and in forms: ASCII digits, with a sign or a point.

Python reads much more as a number: "1_0" is 10, "１０" is 10, "nan" passes every comparison, and "1e3" is not what
anyone types for a thousand seconds. Amounts of quotas are read by `portal.quotas.amounts`, which knows 万 and M.
"""

import re
from argparse import ArgumentTypeError

# Up to 19 digits: what is bounded says its bound itself.
WHOLE = re.compile(r"[+-]?[0-9]{1,19}")
LONG = re.compile(r"[+-]?[0-9]{20,}")
DECIMAL = re.compile(r"[+-]?([0-9]{1,19}(\.[0-9]{0,18})?|\.[0-9]{1,18})")


def read_whole(text: str) -> int:
    """Return the whole number that was typed. Raises ValueError."""
    if WHOLE.fullmatch(text) is None:
        fault = "is too large" if LONG.fullmatch(text) else "is not a whole number"
        raise ValueError(f"{text[:40]!r} {fault}")
    return int(text)


def read_decimal(text: str) -> float:
    """Return the number that was typed. Raises ValueError."""
    if DECIMAL.fullmatch(text) is None:
        raise ValueError(f"{text[:40]!r} is not a number")
    return float(text)


def whole_number(text: str) -> int:
    """Return the whole number of an option, as argparse has it read."""
    try:
        return read_whole(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None


def decimal_number(text: str) -> float:
    """Return the number of an option, as argparse has it read."""
    try:
        return read_decimal(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None
