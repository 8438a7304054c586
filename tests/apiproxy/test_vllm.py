"""A real vLLM (its build for CPUs) under our supervisor, our gateway before it, the openai SDK and plain HTTP.

The model is random and each byte is a token (tests/tiny_llama.py): what it says means nothing, how much can be counted
by hand. One engine for the whole file, which takes a minute to start; the last tests kill it.
"""

import concurrent.futures
import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx2
import openai
import pytest

from modelregistry.process.probe import sum_metrics
from tests import engines
from tests.installation import Installation, installed
from tests.waiting import until

# The engine's start, on a machine that is busy with other tests.
pytestmark = pytest.mark.timeout(600)

QUESTION = [{"role": "user", "content": "hi"}]
# <|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n
PROMPT_TOKENS = 1 + len("user\nhi") + 1 + 1 + 1 + len("assistant\n")
ARGS = [
    "--enforce-eager",
    "--max-num-seqs=4",
    "--enable-auto-tool-choice",
    "--tool-call-parser=hermes",
    # Else a random model may write spaces between two JSON tokens until its context is full.
    "--structured-outputs-config.backend=xgrammar",
    "--structured-outputs-config.disable_any_whitespace=true",
]
FOREVER = {"model": "tiny", "messages": QUESTION, "max_tokens": 4000, "temperature": 0, "ignore_eos": True}


@dataclass
class House:
    """`sdk` and `http` have the same key."""

    madoguchi: Installation
    sdk: openai.OpenAI
    http: httpx2.Client

    def chat(self, **fields: Any) -> Any:
        # vLLM wants some chance for n > 1. This little leaves it with ASCII.
        fields = {"max_tokens": 12, "temperature": 0.01, "extra_body": {"ignore_eos": True}, **fields}
        return self.sdk.chat.completions.create(model="tiny", messages=QUESTION, **fields)

    def complete(self, **fields: Any) -> Any:
        fields = {"max_tokens": 8, "temperature": 0, "extra_body": {"ignore_eos": True}, **fields}
        return self.sdk.completions.create(model="tiny", **fields)

    def row(self, request_id: str) -> dict[str, Any]:
        """Return what was recorded of a call."""
        return until(lambda: self.madoguchi.usage().get(request_id), 30)

    def engine(self) -> httpx2.Client:
        """Return the engine itself, without the gateway."""
        replica = self.madoguchi.replica("tiny")
        headers = {"authorization": f"Bearer {replica['api_key']}"}
        return httpx2.Client(base_url=replica["url"], headers=headers, timeout=30)

    def metric(self, name: str) -> int:
        with self.engine() as http:
            return int(sum_metrics(http.get("/metrics").text)[name])

    def running(self) -> int:
        return self.metric("vllm:num_requests_running")

    def count_generated(self) -> int:
        return self.metric("vllm:generation_tokens_total")

    def compare(self) -> tuple[int, int]:
        """Return by how many tokens (prompt, completion) the engine's counters are ahead of the ledger."""
        (row,) = json.loads(self.madoguchi.manage("reconcile", "--json"))
        assert row["engines"] == 1
        return row["prompt_tokens"]["difference"], row["completion_tokens"]["difference"]


@pytest.fixture(scope="module")
def house(tmp_path_factory) -> Iterator[House]:
    with installed(tmp_path_factory.mktemp("var"), **engines.VLLM_ON_CPU) as madoguchi:
        path, args = str(engines.tiny_llama()), [f"--arg={arg}" for arg in ARGS]
        madoguchi.manage("registermodel", "tiny", "--engine", "vllm", "--path", path, "--context", "4096", *args)
        key = madoguchi.start_for("tiny", seconds=400)
        sdk = openai.OpenAI(base_url=f"{madoguchi.url}/v1", api_key=key, max_retries=0, timeout=200)
        yield House(madoguchi, sdk, httpx2.Client(base_url=madoguchi.url, headers={"x-api-key": key}, timeout=200))
        assert madoguchi.stop() == 0


def assert_metered(row: dict[str, Any], usage: Any, *, path: str) -> None:
    """Compare a row with `usage`, which the client got, in OpenAI's words."""
    assert (row["endpoint"], row["status"], row["estimated"]) == (path, "finished", 0)
    assert (row["prompt_tokens"], row["completion_tokens"]) == (usage.prompt_tokens, usage.completion_tokens)


# --- Answers and what they are recorded with


