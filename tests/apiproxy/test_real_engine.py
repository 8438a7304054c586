"""Real clients and a real engine: the openai SDK through the gateway to llama.cpp, metered as the engine reports."""

import concurrent.futures
import json
from collections.abc import Iterator
from dataclasses import dataclass
from io import StringIO
from typing import Any

import httpx2
import openai
import pytest
from django.core.management import call_command

from apiproxy.bridge.models import CatalogueRevision
from apiproxy.server.asgi import Application
from modelregistry.models import Host, Replica, ServedModel
from portal.keys.lifecycle import issue_key
from portal.keys.models import ApiKey, ModelAccess
from portal.usage.models import UsageRecord
from portal.use_cases.models import UseCaseCheck
from tests import engines
from tests.apiproxy.conftest import serve_gateway
from tests.use_cases import text_content, use_case
from tests.waiting import until

QUESTION = [{"role": "user", "content": "Name three colours."}]


@pytest.fixture(scope="module")
def urls(tmp_path_factory) -> Iterator[dict[str, str]]:
    """Provide a chat and an embedding engine."""
    directory = tmp_path_factory.mktemp("engines")
    chat, chat_url = engines.launch(
        directory, engines.chat_model(), "--alias=chat", "--parallel=2", "--ctx-size=2048", "--no-cache-prompt"
    )
    batch = ("--batch-size=2048", "--ubatch-size=2048", "--embeddings")
    vectors, vectors_url = engines.launch(
        directory, engines.embedding_model(), "--alias=vectors", "--ctx-size=512", *batch
    )
    yield {"chat": chat_url, "embedding": vectors_url}
    for process in (chat, vectors):
        process.kill()
        process.wait()


@dataclass
class Real:
    """`sdk` and `http` have the same key."""

    url: str
    sdk: openai.OpenAI
    http: httpx2.Client
    application: Application

    def wait_for_catalogue(self) -> None:
        """Wait until the gateway's catalogue holds every change made so far."""
        until(lambda: self.application.revision == CatalogueRevision.objects.get().number)

    def last_record(self, count: int = 1) -> UsageRecord:
        """Return the newest row, once there are so many."""
        until(lambda: UsageRecord.objects.count() >= count)
        return UsageRecord.objects.latest("id")

    def chat(self, **fields: Any) -> Any:
        return self.sdk.chat.completions.create(model="chat", messages=QUESTION, max_tokens=16, **fields)


@pytest.fixture
def real(transactional_db, settings, tmp_path, alice, research, urls) -> Iterator[Real]:
    settings.SPOOL, settings.RUN = tmp_path / "spool", tmp_path / "run"
    host = Host.objects.create(name="here")
    for task, url in urls.items():
        name = "chat" if task == "chat" else "vectors"
        model = ServedModel.objects.create(name=name, engine="llama.cpp", task=task, path="/m.gguf")
        slots = 2 if task == "chat" else None
        Replica.objects.create(model=model, host=host, state="ready", url=url, api_key="k", slots=slots)
    _, key = issue_key(tenant=research, user=alice, name="test")
    with serve_gateway() as (url, application, _):
        sdk = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=60)
        http = httpx2.Client(base_url=url, headers={"x-api-key": key}, timeout=60)
        yield Real(url, sdk, http, application)


MEMO = "The memo says that the price will be forty-two million and that Alice leaves in March. " * 5
ASKED = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": MEMO}], "max_tokens": 2},
    "/v1/completions": {"prompt": MEMO, "max_tokens": 2},
    "/v1/responses": {"input": MEMO, "max_output_tokens": 2},
    "/v1/messages": {"messages": [{"role": "user", "content": MEMO}], "max_tokens": 2},
}


@pytest.mark.parametrize("path", ASKED)
def test_g18_no_tenant_learns_from_the_cache_what_another_has_asked(real, charlie, sales, path):
    _, others = issue_key(tenant=sales, user=charlie, name="guesses")
    for headers in ({}, {"x-api-key": others}):
        body = {"model": "chat", "cache_prompt": True, **ASKED[path]}
        assert real.http.post(path, json=body, headers=headers).status_code == 200
    real.last_record(2)
    assert set(UsageRecord.objects.values_list("cached_tokens", flat=True)) == {0}


