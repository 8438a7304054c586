"""Takes what was generated out of a stream's events: answers, thoughts and arguments of tools, each for itself.

Decoding each event's JSON would cost as much as all else that is done for a token. But events of one stream differ in
little but their text: once one was decoded, those that begin and end as it did are cut at the same places.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from apiproxy.dataplane.engine_json import decode_object


class TextPart(NamedTuple):
    """What one text of an answer is: texts of one part follow one another."""

    choice: int  # which of several answers
    kind: str  # the member that it is in, with the number of the tool or block


class Envelope(NamedTuple):
    """What is around the text in an event."""

    before: bytes
    after: bytes
    part: TextPart


NOWHERE = Envelope(b"\0", b"\0", TextPart(0, ""))  # no event begins so
# Members of a chat's or a completion's choice that are generated. `reasoning_content` is what vLLM called `reasoning`.
TEXTS = ("content", "reasoning", "reasoning_content", "text")
BLOCK_TEXTS = ("text", "thinking", "partial_json")  # of Messages
# Bytes of an event beyond which it is not decoded: all calls would wait for megabytes of log probabilities. With 20
# alternatives an event has 3 KB.
LONGEST = 64 * 1024
# The events of Responses are numbered, so no two begin alike. A quote within a text is escaped, so this is the member.
NUMBERED = re.compile(rb'"delta": ?"((?:[^"\\]|\\.)*)"')


class ContentExtractor:
    """Extracts the texts of one stream."""

    __slots__ = ("_envelope",)

    def __init__(self) -> None:
        self._envelope = NOWHERE

    def extract(self, pieces: list[bytes]) -> list[tuple[TextPart, bytes, int]]:
        """Return the texts in these pieces of whole events, in order, each with the number of events that it came in.

        The texts are as JSON has them, but UTF-8 without \\uXXXX: a line feed is two bytes.
        """
        before, after, part = self._envelope
        start, end = len(before), -len(after)
        texts = [piece[start:end] for piece in pieces if piece.startswith(before) and piece.endswith(after)]
        if len(texts) == len(pieces):
            text = b"".join(texts)
            if text.find(b"\n") < 0:  # which no JSON has: each piece was one event, as nearly always
                return [(part, unescape(text), len(texts))]
        return [found for piece in pieces for found in self._extract_slowly(piece)]

    def _extract_slowly(self, piece: bytes) -> Iterator[tuple[TextPart, bytes, int]]:
        for event in piece.split(b"\n\n"):
            if not event:
                continue
            before, after, part = self._envelope
            event += b"\n\n"
            if event.startswith(before) and event.endswith(after):
                yield part, unescape(event[len(before) : -len(after)]), 1
                continue
            if len(event) > LONGEST:
                continue
            texts = read_event(event)
            if len(texts) == 1 and not event.startswith(b"event: response."):
                self._envelope = find_envelope(event, *texts[0]) or self._envelope
            for part, text in texts:
                yield part, escape(text), 1


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
            return [text for choice in choices for text in read_choice(choice)]
        if "delta" in answer:
            return list(read_block(answer["delta"], answer.get("index")))
        return [text for at, block in enumerate(answer.get("content") or ()) for text in read_block(block, at)] + [
            text for at, item in enumerate(answer.get("output") or ()) for text in read_item(item, at)
        ]
    except (TypeError, AttributeError, LookupError):  # not what its format asks for
        return []


def read_choice(choice: dict[str, Any]) -> Iterator[tuple[TextPart, str]]:
    number = choice.get("index")
    index = number if isinstance(number, int) else 0
    delta = choice.get("delta") or choice.get("message")
    for members in (delta, choice) if isinstance(delta, dict) else (choice,):
        for name in TEXTS:
            if isinstance(text := members.get(name), str) and text:
                yield TextPart(index, name), text
        for call in members.get("tool_calls") or ():
            arguments = call.get("function", {}).get("arguments")
            if isinstance(arguments, str) and arguments:
                yield TextPart(index, f"tool {call.get('index', 0)}"), arguments


def read_block(block: dict[str, Any], index: object) -> Iterator[tuple[TextPart, str]]:
    """Return the text of a block of Messages, or of what is added to one."""
    for name in BLOCK_TEXTS:
        if isinstance(text := block.get(name), str) and text:
            yield TextPart(0, f"{name} {index}"), text


def read_item(item: dict[str, Any], index: int) -> Iterator[tuple[TextPart, str]]:
    """Return the texts of an item of Responses."""
    if isinstance(arguments := item.get("arguments"), str):
        yield TextPart(0, f"arguments {index}"), arguments
    for part in item.get("content") or ():
        if isinstance(text := part.get("text"), str):
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
