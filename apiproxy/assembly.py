"""Puts a stream together into the answer of a call without `stream`.

llama.cpp's servers generate an unary answer to its end after the client has left (17 to 37 s of a GPU for nobody,
all three launchers); a stream they stop at once. So they are always asked for a stream, and this undoes it.
"""

import json
from typing import Any, Protocol


class Assembly(Protocol):
    """Feed it whole events; `body` gives the JSON. `usage` is what the reader of the stream has found."""

    def feed(self, events: bytes) -> None: ...
    def body(self, usage: dict[str, Any] | None) -> bytes: ...


class ChunkAssembly:
    """Of chat and of completions."""

    def __init__(self) -> None:
        self._first: dict[str, Any] = {}
        self._more: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}

    def feed(self, events: bytes) -> None:
        for chunk in objects(events):
            self._chunk(chunk)

    def body(self, usage: dict[str, Any] | None) -> bytes:
        head = {name: value for name, value in self._first.items() if name not in ("choices", "object", "usage")}
        answer = {
            **head,
            "object": str(self._first.get("object", "")).removesuffix(".chunk") or "chat.completion",
            "choices": [self._finished(self._choices[index]) for index in sorted(self._choices)],
            **self._more,
        }
        if usage is not None:
            answer["usage"] = usage
        return encoded(answer)

    def _chunk(self, chunk: dict[str, Any]) -> None:
        self._first = self._first or chunk
        # What an engine adds on its last chunk (llama.cpp's `timings`) belongs to the whole answer.
        self._more.update({name: value for name, value in chunk.items() if name not in self._first and name != "usage"})
        for part in chunk.get("choices") or ():
            self._choice(part)

    def _choice(self, part: dict[str, Any]) -> None:
        index = part.get("index", 0)
        choice = self._choices.setdefault(index, {"index": index, "finish_reason": None})
        if "delta" in part:
            merge(choice.setdefault("message", {"role": "assistant", "content": None}), part["delta"])
        if "text" in part:
            choice["text"] = choice.get("text", "") + (part["text"] or "")
        if part.get("logprobs"):
            merge_logprobs(choice.setdefault("logprobs", {}), part["logprobs"])
        for name in ("finish_reason", "stop_reason"):
            if part.get(name) is not None:
                choice[name] = part[name]

    def _finished(self, choice: dict[str, Any]) -> dict[str, Any]:
        message = choice.get("message")
        if message is not None and "tool_calls" in message:
            calls = message["tool_calls"]
            message["tool_calls"] = [calls[index] for index in sorted(calls)]
        elif message is not None and message["content"] is None:
            message["content"] = ""
        return choice


class ResponseAssembly:
    """Of Responses, whose last event holds all of it."""

    def __init__(self) -> None:
        self._response: dict[str, Any] = {}

    def feed(self, events: bytes) -> None:
        for event in objects(events):
            if event.get("type") in ("response.completed", "response.incomplete"):
                self._response = event["response"]

    def body(self, _usage: dict[str, Any] | None) -> bytes:
        return encoded(self._response)


class MessageAssembly:
    """Of Anthropic's Messages. A tool's input comes as pieces of the text of a JSON."""

    def __init__(self) -> None:
        self._message: dict[str, Any] = {}
        self._blocks: dict[int, dict[str, Any]] = {}
        self._inputs: dict[int, str] = {}

    def feed(self, events: bytes) -> None:
        for event in objects(events):
            kind = event.get("type")
            if kind == "message_start":
                self._message = event["message"]
            elif kind == "content_block_start":
                self._blocks[event["index"]] = event["content_block"]
            elif kind == "content_block_delta":
                self._delta(event["index"], event["delta"])
            elif kind == "message_delta":
                self._message.update(event["delta"])
                self._message.setdefault("usage", {}).update(event.get("usage") or {})

    def body(self, _usage: dict[str, Any] | None) -> bytes:
        for index, text in self._inputs.items():
            self._blocks[index]["input"] = tool_input(text)
        return encoded({**self._message, "content": [self._blocks[index] for index in sorted(self._blocks)]})

    def _delta(self, index: int, delta: dict[str, Any]) -> None:
        block = self._blocks[index]
        for name, value in delta.items():
            if name == "partial_json":
                self._inputs[index] = self._inputs.get(index, "") + value
            elif name != "type" and isinstance(value, str):
                block[name] = (block.get(name) or "") + value


def tool_input(text: str) -> Any:
    """A tool's input; where max_tokens cut it off, the text that there is."""
    try:
        return json.loads(text or "{}")
    except ValueError:
        return text


def objects(events: bytes) -> list[dict[str, Any]]:
    """The JSON objects of whole events; `[DONE]`, comments and llama.cpp's `null` are none."""
    lines = [line[5:].strip() for line in events.split(b"\n") if line.startswith(b"data:")]
    found = [json.loads(line) for line in lines if line != b"[DONE]"]
    return [thing for thing in found if isinstance(thing, dict)]


def encoded(answer: dict[str, Any]) -> bytes:
    return json.dumps(answer, ensure_ascii=False, separators=(",", ":")).encode(errors="backslashreplace")


def merge(message: dict[str, Any], delta: dict[str, Any]) -> None:
    """Adds a delta: texts are appended, tool calls merged by their index, the role kept."""
    for name, value in delta.items():
        if name == "tool_calls":
            calls = message.setdefault("tool_calls", {})
            for part in value or ():
                merge_tool_call(calls.setdefault(part.get("index", 0), {}), part)
        elif name != "role" and isinstance(value, str):
            message[name] = (message.get(name) or "") + value
        elif value is not None:
            message[name] = value


def merge_tool_call(call: dict[str, Any], part: dict[str, Any]) -> None:
    for name, value in part.items():
        if name == "function":
            function = call.setdefault("function", {"name": "", "arguments": ""})
            function["name"] += value.get("name") or ""
            function["arguments"] += value.get("arguments") or ""
        elif name != "index" and value is not None:
            call[name] = value


def merge_logprobs(whole: dict[str, Any], part: dict[str, Any]) -> None:
    """Lists are joined (`content` of chat; `tokens`, `token_logprobs`, … of completions)."""
    for name, value in part.items():
        if isinstance(value, list):
            whole.setdefault(name, []).extend(value)
