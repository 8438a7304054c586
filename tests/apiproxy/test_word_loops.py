"""Answers that repeat themselves without end, through the gateway: ended in each API's form, and counted."""

import json
from typing import Any

import openai
import pytest

from apiproxy.dataplane.catalogue import Model
from modelregistry.models import Replica
from tests.engine import DONE, SSE, chunk, event, unary
from tests.waiting import until

PHRASE = ["I ", "am ", "sorry, ", "but ", "I ", "cannot ", "do ", "that. "]
LOOP = [word for _ in range(60) for word in PHRASE]
TALK = [f"word{number} " for number in range(400)]
HANG = {"hang": True}


def words(texts: list[str], index: int = 0) -> list[str]:
    return [event([{"index": index, "delta": {"content": text}, "finish_reason": None}]) for text in texts]


def play(events: list[str], *ending: dict[str, Any], paced: int = 0) -> list[dict[str, Any]]:
    """Return the script of a stream; the last `paced` events come one by one, the others as fast as they can."""
    at_once = len(events) - paced
    slowly = [step for one in events[at_once:] for step in ({"wait": 0.002}, {"send": chunk(one)})]
    return [{"send": SSE}, *({"send": chunk(one)} for one in events[:at_once]), *slowly, *ending]


def finish(reason: str = "length") -> list[dict[str, Any]]:
    end = event([{"index": 0, "delta": {}, "finish_reason": reason}])
    return [{"send": chunk(end + DONE) + "0\r\n\r\n"}]


def set_loops(counter, mode: str, **more: Any) -> None:
    for name, value in {"loops": mode, **more}.items():
        setattr(counter.model, name, value)
    counter.model.save()
    counter.wait_for_catalogue()


def read(response) -> list[dict[str, Any]]:
    """Return the objects of a stream that ended as it should."""
    text = b"".join(response.iter_raw()).decode()
    assert text.endswith(DONE)
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]


def test_a_looping_stream_is_ended_as_if_it_had_reached_its_bound_and_its_engine_stops(counter):
    set_loops(counter, "stop")
    with counter.stream(script=play(words(TALK + LOOP), HANG, paced=len(LOOP)), max_tokens=5000) as response:
        chunks = read(response)
    *rest, last = chunks
    assert last["choices"][0]["finish_reason"] == "length"
    assert last["madoguchi"]["stopped"] == "repetition"
    assert (last["id"], last["object"]) == (rest[0]["id"], rest[0]["object"])
    assert not any("madoguchi" in each for each in rest)
    assert len(TALK) < len(rest) < len(TALK) + 230
    until(lambda: counter.engine.seen()["running"] == 0)
    until(lambda: counter.application.gateway.in_flight == 0)
    (row,) = counter.usage()
    assert row.status == "looped"
    said = "".join(each["choices"][0]["delta"].get("content", "") for each in chunks)
    looped = len(said) - len("".join(TALK + PHRASE))
    assert row.looped_tokens == pytest.approx(row.completion_tokens * looped / len(said), abs=2)  # by bytes
    assert row.completion_tokens + row.saved_tokens == 5000
    metrics = counter.client.get("/metrics").text
    assert 'madoguchi_loops_total{model="fake"} 1' in metrics
    assert f'madoguchi_saved_tokens_total{{model="fake"}} {row.saved_tokens}' in metrics


def test_the_usage_chunk_comes_where_it_was_asked_for(counter):
    set_loops(counter, "stop")
    with counter.stream(script=play(words(LOOP), HANG), stream_options={"include_usage": True}) as response:
        chunks = read(response)
    assert chunks[-2]["choices"][0]["finish_reason"] == "length"
    assert chunks[-1]["choices"] == []
    (row,) = counter.usage()
    assert chunks[-1]["usage"]["completion_tokens"] == row.completion_tokens > 0


def test_a_loop_that_is_only_counted_changes_no_byte(counter):
    set_loops(counter, "off")
    script = play(words(TALK[:100] + LOOP), *finish())
    with counter.stream(script=script) as response:
        plain = b"".join(response.iter_raw())
    set_loops(counter, "count")
    with counter.stream(script=script) as response:
        assert b"".join(response.iter_raw()) == plain
    first, second = counter.usage(2)
    assert (first.status, first.looped_tokens) == ("finished", 0)
    assert (second.status, second.saved_tokens) == ("looped", 0)
    whole = len("".join(TALK[:100] + LOOP))
    looped = second.completion_tokens * len("".join(LOOP[len(PHRASE) :])) / whole
    assert second.looped_tokens == pytest.approx(looped, rel=0.02)
    assert second.completion_tokens == first.completion_tokens


