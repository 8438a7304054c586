"""Watches an answer for word loops: counts what is repeated, and ends the answer where the model's policy says so.

Only what was generated is looked at, and nothing of it is kept but the last 4 KB while the answer is under way.
"""

import re
from typing import Any

import orjson

from apiproxy.dataplane.engine_json import decode_object
from apiproxy.dataplane.loops import LoopDetector, LoopPolicy
from apiproxy.dataplane.stream.content import ContentExtractor, TextPart, read_answer
from apiproxy.dataplane.stream.early_ends import MEMBER
from apiproxy.dataplane.stream.observers import EarlyStop

NOTICE = {"stopped": "repetition"}
STOPPED_HEADER = (b"x-madoguchi-stopped", b"repetition")
# There is a look for every BATCH events, or for about so many bytes of text where events have more than one token.
BATCH = 16
LOOK_BYTES = 64
# Bytes of a piece that is looked at at once: it has several events, which came while this process was busy.
BULK = 2048
# Parts of one answer that are watched; each keeps 4 KB.
MAX_PARTS = 128
# vLLM's word for an answer that it ended itself, see `engine_requests`. To clients it is "length", as in streams.
ENDED_BY_ENGINE = re.compile(rb'("finish_reason"\s*:\s*)"repetition"')
# Bytes of a body below which no answer in it can be a loop.
SHORT = 512
# A longer body is not decoded for this: it takes 5 ms.
MAX_WHOLE = 1024 * 1024


class LoopGuard:
    """A `StreamObserver`."""

    __slots__ = ("_batch", "_detectors", "_extractor", "_pieces", "policy", "stopped")

    def __init__(self, policy: LoopPolicy) -> None:
        self.policy = policy
        self._extractor = ContentExtractor()
        self._detectors: dict[TextPart, LoopDetector] = {}
        self._pieces: list[bytes] = []  # not looked at yet
        self._batch = 1  # so many of them are looked at together; the first shows how long they are
        self.stopped: set[int] = set()  # answers that were ended

    @property
    def may_stop(self) -> bool:
        return self.policy.mode == "stop"

    def feed(self, events: bytes, /) -> EarlyStop | None:
        pieces = self._pieces
        pieces.append(events)
        return None if len(pieces) < self._batch and len(events) < BULK else self._look()

    def read_whole(self, body: bytes) -> bytes:
        """Look at an answer that came in one piece; return what the client is sent of it."""
        if SHORT < len(body) < MAX_WHOLE and (answer := decode_object(body)) is not None:
            for part, text in read_answer(answer):
                self._detector(part).feed_whole(text.encode(errors="replace"))
            if b'"repetition"' in body:
                return self._rename_end(body, answer)
        return body

    def looped_tokens(self, made: int) -> int:
        """Return how many of the tokens that were made repeat what is before them.

        0 for an answer that found its way out of a loop by itself: an empty table, a verse.
        """
        self._look()
        if not self.stopped and not any(detector.loops for detector in self._detectors.values()):
            return 0
        size = sum(detector.size for detector in self._detectors.values())
        looped = sum(detector.looped for detector in self._detectors.values())
        return round(made * looped / size) if size else 0

    def _look(self) -> EarlyStop | None:
        pieces, stop, size, events = self._pieces, None, 0, 0
        if not pieces:
            return None
        for part, text, count in self._extractor.extract(pieces):
            size, events = size + len(text), events + count
            loops = self._detector(part).feed(text, count)
            if loops and stop is None and part.choice not in self.stopped and self.may_stop:
                self.stopped.add(part.choice)
                stop = EarlyStop(NOTICE, part.choice)
        self._batch = min(BATCH, max(1, LOOK_BYTES * events // size)) if size else 1
        pieces.clear()
        return stop

    def _rename_end(self, body: bytes, answer: dict[str, Any]) -> bytes:
        """Return the answer without vLLM's own word for how it ended."""
        ended = [choice for choice in answer.get("choices") or () if choice.get("finish_reason") == "repetition"]
        if not ended:
            return body  # the word is in a text
        self.stopped.update(choice.get("index", 0) for choice in ended)
        whole = ENDED_BY_ENGINE.sub(rb'\1"length"', body)
        return b"%b,%b" % (whole[: whole.rindex(b"}")], orjson.dumps({MEMBER: NOTICE})[1:])

    def _detector(self, part: TextPart) -> LoopDetector:
        found = self._detectors.get(part)
        if found is None:
            if len(self._detectors) >= MAX_PARTS:
                self._detectors.pop(next(iter(self._detectors)))
            found = self._detectors[part] = LoopDetector(self.policy.least)
        return found
