"""Answers that repeat themselves without end, through the gateway: ended in each API's form, and counted."""

import json
from typing import Any

import httpx2
import openai
import pytest
from django.utils import timezone

from apiproxy.dataplane.catalogue import Model
from apiproxy.dataplane.loops import MODES
from modelregistry.models import Replica
from portal.usage.loop_rates import LoopRate, read_failures, read_recent_rates
from tests import looping
from tests.engine import DONE, FINISH, SSE, chunk, event, typed_event, unary
from tests.looping import HANG, LOOP, PHRASE, TALK, play, words
from tests.waiting import until


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


def test_only_answers_that_were_watched_to_their_end_count_for_the_rate(counter, monkeypatch):
    set_loops(counter, "count")
    script = play(words(TALK[:20]), *finish("stop"))
    one_piece = [{"send": unary(200, answer_of("Hello.", "stop"))}]
    counter.chat(stream=True, script=script)
    counter.chat(script=one_piece)
    counter.client.headers["x-madoguchi-loops"] = "off"
    counter.chat(stream=True, script=script)
    counter.chat(script=one_piece)
    del counter.client.headers["x-madoguchi-loops"]
    counter.client.post("/v1/embeddings", json={"model": "fake", "input": "hi"})
    counter.key_row.loop_guard = False
    counter.key_row.save()
    counter.wait_for_catalogue()
    counter.chat(stream=True, script=script)
    counter.key_row.loop_guard = True
    counter.key_row.save()
    set_loops(counter, "off")
    counter.chat(stream=True, script=script)
    set_loops(counter, "count")
    monkeypatch.setattr("apiproxy.dataplane.stream.loop_guard.ContentExtractor.extract", lambda *_: 1 / 0)
    counter.chat(stream=True, script=script)
    rows = counter.usage(8)
    assert {row.status for row in rows} == {"finished"}
    assert [row.watched for row in rows] == [True, True, *[False] * 6]
    assert read_recent_rates(timezone.now()) == {"fake": LoopRate(answers=2, looped=0)}


def test_an_answer_that_begins_with_the_echo_of_its_prompt_is_not_watched(counter):
    set_loops(counter, "stop")
    path, script = ENDED["completions"]
    fields = {"model": "fake", "prompt": "".join(LOOP), "stream": True, "script": script}
    echoed = counter.client.post(path, json={**fields, "echo": True})
    assert b"madoguchi" not in echoed.content
    (row,) = counter.usage()
    assert (row.status, row.watched, row.saved_tokens) == ("finished", False, 0)
    endless = {**fields, "echo": False, "script": looping.completion()}  # else it may end by itself before a look
    assert b"madoguchi" in counter.client.post(path, json=endless).content


def test_a_call_may_ask_to_be_stopped(counter):
    set_loops(counter, "off")
    counter.client.headers["x-madoguchi-loops"] = "Stop"
    with counter.stream(script=play(words(LOOP), HANG)) as response:
        assert read(response)[-1]["madoguchi"]


@pytest.mark.parametrize("wish", ["maybe", "", "stop, off", "0", "x" * 2000])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses", "/v1/embeddings"])
def test_an_unknown_wish_is_refused_by_name(counter, path, wish):
    counter.client.headers["x-madoguchi-loops"] = wish
    refused = counter.client.post(path, json={"model": "fake", "messages": [], "input": "hi", "max_tokens": 1})
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert all(word in error["message"] for word in ("x-madoguchi-loops", *MODES))
    assert len(error["message"]) < 200
    if path != "/v1/messages":  # whose errors have neither
        assert (error["param"], error["code"]) == ("x-madoguchi-loops", "invalid_value")
    assert counter.engine.seen()["requests"] == []


@pytest.mark.parametrize("wishes", [("off", "stop"), ("stop", "off"), ("bogus", "off"), ("off", "bogus")])
def test_two_wishes_that_differ_are_refused(counter, wishes):
    headers = [("x-madoguchi-loops", wish) for wish in wishes]
    refused = counter.client.post("/v1/chat/completions", json={"model": "fake", "messages": []}, headers=headers)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "x-madoguchi-loops"
    assert all(wish in refused.json()["error"]["message"] for wish in wishes)
    assert counter.engine.seen()["requests"] == []


def test_a_wish_may_be_given_twice(counter):
    set_loops(counter, "off")
    headers = [("x-madoguchi-loops", "stop"), ("X-Madoguchi-Loops", "Stop")]
    body = {"model": "fake", "messages": [], "stream": True, "script": looping.chat()}
    assert b"madoguchi" in counter.client.post("/v1/chat/completions", json=body, headers=headers).content


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