@pytest.mark.parametrize("n", [1, 3])
def test_chat_is_metered_as_it_was_reported(house, n):
    answer = house.chat(n=n)
    assert [(choice.finish_reason, len(choice.message.content)) for choice in answer.choices] == [("length", 12)] * n
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (PROMPT_TOKENS, 12 * n)
    assert_metered(house.row(answer._request_id), answer.usage, path="/v1/chat/completions")


@pytest.mark.parametrize("n", [1, 3])
def test_a_stream_reports_its_usage_to_a_client_that_asked(house, n):
    stream = house.chat(n=n, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 12 * n
    assert {choice.index for chunk in chunks for choice in chunk.choices} == set(range(n))
    row = house.row(stream.response.headers["x-request-id"])
    assert_metered(row, chunks[-1].usage, path="/v1/chat/completions")
    assert 0 < row["first_token_ms"] <= row["duration_ms"]


@pytest.mark.parametrize("n", [1, 3])
def test_a_stream_reports_no_usage_to_a_client_that_did_not_ask(house, n):
    body = {"model": "tiny", "messages": QUESTION, "max_tokens": 12, "ignore_eos": True, "stream": True, "n": n}
    answer = house.http.post("/v1/chat/completions", json=body)
    assert '"usage"' not in answer.text
    events = answer.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(json.loads(event.removeprefix("data: "))["choices"] for event in events[:-2])
    row = house.row(answer.headers["x-request-id"])
    assert (row["status"], row["estimated"], row["completion_tokens"]) == ("finished", 0, 12 * n)
    assert row["prompt_tokens"] == PROMPT_TOKENS


@pytest.mark.parametrize("prompt", ["abc", ["abc", "defgh"]])
@pytest.mark.parametrize("stream", [False, True])
def test_completions_are_metered_also_of_a_batch(house, prompt, stream):
    count = len(prompt) if isinstance(prompt, list) else 1
    if stream:
        answer = house.complete(prompt=prompt, stream=True)
        assert {chunk.choices[0].index for chunk in answer} == set(range(count))
        request_id = answer.response.headers["x-request-id"]
    else:
        answer = house.complete(prompt=prompt)
        assert [len(choice.text) for choice in answer.choices] == [8] * count
        request_id = answer._request_id
    row = house.row(request_id)
    assert (row["endpoint"], row["prompt_tokens"]) == ("/v1/completions", len("".join(prompt)))
    assert (row["completion_tokens"], row["estimated"]) == (8 * count, 0)


def test_tokens_that_the_engine_had_in_its_cache_are_recorded(house):
    long = [{"role": "user", "content": "b" * 300}]
    ids = [house.sdk.chat.completions.create(model="tiny", messages=long, max_tokens=1)._request_id for _ in range(2)]
    first, second = (house.row(request_id) for request_id in ids)
    assert first["prompt_tokens"] == second["prompt_tokens"]
    assert (first["cached_tokens"], second["cached_tokens"]) == (0, 256)  # whole blocks of 128


def test_a_stop_word_ends_an_answer(house):
    said = house.chat().choices[0].message.content
    answer = house.chat(stop=[said[3:5]])
    choice = answer.choices[0]
    assert (choice.finish_reason, choice.message.content) == ("stop", said[: said.index(said[3:5])])
    assert house.row(answer._request_id)["completion_tokens"] == answer.usage.completion_tokens < 12


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_come_through(house, stream):
    fields = {"logprobs": True, "top_logprobs": 2, "max_tokens": 3, "stream": stream}  # a first one compiles for 20 s
    answer = house.chat(**fields)
    choices = [choice for chunk in answer for choice in chunk.choices] if stream else answer.choices
    found = [token for choice in choices if choice.logprobs for token in choice.logprobs.content]
    assert [(len(token.top_logprobs), token.logprob <= 0) for token in found] == [(2, True)] * 3


def test_a_json_schema_is_kept(house):
    answer = house.chat(max_tokens=100, response_format=engines.COLOUR, extra_body={})
    assert json.loads(answer.choices[0].message.content)["colour"] in ("red", "blue")


CITY = {"type": "object", "properties": {"city": {"enum": ["Tokyo", "Osaka"]}}, "required": ["city"]}
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "strict": True, "parameters": {**CITY, "additionalProperties": False}},
}
# The tool parser's grammar allows white space everywhere and a second call after the first, and a random model would
# write nothing else. So no white space, and the end (<|im_end|>) as soon as it may be.
TERSE = {**{str(ord(character)): -100 for character in "\t\n\r "}, "258": 100}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_tools_are_called(house, stream, choice):
    fields = {"tools": [WEATHER], "tool_choice": choice, "max_tokens": 200, "logit_bias": TERSE, "extra_body": {}}
    if stream:
        with house.sdk.chat.completions.stream(model="tiny", messages=QUESTION, temperature=0, **fields) as events:
            answer = events.get_final_completion()
    else:
        answer = house.chat(**fields)
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments)["city"] in ("Tokyo", "Osaka")
    assert answer.choices[0].finish_reason in ("tool_calls", "stop")


