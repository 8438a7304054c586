"""Takes what was generated out of a stream's events: answers, thoughts and arguments of tools, each for itself.

Decoding each event's JSON would cost as much as all else that is done for a token. But events of one stream differ in
little but their text: once one was decoded, those that begin and end as it did are cut at the same places.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from apiproxy.dataplane.engine_json import decode_object
from apiproxy.dataplane.stream.accumulators import index_of


class TextPart(NamedTuple):
    """What one text of an answer is: texts of one part follow one another."""

    choice: int  # which of several answers
    kind: str  # the member that it is in, with the number of the tool or block


@dataclass(frozen=True, slots=True)
class Envelope:
    """What is around the text in an event."""

    before: bytes
    after: bytes
    part: TextPart

    def cut(self, events: bytes) -> list[bytes] | None:
        """Return the texts of events that are all in this envelope; None if one is in another."""
        if events.startswith(self.before) and events.endswith(self.after):
            texts = events[len(self.before) : -len(self.after)].split(self.after + self.before)
            if not any(b"\n" in text for text in texts):  # which no JSON has
                return texts
        return None


NOWHERE = Envelope(b"\0", b"\0", TextPart(0, ""))  # no event begins so
# Members of a chat's or a completion's choice that are generated. `reasoning_content` is what vLLM called `reasoning`.
TEXTS = ("content", "reasoning", "reasoning_content", "refusal", "text")
BLOCK_TEXTS = ("text", "thinking", "partial_json")  # of Messages
# Bytes of an event beyond which it is not decoded: all calls would wait for megabytes of log probabilities. With 20
# alternatives an event has 3 KB.
LONGEST = 64 * 1024
# The events of Responses are numbered, so no two begin alike. A quote within a text is escaped, so this is the member.
NUMBERED = re.compile(rb'"delta": ?"((?:[^"\\]|\\.)*)"')


class ContentExtractor:
    """Extracts the texts of one stream. `envelope` is that of the last event that was decoded and has one."""

    __slots__ = ("envelope",)

    def __init__(self) -> None:
        self.envelope = NOWHERE

    def extract(self, events: bytes) -> Iterator[tuple[TextPart, bytes]]:
        """Yield the texts in these whole events, in order, as JSON has them."""
        texts = self.envelope.cut(events)
        if texts is not None:
            part = self.envelope.part
            yield from ((part, text) for text in texts)
            return
        for event in events.split(b"\n\n"):
            if event:
                yield from self._extract_one(event + b"\n\n")

    def _extract_one(self, event: bytes) -> Iterator[tuple[TextPart, bytes]]:
        texts = self.envelope.cut(event)
        if texts is not None:
            yield self.envelope.part, texts[0]
        elif len(event) <= LONGEST:
            found = read_event(event)
            if len(found) == 1 and not event.startswith(b"event: response."):
                self.envelope = find_envelope(event, *found[0]) or self.envelope
            yield from ((part, escape(text)) for part, text in found)


def find_envelope(event: bytes, part: TextPart, text: str) -> Envelope | None:
    """Return what is around this text in the event, if it is found there as the one value of its kind."""
    for value in (json.dumps(text, ensure_ascii=False).encode(errors="replace"), json.dumps(text).encode()):
        for member in (b":" + value, b": " + value):
            if event.count(member) == 1:
                at = event.find(member) + len(member) - len(value)
                return Envelope(event[: at + 1], event[at + len(value) - 1 :], part)
    return None


def read_event(event: bytes) -> list[tuple[TextPart, str]]:
    """Return the texts that one event adds to answers. What is no event of a known API has none."""
    if event.startswith(b"event: response."):
        found = NUMBERED.search(event)
        kind = event[7 : event.index(b"\n")].decode(errors="replace")
        text = decode_object(b'{"text":"%b"}' % found.group(1)) if found else None
        return [(TextPart(0, kind), text["text"])] if text else []
    chunk = decode_object(b"".join(line[5:] for line in event.split(b"\n") if line.startswith(b"data:")))
    return [] if chunk is None else read_answer(chunk)


def read_answer(answer: dict[str, Any]) -> list[tuple[TextPart, str]]:
    """Return the texts of a chunk of a stream, or of an answer that came in one piece."""
    try:
        choices = answer.get("choices")
        if choices is not None:
            return [text for choice in objects(choices) for text in read_choice(choice)]
        if "delta" in answer:
            return list(read_block(answer["delta"], answer.get("index")))
        return [text for at, block in enumerate(objects(answer.get("content"))) for text in read_block(block, at)] + [
            text for at, item in enumerate(objects(answer.get("output"))) for text in read_item(item, at)
        ]
    except (TypeError, AttributeError, LookupError):  # not what its format asks for
        return []


def read_choice(choice: dict[str, Any]) -> Iterator[tuple[TextPart, str]]:
    """Return the texts of one of several answers; a member that is not what its format asks for hides no other."""
    index = index_of(choice.get("index"))
    delta = choice.get("delta") or choice.get("message")
    for members in (delta, choice) if isinstance(delta, dict) else (choice,):
        for name in TEXTS:
            value = members.get(name)
            for text in (value,) if isinstance(value, str) else texts_of_parts(value):
                if text:
                    yield TextPart(index, name), text
        calls = [("function", members.get("function_call"))]  # of old chats
        calls += [(f"tool {call.get('index', 0)}", call.get("function")) for call in objects(members.get("tool_calls"))]
        for kind, function in calls:
            arguments = function.get("arguments") if isinstance(function, dict) else None
            if isinstance(arguments, str) and arguments:
                yield TextPart(index, kind), arguments


def texts_of_parts(content: object) -> list[str]:
    """Return the texts of a message's content that is a list of parts."""
    return [text for part in objects(content) if isinstance(text := part.get("text"), str)]


def objects(values: object) -> list[dict[str, Any]]:
    """Return the objects among these values, none if they are no list."""
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []


def read_block(block: dict[str, Any], index: object) -> Iterator[tuple[TextPart, str]]:
    """Return the text of a block of Messages, or of what is added to one."""
    for name in BLOCK_TEXTS:
        if isinstance(text := block.get(name), str) and text:
            yield TextPart(0, f"{name} {index}"), text


def read_item(item: dict[str, Any], index: int) -> Iterator[tuple[TextPart, str]]:
    """Return the texts of an item of Responses."""
    if isinstance(arguments := item.get("arguments"), str):
        yield TextPart(0, f"arguments {index}"), arguments
    for part in objects(item.get("content")):
        if isinstance(text := part.get("text", part.get("refusal")), str):
            yield TextPart(0, f"text {index}"), text


def unescape(text: bytes) -> bytes:
    r"""Return a JSON text with its \uXXXX decoded. Half of a surrogate pair becomes a question mark."""
    if text.find(b"\\u") < 0:
        return text
    try:
        return escape(json.loads(b'"' + text + b'"'))
    except ValueError:
        return text


def escape(text: str) -> bytes:
    """Return the text as JSON has it, without its quotes."""
    return json.dumps(text, ensure_ascii=False).encode(errors="replace")[1:-1]
