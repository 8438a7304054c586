"""A fake engine for agents: calls the tool that it is asked to, then says what the tool gave.

It speaks Anthropic's Messages and OpenAI's Responses, streamed and not, with every event that their clients expect.

What it does is in the conversation alone: while no tool has answered, it calls the first of `tools` whose name is in
TOOLS (or simply the first) with the arguments that TOOLS has for it; afterwards it repeats the newest tool's result.
"""

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PROMPT, COMPLETION = 21, 9  # tokens of every answer
THOUGHT, SIGNATURE = "The file says it. ", "c2lnbmVk"


@dataclass
class Agent:
    """`tools`: the arguments to call a tool with, by the names that agents have for it. `requests`: what came."""

    url: str
    tools: dict[str, dict[str, Any]] = field(default_factory=dict)
    requests: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Turn:
    """What is answered: a call of a tool, or `text`."""

    text: str = ""
    thought: str = ""
    tool: str = ""
    arguments: str = ""


def turn(body: dict[str, Any], tools: dict[str, dict[str, Any]]) -> Turn:
    thinks = (body.get("thinking") or {}).get("type") in ("enabled", "adaptive") or bool(body.get("reasoning"))
    thought = THOUGHT if thinks else ""
    told = result(body)
    offered = [tool.get("name") for tool in body.get("tools") or [] if tool.get("type", "custom") in KINDS]
    chosen = next((name for name in offered if name in tools), offered[0] if offered else None)
    if told is None and chosen:
        return Turn(thought=thought, tool=chosen, arguments=json.dumps(tools.get(chosen, {"city": "Osaka"})))
    return Turn(thought=thought, text=f"It says: {told}" if told is not None else "Hello there, friend.")


KINDS = ("custom", "function")


def result(body: dict[str, Any]) -> str | None:
    """Return what the newest tool of the conversation gave."""
    found = None
    for item in body.get("messages", body.get("input")) or []:
        if not isinstance(item, dict):
            continue
        if item.get("type") in ("function_call_output", "custom_tool_call_output"):
            found = text_of(item["output"])
        for part in item["content"] if isinstance(item.get("content"), list) else []:
            if part.get("type") == "tool_result":
                found = text_of(part.get("content"))
    return found


def text_of(content: Any) -> str:
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content)
    return str(content)


# --- Anthropic: https://platform.claude.com/docs/en/build-with-claude/streaming


def blocks(said: Turn) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if said.thought:
        found.append({"type": "thinking", "thinking": said.thought, "signature": SIGNATURE})
    if said.tool:
        found.append({"type": "tool_use", "id": "toolu_1", "name": said.tool, "input": json.loads(said.arguments)})
    else:
        found.append({"type": "text", "text": said.text})
    return found


def message(said: Turn, model: str) -> dict[str, Any]:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": blocks(said),
        "stop_reason": "tool_use" if said.tool else "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": PROMPT, "output_tokens": COMPLETION},
    }


def message_events(said: Turn, model: str) -> Iterator[dict[str, Any]]:
    whole = message(said, model)
    begun = {**whole, "content": [], "stop_reason": None, "usage": {"input_tokens": PROMPT, "output_tokens": 1}}
    yield {"type": "message_start", "message": begun}
    for index, block in enumerate(whole["content"]):
        empty, deltas = pieces(block, said)
        yield {"type": "content_block_start", "index": index, "content_block": empty}
        for delta in deltas:
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    stop = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
    yield {"type": "message_delta", "delta": stop, "usage": {"output_tokens": COMPLETION}}
    yield {"type": "message_stop"}