def test_an_answer_that_finds_its_way_out_is_no_loop(counter):
    set_loops(counter, "count")
    assert counter.chat(stream=True, script=play(words(LOOP + TALK), *finish("stop"))).status_code == 200
    (row,) = counter.usage()
    assert (row.status, row.looped_tokens) == ("finished", 0)


@pytest.mark.parametrize("loops", ["off", "count"])
def test_a_call_may_opt_out(counter, loops):
    set_loops(counter, "stop")
    counter.client.headers["x-madoguchi-loops"] = loops
    with counter.stream(script=play(words(LOOP), *finish())) as response:
        assert len(read(response)) == len(LOOP) + 1
    (row,) = counter.usage()
    assert row.status == ("looped" if loops == "count" else "finished")


def test_a_call_may_ask_to_be_stopped(counter):
    set_loops(counter, "off")
    counter.client.headers["x-madoguchi-loops"] = "Stop"
    with counter.stream(script=play(words(LOOP), HANG)) as response:
        assert read(response)[-1]["madoguchi"]


def test_an_unknown_wish_is_refused_by_name(counter):
    counter.client.headers["x-madoguchi-loops"] = "maybe"
    refused = counter.chat()
    assert refused.status_code == 400
    assert (refused.json()["error"]["param"], refused.json()["error"]["code"]) == ("x-madoguchi-loops", "invalid_value")
    assert counter.engine.seen()["requests"] == []


def test_a_key_may_opt_out(counter):
    set_loops(counter, "stop")
    counter.key_row.loop_guard = False
    counter.key_row.save()
    counter.wait_for_catalogue()
    with counter.stream(script=play(words(LOOP), *finish())) as response:
        assert len(read(response)) == len(LOOP) + 1
    (row,) = counter.usage()
    assert row.status == "finished"


def test_of_several_answers_the_one_that_loops_is_ended_and_the_other_goes_on(counter):
    set_loops(counter, "stop")
    mixed = [one for pair in zip(words(TALK), words(LOOP, 1), strict=False) for one in pair]
    end = event([{"index": 0, "delta": {}, "finish_reason": "stop"}])
    script = play([*mixed, end], HANG)
    with counter.stream(script=script, n=2) as response:
        chunks = read(response)
    ends = {
        choice["index"]: choice["finish_reason"]
        for each in chunks
        for choice in each["choices"]
        if choice["finish_reason"]
    }
    assert ends[1] == "length"
    texts = ["", ""]
    for each in chunks:
        for choice in each["choices"]:
            texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts[0] == "".join(TALK)
    assert len(texts[1]) < 1500
    until(lambda: counter.application.gateway.in_flight == 0)
    (row,) = counter.usage()
    assert row.status == "looped"


def test_when_all_of_several_answers_loop_the_engine_stops(counter):
    set_loops(counter, "stop")
    mixed = [one for pair in zip(words(LOOP), words(LOOP, 1), strict=True) for one in pair]
    with counter.stream(script=play(mixed, HANG), n=2) as response:
        chunks = read(response)
    assert sorted(choice["index"] for each in chunks for choice in each["choices"] if choice["finish_reason"]) == [0, 1]
    until(lambda: counter.engine.seen()["running"] == 0)


def test_an_assembled_answer_is_ended_as_well(counter):
    set_loops(counter, "stop", engine="llama.cpp", path="/m.gguf")  # is always asked for a stream
    answer = counter.chat(script=play(words(TALK[:50] + LOOP), HANG))
    assert answer.headers["x-madoguchi-stopped"] == "repetition"
    body = answer.json()
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["madoguchi"]["stopped"] == "repetition"
    assert body["choices"][0]["message"]["content"].startswith("".join(TALK[:50]))
    assert body["usage"]["completion_tokens"] > 50
    (row,) = counter.usage()
    assert row.status == "looped"


