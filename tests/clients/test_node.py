"""Clients for Node.js as people use them: openai's own, and Vercel's AI SDK with its two providers for such servers."""

import json
from typing import Any

import pytest

from tests.clients.agent_engine import COMPLETION, PROMPT, THOUGHT
from tests.clients.office import DOCUMENTS, QUESTION, answer
from tests.engine import SSE

MESSAGES = [{"role": "user", "content": QUESTION}]
LONG = [{"role": "user", "content": "word " * 1500}]
FIXED = {"messages": MESSAGES, "max_tokens": 16, "temperature": 0}


@pytest.fixture
def ask(office, node):
    """Make a call of driver.mjs with this office's key."""
    to = {"baseURL": office.v1, "apiKey": office.key}

    def asked(do: str, **fields: Any) -> dict[str, Any]:
        return node.call(do, to=to, **fields)

    return asked


def used(office, count: int = 1) -> list[tuple[int, int]]:
    rows = office.rows(count)
    assert {row.status for row in rows} == {"finished"}
    return [(row.prompt_tokens, row.completion_tokens) for row in rows]


# --- openai-node


def test_openai_node_gets_the_same_answer_streamed_and_not(office, ask):
    whole = answer(ask("openai_chat", model="chat", **FIXED))
    streamed = answer(ask("openai_chat_stream", model="chat", **FIXED))
    text = whole["choices"][0]["message"]["content"]
    assert "".join(streamed["texts"]) == streamed["whole"]["choices"][0]["message"]["content"] == text != ""
    for usage, metered in zip((whole["usage"], streamed["whole"]["usage"]), used(office, 2), strict=True):
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == metered


def test_openai_node_lets_a_model_call_a_function(office, ask):
    told = answer(ask("openai_tools", model="fake", messages=MESSAGES))
    assert told["asked"] == [{"city": "Osaka"}]
    assert [message["role"] for message in told["messages"]] == ["user", "assistant", "tool"]


@pytest.mark.parametrize("model", ["agent", "chat"])
def test_openai_node_gets_a_response(office, ask, model):
    fields = {"model": model, "input": QUESTION, "max_output_tokens": 16}
    whole = answer(ask("openai_response", **fields))
    streamed = answer(ask("openai_response_stream", **fields))
    assert whole["output_text"] != ""
    assert "".join(streamed["texts"]) == streamed["whole"]["output_text"] != ""
    for usage, metered in zip((whole["usage"], streamed["whole"]["usage"]), used(office, 2), strict=True):
        assert (usage["input_tokens"], usage["output_tokens"]) == metered


def test_openai_node_embeds_and_lists_models(ask):
    embedded = answer(ask("openai_embed", model="embedding", input=DOCUMENTS))
    assert [len(vector) for vector in embedded["vectors"]] == [384] * 3
    assert any(embedded["vectors"][0])
    assert set(answer(ask("openai_models"))) == {"agent", "chat", "embedding", "fake", "rerank"}


def test_openai_node_sends_a_recording(office, ask):
    told = answer(ask("openai_transcribe", model="fake", bytes=300_000))
    assert told["text"] == "hello there"
    assert [row.endpoint for row in office.rows()] == ["/v1/audio/transcriptions"]


@pytest.mark.parametrize(
    ("fields", "kind", "status", "code"),
    [
        ({"model": "nope"}, "NotFoundError", 404, "model_not_found"),
        ({"messages": LONG}, "BadRequestError", 400, "context_length_exceeded"),
        ({"max_tokens": "many"}, "BadRequestError", 400, None),
    ],
)
def test_openai_node_sees_errors_as_its_own_kinds(ask, fields, kind, status, code):
    for do in ("openai_chat", "openai_chat_stream"):
        error = ask(do, **{"model": "chat", **FIXED, **fields})["error"]
        assert (error["type"], error["status"]) == (kind, status)
        assert error["requestID"].startswith("req_")
        assert code in (None, error["code"])


def test_openai_node_raises_when_an_answer_breaks_off(ask):
    broken = json.dumps([{"send": SSE}, {"events": 3}, {"reset": True}])
    error = ask("openai_chat_stream", model="fake", user=broken, **FIXED)["error"]
    assert error["code"] == "engine_error"


def test_openai_node_leaves_a_stream_in_good_order(office, ask):
    assert answer(ask("openai_leave", model="chat", ignore_eos=True, messages=MESSAGES, max_tokens=900))
    assert [row.status for row in office.rows()] == ["aborted"]


# --- Vercel's AI SDK

KINDS = ["compatible", "chat", "responses"]


@pytest.mark.parametrize("kind", KINDS)
def test_vercel_gets_the_same_answer_streamed_and_not(office, ask, kind):
    """`responses` is what its provider for OpenAI does by default, also with another address."""
    fields = {"kind": kind, "name": "chat", "prompt": QUESTION, "maxOutputTokens": 16}
    whole, streamed = answer(ask("vercel_generate", **fields)), answer(ask("vercel_stream", **fields))
    assert whole["text"] != ""
    assert "".join(streamed["texts"]) == streamed["text"] != ""
    for told, metered in zip((whole, streamed), used(office, 2), strict=True):
        assert told["finishReason"] in ("stop", "length")
        assert (told["usage"]["inputTokens"], told["usage"]["outputTokens"]) == metered


@pytest.mark.parametrize("do", ["vercel_generate", "vercel_stream"])
@pytest.mark.parametrize("kind", KINDS)
def test_vercel_calls_tools(office, ask, kind, do):
    model, steps = ("agent", 2) if kind == "responses" else ("fake", 1)
    told = answer(ask(do, kind=kind, name=model, prompt="Osaka?", withTools=True, steps=steps))
    assert told["calls"] == [["weather", {"city": "Osaka"}]]
    assert told["results"] == ["sunny in Osaka"]
    if kind == "responses":  # it sent the model what the tool gave
        assert told["text"] == "It says: sunny in Osaka"
        assert used(office, 2) == [(PROMPT, COMPLETION)] * 2


def test_vercel_shows_what_a_model_thought(ask):
    thinking = {"openai": {"reasoningEffort": "low", "reasoningSummary": "auto", "forceReasoning": True}}
    fields = {"kind": "responses", "name": "agent", "prompt": "Osaka?", "providerOptions": thinking}
    assert answer(ask("vercel_stream", **fields))["reasoning"] == THOUGHT


def test_vercel_gets_structured_output(ask):
    fields = {"kind": "chat", "name": "chat", "prompt": QUESTION, "maxOutputTokens": 60}
    assert answer(ask("vercel_object", **fields))["name"] in ("red", "green", "blue")


def test_vercel_embeds(office, ask):
    embedded = answer(ask("vercel_embed", name="embedding", values=DOCUMENTS))
    assert [len(vector) for vector in embedded["vectors"]] == [384] * 3
    assert sum(row.prompt_tokens for row in office.rows()) == embedded["usage"]["tokens"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("do", ["vercel_generate", "vercel_stream"])
def test_vercel_sees_why_a_call_was_refused(ask, do, kind):
    error = ask(do, kind=kind, name="nope", prompt=QUESTION)["error"]
    assert (error["type"], error["status"]) == ("APICallError", 404)
