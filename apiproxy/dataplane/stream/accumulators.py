"""Puts a stream together into the answer of a call without `stream`.

llama.cpp's servers generate a unary answer to its end after the client has left (17 to 37 s of a GPU for nothing, all
three launchers); a stream they stop at once. So they are always asked for a stream, which is put together here.

What an accumulator keeps is small beside what it is fed (an event has 250 bytes for a token of 4): `size` is its number
of bytes, so that the caller can stop feeding it. Texts are kept in pieces and numbers (log probabilities, which are the
most) as JSON: as Python objects they take ten times as much.
"""

import json
from collections.abc import Callable
from typing import Any, Protocol

import orjson

from apiproxy.dataplane.engine_json import loads

# Bytes counted for an answer or a tool call that has just begun, so that many empty ones count as well.
OBJECT_BYTES = 256
COMPACT: dict[str, Any] = {"ensure_ascii": False, "separators": (",", ":")}


class Accumulator(Protocol):
    """Takes whole events; `body` gives the JSON. `usage` is what the stream's reader has found."""

    size: int

    def feed(self, events: bytes) -> None: ...
    def body(self, usage: dict[str, Any] | None) -> bytes: ...


class TextAccumulator(list[str]):
    """A text in pieces."""

    def __str__(self) -> str:
        return "".join(self)


class RawAccumulator(list[bytes]):
    """The items of a list, each as JSON."""


class ChunkAccumulator:
    """Accumulates the chunks of chat and of completions."""

    def __init__(self) -> None:
        self.size = 0
        self._first: dict[str, Any] = {}
        self._more: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}

    def feed(self, events: bytes) -> None:
        for chunk in parse_events(events):
            self._add_chunk(chunk)

    def body(self, usage: dict[str, Any] | None) -> bytes:
        head = {name: value for name, value in self._first.items() if name not in ("choices", "object", "usage")}
        answer = {
            **head,
            "object": str(self._first.get("object", "")).removesuffix(".chunk") or "chat.completion",
            "choices": [self._finish_choice(self._choices[index]) for index in sorted(self._choices)],
            **self._more,
        }
        if usage is not None:
            answer["usage"] = usage
        return encode_answer(answer)

    def _add_chunk(self, chunk: dict[str, Any]) -> None:
        if not self._first:
            self._first = {name: value for name, value in chunk.items() if name not in ("choices", "usage", "timings")}
        # What an engine adds on its last chunk belongs to the whole answer. llama.cpp's `timings` may be on each.
        for name in chunk.keys() - self._first.keys() - {"choices", "usage"}:
            if name not in self._more:
                self.size += OBJECT_BYTES
            self._more[name] = chunk[name]
        for part in chunk.get("choices") or ():
            if isinstance(part, dict):
                self._add_choice(part)

    def _add_choice(self, part: dict[str, Any]) -> None:
        index = index_of(part.get("index"))
        choice = self._choices.get(index)
        if choice is None:
            choice = self._choices[index] = {"index": index, "logprobs": None, "finish_reason": None}
            self.size += OBJECT_BYTES
        if isinstance(part.get("delta"), dict):
            self._merge(choice.setdefault("message", {"role": "assistant", "content": None}), part["delta"])
        if isinstance(part.get("text"), str):
            self._append(choice, "text", part["text"])
        if isinstance(part.get("logprobs"), dict):
            choice["logprobs"] = choice["logprobs"] or {}
            self._merge_logprobs(choice["logprobs"], part["logprobs"])
        for name in ("finish_reason", "stop_reason"):
            if part.get(name) is not None:
                choice[name] = part[name]

    def _append(self, where: dict[str, Any], name: str, text: str) -> None:
        pieces = where.get(name)
        if not isinstance(pieces, TextAccumulator):
            pieces = where[name] = TextAccumulator()
        pieces.append(text)
        self.size += len(text) + 64  # what it takes in memory

    def _merge(self, message: dict[str, Any], delta: dict[str, Any]) -> None:
        """Add a delta: texts are appended, tool calls merged by their index, the role kept."""
        for name, value in delta.items():
            if name == "tool_calls":
                calls = message.setdefault("tool_calls", {})
                for part in value or ():
                    self._merge_tool_call(calls, part)
            elif name != "role" and isinstance(value, str):
                self._append(message, name, value)
            elif value is not None:
                message[name] = value
                self.size += OBJECT_BYTES

    def _merge_tool_call(self, calls: dict[int, dict[str, Any]], part: dict[str, Any]) -> None:
        index = index_of(part.get("index"))
        call = calls.get(index)
        if call is None:
            call = calls[index] = {}
            self.size += OBJECT_BYTES
        for name, value in part.items():
            if name == "function" and isinstance(value, dict):
                function = call.setdefault("function", {"name": TextAccumulator(), "arguments": TextAccumulator()})
                for member in ("name", "arguments"):
                    self._append(function, member, str(value.get(member) or ""))
            elif name != "index" and value is not None:
                call[name] = value

    def _merge_logprobs(self, logprobs: dict[str, Any], part: dict[str, Any]) -> None:
        """Append to the lists (`content` of chat; `tokens`, `token_logprobs`, … of completions)."""
        for name, value in part.items():
            if isinstance(value, list):
                items = logprobs.setdefault(name, RawAccumulator())
                for one in value:
                    items.append(encode_item(one))
                    self.size += len(items[-1]) + 48

    def _finish_choice(self, choice: dict[str, Any]) -> dict[str, Any]:
        message = choice.get("message")
        if message is not None and "tool_calls" in message:
            calls = message["tool_calls"]
            message["tool_calls"] = [calls[index] for index in sorted(calls)]
        elif message is not None and message["content"] is None:
            message["content"] = ""
        return choice


