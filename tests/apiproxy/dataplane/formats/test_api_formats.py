"""Responses, Messages, rerank and score: passed through as they are, metered, and failing in their own words."""

import json
from typing import Any

import httpx2
import openai
import pytest

from apiproxy.dataplane.stream import readers
from apiproxy.dataplane.stream.accumulators import MessageAccumulator
from apiproxy.dataplane.token_usage import Tokens, read_tokens
from tests.engine import DONE, FINISH, SSE, chunk, token, typed_event, unary
from tests.waiting import until

USAGE = {
    "input_tokens": 32,
    "output_tokens": 9,
    "total_tokens": 41,
    "input_tokens_details": {"cached_tokens": 4},
    "output_tokens_details": {"reasoning_tokens": 5},
}
RESPONSE = {"id": "resp_1", "object": "response", "status": "completed", "output": [], "usage": USAGE}
TEXT = "response.output_text.delta"
RESPONSES_START = typed_event(
    "response.created", response={"id": "resp_1", "usage": None}, sequence_number=0
) + "".join(
    typed_event(TEXT, delta=text, sequence_number=index) for index, text in enumerate(("a", 'say \\"usage\\"', "c"))
)
RESPONSES_STREAM = RESPONSES_START + typed_event("response.completed", response=RESPONSE)

FIRST_USAGE = {"input_tokens": 1, "cache_read_input_tokens": 31, "output_tokens": 0}
MESSAGE = {"id": "msg_1", "type": "message", "role": "assistant", "content": [], "stop_reason": None}
MESSAGES_START = (
    typed_event("message_start", message={**MESSAGE, "usage": FIRST_USAGE})
    + typed_event("content_block_start", index=0, content_block={"type": "text", "text": ""})
    + "".join(typed_event("content_block_delta", index=0, delta={"type": "text_delta", "text": text}) for text in "abc")
)
MESSAGES_STREAM = (
    MESSAGES_START
    + typed_event("content_block_stop", index=0)
    + typed_event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 8})
    + typed_event("message_stop")
)
BOTH = pytest.mark.parametrize(
    ("path", "start", "whole"),
    [("/v1/responses", RESPONSES_START, RESPONSES_STREAM), ("/v1/messages", MESSAGES_START, MESSAGES_STREAM)],
)


def call(counter, path: str, script: list[dict[str, Any]], **fields: Any) -> httpx2.Response:
    return counter.client.post(path, json={"model": "fake", "script": script, **fields})


# --- what goes through


