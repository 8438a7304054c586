"""Clients for Python as people use them: Dify's, LangChain's, openai's, Anthropic's, Cohere's and LiteLLM's own code.

All but LangChain's and openai's run in an environment of their own, driven line by line. More of openai's own SDK:
test_real_engine.py, test_vllm.py, test_contract.py in tests/apiproxy.
"""

import asyncio
import json
from dataclasses import dataclass, replace
from typing import Any, Literal

import openai
import pytest
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel

from apiproxy.dataplane import forwarding
from apiproxy.dataplane.errors import UnknownModel
from modelregistry.models import ServedModel
from portal.keys import model_access
from portal.keys.integrations import dify_fields
from tests.clients.agent_engine import COMPLETION, PROMPT, SIGNATURE, THOUGHT
from tests.clients.office import DOCUMENTS, QUESTION, Driver, Office, answer
from tests.engine import DONE, FINISH, SSE, chunk, token


@dataclass
class Desk(Office):
    """The calls of a person who programs in Python."""

    driver: Driver

    def dify(self, do: str, model: str, **arguments: Any) -> Any:
        """Return what Dify's plugin gives; `credentials` in it are what a person types into Dify's form."""
        form = {"endpoint_url": self.v1, "api_key": self.key, "mode": "chat", "function_calling_type": "tool_call"}
        credentials = {**form, **arguments.pop("credentials", {})}
        return self.driver.call(f"dify_{do}", model=model, credentials=credentials, **arguments)

    def dify_chat(self, model: str = "chat", **arguments: Any) -> dict[str, Any]:
        fields = {"messages": [["system", "Be brief."], ["user", QUESTION]], "tools": [], "stream": False, **arguments}
        return answer(self.dify("chat", model, **{"model_parameters": {"temperature": 0, "max_tokens": 16}, **fields}))

    def claude(self, do: str, **arguments: Any) -> dict[str, Any]:
        messages = [{"role": "user", "content": QUESTION}]
        to = {"base_url": self.url, "api_key": self.key, "model": "chat", "messages": messages}
        return self.driver.call(f"claude_{do}", **{**to, **arguments})

    def lite(self, do: str, model: str, **arguments: Any) -> dict[str, Any]:
        """Call LiteLLM as a library, for what it calls an OpenAI-compatible endpoint."""
        return self.driver.call(f"lite_{do}", model=model, api_base=self.v1, api_key=self.key, **arguments)


@pytest.fixture
def office(office, driver) -> Desk:
    return Desk(office.url, office.key, office.agent, driver)


# --- Dify


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        ("chat", {}),
        ("chat", {"stream_mode_auth": "use"}),
        ("chat", {"mode": "completion"}),
        ("embedding", {}),
        ("rerank", {}),
    ],
)
def test_dify_takes_a_model(office, kind, form):
    assert office.dify("validate", kind, kind=kind, credentials=form) == {"answer": None}


# What the labels of Dify's form (openai_api_compatible.yaml, 0.0.64) and their choices are to its code.
FORM = {
    "API Key": "api_key",
    "Language": "language",
    "API Base URL": "endpoint_url",
    "Completion mode": "mode",
    "Model context size": "context_size",
    "Model max chunks per batch": "max_chunks",
    "Upper bound for max tokens": "max_tokens_to_sample",
    "Function Call Type": "function_calling_type",
    "Stream function calling": "stream_function_calling",
    "Vision Support": "vision_support",
    "Stream mode auth": "stream_mode_auth",
    "Delimiter for streaming results": "stream_mode_delimiter",
}
CHOICES = {
    ("mode", "Chat"): "chat",
    ("language", "ja-JP"): "ja",
    ("function_calling_type", "Not Support"): "no_call",
    ("stream_function_calling", "Not Support"): "not_supported",
    ("vision_support", "Not Support"): "no_support",
    ("stream_mode_auth", "Use"): "use",
}