@pytest.mark.parametrize("stream", [False, True])
def test_responses_are_metered_as_they_were_reported(house, stream):
    fields = {"model": "tiny", "input": "hi", "max_output_tokens": 12}
    if stream:
        answer = house.sdk.responses.create(**fields, stream=True)
        *_, last = list(answer)
        response, request_id = last.response, answer.response.headers["x-request-id"]
        assert last.type == "response.completed"
    else:
        response = house.sdk.responses.create(**fields)
        request_id = response._request_id
    assert response.output_text
    row = house.row(request_id)
    assert (row["endpoint"], row["status"], row["estimated"]) == ("/v1/responses", "finished", 0)
    told = (response.usage.input_tokens, response.usage.output_tokens)
    assert (row["prompt_tokens"], row["completion_tokens"]) == told


@pytest.mark.parametrize("stream", [False, True])
def test_messages_are_metered_as_they_were_reported(house, stream):
    body = {"model": "tiny", "messages": QUESTION, "max_tokens": 12, "stream": stream}
    answer = house.http.post("/v1/messages", json=body)
    if stream:
        assert answer.text.startswith("event: message_start\n")
        delta = answer.text.split("event: message_delta\ndata: ")[1].split("\n")[0]
        usage = json.loads(delta)["usage"]
    else:
        assert answer.json()["content"][0]["type"] == "text"
        usage = answer.json()["usage"]
    row = house.row(answer.headers["x-request-id"])
    assert (row["endpoint"], row["status"], row["estimated"]) == ("/v1/messages", "finished", 0)
    assert (row["prompt_tokens"], row["completion_tokens"]) == (usage["input_tokens"], usage["output_tokens"])
    assert 0 < row["completion_tokens"] <= 12


def test_counting_tokens_uses_none(house):
    answer = house.http.post("/v1/messages/count_tokens", json={"model": "tiny", "messages": QUESTION})
    assert answer.json()["input_tokens"] == PROMPT_TOKENS
    row = house.row(answer.headers["x-request-id"])
    assert (row["prompt_tokens"], row["completion_tokens"], row["estimated"]) == (0, 0, 0)


# --- Refusals


def test_a_prompt_beyond_the_context_is_reported_as_such(house):
    with pytest.raises(openai.BadRequestError) as refused:
        house.sdk.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "x" * 5000}])
    assert refused.value.code == "context_length_exceeded"
    row = house.row(refused.value.request_id)
    assert (row["status"], row["prompt_tokens"], row["completion_tokens"]) == ("refused", 0, 0)


def test_unknown_fields_pass_and_those_that_vllm_knows_work(house):
    fields = {"min_tokens": 3, "no_such_field": {"a": [1, None]}, "stop_token_ids": list(range(256))}
    answer = house.chat(extra_body=fields)
    assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("stop", 4)


@pytest.mark.parametrize("fields", [{"temperature": -1}, {"top_p": 5}, {"messages": []}, {"messages": "hi"}])
def test_what_the_engine_refuses_is_reported_in_its_words_without_its_address(house, fields):
    answer = house.http.post("/v1/chat/completions", json={"model": "tiny", "messages": QUESTION, **fields})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_value")
    assert len(error["message"]) > 30
    assert_nothing_of_the_engine(house, answer.text)
    assert house.row(answer.headers["x-request-id"])["status"] == "refused"