def pieces(block: dict[str, Any], said: Turn) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return a block as it begins, and the deltas that follow."""
    if block["type"] == "thinking":
        deltas = [{"type": "thinking_delta", "thinking": part} for part in halves(said.thought)]
        deltas.append({"type": "signature_delta", "signature": SIGNATURE})
        return {**block, "thinking": "", "signature": ""}, deltas
    if block["type"] == "tool_use":
        deltas = [{"type": "input_json_delta", "partial_json": part} for part in halves(said.arguments)]
        return {**block, "input": {}}, deltas
    return {**block, "text": ""}, [{"type": "text_delta", "text": part} for part in halves(said.text)]


def halves(text: str) -> tuple[str, str]:
    return text[: len(text) // 2], text[len(text) // 2 :]


# --- OpenAI's Responses: https://platform.openai.com/docs/api-reference/responses-streaming


def items(said: Turn) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if said.thought:
        found.append({"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": said.thought}]})
    if said.tool:
        call = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": said.tool}
        found.append({**call, "arguments": said.arguments, "status": "completed"})
    else:
        text = {"type": "output_text", "text": said.text, "annotations": [], "logprobs": []}
        found.append({"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [text]})
    return found


def response(said: Turn, model: str) -> dict[str, Any]:
    used = {"input_tokens": PROMPT, "output_tokens": COMPLETION, "total_tokens": PROMPT + COMPLETION}
    details = {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "status": "completed",
        "model": model,
        "output": items(said),
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "usage": {**used, **details},
    }


def response_events(said: Turn, model: str) -> Iterator[dict[str, Any]]:
    whole = response(said, model)
    begun = {**whole, "status": "in_progress", "output": [], "usage": None}
    yield {"type": "response.created", "response": begun}
    yield {"type": "response.in_progress", "response": begun}
    for index, item in enumerate(whole["output"]):
        yield from item_events(item, index)
    yield {"type": "response.completed", "response": whole}


def item_events(item: dict[str, Any], index: int) -> Iterator[dict[str, Any]]:
    at = {"item_id": item["id"], "output_index": index}
    if item["type"] == "function_call":
        yield added({**item, "arguments": "", "status": "in_progress"}, index)
        for part in halves(item["arguments"]):
            yield {"type": "response.function_call_arguments.delta", **at, "delta": part}
        done = {"name": item["name"], "arguments": item["arguments"]}
        yield {"type": "response.function_call_arguments.done", **at, **done}
    elif item["type"] == "reasoning":
        yield added({**item, "summary": []}, index)
        within, part = {**at, "summary_index": 0}, item["summary"][0]
        yield {"type": "response.reasoning_summary_part.added", **within, "part": {**part, "text": ""}}
        for text in halves(part["text"]):
            yield {"type": "response.reasoning_summary_text.delta", **within, "delta": text}
        yield {"type": "response.reasoning_summary_text.done", **within, "text": part["text"]}
        yield {"type": "response.reasoning_summary_part.done", **within, "part": part}
    else:
        yield added({**item, "content": [], "status": "in_progress"}, index)
        within, part = {**at, "content_index": 0}, item["content"][0]
        yield {"type": "response.content_part.added", **within, "part": {**part, "text": ""}}
        for text in halves(part["text"]):
            yield {"type": "response.output_text.delta", **within, "delta": text, "logprobs": []}
        yield {"type": "response.output_text.done", **within, "text": part["text"], "logprobs": []}
        yield {"type": "response.content_part.done", **within, "part": part}
    yield {"type": "response.output_item.done", "output_index": index, "item": item}


def added(item: dict[str, Any], index: int) -> dict[str, Any]:
    return {"type": "response.output_item.added", "output_index": index, "item": item}


# --- the server


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    agent: Agent

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        path = self.path.partition("?")[0]  # Claude Code asks for `?beta=true`
        self.agent.requests.append({"path": path, "body": body})
        if path.endswith("/count_tokens"):
            self.whole({"input_tokens": PROMPT})
            return
        said = turn(body, self.agent.tools)
        anthropic = path == "/v1/messages"
        if not body.get("stream"):
            self.whole((message if anthropic else response)(said, body["model"]))
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for number, event in enumerate((message_events if anthropic else response_events)(said, body["model"])):
            fields = event if anthropic else {**event, "sequence_number": number}
            text = f"event: {event['type']}\ndata: {json.dumps(fields)}\n\n".encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(text), text))
        self.wfile.write(b"0\r\n\r\n")

    def whole(self, fields: dict[str, Any]) -> None:
        text = json.dumps(fields).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args: Any) -> None:
        """Log nothing: a test's output is its own."""


@contextlib.contextmanager
def running() -> Iterator[Agent]:
    """Provide one that listens on a free port of 127.0.0.1."""

    class Bound(Handler):
        pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Bound) as server:
        agent = Agent(f"http://127.0.0.1:{server.server_port}")
        Bound.agent = agent
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield agent
        finally:
            server.shutdown()
            thread.join()