@pytest.mark.parametrize("kind", ["chat", "embedding", "rerank"])
def test_dify_takes_a_model_as_our_pages_print_it(office, kind):
    [offer] = model_access.available_models(ServedModel.objects.filter(name=kind))
    printed = dict(dify_fields(offer, office.v1, office.key))
    types = {"chat": "LLM", "embedding": "Text Embedding", "rerank": "Rerank"}
    assert (printed.pop("Model Type"), printed.pop("Model Name")) == (types[kind], kind)
    form = {FORM[label]: CHOICES.get((FORM[label], value), value) for label, value in printed.items()}
    assert office.driver.call("dify_validate", kind=kind, model=kind, credentials=form) == {"answer": None}
    if kind == "chat":
        assert "".join(office.dify_chat(stream=True, credentials=form)["texts"])


def test_dify_shows_why_it_does_not_take_one(office):
    told = office.dify("validate", "nope", kind="chat")["error"]
    assert told["type"] == "CredentialsValidateFailedError"
    assert UnknownModel("model_not_found", model="nope").message("ja") in told["text"]  # in the key owner's language
    told = office.dify("validate", "chat", kind="chat", credentials={"api_key": "mdg_wrong"})["error"]
    assert "401" in told["text"]
    assert "invalid_api_key" in told["text"]


def test_dify_gets_the_same_answer_streamed_and_not(office):
    whole = office.dify_chat(user="end-user-7")
    streamed = office.dify_chat(stream=True, user="end-user-7")
    assert "".join(streamed["texts"]) == whole["texts"][0]
    assert len(streamed["texts"]) > 8
    assert streamed["finish_reason"] in ("stop", "length")
    first, second = office.rows(2)
    assert whole["usage"] == [first.prompt_tokens, first.completion_tokens]
    assert (second.prompt_tokens, second.completion_tokens) == (first.prompt_tokens, first.completion_tokens)
    assert [(row.end_user, row.status, row.estimated) for row in (first, second)] == [
        ("end-user-7", "finished", False)
    ] * 2


def test_dify_completes_a_text(office):
    form = {"mode": "completion"}
    whole = office.dify_chat(messages=[["user", "One, two,"]], credentials=form)
    streamed = office.dify_chat(messages=[["user", "One, two,"]], credentials=form, stream=True)
    assert "".join(streamed["texts"]) == whole["texts"][0] != ""
    assert {row.endpoint for row in office.rows(2)} == {"/v1/completions"}


def test_dify_stops_at_its_stop_words(office):
    whole = office.dify_chat()["texts"][0]
    word = whole.split()[2]
    assert "".join(office.dify_chat(stop=[word])["texts"]) == whole[: whole.index(word)]


@pytest.mark.parametrize("stream", [False, True])
def test_dify_calls_tools(office, stream):
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}}
    tool = {"name": "weather", "description": "now", "parameters": parameters}
    answer = office.dify_chat("fake", tools=[tool], stream=stream)
    assert answer["calls"] == [["call_1", "weather", '{"city":"Osaka"}']]
    assert [(row.completion_tokens, row.status) for row in office.rows()] == [(5, "finished")]


def test_dify_shows_a_person_why_a_call_was_refused(office):
    long = [["user", "word " * 1500]]
    arguments = {"messages": long, "tools": [], "stream": True, "model_parameters": {}}
    told = office.dify("chat", "chat", **arguments)["error"]
    assert "400" in told["text"]
    assert "context_length_exceeded" in told["text"]


def broken(*steps: dict[str, Any]) -> str:
    return json.dumps([{"send": SSE}, {"events": 3}, *steps])


def test_dify_shows_that_an_answer_broke_off(office):
    arguments = {"messages": [["user", "hi"]], "tools": [], "stream": True}
    told = office.dify("chat", "fake", user=broken({"reset": True}), **arguments)["error"]
    assert "engine_error" in told["text"]
    assert office.rows()[0].status == "failed"


def test_dify_waits_for_a_slow_engine(office, monkeypatch):
    """What keeps its connection alive meanwhile is none of its business."""
    monkeypatch.setattr(forwarding, "HEARTBEAT", 0.2)
    slow = [{"wait": 2.5}, {"send": SSE}, {"send": chunk(token(0) + FINISH + DONE) + "0\r\n\r\n"}]
    answer = office.dify_chat("fake", stream=True, user=json.dumps(slow))
    assert (answer["texts"], answer["finish_reason"]) == (["t0 "], "stop")


