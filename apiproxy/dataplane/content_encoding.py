"""Request bodies that come compressed (`Content-Encoding`): decompressed piece by piece, no more than is asked for.

Only gzip and deflate: Python 3.11 has no others, and no client of this API was seen to send br or zstd. Those are
refused by name, with the header that names what a client may send instead (RFC 9110, 15.5.16).
"""

import asyncio
import zlib
from typing import Any

from apiproxy.dataplane.downstream import Message, Receive
from apiproxy.dataplane.errors import BadRequest, UnknownCoding

# Bytes that are decompressed at a time; other calls have their turn between them. 64 KB take 0.2 ms at most.
PIECE = 64 * 1024
# Members of one body. bgzip makes one of every 64 KB; of empty ones, 20 bytes each, a megabyte stops all calls for a
# second.
MAX_MEMBERS = 1000
GZIP = 31  # of zlib's `wbits`: a gzip header is expected
DEFLATE, RAW = 15, -15  # with zlib's header, as RFC 9110 has it; without one, as some send it


def decode_body(receive: Receive, coding: bytes) -> Receive:
    """Return a `receive` for the body as it was before it was encoded. Raises UnknownCoding.

    It raises BadRequest for a body that is not encoded in that way.
    """
    name = coding.strip().lower().decode("latin-1")
    if name in ("", "identity"):
        return receive
    if name not in ("gzip", "x-gzip", "deflate"):
        raise UnknownCoding("unknown_coding", coding=name[:40], headers={"accept-encoding": "gzip, deflate"})
    return Decoder(receive, name).receive


class Decoder:
    """A body that comes compressed by `name`; gzip may come in several members (RFC 1952, 2.2)."""

    def __init__(self, receive: Receive, name: str) -> None:
        self._receive = receive
        self._name = name
        self._stream: Any = None  # of zlib; None: a member begins
        self._input = b""
        self._more = True  # of the compressed body
        self._members = 0
        self._pending = False  # the stream may have more output for the same input

    async def receive(self) -> Message:
        """Return at most PIECE bytes of the body; none only at its end."""
        piece = b""
        while not piece:
            if not self._input and not self._pending:
                if not self._more:
                    return self._end_of_body()
                message = await self._receive()
                if message["type"] == "http.disconnect":
                    return message
                self._input, self._more = message.get("body", b""), message.get("more_body", False)
            piece = self._decode()
        await asyncio.sleep(0)
        return {"type": "http.request", "body": piece, "more_body": True}

    def _decode(self) -> bytes:
        if self._stream is None:
            if not self._input:
                return b""
            self._members += 1
            if self._members > MAX_MEMBERS:
                raise self._broken_error()
            self._stream = zlib.decompressobj(self._window_bits(self._input[0]))
        stream = self._stream
        try:
            piece: bytes = stream.decompress(self._input, PIECE)
        except zlib.error as error:
            raise self._broken_error() from error
        self._pending = len(piece) == PIECE and not stream.eof
        self._input = stream.unconsumed_tail
        if stream.eof:
            self._input, self._stream = stream.unused_data, None
            if self._input and self._name == "deflate":
                raise self._broken_error()
        return piece

    def _end_of_body(self) -> Message:
        if self._stream is not None:
            raise self._broken_error()
        return {"type": "http.request", "body": b"", "more_body": False}

    def _window_bits(self, first: int) -> int:
        if self._name != "deflate":
            return GZIP
        return DEFLATE if first & 0x0F == zlib.DEFLATED else RAW

    def _broken_error(self) -> BadRequest:
        return BadRequest("broken_coding", code="invalid_value", coding=self._name)
