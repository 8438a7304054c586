"""Completes the events of Responses that llama.cpp (b11549) sends without their numbers. No I/O.

openai-python and openai-node find an item of the answer by `output_index`; `@ai-sdk/openai` refuses events without
`output_index`, and a `response` without `created_at` and `model`. What an engine says itself is never changed.
"""

import time
from collections.abc import Callable
from typing import Any

# Members of a response where the engine says nothing else.
RESPONSE: dict[str, Any] = {
    "error": None,
    "incomplete_details": None,
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "output": [],
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "reasoning": {"effort": None, "summary": None},
    "service_tier": None,
    "store": False,
    "temperature": None,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": None,
    "truncation": "disabled",
    "usage": None,
}
PART: dict[str, Any] = {"annotations": [], "logprobs": []}
USAGE: dict[str, Any] = {
    "input_tokens_details": {"cached_tokens": 0},
    "output_tokens_details": {"reasoning_tokens": 0},
}


def lacks_numbers(event: dict[str, Any]) -> bool:
    """Return whether the first event of a stream shows that its engine writes them without their numbers."""
    return event.get("type") == "response.created" and "sequence_number" not in event


class EventCompleter:
    """The missing members of one stream's events; `model`: as the client called it. `clock` gives Unix seconds."""

    def __init__(self, model: str, clock: Callable[[], float] = time.time) -> None:
        self._response = {**RESPONSE, "model": model, "created_at": int(clock())}
        self._number = 0
        self._output_indices: dict[str, int] = {}  # of items, by their ids

    def complete(self, event: dict[str, Any]) -> dict[str, Any]:
        """Return the event with the members that OpenAI's description has and the engine left out."""
        kind = str(event.get("type"))
        more: dict[str, Any] = {"sequence_number": self._number}
        self._number += 1
        if isinstance(event.get("response"), dict):
            event = {**event, "response": self._complete_response(event["response"])}
        item = event.get("item")
        if isinstance(item, dict):
            more["output_index"] = self._output_index(str(item.get("id")))
        elif "item_id" in event:
            more["output_index"] = self._output_index(str(event["item_id"]))
            if kind.startswith(("response.output_text.", "response.content_part.", "response.reasoning_text.")):
                more["content_index"] = 0
            if kind.startswith("response.output_text."):
                more["logprobs"] = []
        part = event.get("part")
        if isinstance(part, dict) and part.get("type") == "output_text":
            event = {**event, "part": {**PART, **part}}
        return {**more, **event}

    def _output_index(self, item: str) -> int:
        return self._output_indices.setdefault(item, len(self._output_indices))

    def _complete_response(self, response: dict[str, Any]) -> dict[str, Any]:
        whole = {**self._response, **response}
        if isinstance(whole["usage"], dict):
            whole["usage"] = {**USAGE, **whole["usage"]}
        return whole