def test_dify_embeds(office):
    answer = office.dify("embed", "embedding", texts=DOCUMENTS, user="end-user-7")["answer"]
    assert [len(vector) for vector in answer["vectors"]] == [384] * 3
    rows = office.rows(3)  # it sends them one by one
    assert answer["tokens"] == sum(row.prompt_tokens for row in rows)
    assert {(row.endpoint, row.end_user) for row in rows} == {("/v1/embeddings", "end-user-7")}


def test_dify_ranks(office):
    query = {"query": "What is the capital of France?", "docs": DOCUMENTS}
    answer = office.dify("rank", "rerank", top_n=2, **query)["answer"]
    assert [(text, score) for _, text, score in answer] == [(DOCUMENTS[answer[0][0]], 1), (DOCUMENTS[answer[1][0]], 0)]
    (row,) = office.rows()
    assert (row.endpoint, row.status, row.estimated) == ("/v1/rerank", "finished", False)
    assert row.prompt_tokens > 20


def test_p6_dify_hears_with_a_model_as_our_pages_print_it(office):
    [offer] = model_access.available_models(ServedModel.objects.filter(name="fake"))
    printed = dict(dify_fields(replace(offer, task="transcription"), office.v1, office.key))
    assert (printed.pop("Model Type"), printed.pop("Model Name")) == ("Speech2text", "fake")
    form = {FORM[label]: CHOICES.get((FORM[label], value), value) for label, value in printed.items()}
    assert form["language"] == "ja"  # the form proposes Chinese
    assert answer(office.dify("hear", "fake", size=200_000, credentials=form)) == "hello there"
    assert [row.endpoint for row in office.rows()] == ["/v1/audio/transcriptions"]


# --- LangChain


def langchain(office: Office, model: str = "chat", **more: Any) -> ChatOpenAI:
    fixed = {"max_retries": 0, "temperature": 0, "max_tokens": 16}
    return ChatOpenAI(base_url=office.v1, api_key=office.key, model=model, **{**fixed, **more})


def test_langchain_invokes_and_streams(office):
    whole = langchain(office).invoke(QUESTION)
    chunks = list(langchain(office, stream_usage=True).stream(QUESTION))
    assert "".join(chunk.content for chunk in chunks) == whole.content != ""
    told = [chunk.usage_metadata for chunk in chunks if chunk.usage_metadata]
    rows = office.rows(2)
    for row, usage in zip(rows, [whole.usage_metadata, *told], strict=True):
        assert (row.prompt_tokens, row.completion_tokens) == (usage["input_tokens"], usage["output_tokens"])
    assert whole.response_metadata["finish_reason"] in ("stop", "length")


def test_langchain_streams_several_at_once(office):
    async def ask(number: int) -> str:
        return "".join([chunk.content async for chunk in langchain(office).astream(f"Say {number}.")])

    async def ask_all() -> list[str]:
        return await asyncio.gather(*(ask(number) for number in range(4)))

    assert all(asyncio.run(ask_all()))
    assert [row.status for row in office.rows(4)] == ["finished"] * 4


class Colour(BaseModel):
    """A colour."""

    name: Literal["red", "green", "blue"]


def test_langchain_gets_structured_output(office):
    model = langchain(office, max_tokens=60).with_structured_output(Colour, method="json_schema")
    assert isinstance(model.invoke(QUESTION), Colour)


@pytest.mark.parametrize("stream", [False, True])
def test_langchain_calls_tools(office, stream):
    def weather(city: str) -> str:
        """Return the weather in a city."""
        return city

    model = langchain(office, "fake").bind_tools([weather])
    if stream:
        first, *rest = list(model.stream("Osaka?"))
        answer = sum(rest, first)
    else:
        answer = model.invoke("Osaka?")
    (call,) = answer.tool_calls
    assert (call["name"], call["args"]) == ("weather", {"city": "Osaka"})