def test_g18_the_only_tenant_of_a_model_uses_its_cache(real, research):
    ModelAccess.objects.create(model=ServedModel.objects.get(name="chat"), tenant=research)
    real.wait_for_catalogue()
    for _ in range(2):
        real.http.post("/v1/chat/completions", json={"model": "chat", **ASKED["/v1/chat/completions"]})
    assert real.last_record(2).cached_tokens > 100


@pytest.mark.parametrize(
    ("path", "fields", "most"),
    [
        ("/v1/chat/completions", {"max_tokens": 1, "n_predict": 30}, 1),
        ("/v1/chat/completions", {"max_tokens": "3", "n_predict": -1}, 3),
        ("/v1/chat/completions", {"n_predict": 4}, 4),
        ("/v1/messages", {"max_completion_tokens": 1, "max_tokens": 5}, 5),
        ("/v1/responses", {"max_tokens": 1, "max_output_tokens": 5}, 5),
        ("/v1/responses", {"max_output_tokens": 5, "n_predict": 30, "max_completion_tokens": 30, "n": 2}, 5),
    ],
)
def test_m2_llama_cpp_makes_as_much_as_was_reserved(real, path, fields, most):
    asked = {"input": "Count."} if path == "/v1/responses" else {"messages": QUESTION}
    answer = real.http.post(path, json={"model": "chat", "ignore_eos": True, **asked, **fields})
    assert answer.status_code == 200
    assert real.last_record().completion_tokens <= most
    if path == "/v1/chat/completions":
        assert real.last_record().completion_tokens == most