def answer_of(content: str, reason: str) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": reason}
    usage = {"prompt_tokens": 7, "completion_tokens": 400, "total_tokens": 407}
    return {"id": "c1", "object": "chat.completion", "created": 1, "model": "fake", "choices": [choice], "usage": usage}


def test_an_answer_in_one_piece_that_loops_is_counted(counter):
    set_loops(counter, "stop")
    text = "".join(TALK[:50] + LOOP)
    answer = counter.chat(script=[{"send": unary(200, answer_of(text, "length"))}])
    assert answer.json() == answer_of(text, "length")
    (row,) = counter.usage()
    assert (row.status, row.completion_tokens) == ("looped", 400)
    assert row.looped_tokens == pytest.approx(400 * len("".join(LOOP)) / len(text), rel=0.05)


def test_vllms_own_word_for_a_loop_reaches_no_client(counter):
    set_loops(counter, "stop")
    text = "x" * 600 + ' "finish_reason": "repetition"'
    answer = counter.chat(script=[{"send": unary(200, answer_of(text, "repetition"))}], max_tokens=1000)
    assert answer.json() == answer_of(text, "length") | {"madoguchi": {"stopped": "repetition"}}
    assert answer.headers["x-madoguchi-stopped"] == "repetition"
    (row,) = counter.usage()
    assert (row.status, row.saved_tokens) == ("looped", 600)


def test_an_observer_that_fails_costs_no_answer_and_is_counted(counter, monkeypatch):
    set_loops(counter, "stop")
    monkeypatch.setattr("apiproxy.dataplane.stream.loop_guard.ContentExtractor.extract", lambda *_: 1 / 0)
    with counter.stream(script=play(words(LOOP), *finish())) as response:
        assert len(read(response)) == len(LOOP) + 1
    assert counter.usage()[0].status == "finished"
    assert "madoguchi_observer_failures_total 1" in counter.client.get("/metrics").text


def messages_script() -> list[dict[str, Any]]:
    def say(kind: str, **data: Any) -> str:
        return f"event: {kind}\ndata: {json.dumps({'type': kind, **data})}\n\n"

    usage = {"input_tokens": 7, "output_tokens": 1}
    message = {"id": "m1", "type": "message", "role": "assistant", "model": "fake", "content": [], "usage": usage}
    events = [
        say("message_start", message={**message, "stop_reason": None, "stop_sequence": None}),
        say("content_block_start", index=0, content_block={"type": "text", "text": ""}),
        *(say("content_block_delta", index=0, delta={"type": "text_delta", "text": word}) for word in LOOP),
    ]
    return play(events, HANG)


def test_an_anthropic_message_ends_as_if_it_had_reached_its_bound(counter):
    set_loops(counter, "stop")
    body = {"model": "fake", "max_tokens": 900, "messages": [], "stream": True, "script": messages_script()}
    with counter.client.stream("POST", "/v1/messages", json=body) as response:
        events = [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: ")]
    block, end, stop = events[-3:]
    assert (block, stop) == ({"type": "content_block_stop", "index": 0}, {"type": "message_stop"})
    assert (end["type"], end["delta"]["stop_reason"]) == ("message_delta", "max_tokens")
    assert end["madoguchi"]["stopped"] == "repetition"
    until(lambda: counter.engine.seen()["running"] == 0)
    (row,) = counter.usage()
    assert (row.status, end["usage"]["output_tokens"]) == ("looped", row.completion_tokens)


def responses_script() -> list[dict[str, Any]]:
    numbers = iter(range(10_000))

    def say(kind: str, **data: Any) -> str:
        return f"event: {kind}\ndata: {json.dumps({**data, 'sequence_number': next(numbers), 'type': kind})}\n\n"

    response = {
        "id": "r1",
        "object": "response",
        "created_at": 1,
        "model": "fake",
        "output": [],
        "status": "in_progress",
    }
    item = {"id": "i1", "type": "message", "role": "assistant", "content": [], "status": "in_progress"}
    place = {"item_id": "i1", "output_index": 0, "content_index": 0}
    part = {"type": "output_text", "text": "", "annotations": []}
    events = [
        say("response.created", response={**response, "parallel_tool_calls": True, "tool_choice": "auto", "tools": []}),
        say("response.output_item.added", output_index=0, item=item),
        say("response.content_part.added", **place, part=part),
        *(say("response.output_text.delta", **place, delta=word, logprobs=[]) for word in LOOP),
    ]
    return play(events, HANG)


def test_openais_sdk_gets_an_incomplete_response_with_all_of_its_text(counter):
    set_loops(counter, "stop")
    sdk = openai.OpenAI(base_url=f"{counter.url}/v1", api_key=counter.key, max_retries=0)
    script = responses_script()
    events = list(sdk.responses.create(model="fake", input="hi", stream=True, extra_body={"script": script}))
    said = "".join(one.delta for one in events if one.type == "response.output_text.delta")
    assert [one.sequence_number for one in events] == list(range(len(events)))
    last = events[-1]
    assert last.type == "response.incomplete"
    assert last.response.status == "incomplete"
    assert last.response.incomplete_details.reason == "max_output_tokens"
    assert last.response.output_text == said
    assert [one.type for one in events[-4:-1]] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
    ]
    (row,) = counter.usage()
    assert (row.status, last.response.usage.output_tokens) == ("looped", row.completion_tokens)


