"""Incremental event-stream reader: bytes through, facts out. No I/O.

Engines send a chunk per event, and nearly every piece that arrives ends with one. Such a piece goes on as it came
after two searches for words that would need a closer look; parsing every event's JSON instead costs 11 µs per token
(tests/bench/RESULTS.md). Only whole events are let through, so that an answer can be metered before its last byte
leaves.
"""

import json
from collections.abc import Callable
from typing import Any

# An event is at most a few KB; 100 KB was seen with logprobs. Beyond this the engine is broken.
MAX_EVENT = 16 * 1024 * 1024


class EventTooLong(Exception):
    """The engine sent more than MAX_EVENT bytes without ending an event."""


class Reader:
    """Reads one stream.

    `keep_usage`: the client asked for the usage chunk; otherwise it and any other `usage` member is taken out.
    `on_error(error)` gives the bytes of the error event that replaces the engine's own.
    """

    __slots__ = ("_keep_usage", "_on_error", "_rest", "_tail", "done", "error", "events", "usage")

    def __init__(self, *, keep_usage: bool, on_error: Callable[[Any], bytes]) -> None:
        self._keep_usage = keep_usage
        self._on_error = on_error
        self._rest = bytearray()
        self._tail = [b"", b"", b""]  # the last pieces let through
        self.usage: dict[str, Any] | None = None
        self.error: Any = None
        self.done = False  # `data: [DONE]` was seen
        self.events = 0  # data events that carry part of the answer: about one per token

    def feed(self, piece: bytes) -> bytes:
        """What of the stream may go on now: whole events. b"" when none is complete. Raises EventTooLong."""
        if self._rest or not piece.endswith(b"\n\n") or b"\r" in piece:
            piece = self._whole(piece)
            if not piece:
                return b""
        if b'"usage"' in piece or b'"error"' in piece or b"[DONE]" in piece:
            return self._look(piece)
        self.events += piece.count(b"data:")
        tail = self._tail
        tail[0], tail[1], tail[2] = tail[1], tail[2], piece
        return piece

    def finished(self) -> bool:
        """Whether the engine told the end of its answer: a usage object, or a finish_reason in the last events.

        `[DONE]` alone is no such sign: vLLM sends it after the error event of a crashed engine as well.
        """
        if self.error is not None:
            return False
        tail = b"".join(self._tail)
        return self.usage is not None or b'"finish_reason":"' in tail or b'"finish_reason": "' in tail

    def _whole(self, piece: bytes) -> bytes:
        """Adds a piece to what was held back and takes out everything up to the last complete event."""
        rest = self._rest
        rest += piece
        if b"\r" in rest:
            # Dify's reader knows "\n\n" only. A CR inside JSON is escaped, so this touches line ends alone.
            rest[:] = rest.replace(b"\r\n", b"\n")
        end = rest.rfind(b"\n\n") + 2
        if end < 2:
            if len(rest) > MAX_EVENT:
                raise EventTooLong
            return b""
        whole = bytes(rest[:end])
        del rest[:end]
        return whole

    def _look(self, piece: bytes) -> bytes:
        """Event by event."""
        out = [self._event(event) for event in piece.split(b"\n\n") if event]
        through = b"".join(out)
        self._tail = [*self._tail[1:], through]
        return through

    def _event(self, event: bytes) -> bytes:
        data = event.removeprefix(b"data:").strip()
        if data == b"[DONE]":
            self.done = True
            return event + b"\n\n"
        if not self._keep_usage:  # what vLLM puts into every chunk when usage was asked for
            event = event.replace(b',"usage":null', b"")
            data = data.replace(b',"usage":null', b"")
        if not event.startswith(b"data:") or (b'"usage"' not in data and b'"error"' not in data):
            self.events += event.startswith(b"data:")
            return event + b"\n\n"
        try:
            chunk = json.loads(data)
        except ValueError:
            return event + b"\n\n"
        if not isinstance(chunk, dict):
            return event + b"\n\n"
        if "error" in chunk and not chunk.get("choices"):
            self.error = chunk["error"]
            return self._on_error(self.error)
        return self._without_usage(event, chunk)

    def _without_usage(self, event: bytes, chunk: dict[str, Any]) -> bytes:
        usage = chunk.pop("usage", None)
        self.events += bool(chunk.get("choices"))
        if isinstance(usage, dict):
            self.usage = usage
            if not self._keep_usage and not chunk.get("choices"):
                return b""
        elif usage is None and event.find(b'"usage"') < 0:
            return event + b"\n\n"
        if self._keep_usage:
            return event + b"\n\n"
        return b"data: " + json.dumps(chunk, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