def test_langchain_embeds(office):
    # Texts, not GPT's token ids, which would mean other words to this model (and a vocabulary from the internet).
    model = OpenAIEmbeddings(
        base_url=office.v1, api_key=office.key, model="embedding", check_embedding_ctx_length=False, max_retries=0
    )
    vectors = model.embed_documents(DOCUMENTS)
    assert [len(vector) for vector in vectors] == [384] * 3
    assert model.embed_query(DOCUMENTS[1]) == pytest.approx(vectors[1], abs=0.02)


def test_langchain_raises_what_the_sdk_raises(office):
    with pytest.raises(openai.BadRequestError) as refused:
        langchain(office).invoke("word " * 1500)
    assert refused.value.code == "context_length_exceeded"


# --- openai


def test_the_sdk_parses_an_answer_into_a_class(office):
    sdk = openai.OpenAI(base_url=office.v1, api_key=office.key, max_retries=0)
    messages = [{"role": "user", "content": QUESTION}]
    answer = sdk.chat.completions.parse(model="chat", messages=messages, max_tokens=60, response_format=Colour)
    assert isinstance(answer.choices[0].message.parsed, Colour)
    assert {model.id for model in sdk.models.list()} == {"chat", "embedding", "rerank", "fake", "agent"}
    assert sdk.models.retrieve("chat").id == "chat"


def test_the_async_sdk_embeds_and_leaves_streams_in_good_order(office):
    async def use() -> None:
        async with openai.AsyncOpenAI(base_url=office.v1, api_key=office.key, max_retries=0) as sdk:
            made = await asyncio.gather(*(sdk.embeddings.create(model="embedding", input=text) for text in DOCUMENTS))
            assert [len(one.data[0].embedding) for one in made] == [384] * 3
            fields = {"model": "chat", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 900}
            endless = {**fields, "stream": True, "extra_body": {"ignore_eos": True}}
            async with await sdk.chat.completions.create(**endless) as stream:
                await anext(stream)

    asyncio.run(use())
    assert sorted(row.status for row in office.rows(4)) == ["aborted", *["finished"] * 3]


@pytest.mark.parametrize("texts", ["word " * 600, ["word", "word " * 600]])
def test_the_sdk_learns_that_a_text_is_too_long_to_embed(office, texts):
    sdk = openai.OpenAI(base_url=office.v1, api_key=office.key, max_retries=0)
    with pytest.raises(openai.BadRequestError) as refused:
        sdk.embeddings.create(model="embedding", input=texts)
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "input")


# --- Anthropic


def test_anthropics_sdk_gets_a_message(office):
    message = office.claude("message", max_tokens=12)["answer"]
    assert (message["type"], message["role"]) == ("message", "assistant")
    assert message["content"][0]["text"]
    assert message["stop_reason"] in ("end_turn", "max_tokens")
    (row,) = office.rows()
    used = message["usage"]
    assert row.prompt_tokens == used["input_tokens"] + (used["cache_read_input_tokens"] or 0)
    assert (row.completion_tokens, row.estimated) == (used["output_tokens"], False)


def test_anthropics_sdk_streams(office):
    answer = office.claude("stream", max_tokens=12)["answer"]
    message = answer["message"]
    assert "".join(answer["texts"]) == message["content"][0]["text"] != ""
    (row,) = office.rows()
    assert (row.completion_tokens, row.status) == (message["usage"]["output_tokens"], "finished")


def test_anthropics_sdk_counts_tokens(office):
    counted = office.claude("count")["answer"]
    message = office.claude("message", max_tokens=1)["answer"]
    used = message["usage"]
    assert counted == used["input_tokens"] + (used["cache_read_input_tokens"] or 0)


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        ({"model": "nope"}, "NotFoundError"),
        ({"api_key": "mdg_wrong"}, "AuthenticationError"),
        ({"messages": [{"role": "user", "content": "word " * 1500}]}, "BadRequestError"),
    ],
)
@pytest.mark.parametrize("do", ["message", "stream"])
def test_anthropics_sdk_sees_errors_as_its_own_kinds(office, do, wrong, kind):
    error = office.claude(do, max_tokens=12, **wrong)["error"]
    assert error["type"] == kind
    assert "'type': 'error'" in error["text"]


TOOL = {
    "name": "weather",
    "description": "now",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}