def assert_nothing_of_the_engine(house: House, text: str) -> None:
    replica = house.madoguchi.replica("tiny")
    port = replica["url"].rpartition(":")[2]
    for private in (
        replica["url"],
        port,
        replica["api_key"],
        "Traceback",
        ".py",
        str(engines.tiny_llama()),
        "EngineCore",
    ):
        assert private not in text


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/rerank", "/v1/score"])
def test_a_chat_model_gives_no_vectors_and_no_ranking(house, path):
    answer = house.http.post(path, json={"model": "tiny", "input": "a", "query": "a", "documents": ["b"]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "model_not_supported")


@pytest.mark.parametrize(
    "path",
    [
        *("/v1/load_lora_adapter", "/v1/chat/completions/batch", "/v1/chat/completions/render", "/v1/systemone"),
        *(
            "/tokenize",
            "/invocations",
            "/v1/../invocations",
            "/scale_elastic_ep",
            "/inference/v1/generate",
            "/v2/embed",
        ),
    ],
)
def test_the_engines_other_paths_are_out_of_reach(house, path):
    before = house.metric("vllm:prompt_tokens_total")
    answer = house.http.post(path, json={"model": "tiny", "messages": QUESTION, "prompt": "a"})
    assert answer.status_code in (403, 404)
    assert house.metric("vllm:prompt_tokens_total") == before


# --- Clients that leave


@pytest.mark.parametrize("path", ["/invocations", "/tokenize", "/metrics", "/v1/models", "/load", "/docs", "/version"])
def test_the_engine_itself_answers_no_caller_without_its_key(house, path):
    replica = house.madoguchi.replica("tiny")
    body = {"model": "tiny", "messages": QUESTION, "max_tokens": 1}
    for answer in (httpx2.get(replica["url"] + path), httpx2.post(replica["url"] + path, json=body)):
        assert answer.status_code == 401
    assert httpx2.get(f"{replica['url']}/health").status_code == 200


def test_a_client_that_leaves_a_stream_frees_the_engine(house):
    before = house.count_generated()
    unwatched = {"x-madoguchi-loops": "off"}  # what it says may well be a loop, and its status would be another
    body = {**FOREVER, "stream": True}
    with house.http.stream("POST", "/v1/chat/completions", json=body, headers=unwatched) as answer:
        lines = (line for line in answer.iter_lines() if line)
        for _ in range(10):
            next(lines)
        assert house.running() == 1
    until(lambda: house.running() == 0, 10)
    row = house.row(answer.headers["x-request-id"])
    assert (row["status"], row["estimated"]) == ("aborted", 1)
    assert 9 <= row["completion_tokens"] <= house.count_generated() - before
    # It went on for less than a second, of the seven that 4,000 tokens take on an idle machine.
    assert house.count_generated() - before - row["completion_tokens"] < FOREVER["max_tokens"] / 4


def test_a_client_that_leaves_a_unary_call_frees_the_engine(house):
    before = house.count_generated()
    body = {**FOREVER, "user": "hasty"}
    with pytest.raises(httpx2.ReadTimeout):
        house.http.post("/v1/chat/completions", json=body, timeout=httpx2.Timeout(30, read=1))
    until(lambda: house.running() == 0, 10)
    # In about two seconds; an idle machine makes 600 tokens in each, a busy one 60. To its end it would be exactly all.
    assert 0 < house.count_generated() - before < FOREVER["max_tokens"]
    (row,) = until(lambda: [row for row in house.madoguchi.usage().values() if row["end_user"] == "hasty"], 30)
    assert (row["status"], row["estimated"]) == ("aborted", 1)
    assert row["prompt_tokens"] > 0


# --- Batch


@contextlib.contextmanager
def forever(http: httpx2.Client) -> Iterator[Iterator[str]]:
    """Provide a person's stream that has begun."""
    with http.stream("POST", "/v1/chat/completions", json={**FOREVER, "stream": True}) as answer:
        lines = answer.iter_lines()  # forgotten, it would close the answer
        next(lines)
        yield lines


def test_a_batch_call_that_waits_in_the_engine_lets_people_go_first(house):
    """The engine is full with calls of another gateway, of which ours knows nothing.

    The batch call came before the person's, and is answered after it.
    """
    key = house.madoguchi.manage("createkey", "--tenant", "research", "--service", "nightly", "--class", "batch")
    batch = httpx2.Client(base_url=house.madoguchi.url, headers={"x-api-key": key}, timeout=200)
    short = {**FOREVER, "max_tokens": 40}

    def ask(http: httpx2.Client) -> float:
        assert http.post("/v1/chat/completions", json=short).json()["usage"]["completion_tokens"] == 40
        return time.monotonic()

    def waiting() -> int:
        return house.metric("vllm:num_requests_waiting")

    with concurrent.futures.ThreadPoolExecutor() as pool, contextlib.ExitStack() as streams:
        others = streams.enter_context(house.engine())
        for _ in range(3):
            streams.enter_context(forever(others))
        one = streams.enter_context(contextlib.ExitStack())
        one.enter_context(forever(others))
        batch_ended = pool.submit(ask, batch)
        until(lambda: waiting() == 1)
        person_ended = pool.submit(ask, house.http)
        until(lambda: waiting() == 2)
        assert house.running() == 4
        one.close()  # the only slot that becomes free
        assert person_ended.result() < batch_ended.result()


def test_every_path_takes_a_batch_call(house):
    key = house.madoguchi.manage("createkey", "--tenant", "research", "--service", "index", "--class", "batch")
    with openai.OpenAI(base_url=f"{house.madoguchi.url}/v1", api_key=key, max_retries=0, timeout=200) as sdk:
        assert sdk.chat.completions.create(model="tiny", messages=QUESTION, max_tokens=4).usage
        assert sdk.completions.create(model="tiny", prompt="a", max_tokens=4).usage
        assert sdk.responses.create(model="tiny", input="a", max_output_tokens=4).usage
    answer = httpx2.post(
        f"{house.madoguchi.url}/v1/messages",
        headers={"x-api-key": key},
        json={"model": "tiny", "messages": QUESTION, "max_tokens": 4},
        timeout=200,
    )
    assert answer.json()["usage"]["output_tokens"] > 0


# --- The ledger and the engine's counters


def test_the_ledger_agrees_with_the_engines_counters_to_the_token(house):
    before = house.compare()
    ids = set()
    for number in range(4):
        body = {"model": "tiny", "messages": QUESTION * (number + 1), "max_tokens": 20, "ignore_eos": True}
        for stream in (False, True):
            answer = house.http.post("/v1/chat/completions", json={**body, "stream": stream})
            assert answer.status_code == 200
            ids.add(answer.headers["x-request-id"])
    for prompt in ("abc", ["abc", "defgh"]):
        ids.add(house.complete(prompt=prompt)._request_id)
    until(lambda: ids <= set(house.madoguchi.usage()), 10)
    assert house.compare() == before

    house.row(house.chat(n=3)._request_id)
    prompt, completion = before  # the engine counts the prompt with each of its answers, the ledger once
    assert house.compare() == (prompt + 2 * PROMPT_TOKENS, completion)


# --- The engine dies (from here on there is none)


def test_an_engine_that_is_killed_never_seems_to_have_finished(house):
    def ask() -> None:
        unary.append(house.http.post("/v1/chat/completions", json=FOREVER))

    unary: list[httpx2.Response] = []
    asking = threading.Thread(target=ask)
    with house.http.stream("POST", "/v1/chat/completions", json={**FOREVER, "stream": True}) as stream:
        lines = (line for line in stream.iter_lines() if line)
        seen = [next(lines) for _ in range(5)]
        asking.start()
        until(lambda: house.running() == 2, 10)
        os.kill(house.madoguchi.pid_of("EngineCore"), signal.SIGKILL)
        killed = time.monotonic()
        seen += list(lines)
        assert time.monotonic() - killed < 20
    asking.join(30)

    assert seen[-1] == "data: [DONE]"
    assert json.loads(seen[-2].removeprefix("data: "))["error"]["code"] == "engine_error"
    assert all('"finish_reason":null' in line for line in seen[:-2])
    assert_nothing_of_the_engine(house, "\n".join(seen[-2:]))
    row = house.row(stream.headers["x-request-id"])
    assert (row["status"], row["estimated"]) == ("failed", 1)
    assert len(seen) - 4 <= row["completion_tokens"] <= len(seen)

    (answer,) = unary
    assert answer.status_code in (502, 503)
    assert answer.json()["error"]["type"] == "server_error"
    assert_nothing_of_the_engine(house, answer.text)
    assert house.row(answer.headers["x-request-id"])["status"] == "failed"


def test_a_call_without_an_engine_waits_for_the_next_one(house):
    # Unless the test before has left it without one.
    for pid, command in house.madoguchi.processes().items():
        if "EngineCore" in command and house.madoguchi.replica("tiny")["state"] == "ready":
            os.kill(pid, signal.SIGKILL)
    until(lambda: house.madoguchi.replica("tiny")["state"] != "ready")
    # The queue keeps it for 240 s; vLLM takes 30 to load, and two or three minutes on a machine that does much else.
    answer = house.http.post("/v1/chat/completions", json={**FOREVER, "max_tokens": 2}, timeout=280)
    assert answer.status_code == 200
    assert float(answer.headers["x-madoguchi-waited"]) > 0