def test_a_client_is_kept_waiting_by_heartbeats_while_its_engine_goes_on_with_an_answer_that_was_ended(
    short_heartbeat, counter
):
    set_loops(counter, "stop")
    slowly = [step for one in words(PHRASE * 3) for step in ({"wait": 0.1}, {"send": chunk(one)})]
    with counter.stream(script=[*play(words(LOOP)), *slowly, *finish()], n=2) as response:
        text = b"".join(response.iter_raw()).decode()
    assert ": waiting" in text.partition('"madoguchi"')[2]


@pytest.mark.parametrize("numbers", ["numbers", "texts"])
def test_when_all_of_several_answers_loop_the_engine_stops(counter, numbers):
    set_loops(counter, "stop")
    mixed = [one for pair in zip(words(LOOP), words(LOOP, 1), strict=True) for one in pair]
    if numbers == "texts":
        mixed = [one.replace('"index": 0', '"index": "0"').replace('"index": 1', '"index": "1"') for one in mixed]
    with counter.stream(script=play(mixed, HANG), n=2) as response:
        chunks = read(response)
    assert sorted(choice["index"] for each in chunks for choice in each["choices"] if choice["finish_reason"]) == [0, 1]
    assert not any("error" in each for each in chunks)
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


GUARD = "apiproxy.dataplane.stream.loop_guard"
# Path and script of an answer in each format, which its engine ends.
ENDED: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "chat": ("/v1/chat/completions", [*looping.chat()[:-1], *finish()]),
    "completions": (
        "/v1/completions",
        [*looping.completion()[:-1], {"send": chunk(looping.END_OF_COMPLETION + DONE) + "0\r\n\r\n"}],
    ),
    "messages": ("/v1/messages", [*looping.message()[:-1], {"send": chunk(looping.END_OF_MESSAGE) + "0\r\n\r\n"}]),
    "responses": (
        "/v1/responses",
        [*looping.response()[:-1], {"send": chunk(looping.END_OF_RESPONSE) + "0\r\n\r\n"}],
    ),
}


def ask(counter, name: str, **fields: Any) -> httpx2.Response:
    """Ask for the answer of ENDED."""
    path, script = ENDED[name]
    given = {"messages": [], "prompt": "hi", "input": "hi", "max_tokens": 900, "model": "fake", "script": script}
    return counter.client.post(path, json={**given, **fields})


@pytest.mark.parametrize("name", ENDED)
@pytest.mark.parametrize("how", ["streamed", "assembled"])
def test_an_observer_that_fails_costs_no_byte_and_is_counted(counter, monkeypatch, name, how):
    assembled = {"engine": "llama.cpp", "path": "/m.gguf"} if how == "assembled" else {}
    set_loops(counter, "off", **assembled)
    plain = ask(counter, name, stream=how == "streamed")
    assert plain.status_code == 200
    set_loops(counter, "stop")
    monkeypatch.setattr(f"{GUARD}.ContentExtractor.extract", lambda *_: 1 / 0)
    assert ask(counter, name, stream=how == "streamed").content == plain.content
    _, row = counter.usage(2)
    assert (row.status, row.watched) == ("finished", False)
    assert "madoguchi_observer_failures_total 1" in counter.client.get("/metrics").text
    assert read_failures(timezone.now()) == {"fake": 1}


@pytest.mark.parametrize("fault", [f"{GUARD}.read_answer", "apiproxy.dataplane.services.LoopGuard"])
def test_one_that_fails_over_an_answer_in_one_piece_or_as_it_begins_costs_nothing_either(counter, monkeypatch, fault):
    set_loops(counter, "stop")
    monkeypatch.setattr(fault, lambda *_: 1 / 0)
    whole = answer_of("".join(LOOP), "length")
    answer = counter.chat(script=[{"send": unary(200, whole)}])
    assert answer.json() == whole
    assert "x-madoguchi-stopped" not in answer.headers
    assert [(row.status, row.watched) for row in counter.usage()] == [("finished", False)]
    assert "madoguchi_observer_failures_total 1" in counter.client.get("/metrics").text
    assert read_failures(timezone.now()) == {"fake": 1}


def test_one_that_fails_when_all_has_been_sent_is_counted_as_well(counter, monkeypatch):
    set_loops(counter, "count")
    monkeypatch.setattr(f"{GUARD}.LoopGuard.looped_tokens", lambda *_: 1 / 0)
    assert ask(counter, "chat", stream=True).status_code == 200
    assert [(row.status, row.watched) for row in counter.usage()] == [("finished", False)]
    assert read_failures(timezone.now()) == {"fake": 1}


def unframed(script: list[dict[str, Any]]) -> str:
    """Return the events of a stream that its engine does not end."""
    return "".join(step["send"].partition("\r\n")[2][:-2] for step in script[1:-1])


