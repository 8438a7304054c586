"""Puts a stream of chat or completion chunks together into the answer of a call without `stream`.

llama.cpp's servers generate an unary answer to its end after the client has left (17 to 37 s of a GPU for nobody,
all three launchers); a stream they stop at once. So they are always asked for a stream, and this undoes it.
"""

import json
from typing import Any


class Assembly:
    """Feed it whole events; `body` gives the JSON."""

    def __init__(self) -> None:
        self._first: dict[str, Any] = {}
        self._more: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}

    def feed(self, events: bytes) -> None:
        for event in events.split(b"\n\n"):
            if not event.startswith(b"data:"):
                continue
            data = event[5:].strip()
            if data and data != b"[DONE]":
                self._chunk(json.loads(data))

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
        return json.dumps(answer, ensure_ascii=False, separators=(",", ":")).encode()

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