@BOTH
def test_a_stream_goes_through_as_it_is_and_is_metered(counter, path, start, whole):
    script = [{"send": SSE}, *({"send": chunk(byte)} for byte in whole), {"send": "0\r\n\r\n"}]
    response = call(counter, path, script, stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text == whole
    (seen,) = counter.engine.seen()["requests"]
    assert seen["path"] == path
    assert "stream_options" not in seen["body"]
    (row,) = counter.usage()
    assert (row.request_id, row.endpoint, row.status) == (response.headers["x-request-id"], path, "finished")
    assert row.estimated is False
    cached, completion, reasoning = (4, 9, 5) if path == "/v1/responses" else (31, 8, 0)
    assert (row.prompt_tokens, row.cached_tokens) == (32, cached)
    assert (row.completion_tokens, row.reasoning_tokens) == (completion, reasoning)


@pytest.mark.parametrize(
    ("path", "body", "used"),
    [
        ("/v1/responses", RESPONSE, Tokens(prompt=32, cached=4, completion=9, reasoning=5)),
        ("/v1/messages", {**MESSAGE, "usage": FIRST_USAGE}, Tokens(prompt=32, cached=31)),
        ("/v1/rerank", {"results": [], "usage": {"total_tokens": 30}}, Tokens(prompt=30)),
        ("/v1/score", {"data": [], "usage": {"prompt_tokens": 6, "total_tokens": 6}}, Tokens(prompt=6)),
    ],
)
def test_a_unary_answer_goes_through_as_it_is_and_is_metered(counter, path, body, used):
    response = call(counter, path, [{"send": unary(200, body)}])
    assert response.json() == body
    (row,) = counter.usage()
    assert (row.prompt_tokens, row.cached_tokens, row.completion_tokens) == (used.prompt, used.cached, used.completion)
    assert (row.reasoning_tokens, row.estimated, row.endpoint) == (used.reasoning, False, path)


def test_counting_tokens_is_a_request_that_costs_no_tokens(counter):
    body = {"input_tokens": 32}
    assert call(counter, "/v1/messages/count_tokens", [{"send": unary(200, body)}]).json() == body
    (row,) = counter.usage()
    assert (row.prompt_tokens, row.completion_tokens, row.estimated, row.status) == (0, 0, False, "finished")


@BOTH
def test_an_aborted_stream_stops_the_engine_and_is_counted(counter, path, start, whole):
    body = {"model": "fake", "stream": True, "script": [{"send": SSE}, {"send": chunk(start)}, {"hang": True}]}
    with counter.client.stream("POST", path, json=body) as response:
        assert next(response.iter_text())
    until(lambda: counter.engine.seen()["left"] == 1, 1)
    (row,) = counter.usage()
    assert (row.status, row.estimated, row.completion_tokens) == ("aborted", True, 3)
    assert path == "/v1/responses" or row.prompt_tokens == 32


# --- failures


def last_event(text: str) -> dict[str, Any]:
    kind, data = text.removesuffix("\n\n").rpartition("\n\n")[2].split("\n")
    assert kind == "event: error"
    return json.loads(data.removeprefix("data: "))


@BOTH
def test_an_engine_that_dies_in_a_stream_is_reported_by_their_kind_of_error(counter, path, start, whole):
    response = call(counter, path, [{"send": SSE}, {"send": chunk(start)}, {"reset": True}], stream=True)
    found = last_event(response.text)
    assert "[DONE]" not in response.text
    assert found["type"] == "error"
    if path == "/v1/messages":
        assert set(found) == {"type", "error"}
        assert found["error"]["type"] == "api_error"
    else:
        assert found["code"] == found["error"]["code"] == "engine_error"
        assert found["param"] is None
    (row,) = counter.usage()
    assert (row.status, row.completion_tokens, row.estimated) == ("failed", 3, True)


@BOTH
def test_an_engines_own_error_event_is_replaced(counter, path, start, whole):
    crash = {"message": "EngineCore at http://10.0.0.9:8000 died", "type": "api_error"}
    own = (
        typed_event("error", error=crash)
        if path == "/v1/messages"
        else typed_event("response.failed", response={"status": "failed", "error": crash})
    )
    # Apart from the error, so that some of the answer has gone out when it comes.
    script = [{"send": SSE}, {"send": chunk(start)}, {"wait": 0.1}, {"send": chunk(own) + "0\r\n\r\n"}]
    response = call(counter, path, script, stream=True)
    assert "10.0.0.9" not in response.text
    assert last_event(response.text)["type"] == "error"
    assert response.text.count("event: error") == 1
    assert counter.usage()[0].status == "failed"


def test_the_openai_sdk_raises_on_the_error_event_of_responses(counter):
    client = openai.OpenAI(base_url=f"{counter.url}/v1", api_key=counter.key, max_retries=0)
    script = [{"send": SSE}, {"send": chunk(RESPONSES_START)}, {"reset": True}]
    with pytest.raises(openai.APIError) as raised:
        list(client.responses.create(model="fake", input="hi", stream=True, extra_body={"script": script}))
    assert raised.value.code == "engine_error"


def anthropic_error(response: httpx2.Response) -> str:
    body = response.json()
    assert set(body) == {"type", "error"}
    assert set(body["error"]) == {"type", "message"}
    assert body["type"] == "error"
    assert response.headers["x-request-id"].startswith("req_")
    return body["error"]["type"]


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
def test_errors_are_anthropics_on_anthropics_paths(counter, path):
    def post(**fields: Any) -> httpx2.Response:
        return counter.client.post(path, json={"model": "fake", **fields})

    nobody = httpx2.post(f"{counter.url}{path}", json={}, headers={"x-api-key": "mdg_nonsense"})
    for response, status, kind in (
        (nobody, 401, "authentication_error"),
        (post(model="nope"), 404, "not_found_error"),
        (post(model=7), 400, "invalid_request_error"),
        (counter.client.get(path), 405, "invalid_request_error"),
        (post(script=[{"send": unary(400, {"error": {"message": "bad"}})}]), 400, "invalid_request_error"),
        (post(script=[{"send": unary(500, {"error": {"message": "bad"}})}]), 502, "api_error"),
    ):
        assert (response.status_code, anthropic_error(response)) == (status, kind)


@pytest.mark.parametrize("path", ["/v1/models", "/v1/messages/count_tokens", "/v1/chat/completions"])
def test_a_key_in_anthropics_header_is_taken_everywhere(counter, path):
    headers = {"x-api-key": counter.key}
    method = "GET" if path == "/v1/models" else "POST"
    response = httpx2.request(method, counter.url + path, headers=headers, json={"model": "fake"})
    assert response.status_code == 200


@pytest.mark.parametrize("path", ["/v1/rerank", "/v1/score", "/v1/responses", "/v1/messages"])
@pytest.mark.parametrize("status", [404, 405, 501])
def test_an_engine_without_such_a_path_is_no_failure_of_the_engine(counter, path, status):
    response = call(counter, path, [{"send": unary(status, {"error": {"message": "not here"}})}])
    assert response.status_code == 400
    assert path in response.text
    assert counter.usage()[0].status == "refused"


def test_only_models_of_the_right_task_may_be_asked(counter):
    counter.model.engine, counter.model.path = "vllm", "/m"
    allowed = {
        "chat": {"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"},
        "embedding": {"/v1/embeddings", "/v1/rerank", "/v1/score"},
        "rerank": {"/v1/rerank", "/v1/score"},
    }
    every = set().union(*allowed.values())
    for task, paths in allowed.items():
        counter.model.task = task
        counter.model.save()
        counter.wait_for_catalogue()
        answers = {path: call(counter, path, [{"send": unary(200, RESPONSE)}]).status_code for path in every}
        assert {path for path, status in answers.items() if status == 200} == paths


# --- an engine that does not notice that the caller of a unary call has left


@BOTH
def test_a_unary_call_to_llama_cpp_is_put_together_from_a_stream(llama, path, start, whole):
    response = call(llama, path, [{"send": SSE}, {"send": chunk(whole) + "0\r\n\r\n"}])
    assert response.headers["content-type"] == "application/json"
    assert llama.engine.seen()["requests"][0]["body"]["stream"] is True
    if path == "/v1/responses":
        assert response.json() == RESPONSE
    else:
        usage = {"input_tokens": 1, "cache_read_input_tokens": 31, "output_tokens": 8}
        content = [{"type": "text", "text": "abc"}]
        assert response.json() == {**MESSAGE, "content": content, "stop_reason": "end_turn", "usage": usage}
    assert llama.usage()[0].estimated is False


def test_a_chat_answer_that_is_put_together_has_usage_though_the_stream_had_none(llama):
    """llama-cpp-python's streams report none, and an answer in one piece without it breaks clients."""
    script = [{"send": SSE}, {"send": chunk(token(0) + token(1) + FINISH + DONE) + "0\r\n\r\n"}]
    answer = llama.client.post("/v1/chat/completions", json={"model": "fake", "messages": [], "script": script}).json()
    row = llama.usage()[0]
    assert row.estimated is True
    assert row.completion_tokens == 2
    told = {"prompt_tokens": row.prompt_tokens, "completion_tokens": 2, "total_tokens": row.prompt_tokens + 2}
    assert answer["usage"] == told


@BOTH
def test_its_caller_who_leaves_stops_it(llama, path, start, whole):
    body = {"model": "fake", "script": [{"send": SSE}, {"send": chunk(start)}, {"hang": True}]}
    with pytest.raises(httpx2.ReadTimeout):
        llama.client.post(path, json=body, timeout=0.5)
    until(lambda: llama.engine.seen()["left"] == 1, 1)
    assert (llama.usage()[0].status, llama.usage()[0].completion_tokens) == ("aborted", 3)


def test_a_tools_input_is_put_together():
    assembly = MessageAccumulator()
    tool = {"type": "tool_use", "id": "t1", "name": "weather", "input": {}}
    stream = typed_event("message_start", message=MESSAGE) + typed_event(
        "content_block_start", index=0, content_block=tool
    )
    for text in ('{"city":', ' "Tokyo"}'):
        stream += typed_event("content_block_delta", index=0, delta={"type": "input_json_delta", "partial_json": text})
    assembly.feed((stream + "data: [DONE]\n\n").encode())
    assert json.loads(assembly.body(None))["content"] == [{**tool, "input": {"city": "Tokyo"}}]


# --- readers


def test_words_in_a_text_do_not_end_a_stream():
    for reader in (readers.ResponsesReader, readers.MessagesReader):
        found = reader(readers.StreamContext(wants_usage=False), lambda error: b"replaced")
        said = typed_event("x", delta='message_stop response.completed "usage" "error"').encode()
        assert found.feed(said) == said
        assert (found.done, found.error, found.is_finished()) == (False, None, False)


def test_prompt_tokens_that_anthropic_counts_apart_are_added():
    usage = {"input_tokens": 3, "cache_read_input_tokens": 4, "cache_creation_input_tokens": 5, "output_tokens": 6}
    assert read_tokens(usage) == Tokens(prompt=12, cached=4, completion=6)