def ends_of_response() -> list[str]:
    """Return the events that end the text, the part and the item of a response."""
    place = {"item_id": "i1", "output_index": 0, "content_index": 0}
    part = {"type": "output_text", "text": "".join(LOOP), "annotations": []}
    item = {"id": "i1", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
    return [
        typed_event("response.output_text.done", **place, text=part["text"], sequence_number=1000),
        typed_event("response.content_part.done", **place, part=part, sequence_number=1001),
        typed_event("response.output_item.done", output_index=0, item=item, sequence_number=1002),
    ]


# Path, events and what ends them in the same piece, and what comes later, of answers whose engine ends them itself.
END_OF_BLOCK, END_OF_TURN, LAST = (f"{one}\n\n" for one in looping.END_OF_MESSAGE.split("\n\n")[:3])
TEXT_DONE, PART_DONE, ITEM_DONE = ends_of_response()
ENDED_AT_ONCE: dict[str, tuple[str, list[dict[str, Any]], str, str]] = {
    "chat": ("/v1/chat/completions", looping.chat(), FINISH, DONE),
    "chat, all of it": ("/v1/chat/completions", looping.chat(), FINISH + DONE, ""),
    "block": ("/v1/messages", looping.message(), END_OF_BLOCK, END_OF_TURN + LAST),
    "block and ping": ("/v1/messages", looping.message(), END_OF_BLOCK + typed_event("ping"), END_OF_TURN + LAST),
    "turn": ("/v1/messages", looping.message(), END_OF_BLOCK + END_OF_TURN, LAST),
    "text": ("/v1/responses", looping.response(), TEXT_DONE, PART_DONE + ITEM_DONE + looping.END_OF_RESPONSE),
    "item": ("/v1/responses", looping.response(), TEXT_DONE + PART_DONE + ITEM_DONE, looping.END_OF_RESPONSE),
}


@pytest.mark.parametrize("name", ENDED_AT_ONCE)
def test_an_answer_that_ends_in_the_piece_in_which_its_loop_is_seen_has_one_end(counter, name):
    path, events, ending, later = ENDED_AT_ONCE[name]
    rest = [{"wait": 0.1}, {"send": chunk(later)}] if later else []
    script = [{"send": SSE}, {"send": chunk(unframed(events) + ending)}, *rest, {"send": "0\r\n\r\n"}]
    body = {"messages": [], "input": "hi", "max_tokens": 900, "model": "fake", "script": script, "stream": True}
    answers = []
    for mode in ("off", "stop"):
        set_loops(counter, mode)
        answers.append(counter.client.post(path, json=body).content)
    assert answers[0] == answers[1]
    plain, watched = counter.usage(2)
    assert (plain.status, watched.status, watched.saved_tokens) == ("finished", "looped", 0)
    assert (watched.completion_tokens, watched.estimated) == (plain.completion_tokens, plain.estimated)
    assert watched.looped_tokens > 0


def test_an_anthropic_message_ends_as_if_it_had_reached_its_bound(counter):
    set_loops(counter, "stop")
    body = {"model": "fake", "max_tokens": 900, "messages": [], "stream": True, "script": looping.message()}
    with counter.client.stream("POST", "/v1/messages", json=body) as response:
        events = [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: ")]
    block, end, stop = events[-3:]
    assert (block, stop) == ({"type": "content_block_stop", "index": 0}, {"type": "message_stop"})
    assert (end["type"], end["delta"]["stop_reason"]) == ("message_delta", "max_tokens")
    assert end["madoguchi"]["stopped"] == "repetition"
    until(lambda: counter.engine.seen()["running"] == 0)
    (row,) = counter.usage()
    assert (row.status, end["usage"]["output_tokens"]) == ("looped", row.completion_tokens)


def test_openais_sdk_gets_an_incomplete_response_with_all_of_its_text(counter):
    set_loops(counter, "stop")
    sdk = openai.OpenAI(base_url=f"{counter.url}/v1", api_key=counter.key, max_retries=0)
    script = looping.response()
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


@pytest.mark.parametrize(
    ("wanted", "sent"),
    [("2", 0.9), (" 2e0 ", 0.9), (True, 0.9), ("Infinity", 0.9), ("nan", 0.9), (False, 0.3), ("-1", 0.3), ("0.5", 0.5)],
)
def test_a_value_that_engines_read_as_a_number_is_the_number_that_it_means(counter, wanted, sent):
    set_loops(counter, "count", sampling={"temperature": {"default": 0.6, "least": 0.3, "most": 0.9}})
    answer = counter.chat(temperature=wanted)
    assert counter.engine.seen()["requests"][-1]["body"]["temperature"] == sent
    assert answer.headers["x-madoguchi-sampling"] == f"temperature={sent}"
    assert counter.usage()[0].temperature == round(sent * 100)


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
