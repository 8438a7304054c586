"""Answers that fall into a word loop, as scripts of the fake engine: streams in each API's form, as vLLM sends them.

None of them ends: the engine goes on until the gateway leaves.
"""

import json
from collections.abc import Iterable
from typing import Any

from tests.engine import DONE, FINISH, SSE, chunk, event, typed_event

PHRASE = ["I ", "am ", "sorry, ", "but ", "I ", "cannot ", "do ", "that. "]
LOOP = [word for _ in range(60) for word in PHRASE]
TALK = [f"word{number} " for number in range(400)]
HANG = {"hang": True}
# What a tool's arguments, or another JSON, begin with.
OPENED = '{"city":"'


def play(events: list[str], *ending: dict[str, Any], paced: int = 0) -> list[dict[str, Any]]:
    """Return the script of a stream; the last `paced` events come one by one, the others as fast as they can."""
    at_once = len(events) - paced
    slowly = [step for one in events[at_once:] for step in ({"wait": 0.002}, {"send": chunk(one)})]
    return [{"send": SSE}, *({"send": chunk(one)} for one in events[:at_once]), *slowly, *ending]


def choice(delta: dict[str, Any], index: int = 0, finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def words(texts: Iterable[str], index: int = 0) -> list[str]:
    return [event([choice({"content": text}, index)]) for text in texts]


def chat(kind: str = "text") -> list[dict[str, Any]]:
    """Return a chat whose text, JSON, thoughts or arguments of a tool loop."""
    begun = event([choice({"role": "assistant", "content": ""})])
    if kind == "tool":
        function = {"name": "weather", "arguments": ""}
        call = {"index": 0, "id": "call_1", "type": "function", "function": function}
        more = [{"index": 0, "function": {"arguments": text}} for text in (OPENED, *LOOP)]
        events = [event([choice({"tool_calls": [one]})]) for one in (call, *more)]
    else:
        member = "reasoning" if kind == "thoughts" else "content"
        events = [event([choice({member: text})]) for text in ([OPENED, *LOOP] if kind == "json" else LOOP)]
    return play([begun, *events], HANG)


def finished_chat() -> list[dict[str, Any]]:
    """Return a chat that ends as it should."""
    begun = event([choice({"role": "assistant", "content": ""})])
    return play([begun, *words(TALK[:3]), FINISH, DONE], {"send": "0\r\n\r\n"})


def two_chats() -> list[dict[str, Any]]:
    """Return two answers of which the first ends as it should and the second loops."""
    talk, loop = words(TALK[:60]), words(LOOP, 1)
    begun = [event([choice({"role": "assistant", "content": ""}, index)]) for index in (0, 1)]
    mixed = begun + [one for pair in zip(talk, loop, strict=False) for one in pair]
    return play([*mixed, event([choice({}, 0, "stop")]), *loop[len(talk) :]], HANG)


def completion() -> list[dict[str, Any]]:
    fields = {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "fake"}

    def say(text: str) -> str:
        said = {"index": 0, "text": text, "logprobs": None, "finish_reason": None, "stop_reason": None}
        return f"data: {json.dumps({**fields, 'choices': [said]})}\n\n"

    return play([say(text) for text in LOOP], HANG)


def message(kind: str = "text") -> list[dict[str, Any]]:
    """Return a message of Anthropic's API whose text, thoughts or input of a tool loop."""
    usage = {"input_tokens": 7, "output_tokens": 0}
    head = {"id": "msg_1", "type": "message", "role": "assistant", "model": "fake", "content": [], "usage": usage}
    block, member, delta = {
        "text": ({"type": "text", "text": ""}, "text", "text_delta"),
        "thoughts": ({"type": "thinking", "thinking": "", "signature": ""}, "thinking", "thinking_delta"),
        "tool": (
            {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {}},
            *("partial_json", "input_json_delta"),
        ),
    }[kind]
    texts = [OPENED, *LOOP] if kind == "tool" else LOOP
    events = [
        typed_event("message_start", message={**head, "stop_reason": None, "stop_sequence": None}),
        typed_event("content_block_start", index=0, content_block=block),
        *(typed_event("content_block_delta", index=0, delta={"type": delta, member: text}) for text in texts),
    ]
    return play(events, HANG)


def response(kind: str = "text") -> list[dict[str, Any]]:
    """Return a response of OpenAI's API whose text, thoughts, their summary or a tool's arguments loop."""
    whole = {"id": "resp_1", "object": "response", "created_at": 1, "model": "fake", "output": [], "usage": None}
    whole |= {"status": "in_progress", "parallel_tool_calls": True, "tool_choice": "auto", "tools": []}
    item: dict[str, Any]
    part: dict[str, Any]
    place: dict[str, Any] = {"item_id": "i1", "output_index": 0}
    began: list[tuple[str, dict[str, Any]]] = []
    if kind == "tool":
        item = {"id": "i1", "type": "function_call", "call_id": "call_1", "name": "weather", "arguments": ""}
        delta = "response.function_call_arguments.delta"
    elif kind == "thoughts":
        item, delta = {"id": "i1", "type": "reasoning", "summary": []}, "response.reasoning_text.delta"
        place["content_index"] = 0
        began = [("response.content_part.added", {**place, "part": {"type": "reasoning_text", "text": ""}})]
    elif kind == "summary":
        item, delta = {"id": "i1", "type": "reasoning", "summary": []}, "response.reasoning_summary_text.delta"
        place["summary_index"] = 0
        part = {"type": "summary_text", "text": ""}
        began = [("response.reasoning_summary_part.added", {**place, "part": part})]
    else:
        item, delta = {"id": "i1", "type": "message", "role": "assistant", "content": []}, "response.output_text.delta"
        place["content_index"] = 0
        part = {"type": "output_text", "text": "", "annotations": []}
        began = [("response.content_part.added", {**place, "part": part})]
    more: dict[str, Any] = {"logprobs": []} if kind == "text" else {}
    texts = [OPENED, *LOOP] if kind == "tool" else LOOP
    events: list[tuple[str, dict[str, Any]]] = [
        ("response.created", {"response": whole}),
        ("response.in_progress", {"response": whole}),
        ("response.output_item.added", {"output_index": 0, "item": {**item, "status": "in_progress"}}),
        *began,
        *((delta, {**place, "delta": text, **more}) for text in texts),
    ]
    numbered = [typed_event(name, **fields, sequence_number=number) for number, (name, fields) in enumerate(events)]
    return play(numbered, HANG)


# With these events engines end such answers themselves.
END_OF_COMPLETION = event([{"index": 0, "text": "", "finish_reason": "length"}], object="text_completion")
END_OF_MESSAGE = (
    typed_event("content_block_stop", index=0)
    + typed_event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 480})
    + typed_event("message_stop")
)
END_OF_RESPONSE = typed_event(
    "response.completed",
    sequence_number=2000,
    response={
        **{"id": "resp_1", "object": "response", "created_at": 1, "model": "fake", "output": [], "status": "completed"},
        "usage": {"input_tokens": 7, "output_tokens": 480, "total_tokens": 487},
    },
)