def test_g14_a_grammar_that_kills_llama_cpp_never_reaches_it(real):
    body = {"model": "chat", "messages": QUESTION, "grammar": "root ::= " + "(" * 100_000}
    answer = real.http.post("/v1/chat/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "grammar")
    assert real.chat().usage.completion_tokens > 0


def test_the_nightly_check_of_use_cases_judges_what_a_real_model_answers(real, settings, alice, bob, research):
    """A question that it answers, and one that leaves no room for an answer in its context."""
    short = text_content(prompt="Name three colours.", variables=())
    long = text_content(prompt="Count: " + "one two three " * 550, variables=())
    cases = [use_case(alice, research, text, publisher=bob, model="chat") for text in (short, long)]
    settings.GATEWAY_URL, settings.CANARY_HOUR = real.url, 3
    real.wait_for_catalogue()
    call_command("checkusecases", "--due", stdout=StringIO())
    answered, refused = (UseCaseCheck.objects.get(use_case=case) for case in cases)
    assert (answered.outcome, answered.obstacle, answered.model) == (UseCaseCheck.Outcome.FINE, "", "chat")
    assert (refused.outcome, refused.obstacle) == (UseCaseCheck.Outcome.REFUSED, "")
    row = until(lambda: UsageRecord.objects.filter(completion_tokens__gt=0).first())
    assert (row.completion_tokens, row.key.key_class) == (answered.tokens, ApiKey.Class.CANARY)


def assert_metered(row: UsageRecord, usage: Any, *, path: str) -> None:
    """Compare the newest row with `usage`, which the client got, in OpenAI's words."""
    assert (row.endpoint, row.status, row.estimated) == (path, "finished", False)
    assert (row.prompt_tokens, row.completion_tokens) == (usage.prompt_tokens, usage.completion_tokens)
    assert usage.prompt_tokens > 0


@pytest.mark.parametrize("n", [1, 2])
def test_chat_is_metered_as_it_was_reported(real, n):
    answer = real.chat(n=n, extra_body={"ignore_eos": True})
    assert [choice.finish_reason for choice in answer.choices] == ["length"] * n
    assert answer.usage.completion_tokens == 16 * n
    assert_metered(real.last_record(), answer.usage, path="/v1/chat/completions")


@pytest.mark.parametrize("n", [1, 2])
def test_streamed_chat_is_metered_as_it_was_reported(real, n):
    told = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(real.chat(n=n, extra_body={"ignore_eos": True}, **told))
    assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 16 * n
    assert_metered(real.last_record(), chunks[-1].usage, path="/v1/chat/completions")


@pytest.mark.parametrize("prompt", ["One, two,", ["One, two,", "Red, green, blue, black, white,"]])
@pytest.mark.parametrize("stream", [False, True])
def test_completions_are_metered_also_of_a_batch(real, prompt, stream):
    fields = {"model": "chat", "prompt": prompt, "max_tokens": 8, "extra_body": {"ignore_eos": True}}
    count = len(prompt) if isinstance(prompt, list) else 1
    if stream:
        chunks = list(real.sdk.completions.create(**fields, stream=True))
        assert {chunk.choices[0].index for chunk in chunks} == set(range(count))
    else:
        assert len(real.sdk.completions.create(**fields).choices) == count
    row = real.last_record()
    assert (row.endpoint, row.completion_tokens, row.estimated) == ("/v1/completions", 8 * count, False)
    assert row.prompt_tokens > (10 if count == 2 else 2)


async def test_the_async_client_streams(real):
    async with openai.AsyncOpenAI(base_url=real.sdk.base_url, api_key=real.sdk.api_key, max_retries=0) as client:
        stream = await client.chat.completions.create(model="chat", messages=QUESTION, max_tokens=8, stream=True)
        texts = [chunk.choices[0].delta.content async for chunk in stream]
    assert len([text for text in texts if text]) > 2


@pytest.mark.parametrize("stream", [False, True])
def test_responses_are_metered_as_they_were_reported(real, stream):
    fields = {"model": "chat", "input": "Name three colours.", "max_output_tokens": 12}
    if stream:
        *_, last = list(real.sdk.responses.create(**fields, stream=True))
        assert last.type == "response.completed"
        response = last.response
    else:
        response = real.sdk.responses.create(**fields)
    assert response.output_text
    row = real.last_record()
    assert (row.endpoint, row.status, row.estimated) == ("/v1/responses", "finished", False)
    assert (row.prompt_tokens, row.completion_tokens) == (response.usage.input_tokens, response.usage.output_tokens)


def test_messages_are_metered_as_they_were_reported(real):
    body = {"model": "chat", "messages": QUESTION, "max_tokens": 12}
    answer = real.http.post("/v1/messages", json=body).json()
    assert (answer["type"], answer["content"][0]["type"]) == ("message", "text")
    usage = answer["usage"]
    row = real.last_record()
    assert (row.endpoint, row.completion_tokens) == ("/v1/messages", usage["output_tokens"])
    prompt, cached = usage["input_tokens"] + usage["cache_read_input_tokens"], usage["cache_read_input_tokens"]
    assert (row.prompt_tokens, row.cached_tokens, row.estimated) == (prompt, cached, False)

    streamed = real.http.post("/v1/messages", json={**body, "stream": True}).text
    assert streamed.startswith("event: message_start\n")
    assert streamed.endswith('event: message_stop\ndata: {"type":"message_stop"}\n\n')
    row = real.last_record(2)
    assert (row.status, row.estimated, row.prompt_tokens) == ("finished", False, prompt)
    assert 0 < row.completion_tokens <= 12

    counted = real.http.post("/v1/messages/count_tokens", json=body).json()
    assert counted == {"input_tokens": prompt}
    row = real.last_record(3)
    assert (row.prompt_tokens, row.completion_tokens, row.estimated) == (0, 0, False)


def test_embeddings_come_as_floats_and_as_base64_in_order(real):
    texts = ["red", "green", "a much longer text about the colour blue"]
    by_base64 = real.sdk.embeddings.create(model="vectors", input=texts)  # the SDK's own choice
    floats = real.sdk.embeddings.create(model="vectors", input=texts, encoding_format="float")
    alone = real.sdk.embeddings.create(model="vectors", input=texts[2], encoding_format="float")
    assert [item.index for item in floats.data] == [0, 1, 2]
    for one, other in zip(by_base64.data, floats.data, strict=True):
        assert one.embedding == pytest.approx(other.embedding, abs=1e-4)
    assert floats.data[2].embedding == pytest.approx(alone.data[0].embedding, abs=0.02)
    row = real.last_record(3)
    assert (row.endpoint, row.prompt_tokens) == ("/v1/embeddings", alone.usage.prompt_tokens)


def test_a_json_schema_is_kept(real):
    answer = real.sdk.chat.completions.create(
        model="chat", messages=QUESTION, max_tokens=60, response_format=engines.COLOUR
    )
    assert json.loads(answer.choices[0].message.content)["colour"] in ("red", "blue")


def test_a_prompt_beyond_the_context_is_reported_as_such(real):
    with pytest.raises(openai.BadRequestError) as refused:
        real.sdk.chat.completions.create(model="chat", messages=[{"role": "user", "content": "word " * 1500}])
    assert refused.value.code == "context_length_exceeded"
    assert real.last_record().status == "refused"


def test_an_engine_without_ranking_says_so(real):
    response = real.http.post("/v1/rerank", json={"model": "vectors", "query": "a", "documents": ["b"]})
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "path_not_supported"


def test_batch_leaves_a_slot_to_people_and_goes_when_they_have_theirs(real, research):
    """Two slots: one person has one of them, so batch waits, and the next person is served at once."""
    _, text = issue_key(tenant=research, service="nightly", name="nightly", key_class=ApiKey.Class.BATCH)
    batch = openai.OpenAI(base_url=real.sdk.base_url, api_key=text, max_retries=0, timeout=60)
    long = {"stream": True, "extra_body": {"ignore_eos": True, "user": "first"}, "max_tokens": 400}
    with concurrent.futures.ThreadPoolExecutor() as pool:
        first = real.sdk.chat.completions.create(model="chat", messages=QUESTION, **long)
        next(iter(first))
        waits = pool.submit(batch.chat.completions.create, model="chat", messages=QUESTION, max_tokens=8, user="batch")
        until(lambda: "\nmadoguchi_batch_waiting 1\n" in real.http.get("/metrics").text)
        assert real.chat(user="second").usage.completion_tokens > 0
        assert not waits.done()
        first.close()
        assert waits.result().usage.completion_tokens > 0
    real.last_record(3)
    order = list(UsageRecord.objects.order_by("started_at").values_list("end_user", flat=True))
    assert order == ["first", "second", "batch"]


def test_g11_streamed_responses_have_what_the_sdks_look_for(real):
    """openai-python's own accumulator, which finds items by their index; llama.cpp's events have none."""
    with real.sdk.responses.stream(model="chat", input="Name three colours.", max_output_tokens=12) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert [event.sequence_number for event in events] == sorted(event.sequence_number for event in events)
    assert final.output_text
    assert (final.model, final.usage.output_tokens_details.reasoning_tokens) == ("chat", 0)
    created = events[0].response
    assert (created.model, created.output, created.error) == ("chat", [], None)
    assert created.created_at > 1_700_000_000
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert {(event.output_index, event.content_index) for event in deltas} == {(0, 0)}
    assert real.last_record().status == "finished"


@pytest.mark.parametrize(
    "fields",
    [
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}]}
            ]
        },
        {"messages": [{"content": "no role"}]},
        {"messages": QUESTION, "tools": [{"type": "function"}]},
    ],
)
def test_g11_what_is_wrong_with_a_request_is_a_400_with_the_engines_sentence(real, fields):
    answer = real.http.post("/v1/chat/completions", json={"model": "chat", "max_tokens": 4, **fields})
    assert answer.status_code == 400
    assert len(answer.json()["error"]["message"]) > 40
    assert real.last_record().status == "refused"


def test_g11_log_probabilities_of_a_call_with_tools(real):
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    answer = real.chat(logprobs=True, top_logprobs=2, tools=[tool])
    assert answer.choices[0].logprobs.content
