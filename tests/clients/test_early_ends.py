"""Real clients whose answer falls into a word loop: to them it is one that has reached its bound of tokens.

Each gets its usage, raises nothing but what it raises for every answer that has reached its bound, and makes the next
call over the connections that it would use after an answer that its engine ended.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, get_args

import httpx2
import openai
import pytest
from langchain_openai import ChatOpenAI
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, ValidationError

from apiproxy.server.protocol import Protocol
from tests import engine, looping
from tests.clients.office import Driver, Office, answer
from tests.looping import LOOP, TALK

MESSAGES: list[Any] = [{"role": "user", "content": "hi"}]
KINDS = ["text", "thoughts", "tool"]


class City(BaseModel):
    city: str


@dataclass
class Desk(Office):
    connections: list[Protocol]

    @property
    def openai(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.v1, api_key=self.key, max_retries=0)

    def looped(self) -> tuple[int, int]:
        """Return the tokens of the prompt and of the answer of the one call, which was ended."""
        (row,) = self.rows()
        assert row.status == "looped"
        assert 0 < row.completion_tokens <= 60 + len(LOOP) + 2  # what the engine makes of `two_chats`
        return row.prompt_tokens, row.completion_tokens


@pytest.fixture
def model_fields() -> dict[str, Any]:
    return {"loops": "stop"}


@pytest.fixture(scope="module")
def urls() -> Iterator[dict[str, str]]:
    """Provide a fake engine twice: the answers of `chat`, as if it were llama.cpp, are assembled from streams."""
    with engine.running() as fake:
        yield {"fake": fake.url, "chat": fake.url}


@pytest.fixture
def desk(office, monkeypatch) -> Desk:
    connections: list[Protocol] = []
    made = Protocol.connection_made

    def count(self: Protocol, transport: Any) -> None:
        connections.append(self)
        made(self, transport)

    monkeypatch.setattr(Protocol, "connection_made", count)
    return Desk(office.url, office.key, office.agent, connections)


# --- openai-python


@pytest.mark.parametrize("kind", KINDS)
def test_openai_python_streams_a_chat(desk, kind):
    more = {"stream_options": {"include_usage": True}, "extra_body": {"script": looping.chat(kind)}}
    *_, end, last = desk.openai.chat.completions.create(model="fake", messages=MESSAGES, stream=True, **more)
    assert end.choices[0].finish_reason == "length"
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == desk.looped()


@pytest.mark.parametrize("kind", KINDS)
def test_openai_python_gets_a_chat(desk, kind):
    script = {"script": looping.chat(kind)}
    whole = desk.openai.chat.completions.create(model="chat", messages=MESSAGES, extra_body=script)
    assert whole.choices[0].finish_reason == "length"
    message = whole.choices[0].message
    text = {"text": message.content, "thoughts": getattr(message, "reasoning", "")}
    said = text[kind] if kind in text else message.tool_calls[0].function.arguments
    assert "".join(LOOP[:16]) in said
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == desk.looped()


def test_openai_pythons_helper_for_streams_raises_as_for_every_answer_that_reached_its_bound(desk):
    script = {"script": looping.chat()}
    with desk.openai.chat.completions.stream(model="fake", messages=MESSAGES, extra_body=script) as stream:
        said = "".join(event.delta for event in stream if event.type == "content.delta")
        with pytest.raises(openai.LengthFinishReasonError) as raised:
            stream.get_final_completion()
    assert raised.value.completion.choices[0].message.content == said
    desk.looped()


def test_openai_python_raises_its_own_error_where_a_class_was_to_come_of_the_answer(desk):
    fields = {"messages": MESSAGES, "response_format": City, "extra_body": {"script": looping.chat("json")}}
    with pytest.raises(openai.LengthFinishReasonError) as raised:
        desk.openai.chat.completions.parse(model="chat", **fields)
    assert "".join(LOOP[:16]) in raised.value.completion.choices[0].message.content
    with (
        desk.openai.chat.completions.stream(model="fake", **fields) as stream,
        pytest.raises(openai.LengthFinishReasonError),
    ):
        stream.until_done()


def test_openai_python_gets_both_of_two_answers_of_which_one_loops(desk):
    more = {"n": 2, "stream_options": {"include_usage": True}, "extra_body": {"script": looping.two_chats()}}
    chunks = list(desk.openai.chat.completions.create(model="fake", messages=MESSAGES, stream=True, **more))
    ends = {one.index: one.finish_reason for chunk in chunks for one in chunk.choices if one.finish_reason}
    assert ends == {0: "stop", 1: "length"}
    assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == desk.looped()


def test_openai_python_gets_two_answers_in_one_piece_of_which_one_loops(desk):
    script = {"script": looping.two_chats()}
    whole = desk.openai.chat.completions.create(model="chat", messages=MESSAGES, n=2, extra_body=script)
    assert [one.finish_reason for one in whole.choices] == ["stop", "length"]
    assert whole.choices[0].message.content == "".join(TALK[:60])
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == desk.looped()


def test_openai_python_completes_a_text(desk):
    script = {"script": looping.completion()}
    more = {"stream": True, "stream_options": {"include_usage": True}, "extra_body": script}
    *_, end, last = desk.openai.completions.create(model="fake", prompt="hi", **more)
    assert end.choices[0].finish_reason == "length"
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == desk.looped()
    whole = desk.openai.completions.create(model="chat", prompt="hi", extra_body=script)
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage.completion_tokens == desk.rows(2)[1].completion_tokens


@pytest.mark.parametrize("kind", [*KINDS, "summary"])
def test_openai_python_gets_a_response(desk, kind):
    script = {"script": looping.response(kind)}
    *_, done, last = desk.openai.responses.create(model="fake", input="hi", stream=True, extra_body=script)
    assert (done.type, last.type) == ("response.output_item.done", "response.incomplete")
    assert (last.response.usage.input_tokens, last.response.usage.output_tokens) == desk.looped()
    whole = desk.openai.responses.create(model="chat", input="hi", extra_body=script)
    for one in (last.response, whole):
        assert (one.status, one.incomplete_details.reason) == ("incomplete", "max_output_tokens")
        (item,) = one.output
        assert item.status == "incomplete"
        text = {"tool": "arguments", "summary": "summary"}.get(kind, "content")
        said = getattr(item, text)
        assert "".join(LOOP[:16]) in (said if kind == "tool" else said[0].text)


def test_openai_pythons_helper_for_responses_gives_all_events(desk):
    """It has no final response for one that is incomplete, whatever the reason: it waits for `response.completed`."""
    script = {"script": looping.response()}
    with desk.openai.responses.stream(model="fake", input="hi", extra_body=script) as stream:
        events = list(stream)
        with pytest.raises(RuntimeError, match=re.escape("response.completed")):
            stream.get_final_response()
    assert events[-1].type == "response.incomplete"
    said = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert events[-1].response.output_text == said


# --- what is published of the APIs: OpenAI's library for .NET raises for any value beyond it


# The events of Responses by their type.
EVENTS = {get_args(one.model_fields["type"].annotation)[0]: one for one in get_args(get_args(ResponseStreamEvent)[0])}


def events_of(desk: Desk, path: str, **fields: Any) -> list[dict[str, Any]]:
    """Return the events of a stream, and of the answer in one piece, as they are on the wire."""
    found = []
    for model, stream in (("fake", True), ("chat", False)):
        body = {"model": model, "stream": stream, "stream_options": {"include_usage": True}, **fields}
        if not stream:
            del body["stream_options"]
        raw = httpx2.post(f"{desk.v1}{path}", json=body, headers={"authorization": f"Bearer {desk.key}"}, timeout=60)
        assert raw.status_code == 200
        lines = [line[6:] for line in raw.text.splitlines() if line.startswith("data: {")]
        found.append([json.loads(line) for line in lines] if stream else raw.json())
    return found


@pytest.mark.parametrize("kind", [*KINDS, "two"])
def test_every_event_of_a_chat_is_one_that_openai_publishes(desk, kind):
    script, n = (looping.two_chats(), 2) if kind == "two" else (looping.chat(kind), 1)
    events, whole = events_of(desk, "/chat/completions", messages=MESSAGES, n=n, script=script)
    for event in events:
        ChatCompletionChunk.model_validate(event)
    ChatCompletion.model_validate(whole)
    assert [one["finish_reason"] for one in whole["choices"]] == [*["stop"] * (n - 1), "length"]


def test_the_end_of_a_completion_is_one_that_openai_publishes(desk):
    events, whole = events_of(desk, "/completions", prompt="hi", script=looping.completion())
    for event in (*events[-2:], whole):
        Completion.model_validate(event)


@pytest.mark.parametrize("kind", [*KINDS, "summary"])
def test_every_event_of_a_response_is_one_that_openai_publishes(desk, kind):
    events, whole = events_of(desk, "/responses", input="hi", script=looping.response(kind))
    for event in events:
        EVENTS[event["type"]].model_validate(event)
    Response.model_validate(whole)


def test_a_word_that_is_not_published_would_be_found(desk):
    events, whole = events_of(desk, "/responses", input="hi", script=looping.response())
    for change in ({"status": "looped"}, {"incomplete_details": {"reason": "repetition"}}):
        with pytest.raises(ValidationError):
            EVENTS["response.incomplete"].model_validate({**events[-1], "response": {**whole, **change}})


# --- anthropic


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("do", ["message", "stream"])
def test_anthropics_sdk_gets_a_message(desk, driver, do, kind):
    told = claude(desk, driver, do, "fake" if do == "stream" else "chat", kind)
    message = told.get("message", told)
    assert message["stop_reason"] == "max_tokens"
    assert (message["usage"]["input_tokens"], message["usage"]["output_tokens"]) == desk.looped()
    (block,) = message["content"]
    if kind == "tool":
        assert block["name"] == "weather"
        assert do == "stream" or "".join(LOOP[:16]) in block["input"]  # the SDK leaves out what is not complete
    else:
        assert "".join(LOOP[:16]) in block["text" if kind == "text" else "thinking"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_event_of_a_message_is_one_that_anthropic_publishes(desk, driver, kind):
    types = claude(desk, driver, "events", "fake", kind)
    assert types[-3:] == ["content_block_stop", "message_delta", "message_stop"]


def claude(desk: Desk, driver: Driver, do: str, model: str, kind: str = "") -> Any:
    """Call a model with an answer that loops; without `kind` with one that its engine ends."""
    more = {"extra_body": {"script": looping.message(kind)}} if kind else {}
    to = {"base_url": desk.url, "api_key": desk.key, "messages": MESSAGES, "max_tokens": 2000}
    return answer(driver.call(f"claude_{do}", model=model, **to, **more))


# --- LangChain, LiteLLM, Dify


def test_langchain_invokes_and_streams(desk):
    def ask(model: str) -> ChatOpenAI:
        more = {"max_retries": 0, "stream_usage": True, "extra_body": {"script": looping.chat()}}
        return ChatOpenAI(base_url=desk.v1, api_key=desk.key, model=model, **more)

    first, *rest = list(ask("fake").stream("hi"))
    streamed = sum(rest, first)
    whole = ask("chat").invoke("hi")
    for message, row in zip((streamed, whole), desk.rows(2), strict=True):
        assert message.response_metadata["finish_reason"] == "length"
        assert message.usage_metadata["output_tokens"] == row.completion_tokens
        assert row.status == "looped"


def test_langchain_takes_no_tool_call_from_arguments_that_loop(desk):
    more = {"max_retries": 0, "extra_body": {"script": looping.chat("tool")}}
    message = ChatOpenAI(base_url=desk.v1, api_key=desk.key, model="chat", **more).invoke("hi")
    assert message.tool_calls == []
    assert message.invalid_tool_calls[0]["name"] == "weather"
    desk.looped()


@pytest.mark.parametrize("do", ["chat", "stream"])
def test_litellm_completes_and_streams(desk, driver, do):
    to = {"api_base": desk.v1, "api_key": desk.key, "extra_body": {"script": looping.chat()}}
    model = "openai/fake" if do == "stream" else "openai/chat"
    told = answer(driver.call(f"lite_{do}", model=model, messages=MESSAGES, **to))
    assert told["finish_reason"] == "length"
    assert tuple(told["usage"]) == desk.looped()


@pytest.mark.parametrize("stream", [False, True])
def test_dify_gets_an_answer(desk, driver, stream):
    form = {"endpoint_url": desk.v1, "api_key": desk.key, "mode": "chat"}
    fields = {"messages": [["user", "hi"]], "tools": [], "stream": stream, "user": json.dumps(looping.chat())}
    model = "fake" if stream else "chat"
    told = answer(driver.call("dify_chat", model=model, credentials=form, model_parameters={}, **fields))
    assert "".join(LOOP[:16]) in "".join(told["texts"])
    if stream:
        assert told["finish_reason"] == "length"
    desk.looped()


# --- openai-node, Vercel's AI SDK


@pytest.fixture
def ask(desk, node) -> Callable[..., dict[str, Any]]:
    to = {"baseURL": desk.v1, "apiKey": desk.key}
    return lambda do, **fields: node.call(do, to=to, **fields)


@pytest.mark.parametrize("kind", KINDS)
def test_openai_node_gets_a_chat(desk, ask, kind):
    told = answer(ask("openai_chat_stream", model="fake", messages=MESSAGES, script=looping.chat(kind)))
    whole = told["whole"]
    assert whole["choices"][0]["finish_reason"] == "length"
    assert (whole["usage"]["prompt_tokens"], whole["usage"]["completion_tokens"]) == desk.looped()
    whole = answer(ask("openai_chat", model="chat", messages=MESSAGES, script=looping.chat(kind)))
    assert whole["choices"][0]["finish_reason"] == "length"


def test_openai_node_gets_two_answers_of_which_one_loops(desk, ask):
    told = answer(ask("openai_chat_stream", model="fake", messages=MESSAGES, n=2, script=looping.two_chats()))
    assert [one["finish_reason"] for one in told["whole"]["choices"]] == ["stop", "length"]
    desk.looped()


def test_openai_node_completes_a_text(desk, ask):
    *_, end = answer(ask("openai_complete_stream", model="fake", prompt="hi", script=looping.completion()))
    assert end["choices"][0]["finish_reason"] == "length"
    desk.looped()


@pytest.mark.parametrize("kind", [*KINDS, "summary"])
def test_openai_node_gets_a_response(desk, ask, kind):
    script = looping.response(kind)
    whole = answer(ask("openai_response_stream", model="fake", input="hi", script=script))["whole"]
    assert (whole["usage"]["input_tokens"], whole["usage"]["output_tokens"]) == desk.looped()
    for one in (whole, answer(ask("openai_response", model="chat", input="hi", script=script))):
        assert (one["status"], one["incomplete_details"]["reason"]) == ("incomplete", "max_output_tokens")


@pytest.mark.parametrize("do", ["vercel_generate", "vercel_stream"])
@pytest.mark.parametrize("kind", ["compatible", "chat", "responses"])
def test_vercel_gets_an_answer(desk, ask, kind, do):
    script = json.dumps(looping.response() if kind == "responses" else looping.chat())
    options = {"madoguchi" if kind == "compatible" else "openai": {"user": script}}
    name = "fake" if do == "vercel_stream" else "chat"
    told = answer(ask(do, kind=kind, name=name, prompt="hi", providerOptions=options))
    assert told["finishReason"] == "length"
    assert "".join(LOOP[:16]) in told["text"]
    assert (told["usage"]["inputTokens"], told["usage"]["outputTokens"]) == desk.looped()


# --- the JDK's client, and connections


def test_the_jdks_client_gets_an_answer_and_makes_the_next_call_over_its_connection(desk, jdk):
    fields = {"model": "fake", "messages": MESSAGES, "stream": True}
    for script in (looping.chat(), looping.finished_chat()):
        status, _, lines = jdk.call("HTTP_2", "/chat/completions", {**fields, "script": script})
        assert (status, [line for line in lines if line][-1]) == (200, "data: [DONE]")
    assert len(desk.connections) == 1
    assert [row.status for row in desk.rows(2)] == ["looped", "finished"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("client", ["openai-python", "anthropic", "openai-node"])
def test_the_next_call_goes_over_the_connection_that_it_would_after_another_answer(desk, driver, ask, client, stream):
    """openai-python leaves the connection of a stream at `[DONE]`, also of one that its engine ended.

    A client that comes again before it has read the end of the last answer opens another one; on a busy machine that
    happens at times, after any answer.
    """
    sdk, model = desk.openai, "fake" if stream else "chat"

    def call(loops: bool) -> None:
        fields = {"model": model, "messages": MESSAGES}
        script = {"script": looping.chat() if loops else looping.finished_chat()}
        if client == "anthropic":
            claude(desk, driver, "stream" if stream else "message", *((model, "text") if loops else ("agent",)))
        elif client == "openai-node":
            answer(ask("openai_chat_stream" if stream else "openai_chat", **fields, **script))
        else:
            made = sdk.chat.completions.create(**fields, stream=stream, extra_body=script)
            assert list(made)

    counts = []
    for loops in (False, True) * 3:
        for one in (loops, False):
            call(one)
            counts.append(len(desk.connections))
    after_finished, after_looped = (min(counts[at + 1] - counts[at] for at in range(start, 12, 4)) for start in (0, 2))
    assert after_looped == after_finished == (client == "openai-python" and stream)
    assert [row.status for row in desk.rows(12)] == ["finished", "finished", "looped", "finished"] * 3