class ResponseAccumulator:
    """Accumulates Responses, whose last event holds the whole response."""

    def __init__(self) -> None:
        self.size = 0
        self._response: dict[str, Any] = {}

    def feed(self, events: bytes) -> None:
        if b"response.completed" not in events and b"response.incomplete" not in events:
            return
        for event in parse_events(events):
            if event.get("type") in ("response.completed", "response.incomplete"):
                self._response = event["response"]
                self.size = len(events)

    def body(self, _usage: dict[str, Any] | None) -> bytes:
        return encode_answer(self._response)


class MessageAccumulator:
    """Accumulates Anthropic's Messages. A tool's input comes as pieces of the text of its JSON."""

    def __init__(self) -> None:
        self.size = 0
        self._message: dict[str, Any] = {}
        self._blocks: dict[int, dict[str, Any]] = {}
        self._inputs: dict[int, TextAccumulator] = {}

    def feed(self, events: bytes) -> None:
        for event in parse_events(events):
            kind = event.get("type")
            if kind == "message_start":
                self._message = event["message"]
            elif kind == "content_block_start":
                self._blocks[event["index"]] = event["content_block"]
                self.size += OBJECT_BYTES
            elif kind == "content_block_delta":
                self._add_delta(event["index"], event["delta"])
            elif kind == "message_delta":
                self._message.update(event["delta"])
                self._message.setdefault("usage", {}).update(event.get("usage") or {})

    def body(self, _usage: dict[str, Any] | None) -> bytes:
        for index, text in self._inputs.items():
            self._blocks[index]["input"] = tool_input(str(text))
        return encode_answer({**self._message, "content": [self._blocks[index] for index in sorted(self._blocks)]})

    def _add_delta(self, index: int, delta: dict[str, Any]) -> None:
        block = self._blocks[index]
        for name, value in delta.items():
            if name == "type" or not isinstance(value, str):
                continue
            self.size += len(value) + 64
            if name == "partial_json":
                self._inputs.setdefault(index, TextAccumulator()).append(value)
            elif isinstance(block.get(name), TextAccumulator):
                block[name].append(value)
            else:
                block[name] = TextAccumulator([block.get(name) or "", value])


def tool_input(text: str) -> Any:
    """Return a tool's input; if max_tokens cut it off, the text so far."""
    try:
        return loads(text or "{}")
    except ValueError:
        return text


def index_of(number: Any) -> int:
    """Return the number that is meant, also by a text with its digits; of anything else, 0."""
    if isinstance(number, str) and number.isdecimal() and len(number) < 10:
        return int(number)
    return number if isinstance(number, int) else 0


def parse_events(events: bytes) -> list[dict[str, Any]]:
    """Return the JSON objects of whole events; `[DONE]`, comments and llama.cpp's `null` are not among them."""
    lines = [line[5:].strip() for line in events.split(b"\n") if line.startswith(b"data:")]
    found = [loads(line) for line in lines if line != b"[DONE]"]
    return [thing for thing in found if isinstance(thing, dict)]


def encode_answer(answer: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(resolve(answer, join_items))
    except orjson.JSONEncodeError:  # half a surrogate pair, or a number beyond 64 bits
        text = json.dumps(resolve(answer, lambda items: [loads(item) for item in items]), **COMPACT)
        return text.encode(errors="backslashreplace")


def encode_item(value: Any) -> bytes:
    """Encode an item of a list as JSON."""
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:
        return json.dumps(value).encode()


def join_items(items: RawAccumulator) -> orjson.Fragment:
    return orjson.Fragment(b"[" + b",".join(items) + b"]")


def resolve(value: Any, joined: Callable[[RawAccumulator], Any]) -> Any:
    """Return the value with each text in one piece, and each list as `joined` gives it."""
    if isinstance(value, TextAccumulator):
        return str(value)
    if isinstance(value, RawAccumulator):
        return joined(value)
    if isinstance(value, dict):
        return {name: resolve(member, joined) for name, member in value.items()}
    return [resolve(one, joined) for one in value] if isinstance(value, list) else value
