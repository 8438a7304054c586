"""What clients receive for engines' errors, in the engines' own words as they were seen."""

import json

import pytest

from apiproxy.dataplane import engine_errors
from apiproxy.dataplane.errors import BadRequest, ContextExceeded, EngineBusy, EngineFailed, Refusal
from apiproxy.dataplane.formats import requests
from apiproxy.dataplane.formats.requests import ENDPOINTS

LLAMA = {
    "code": 400,
    "message": "request (1531 tokens) exceeds the available context size (512 tokens), try increasing it",
    "type": "exceed_context_size_error",
    "n_prompt_tokens": 1531,
    "n_ctx": 512,
}
REQUESTED = (
    "This model's maximum context length is 40000 tokens. However, you requested 39668 tokens (7668 in the messages, "
    "32000 in the completion). Please reduce the length of the messages or completion."
)
TOO_LARGE = (
    "'max_tokens' or 'max_completion_tokens' is too large: 32000. This model's maximum context length is 40000 tokens "
    "and your request has 7668 input tokens (32000 > 40000 - 7668)."
)
CONTAINS = (
    "This model's maximum context length is 2048 tokens. However, your prompt contains at least 2049 input tokens, "
    "which exceeds this limit even without any output tokens. Please reduce the length of the input prompt."
)
BATCH = "input (602 tokens) is too large to process. increase the physical batch size (current batch size: 512)"
OUTPUT = "max_completion_tokens=32000 cannot be greater than max_model_len=2048. Please request fewer output tokens."


def refusal_of(error: object, path: str = "/v1/chat/completions", status: int = 400, **fields: object) -> Refusal:
    call = requests.parse(json.dumps({"model": "m", **fields}).encode())
    return engine_errors.make_refusal(status, json.dumps({"error": error}).encode(), call, ENDPOINTS[path])


@pytest.mark.parametrize(
    ("error", "param", "numbers"),
    [
        (LLAMA, "messages", {"limit": 512, "prompt": 1531}),
        ({"message": CONTAINS}, "messages", {"limit": 2048, "prompt": 2049}),
        ({"message": REQUESTED}, "max_tokens", {"limit": 40000, "prompt": 7668, "answer": 32000}),
        ({"message": TOO_LARGE}, "max_tokens", {"limit": 40000, "prompt": 7668, "answer": 32000}),
        ({"message": OUTPUT}, "max_tokens", {"limit": 2048, "answer": 32000}),
    ],
)
@pytest.mark.parametrize("language", ["en", "ja"])
def test_g10_a_context_error_names_its_cause_and_the_numbers(error, param, numbers, language):
    refusal = refusal_of(error, max_tokens=32000)
    assert isinstance(refusal, ContextExceeded)
    assert (refusal.status, refusal.code, refusal.param) == (400, "context_length_exceeded", param)
    assert {name: refusal.facts[name] for name in numbers} == numbers
    # LiteLLM and aider look for these words.
    message = refusal.message(language)
    assert f"This model's maximum context length is {numbers['limit']} tokens" in message


@pytest.mark.parametrize(
    ("path", "param"), [("/v1/embeddings", "input"), ("/v1/rerank", "documents"), ("/v1/score", "text_2")]
)
@pytest.mark.parametrize(("status", "error"), [(400, LLAMA), (500, {"code": 500, "message": BATCH})])
def test_a_text_that_is_too_long_for_an_embedding_is_reported_as_such(status, error, path, param):
    """With llama.cpp also as 500, where a batch is as long as the context."""
    refusal = refusal_of(error, path, status)
    assert isinstance(refusal, ContextExceeded)
    assert (refusal.code, refusal.param) == ("context_length_exceeded", param)
    assert (refusal.facts["limit"], refusal.facts["prompt"]) in [(512, 1531), (512, 602)]
    assert "This model's maximum context length is 512 tokens" in refusal.message("ja")


def test_g10_anthropics_clients_read_anthropics_words():
    long = refusal_of(LLAMA, "/v1/messages").message("en")
    assert long == "prompt is too long: 1531 tokens > 512 maximum"
    much = refusal_of({"message": REQUESTED}, "/v1/messages", max_tokens=32000).message("ja")
    assert much.startswith("input length and `max_tokens` exceed context limit: 7668 + 32000 > 40000, decrease")


def test_g10_without_numbers_the_engines_sentence_is_passed_on():
    refusal = refusal_of({"message": "the context window is exceeded"})
    assert refusal.code == "context_length_exceeded"
    assert "the context window is exceeded" in refusal.message("en")


@pytest.mark.parametrize(
    "message",
    [
        "image input is not supported - hint: if this is unexpected, you may need to provide the mmproj",
        "Failed to parse messages: Missing 'role' in message: {}",
        "Failed to parse tools: Missing tool function: {}",
        "Failed to parse messages: [json.exception.type_error.302] type must be string, but is number",
        "'messages' is required",
    ],
)
def test_g11_what_llama_cpp_finds_wrong_with_a_request_is_reported_as_such(message):
    refusal = refusal_of({"code": 500, "message": message, "type": "server_error"}, status=500)
    assert isinstance(refusal, BadRequest)
    assert message in refusal.message("en")


@pytest.mark.parametrize("message", ["CUDA error: out of memory", "slot 0 is broken", ""])
def test_g11_an_engines_own_failure_stays_one(message):
    assert isinstance(refusal_of({"code": 500, "message": message}, status=500), EngineFailed)


@pytest.mark.parametrize(("status", "said", "told"), [(429, "30", "30"), (503, "7", "7"), (503, "Fri, 1 Jan", "5")])
def test_g7_an_engine_that_is_full_is_reported_by_its_own_status_and_time(status, said, told):
    call = requests.parse(b'{"model": "m"}')
    refusal = engine_errors.make_refusal(status, b"{}", call, ENDPOINTS["/v1/embeddings"], retry_after=said)
    assert isinstance(refusal, EngineBusy)
    assert (refusal.status, refusal.headers["retry-after"]) == (status, told)


@pytest.mark.parametrize("where", ["10.1.2.3:8080", "10.1.2.3", "localhost:8001", "gpu01.corp.local:8000"])
def test_g16_where_an_engine_reached_to_is_not_shown(where):
    error = {"message": f"Cannot connect to host {where} ssl:default: messages.0, max_tokens:4096"}
    assert refusal_of(error).facts["detail"] == "Cannot connect to host … ssl:default: messages.0, max_tokens:4096"
