"""Watches an answer for word loops: counts what is repeated, and ends the answer where the model's policy says so.

Only what was generated is looked at, and nothing of it is kept but the last 4 KB while the answer is under way.
"""

import re
from typing import Any

import orjson

from apiproxy.dataplane.engine_json import decode_object
from apiproxy.dataplane.loops import TAIL, LoopDetector, LoopPolicy
from apiproxy.dataplane.stream.content import ContentExtractor, TextPart, read_answer, unescape
from apiproxy.dataplane.stream.early_ends import MEMBER
from apiproxy.dataplane.stream.observers import EarlyStop

NOTICE = {"stopped": "repetition"}
STOPPED_HEADER = (b"x-madoguchi-stopped", b"repetition")
# There is a look for every BATCH texts, or for about so many bytes of them where they have more than one token.
BATCH = 32
LOOK_BYTES = 128
SOON = 8  # texts after which there is a look at one that has begun to repeat itself
# Bytes of a text that are looked at together, so many of its last: an escape of six bytes may be one of the TAIL.
LOOKED = 6 * TAIL
# Parts of one answer that are watched, those that began last; each keeps 4 KB.
MAX_PARTS = 128
# vLLM's word for an answer that it ended itself, see `engine_requests`. To clients it is "length", as in streams.
ENDED_BY_ENGINE = re.compile(rb'("finish_reason"\s*:\s*)"repetition"')
# Bytes of a body below which no answer in it can be a loop.
SHORT = 512
# A longer body is not decoded for this: it takes 5 ms.
MAX_WHOLE = 1024 * 1024


class WatchedPart:
    """One text of an answer: what was not looked at yet, and what watches it."""

    __slots__ = ("detector", "texts")

    def __init__(self, policy: LoopPolicy) -> None:
        self.texts: list[bytes] = []
        self.detector = LoopDetector(policy.least)


class LoopGuard:
    """A `StreamObserver`."""

    __slots__ = (
        "_after",
        "_around",
        "_batch",
        "_before",
        "_extractor",
        "_texts",
        "parts",
        "policy",
        "stopped",
    )

    def __init__(self, policy: LoopPolicy) -> None:
        self.policy = policy
        self._extractor = ContentExtractor()
        self.parts: dict[TextPart, WatchedPart] = {}
        self._batch = 1  # so many texts of one are looked at together; the first shows how long they are
        self._use_envelope()
        self.stopped: set[int] = set()  # answers that were ended

    @property
    def may_stop(self) -> bool:
        return self.policy.mode == "stop"

    def feed(self, events: bytes, /) -> EarlyStop | None:
        # What `ContentExtractor` does, without its calls: this is done for every token.
        text = events.removeprefix(self._before).removesuffix(self._after)
        if len(events) - len(text) == self._around > len(text):  # two events have more
            texts = self._texts
            texts.append(text)
            return None if len(texts) < self._batch else self._look(may_stop=self.may_stop)
        return self._feed_others(events)

    def _feed_others(self, events: bytes) -> EarlyStop | None:
        """Take events that differ from those before, or several at once, which came while this process was busy."""
        full = False
        for part, text in self._extractor.extract(events):
            texts = self._part(part).texts
            texts.append(text)
            full = full or len(texts) >= self._batch or len(text) > LOOKED
        self._use_envelope()
        return self._look(may_stop=self.may_stop) if full else None

    def _use_envelope(self) -> None:
        envelope = self._extractor.envelope
        self._before, self._after = envelope.before, envelope.after
        self._around = len(envelope.before) + len(envelope.after)
        self._texts = self._part(envelope.part).texts

    def _part(self, part: TextPart) -> WatchedPart:
        """Return what is known of a part; forget the oldest if a new one is one too many."""
        found = self.parts.get(part)
        if found is None:
            if len(self.parts) >= MAX_PARTS:
                del self.parts[next(iter(self.parts))]
            found = self.parts[part] = WatchedPart(self.policy)
        return found

    def ended_itself(self, choice: int, /) -> None:
        self.stopped.discard(choice)

    def read_whole(self, body: bytes) -> bytes:
        """Look at an answer that came in one piece; return what the client is sent of it."""
        if SHORT < len(body) < MAX_WHOLE and (answer := decode_object(body)) is not None:
            for part, text in read_answer(answer):
                self._part(part).detector.feed_whole(text.encode(errors="replace"))
            if b'"repetition"' in body:
                return self._rename_end(body, answer)
        return body

    def looped_tokens(self, made: int) -> int:
        """Return how many of the tokens that were made repeat what is before them.

        0 for an answer that found its way out of a loop by itself: an empty table, a verse.
        """
        self._look(may_stop=False)  # the answer is over
        detectors = [part.detector for part in self.parts.values()]
        if not self.stopped and not any(detector.loops for detector in detectors):
            return 0
        size = sum(detector.size for detector in detectors)
        looped = sum(detector.looped for detector in detectors)
        return round(made * looped / size) if size else 0

    def _look(self, *, may_stop: bool) -> EarlyStop | None:
        stop, size, events, most = None, 0, 0, BATCH
        for part, watched in self.parts.items():
            texts, detector = watched.texts, watched.detector
            if not texts:
                continue
            text, count = b"".join(texts), len(texts)
            texts.clear()
            if len(text) > LOOKED:
                loops = feed_end(detector, text, count)
            else:
                text = unescape(text)
                loops = detector.feed(text, count)
            size, events = size + len(text), events + count
            if detector.suspicious:
                most = SOON
            if loops and stop is None and part.choice not in self.stopped and may_stop:
                self.stopped.add(part.choice)
                stop = EarlyStop(NOTICE, part.choice)
        self._batch = min(most, max(1, LOOK_BYTES * events // size)) if size else 1
        return stop

    def _rename_end(self, body: bytes, answer: dict[str, Any]) -> bytes:
        """Return the answer without vLLM's own word for how it ended."""
        ended = [choice for choice in answer.get("choices") or () if choice.get("finish_reason") == "repetition"]
        if not ended:
            return body  # the word is in a text
        self.stopped.update(choice.get("index", 0) for choice in ended)
        whole = ENDED_BY_ENGINE.sub(rb'\1"length"', body)
        return b"%b,%b" % (whole[: whole.rindex(b"}")], orjson.dumps({MEMBER: NOTICE})[1:])


def feed_end(detector: LoopDetector, text: bytes, events: int) -> bool:
    """Feed a detector the end of a text that is too long to be looked at, and have it count the rest; return `loops`.

    Decoding megabytes of escapes takes tens of milliseconds, for which all calls wait.
    """
    rest = len(text) - LOOKED
    before, end = text[max(0, rest - LOOKED) : rest], text[rest:]
    if (len(before) - len(before.rstrip(b"\\"))) % 2:  # the cut is behind the first sign of an escape
        end = end[1:]
    looped = detector.loops
    loops = detector.feed(unescape(end), max(1, events * LOOKED // len(text)))
    detector.size += rest
    if looped and loops:
        detector.looped += rest
    return loops
