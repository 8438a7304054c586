"""Finds a text that repeats itself at its end, as quantised models do until their last token. Bytes in, facts out.

The method, chosen among five by measurement (tests/bench/RESULTS.md): the last ANCHOR bytes are looked for in what was
generated before; where they occur gives the period, and one comparison shows whether the text has repeated itself with
it for long enough. A look takes 3 µs, and there is one for every 30 tokens or so.
"""

import re
from dataclasses import dataclass
from math import ceil
from typing import Literal

# Bytes of the end of a text that are kept. Three copies of 450 Japanese characters; longer periods are not found.
TAIL = 4096
ANCHOR = 16
# The anchor may occur within a period as well: "no, no, no!" repeated. So many occurrences are tried.
TRIES = 8
# A loop is at least this many copies of one text. Of one that is LONG (tokens) fewer, or it would be ended later than
# 200 tokens after it began; longer ones may be blocks of a configuration that a person fills in.
COPIES, LONG_COPIES = 4, 3
LONG = range(48, 72)
# About what tokenizers make one token of: a word or half of one with the blank before it, three digits, two characters
# of Japanese, a row of the same sign. 300 dashes are a line that a writer wants, 300 words are not, nor 1,300 dashes.
TOKEN = re.compile(
    rb" ?[A-Za-z]{1,6}|[0-9]{1,3}|(?:\\.){1,8}|(\xe2..|\xe3\x80.|\xef..)\1{0,9}|(?:[\xc2-\xf4][\x80-\xbf]+){1,2}"
    rb"| ?(.)\2{0,9}",
    re.DOTALL,
)
SAMPLE = 10  # copies whose tokens are counted, because rows of signs join from copy to copy
# Rows of a form, a table or a matrix to be filled in: lines with more signs than letters, or with the same words again
# and again ("None, None"), of up to so many bytes. As many are allowed as fit on a page.
ROW, ROWS = 256, 48
# A vector of zeros, a line of stars with blanks: a few signs without a letter may go on for so much longer.
SIGNS, SIGNS_FACTOR = 6, 3
WORD = re.compile(rb"[A-Za-z]+")
LETTER = re.compile(rb"[A-Za-z\xc3-\xdf\xe4-\xee][\x80-\xbf]*|\xe3[\x81-\xbf][\x80-\xbf]")
BLANK = re.compile(rb"\\.|\s")  # an escaped sign is none that counts
TOKEN_BYTES = 4  # of a token, on average

Mode = Literal["off", "count", "stop"]
MODES: tuple[Mode, ...] = ("off", "count", "stop")
# Tokens that a loop must have, by sensitivity.
SENSITIVITIES = {"low": 400, "normal": 128, "high": 96}
NORMAL = SENSITIVITIES["normal"]


@dataclass(frozen=True, slots=True)
class LoopPolicy:
    """What is done about a model's loops: nothing, they are counted, or the answer is ended as well."""

    mode: Mode = "off"
    least: int = NORMAL  # tokens


def read_mode(text: str) -> Mode | None:
    """Return the mode of this name, if it is one."""
    return next((mode for mode in MODES if mode == text), None)


UNWATCHED = LoopPolicy()


class LoopDetector:
    """Watches one text as it grows. `looped` is how many of its bytes repeat what is before them."""

    __slots__ = ("_events", "_least", "_period", "_sizes", "_tail", "looped", "size", "suspicious")

    def __init__(self, least: int) -> None:
        self._least = least
        self._tail = b""
        self._period = 0  # of the loop that the text is in; 0: in none
        self._sizes = self._events = 0.0  # bytes and events of the last, those of twice as long ago half as much
        self.looped = 0
        self.size = 0  # bytes so far
        self.suspicious = False  # the text repeats itself at its end, not for long enough yet

    @property
    def loops(self) -> bool:
        """Whether the text is in a loop now."""
        return self._period > 0

    def feed(self, text: bytes, events: int) -> bool:
        """Add a text that came in so many events (1 or more); return `loops`."""
        if not text:
            return self.loops
        self.size += len(text)
        self._sizes, self._events = self._sizes / 2 + len(text), self._events / 2 + events
        tail = self._tail = (self._tail + text)[-TAIL:]
        if self._period:
            added, period = min(len(text), len(tail) - self._period), self._period
            if tail[-added:] == tail[-added - period : -period]:
                self.looped += len(text)
                return True
            self._period = 0
        period = self._find_period(tail)
        if period:
            self._period = period
            self.looped += looped_length(tail, period) - period
        return self.loops

    def feed_whole(self, text: bytes) -> None:
        """Take a text that came in one piece; only a loop that lasts to its end is found."""
        if self.feed(text, max(1, len(text) // TOKEN_BYTES)):
            self.looped = looped_length(text, self._period) - self._period

    def _find_period(self, tail: bytes) -> int:
        """Return the period of a loop at the text's end, or 0."""
        self.suspicious = False
        size, anchor = len(tail), tail[-ANCHOR:]
        end, inner = size - 1, 0
        for _ in range(TRIES):
            at = tail.rfind(anchor, 0, end)
            if at < 0:
                return 0
            period = size - ANCHOR - at
            # Several copies of a shorter period, which were too few, are no period of their own.
            if repeats(tail, period, 2 * period) and not (inner and repeats(tail, inner, period)):
                if self._is_long(tail, period):
                    return period
                inner, self.suspicious = period, True
            end = at + ANCHOR - 1
        return 0

    def _is_long(self, tail: bytes, period: int) -> bool:
        """Return whether the text has repeated itself with this period for long enough to be a loop."""
        most = TAIL // period * period
        if most < period * LONG_COPIES or not repeats(tail, period, period * LONG_COPIES):
            return False
        one, least = tail[-period:], self._least
        sample = SAMPLE if period <= ROW else 1
        tokens = sum(1 for _ in TOKEN.finditer(one * sample)) / sample
        copies = LONG_COPIES if round(tokens) in LONG else COPIES
        if period <= ROW:
            letters = sum(map(len, LETTER.findall(inked := BLANK.sub(b"", one))))
            cells = WORD.findall(one)
            if (letters * 2 < len(inked) or len(cells) >= 3 * len(set(cells))) and (b"\\n" in one or b"\n" in one):
                copies = ROWS
            elif not letters and 1 < len(one.decode(errors="ignore")) <= SIGNS:
                least *= SIGNS_FACTOR
        # Several tokens may come as one event, or one of many signs: whichever makes them more.
        each = max(tokens, period * self._events / self._sizes)
        length = period * max(copies, ceil(least / each))
        return repeats(tail, period, min(length, most))


def repeats(tail: bytes, period: int, length: int) -> bool:
    """Return whether the last `length` bytes repeat themselves with this period."""
    return length <= len(tail) and tail[-length:-period] == tail[period - length :]


def looped_length(tail: bytes, period: int) -> int:
    """Return how many bytes at the end repeat themselves with this period."""
    least, most = period, len(tail)
    while least < most:
        middle = (least + most + 1) // 2
        if repeats(tail, period, middle):
            least = middle
        else:
            most = middle - 1
    return least
