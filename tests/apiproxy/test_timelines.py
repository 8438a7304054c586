"""What the usage row of a call says of its way: how long it waited and for what, where it ran, and what ended it."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from apiproxy.dataplane import stops
from modelregistry.models import Host, Replica, ServedModel
from portal.usage.models import UsageRecord
from tests.engine import ANSWER, DONE, FINISH, SSE, chunk, event, typed_event, unary, usage_event
from tests.looping import HANG, LOOP, play, words
from tests.waiting import until

END = [{"send": chunk(FINISH + usage_event(7, 3) + DONE) + "0\r\n\r\n"}]
WAIT = 0.4  # seconds


@contextmanager
def calling(counter, **fields: Any) -> Iterator[None]:
    """Have another call run meanwhile."""
    thread = threading.Thread(target=counter.chat, kwargs=fields)
    thread.start()
    yield
    thread.join(20)


def stream_of(*events: str) -> list[dict[str, Any]]:
    return [{"send": SSE}, *({"send": chunk(one)} for one in events), {"send": "0\r\n\r\n"}]


def chat_answer(reason: str) -> list[dict[str, Any]]:
    end = event([{"index": 0, "delta": {}, "finish_reason": reason}])
    return [{"send": SSE}, {"events": 3}, {"send": chunk(end + DONE) + "0\r\n\r\n"}]


def answer_in_one_piece(reason: str) -> list[dict[str, Any]]:
    choice = {**ANSWER["choices"][0], "finish_reason": reason}
    return [{"send": unary(200, {**ANSWER, "choices": [choice]})}]


def message(reason: str) -> list[dict[str, Any]]:
    start = {"id": "m1", "role": "assistant", "content": [], "usage": {"input_tokens": 5, "output_tokens": 0}}
    delta = {"type": "text_delta", "text": 'x "stop_reason":"refusal" x'}
    return stream_of(
        typed_event("message_start", message=start),
        typed_event("content_block_start", index=0, content_block={"type": "text", "text": ""}),
        typed_event("content_block_delta", index=0, delta=delta),
        typed_event("content_block_stop", index=0),
        typed_event("message_delta", delta={"stop_reason": reason}, usage={"output_tokens": 3}),
        typed_event("message_stop"),
    )


def response(kind: str, **more: Any) -> list[dict[str, Any]]:
    usage = {"input_tokens": 5, "output_tokens": 3, "total_tokens": 8}
    whole = {"id": "r1", "object": "response", "status": kind, "output": [], "usage": usage, **more}
    return stream_of(
        typed_event("response.created", sequence_number=0, response={"id": "r1"}),
        typed_event("response.output_text.delta", sequence_number=1, item_id="i", output_index=0, delta="x"),
        typed_event(f"response.{kind}", sequence_number=2, response=whole),
    )


def test_a_call_that_goes_at_once_waited_for_nothing(counter):
    Replica.objects.update(launcher="vllm", version="0.32.0")
    counter.model.refresh_from_db()
    counter.model.save()
    counter.wait_for_catalogue()
    counter.chat(stream=True, script=[{"wait": WAIT}, {"send": SSE}, {"events": 4, "every": WAIT / 4}, *END])
    (row,) = counter.usage()
    assert (row.queued_ms, row.loading_ms, row.retries, row.stopped_by) == (0, 0, 0, "stop")
    assert WAIT * 1000 <= row.prefill_ms <= row.first_token_ms < row.duration_ms
    assert row.engine == "vllm 0.32.0"


def test_the_wait_for_a_turn_is_recorded(counter):
    counter.model.slots = 1
    counter.model.save()
    counter.wait_for_catalogue()
    with calling(counter, stream=True, script=[{"send": SSE}, {"events": 1}, {"wait": WAIT}, *END]):
        until(lambda: counter.application.gateway.in_flight == 1)
        assert counter.chat(stream=True).status_code == 200
    first, second = sorted(counter.usage(2), key=lambda row: row.queued_ms)
    assert first.queued_ms == 0
    assert 0 < second.queued_ms <= first.duration_ms + 50
    assert second.loading_ms == 0
    assert second.started_at > first.started_at


def test_the_wait_for_a_sleeping_model_is_recorded_beside_that_for_a_turn(counter):
    Replica.objects.update(state=Replica.State.ASLEEP)
    counter.model.save()
    counter.wait_for_catalogue()
    with calling(counter, stream=True):
        until(lambda: counter.application.gateway.queued == 1)
        Replica.objects.update(state=Replica.State.READY)
        counter.model.save()
    (row,) = counter.usage()
    assert row.loading_ms > 0
    assert row.queued_ms <= 50
    assert row.stopped_by == "stop"


def test_an_attempt_on_another_replica_is_counted(counter):
    url = "http://127.0.0.1:1"
    Replica.objects.create(model=counter.model, host=Host.objects.get(), index=1, state="ready", url=url)
    counter.wait_for_catalogue()
    with calling(counter, stream=True, script=[{"send": SSE}, {"events": 1}, {"wait": WAIT}, *END]):
        until(lambda: counter.engine.seen()["running"] == 1)
        assert counter.chat(stream=True).status_code == 200  # the other replica has less to do, but does not answer
    rows = counter.usage(2)
    assert sorted(row.retries for row in rows) == [0, 1]
    assert len({row.replica_id for row in rows}) == 1


CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
CUT_SHORT = {"incomplete_details": {"reason": "max_output_tokens"}}


@pytest.mark.parametrize(
    ("path", "stream", "script", "stopped_by"),
    [
        (CHAT, True, chat_answer("stop"), "stop"),
        (CHAT, True, chat_answer("length"), "length"),
        (CHAT, True, chat_answer("tool_calls"), "tool_calls"),
        (CHAT, True, chat_answer("content_filter"), "content_filter"),
        (CHAT, True, chat_answer("abort"), "engine_died"),
        (CHAT, True, chat_answer("of something new"), "other"),
        (CHAT, False, answer_in_one_piece("length"), "length"),
        (CHAT, False, answer_in_one_piece("stop"), "stop"),
        (CHAT, True, [{"send": SSE}, {"events": 2}, {"close": True}], "engine_died"),
        (CHAT, False, [{"send": unary(400, {"error": {"message": "no such role"}})}], "engine_refused"),
        (
            CHAT,
            False,
            [{"send": unary(400, {"error": {"message": "maximum context length is 10 tokens"}})}],
            "context",
        ),
        (CHAT, False, [{"send": unary(429, {"error": {"message": "full"}})}], "engine_busy"),
        (CHAT, False, [{"send": unary(500, {"error": {"message": "oh"}})}], "engine_error"),
        (MESSAGES, True, message("end_turn"), "stop"),
        (MESSAGES, True, message("max_tokens"), "length"),
        (MESSAGES, True, message("tool_use"), "tool_calls"),
        (RESPONSES, True, response("completed"), "stop"),
        (RESPONSES, True, response("incomplete", **CUT_SHORT), "length"),
    ],
)
def test_what_ended_a_call_is_one_word_in_every_format(counter, path, stream, script, stopped_by):
    content = {"input": "hi"} if path == RESPONSES else {"messages": [{"role": "user", "content": "hi"}]}
    counter.client.post(path, json={"model": "fake", "stream": stream, "max_tokens": 50, "script": script, **content})
    (row,) = counter.usage()
    assert row.stopped_by == stopped_by
    assert (row.prefill_ms is None) == (not stream)


def test_embeddings_end_by_themselves(counter):
    counter.model.task = "embed"
    counter.model.save()
    counter.wait_for_catalogue()
    assert counter.client.post("/v1/embeddings", json={"model": "fake", "input": "hi"}).status_code == 200
    (row,) = counter.usage()
    assert row.stopped_by == "stop"


def test_a_word_loop_that_was_ended_is_what_ended_the_call(counter):
    counter.model.loops = "stop"
    counter.model.save()
    counter.wait_for_catalogue()
    counter.chat(stream=True, script=play(words(LOOP), HANG))
    (row,) = counter.usage()
    assert (row.status, row.stopped_by) == ("looped", "loop")


def test_a_client_that_leaves_ends_its_call(counter):
    with counter.stream(script=[{"send": SSE}, {"events": 2}, {"hang": True}]) as answer:
        next(answer.iter_raw())
    (row,) = counter.usage()
    assert (row.status, row.stopped_by) == ("aborted", "client")


def test_the_time_limit_ends_a_call(counter):
    ServedModel.objects.update(total_timeout=WAIT)
    ServedModel.objects.get().save()
    counter.wait_for_catalogue()
    counter.chat(stream=True, script=[{"send": SSE}, {"events": 1}, {"hang": True}])
    (row,) = counter.usage()
    assert (row.status, row.stopped_by) == ("failed", "deadline")


def test_a_restart_is_what_would_end_a_call_that_is_open(counter):
    spool = counter.application.gateway.services.spool
    with counter.stream(script=[{"send": SSE}, {"events": 2}, {"hang": True}]) as answer:
        next(answer.iter_raw())
        lines = b"".join(path.read_bytes() for path in spool.directory.glob("*.jsonl")).split(b"\0")[0].splitlines()
        opened = [json.loads(line)["open"] for line in lines if line.startswith(b'{"open"')]
    assert [one["stopped_by"] for one in opened] == ["restart"]
    counter.usage()


def test_every_word_has_its_name_on_pages():
    assert set(UsageRecord.StoppedBy.values) == stops.STOPS
    assert max(map(len, stops.STOPS)) <= 16