@pytest.mark.parametrize("do", ["message", "stream"])
def test_anthropics_sdk_thinks_and_calls_tools(office, do):
    """Two turns, as an agent has them: the first one's blocks go back as they came, its thought with its signature."""
    fields = {
        "model": "agent",
        "max_tokens": 2000,
        "tools": [TOOL],
        "thinking": {"type": "enabled", "budget_tokens": 1024},
    }
    asked = {"role": "user", "content": "Osaka?"}
    first = said(office.claude(do, messages=[asked], **fields))
    thought, call = first["content"]
    assert (thought["type"], thought["thinking"], thought["signature"]) == ("thinking", THOUGHT, SIGNATURE)
    assert (call["type"], call["name"], call["input"]) == ("tool_use", "weather", {"city": "Osaka"})
    assert first["stop_reason"] == "tool_use"
    blocks = [{name: block[name] for name in SENT[block["type"]]} for block in first["content"]]
    told = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call["id"], "content": "sunny"}]}
    second = said(office.claude(do, messages=[asked, {"role": "assistant", "content": blocks}, told], **fields))
    assert [block["text"] for block in second["content"] if block["type"] == "text"] == ["It says: sunny"]
    assert office.agent.requests[1]["body"]["messages"][1]["content"] == blocks
    used = [(row.endpoint, row.status, row.prompt_tokens, row.completion_tokens) for row in office.rows(2)]
    assert used == [("/v1/messages", "finished", PROMPT, COMPLETION)] * 2


# What of a block a client sends back.
SENT = {"thinking": ("type", "thinking", "signature"), "tool_use": ("type", "id", "name", "input")}


def said(told: dict[str, Any]) -> dict[str, Any]:
    """Return the message, streamed or not."""
    message: dict[str, Any] = answer(told)
    return message.get("message", message)


# --- Cohere


def test_cohere_ranks(office):
    """Its second version, whose client calls /v2/rerank below the address that it is given."""
    ranked = answer(
        office.driver.call(
            "cohere_rank", base_url=office.url, api_key=office.key,
            model="rerank", query="What is the capital of France?", documents=DOCUMENTS, top_n=2,
        )
    )  # fmt: skip
    assert len(ranked) == 2
    assert {index for index, _ in ranked} < {0, 1, 2}
    assert ranked[0][1] >= ranked[1][1]
    (row,) = office.rows()
    assert (row.status, row.model, row.prompt_tokens > 20) == ("finished", "rerank", True)


# --- LiteLLM


def test_litellm_completes_and_streams(office):
    fields = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 16, "temperature": 0}
    whole = answer(office.lite("chat", "openai/chat", **fields))
    streamed = answer(office.lite("stream", "openai/chat", **fields))
    assert "".join(streamed["texts"]) == whole["text"] != ""
    for row, usage in zip(office.rows(2), (whole["usage"], streamed["usage"]), strict=True):
        assert [row.prompt_tokens, row.completion_tokens] == usage


@pytest.mark.parametrize("do", ["chat", "stream"])
def test_litellm_calls_tools(office, do):
    function = {"name": "weather", "parameters": TOOL["input_schema"]}
    fields = {
        "messages": [{"role": "user", "content": "Osaka?"}],
        "tools": [{"type": "function", "function": function}],
    }
    assert answer(office.lite(do, "openai/fake", **fields))["calls"] == [["weather", '{"city":"Osaka"}']]


def test_litellm_embeds_and_ranks(office):
    vectors = answer(office.lite("embed", "openai/embedding", texts=DOCUMENTS))
    assert [len(vector) for vector in vectors] == [384] * 3
    ranked = answer(office.lite("rank", "hosted_vllm/rerank", query="Where is Paris?", documents=DOCUMENTS, top_n=2))
    assert len(ranked) == 2


def test_litellm_knows_a_prompt_that_is_too_long(office):
    """It sends such a call to a model with more context, where it has one; that goes by the sentence."""
    messages = [{"role": "user", "content": "word " * 1500}]
    error = office.lite("chat", "openai/chat", messages=messages)["error"]
    assert error["type"] == "ContextWindowExceededError"
