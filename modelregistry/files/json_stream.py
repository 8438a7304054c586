"""Walks through a large JSON object member by member, without holding it: indexes and headers of model files.

Kimi K2's index of 139,583 tensors has 20 MB, which as Python's objects would be 80; of a file made to hurt, 30 times
its size. Here it is read in steps of 1 MiB, and no member may be longer than LONGEST. Only what such files are made of
is understood: an object of texts, numbers and objects that hold no others.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, BinaryIO

STEP = 2**20  # bytes read at a time
LONGEST = 2**20  # bytes of one member: a name and a value
_TEXT = rb'"(?:[^"\\]|\\.)*+"'
_SPACE = rb"[ \t\r\n]*+"
_KEY = re.compile(rb"%s(%s)%s:%s" % (_SPACE, _TEXT, _SPACE, _SPACE), re.DOTALL)
_FLAT = rb'\{(?:[^{}"]|%s)*+\}' % _TEXT
_VALUE = re.compile(rb"(%s|%s|\[[^][{}\"]*+\]|[-+.\w]++)(?=[ \t\r\n,}])" % (_TEXT, _FLAT), re.DOTALL)
# A whole member that is a text, as indexes have 100,000 of: one step instead of three.
_PAIR = re.compile(rb"%s(%s)%s:%s(%s)%s(?:,|(\}))" % (_SPACE, _TEXT, _SPACE, _SPACE, _TEXT, _SPACE), re.DOTALL)
_NEXT = re.compile(rb"%s([,}])" % _SPACE)
_OPEN = re.compile(rb"%s(\{)(%s\})?" % (_SPACE, _SPACE))
_PIECE = re.compile(rb'%s|[{}\[\]]|[^"{}\[\]]++' % _TEXT, re.DOTALL)


class BrokenJson(ValueError):
    """It is not the JSON that was expected, or not all of it."""


class JsonWalker:
    """Goes forward through `file`, of which it reads `length` bytes at most."""

    def __init__(self, file: BinaryIO, length: int) -> None:
        self._file = file
        self._left = length
        self._data = b""
        self._at = 0

    def members(self) -> Iterator[tuple[str, Any]]:
        """Yield the members of the object that begins here. Raises Broken."""
        if self._match(_OPEN)[2]:
            return
        while True:
            self._fill()
            if pair := _PAIR.match(self._data, self._at):
                self._at = pair.end()
                yield _text(pair[1]), _text(pair[2])
                last = pair[3]
            else:
                yield _text(self._match(_KEY)[1]), self.value()
                last = self._match(_NEXT)[1] == b"}"
            if last:
                return

    def names(self) -> Iterator[str]:
        """Yield the names in the object that begins here; the caller must read or skip each value. Raises Broken."""
        if self._match(_OPEN)[2]:
            return
        while True:
            yield _text(self._match(_KEY)[1])
            if self._match(_NEXT)[1] == b"}":
                return

    def value(self) -> Any:
        """Return a text, a number, a list of numbers, or an object of such. Raises Broken."""
        found = self._match(_VALUE)[1]
        if found[:1] == b'"':
            return _text(found)
        try:
            return json.loads(found)
        except (ValueError, RecursionError) as error:
            raise BrokenJson from error

    def skip(self) -> None:
        """Skip any value. Raises Broken."""
        depth = 0
        while True:
            self._fill()
            piece = _PIECE.match(self._data, self._at)
            if not piece:
                raise BrokenJson
            word = piece[0]
            if depth == 0 and word[:1] not in b'"{[':
                # A number or a word ends before what separates it from the next member.
                end = re.search(rb"[,}]", word)
                self._at += end.start() if end else len(word)
                return
            depth += (word in (b"{", b"[")) - (word in (b"}", b"]"))
            self._at = piece.end()
            if depth == 0:
                return

    def read_rest(self) -> bytes:
        """Return what comes behind, as far as it is no space; b"": nothing."""
        self._fill()
        return self._data[self._at :].strip()

    def _match(self, pattern: re.Pattern[bytes]) -> re.Match[bytes]:
        self._fill()
        found = pattern.match(self._data, self._at)
        if not found:
            raise BrokenJson
        self._at = found.end()
        return found

    def _fill(self) -> None:
        """See to it that a whole member lies ahead, or all that there is."""
        if len(self._data) - self._at >= LONGEST or not self._left:
            return
        more = self._file.read(min(STEP + LONGEST, self._left))
        self._left -= len(more)
        if not more:
            self._left = 0
        self._data, self._at = self._data[self._at :] + more, 0


def _text(raw: bytes) -> str:
    try:
        return str(json.loads(raw)) if b"\\" in raw else raw[1:-1].decode()
    except ValueError as error:
        raise BrokenJson from error