@pytest.mark.parametrize("kind", ["reasoning", "tool"])
def test_thoughts_and_arguments_of_tools_are_watched_as_well(counter, kind):
    set_loops(counter, "stop")

    def delta(word: str) -> dict[str, Any]:
        return (
            {"reasoning": word}
            if kind == "reasoning"
            else {"tool_calls": [{"index": 0, "function": {"arguments": word}}]}
        )

    events = [event([{"index": 0, "delta": delta(word), "finish_reason": None}]) for word in LOOP]
    with counter.stream(script=play(events, HANG)) as response:
        assert read(response)[-1]["madoguchi"]


@pytest.mark.parametrize("several", [1, 7, 50])
def test_events_may_carry_several_tokens(counter, several):
    set_loops(counter, "stop")
    texts = TALK + LOOP * 3
    events = words(["".join(texts[at : at + several]) for at in range(0, len(texts), several)])
    with counter.stream(script=play(events, HANG, paced=len(events))) as response:
        chunks = read(response)
    said = "".join(choice["delta"].get("content", "") for each in chunks for choice in each["choices"])
    assert len(said) - len("".join(TALK)) < 640 + 2 * 50 * 5 + 100


def test_presets_are_put_under_the_clients_own_fields_and_caps_over_them(counter):
    set_loops(counter, "count", sampling={"temperature": {"default": 0.6, "most": 0.9}, "top_p": {"default": 0.95}})
    answer = counter.chat()
    assert counter.engine.seen()["requests"][-1]["body"]["temperature"] == 0.6
    assert answer.headers["x-madoguchi-sampling"] == "temperature=0.6, top_p=0.95"
    answer = counter.chat(temperature=1.5, top_p=0.5)
    sent = counter.engine.seen()["requests"][-1]["body"]
    assert (sent["temperature"], sent["top_p"]) == (0.9, 0.5)
    assert answer.headers["x-madoguchi-sampling"] == "temperature=0.9"
    assert "x-madoguchi-sampling" not in counter.chat(temperature=0.2, top_p=0.5).headers
    assert [row.temperature for row in counter.usage(3)] == [60, 90, 20]


def test_nonsense_is_left_to_the_engine(counter):
    set_loops(counter, "count", sampling={"temperature": {"default": 0.6, "most": 0.9}})
    counter.chat(temperature="hot")
    assert counter.engine.seen()["requests"][-1]["body"]["temperature"] == "hot"
    assert counter.usage()[0].temperature is None


def test_only_calls_in_one_piece_ask_a_vllm_that_can_to_end_loops_itself(counter):
    set_loops(counter, "stop", engine="vllm", path="/m")
    for version, stream, asked in (("0.32.0", False, True), ("0.32.0", True, False), ("0.16.1", False, False)):
        Replica.objects.update(launcher="vllm", version=version)
        set_loops(counter, "stop", description_en=version)  # is a change of the catalogue
        counter.chat(stream=stream)
        sent = counter.engine.seen()["requests"][-1]["body"].get("repetition_detection")
        assert sent == ({"min_pattern_size": 32, "max_pattern_size": 64, "min_count": 4} if asked else None)


def test_models_are_watched_unless_an_operator_says_otherwise(counter):
    model: Model = counter.application.gateway.catalogue.models["fake"]
    assert model.loops.mode == "count"
