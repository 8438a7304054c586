"""The events with which an answer ends before its engine ended it, in each API's own form. No I/O.

To clients the answer has reached its bound of tokens: OpenAI's .NET library raises on a finish_reason that it
does not know, and no API has one for this. The true reason is in the member `madoguchi`, which none of them minds.
"""

import json
from collections.abc import Iterable
from typing import Any

from apiproxy.dataplane.engine_json import decode_object
from apiproxy.dataplane.stream.accumulators import index_of
from apiproxy.dataplane.token_usage import Tokens

MEMBER = "madoguchi"
# What each chunk of an answer repeats.
CHUNK_MEMBERS = ("id", "object", "created", "model", "system_fingerprint")
# By the kind of a text of Responses, other than thoughts: the item's member that its parts are in, such a part but its
# text, and what the event that ends the text has beside it.
END_OF_PART: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "response.output_text": ("content", {"type": "output_text", "annotations": [], "logprobs": []}, {"logprobs": []}),
    "response.reasoning_summary_text": ("summary", {"type": "summary_text"}, {}),
}


def encode_event(data: dict[str, Any], kind: str = "") -> bytes:
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    event = b"data: " + text.encode(errors="backslashreplace") + b"\n\n"  # half a surrogate pair stays an escape
    return b"event: %s\n%s" % (kind.encode(), event) if kind else event


def end_choices(last: dict[str, Any], choices: Iterable[int], notice: dict[str, Any]) -> bytes:
    """Return the chunk that ends these answers of a chat or a completion. `last`: a chunk before."""
    end: dict[str, Any] = {"delta": {}, "logprobs": None, "finish_reason": "length"}
    if last.get("object") == "text_completion":
        end = {"text": "", "logprobs": None, "finish_reason": "length", "stop_reason": None}
    ended = [{"index": choice, **end} for choice in choices]
    return encode_event({**head_of(last), "choices": ended, MEMBER: notice})


def head_of(chunk: dict[str, Any]) -> dict[str, Any]:
    return {name: chunk[name] for name in CHUNK_MEMBERS if name in chunk}


def usage_of(tokens: Tokens) -> dict[str, Any]:
    """Return the usage object of chat and completions."""
    return {
        "prompt_tokens": tokens.prompt,
        "completion_tokens": tokens.completion,
        "total_tokens": tokens.total,
    }


def end_message(block: int, tokens: Tokens, notice: dict[str, Any]) -> bytes:
    """Return the events that end an Anthropic message within this block."""
    delta = {"stop_reason": "max_tokens", "stop_sequence": None}
    usage = {"output_tokens": tokens.completion}
    return (
        encode_event({"type": "content_block_stop", "index": block}, "content_block_stop")
        + encode_event({"type": "message_delta", "delta": delta, "usage": usage, MEMBER: notice}, "message_delta")
        + encode_event({"type": "message_stop"}, "message_stop")
    )


class ResponseDraft:
    """What a stream of Responses has said so far: its end repeats all of it."""

    def __init__(self) -> None:
        self._response: dict[str, Any] = {}
        self._items: dict[int, dict[str, Any]] = {}  # by their place in the answer
        self._last: dict[str, Any] = {}  # the last event with a part of the answer
        self._parts: list[Any] = []  # of the item that is being written, those that are complete
        self._part_kind = ""  # of its part that is being written, if the engine announced that
        self._texts: list[str] = []
        self._number = 0  # of the last event
        self.is_writing = False  # a text has begun and not ended

    def feed(self, events: bytes) -> None:
        for event in events.split(b"\n\n"):
            data = decode_object(event.partition(b"data:")[2])
            if data is not None:
                self._note(data)

    def _note(self, event: dict[str, Any]) -> None:
        kind, item = str(event.get("type")), event.get("item")
        number = event.get("sequence_number")
        self._number = number if isinstance(number, int) else self._number + 1
        if kind.endswith((".delta", ".done")):
            self.is_writing = kind.endswith(".delta")
        if kind.endswith(".delta"):
            if self._texts and kind != self._last.get("type"):
                self._texts = []
            self._last = event
            self._texts.append(str(event.get("delta")))
        elif kind in ("response.output_item.added", "response.output_item.done") and isinstance(item, dict):
            self._items[index_of(event.get("output_index"))] = item
            self._parts, self._part_kind, self._texts = [], "", []
        elif kind.endswith("_part.added"):
            self._part_kind, self._texts = kind.removesuffix(".added"), []
        elif kind.endswith("_part.done"):
            self._parts.append(event.get("part"))
        elif isinstance(event.get("response"), dict):
            self._response = event["response"]

    def end(self, tokens: Tokens, notice: dict[str, Any]) -> bytes:
        """Return the events that end the part, the item and the response that are being written."""
        text, last = "".join(self._texts), self._last
        names = ("item_id", "output_index", "content_index", "summary_index")
        place: dict[str, Any] = {name: last[name] for name in names if name in last}
        index = index_of(last.get("output_index"))
        item = {**self._items.get(index, {"id": last.get("item_id"), "type": "message"}), "status": "incomplete"}
        events: list[dict[str, Any]] = []
        kind = str(last.get("type", "response.output_text.delta")).removesuffix(".delta")
        if kind == "response.function_call_arguments":
            item["arguments"] = text
            events.append({"type": f"{kind}.done", **place, "arguments": text, "name": item.get("name")})
        else:
            member, part, more = END_OF_PART.get(kind, ("content", {"type": "reasoning_text"}, {}))
            part = {**part, "text": text}
            item[member] = [*self._parts, part]
            events.append({"type": f"{kind}.done", **place, "text": text, **more})
            if self._part_kind:
                events.append({"type": f"{self._part_kind}.done", **place, "part": part})
        self._items[index] = item
        events.append({"type": "response.output_item.done", "output_index": index, "item": item})
        events.append({"type": "response.incomplete", "response": self._incomplete(tokens, notice)})
        return b"".join(self._encode(event) for event in events)

    def _incomplete(self, tokens: Tokens, notice: dict[str, Any]) -> dict[str, Any]:
        return {
            **self._response,
            "status": "incomplete",
            "incomplete_details": {"reason": "max_output_tokens"},
            "output": [self._items[index] for index in sorted(self._items)],
            "usage": {
                "input_tokens": tokens.prompt,
                "input_tokens_details": {"cached_tokens": tokens.cached, "cache_write_tokens": 0},
                "output_tokens": tokens.completion,
                "output_tokens_details": {"reasoning_tokens": tokens.reasoning},
                "total_tokens": tokens.total,
            },
            MEMBER: notice,
        }

    def _encode(self, event: dict[str, Any]) -> bytes:
        self._number += 1
        return encode_event({**event, "sequence_number": self._number}, event["type"])
