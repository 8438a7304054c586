"""Answers as engines also give them: too large, too long, silent, in another form, ending a little differently."""

import concurrent.futures
import gzip
import json
import socket
import time

import openai
import pytest

from apiproxy.dataplane import relay
from apiproxy.dataplane.stream import readers
from apiproxy.dataplane.stream.accumulators import ChunkAccumulator
from apiproxy.dataplane.upstream import IDLE_SECONDS, Address, Pool
from modelregistry.models import Host, Replica, ServedModel
from tests.apiproxy.errors import code
from tests.engine import ANSWER, DONE, FINISH, SSE, chunk, event, token, typed_event, unary, usage_event
from tests.waiting import eventually, until

END = {"send": chunk(FINISH + usage_event(7, 2) + DONE) + "0\r\n\r\n"}
MB = 2**20


def answer(body: bytes, *headers: str) -> dict[str, str]:
    head = "".join(f"{header}\r\n" for header in headers)
    return {"send": f"HTTP/1.1 200 OK\r\n{head}content-length: {len(body)}\r\n\r\n{body.decode('latin-1')}"}


# --- how much


def test_g15_large_events_of_one_answer_leave_the_loop_to_others(llama):
    """Log probabilities of thousands of alternatives: megabytes for each token."""
    choice = {"index": 0, "delta": {"content": "x"}, "finish_reason": None}
    alternatives = [{"token": "t" * 20, "logprob": -1.5, "bytes": None}] * 40_000
    choice["logprobs"] = {"content": [{"token": "x", "logprob": -0.1, "top_logprobs": alternatives}]}
    large = event([choice])
    assert len(large) < readers.MAX_EVENT
    script = [{"send": SSE}, {"send": chunk(large), "times": 30}, END]
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        hungry = pool.submit(llama.chat, script=script)
        waits = []
        while not hungry.done():
            begun = time.monotonic()
            assert llama.client.get("/v1/models").status_code == 200
            waits.append(time.monotonic() - begun)
    refused = hungry.result()
    assert (refused.status_code, code(refused)) == (400, "answer_too_large")
    assert refused.headers["x-should-retry"] == "false"
    assert max(waits) < 4  # 1.2 s on a busy machine
    until(lambda: llama.engine.seen()["running"] == 0)
    assert llama.usage()[0].status == "failed"
    until(lambda: llama.application.gateway.services.budget.held == 0)


@pytest.mark.parametrize(
    "odd",
    [
        "data: nonsense\n\n",
        'data: {"choices": 7}\n\n',
        'data: {"choices": [{"index": 0, "delta": {"tool_calls": [1]}}]}\n\n',
        "data: " + "[" * 5000 + "\n\n",
    ],
)
def test_g5_events_that_are_not_what_they_should_be_are_the_engines_failure(llama, caplog, odd):
    script = [{"send": SSE}, {"send": chunk(token(1) + odd)}, END]
    refused = llama.chat(script=script)
    assert (refused.status_code, code(refused)) == (502, "engine_error")
    assert [row.status for row in llama.usage()] == ["failed"]
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize("odd", ['data: {"choices": [1]}\n\n', 'data: {"choices": 7}\n\n'])
def test_g5_odd_events_of_several_answers_are_the_engines_failure(counter, caplog, odd):
    refused = counter.chat(n=2, stream=True, script=[{"send": SSE}, {"send": chunk(odd)}, END])
    assert refused.status_code == 502
    assert not [record for record in caplog.records if record.exc_info]


def test_g15_an_assembly_counts_what_it_keeps():
    assembly = ChunkAccumulator()
    for _ in range(1000):
        assembly.feed(token(1).encode())
    assert len(json.loads(assembly.body(None))["choices"][0]["message"]["content"]) == 3000
    assert 3000 <= assembly.size < 100 * 1000
    for index in range(1000):  # nothing but beginnings
        assembly.feed(event([{"index": index, "delta": {}}]).encode())
    assert assembly.size > 250 * 1000


def test_g15_an_event_is_read_once_however_small_its_pieces():
    reader = readers.ChunkReader(readers.StreamContext(wants_usage=False), lambda error: b"")
    begun = time.process_time()
    for _ in range(3 * MB // 256):
        assert reader.feed(b"x" * 256) == b""
    assert time.process_time() - begun < 1.0  # every time from its beginning: 20 s


def test_g5_an_answer_in_one_piece_is_bounded(counter, monkeypatch):
    monkeypatch.setattr(relay, "MAX_ANSWER", 2 * MB)
    head = {"send": "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n"}
    refused = counter.chat(script=[head, {"send": "x" * MB, "times": 4}, {"hang": True}])
    assert (refused.status_code, code(refused)) == (400, "answer_too_large")
    until(lambda: counter.engine.seen()["running"] == 0)
    until(lambda: counter.application.gateway.services.budget.held == 0)


def test_g5_what_answers_hold_is_counted_against_their_caller(counter, monkeypatch):
    budget = counter.application.gateway.services.budget
    monkeypatch.setattr(budget, "per_owner", MB)
    head = {"send": "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n"}
    refused = counter.chat(script=[head, {"send": "x" * MB, "times": 4}, {"hang": True}])
    assert (refused.status_code, code(refused)) == (429, "rate_limit_exceeded")
    until(lambda: budget.held == 0)


def test_g5_an_endless_header_of_an_engine_is_cut_off_early(counter):
    endless = [{"send": "HTTP/1.1 200 OK\r\nx: "}, {"send": "y" * 65536, "times": 200}, {"hang": True}]
    begun = time.process_time()
    assert code(counter.chat(script=endless)) == "engine_error"
    assert time.process_time() - begun < 2
    until(lambda: counter.engine.seen()["running"] == 0)


def test_g5_an_endless_error_is_read_no_further_than_anybody_would(counter):
    head = {"send": "HTTP/1.1 400 Bad\r\ncontent-type: text/plain\r\n\r\n"}
    refused = counter.chat(script=[head, {"send": "x" * 65536, "times": 4}, {"hang": True}])
    assert (refused.status_code, code(refused)) == (400, "invalid_value")
    until(lambda: counter.engine.seen()["running"] == 0)


# --- what is no answer


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"<!doctype html><h1>Sign in</h1>", "text/html", 502),
        (b"", "application/json", 502),
        (b'{"error": {"message": "CUDA error at /srv"}}', "application/json", 502),
        (b'{"error": {"message": "bad top_p", "code": 400}}', "application/json", 400),
        (b'{"error": "Unauthorized"}', "application/json", 502),
    ],
)
def test_g5_a_200_that_is_no_answer_is_not_finished(counter, body, kind, status):
    response = counter.chat(script=[answer(body, f"content-type: {kind}")])
    assert response.status_code == status
    assert "/srv" not in response.text
    assert "<h1>" not in response.text
    assert counter.usage()[0].status == ("failed" if status == 502 else "refused")


def test_g5_an_answer_whose_error_is_null_is_one(counter):
    body = json.dumps({**ANSWER, "error": None}).encode()
    assert counter.chat(script=[answer(body, "content-type: application/json")]).json()["id"] == ANSWER["id"]


def test_g5_an_answer_in_unrequested_gzip_is_decompressed_and_metered(counter):
    body = gzip.compress(json.dumps(ANSWER).encode())
    script = [answer(body, "content-type: application/json", "content-encoding: gzip")]
    assert counter.chat(script=script).json() == ANSWER
    assert counter.engine.seen()["requests"][0]["headers"]["accept-encoding"] == "identity"
    assert counter.usage()[0].completion_tokens == 5


def test_g5_a_small_gzip_that_unpacks_to_much_is_refused(counter, monkeypatch):
    monkeypatch.setattr(relay, "MAX_ANSWER", MB)
    body = gzip.compress(b"[" * (20 * MB))
    refused = counter.chat(script=[answer(body, "content-encoding: gzip")])
    assert code(refused) == "answer_too_large"


# --- streams that end differently


@pytest.mark.parametrize(
    ("end", "told"),
    [
        (FINISH, DONE),
        (FINISH + usage_event(7, 2), DONE),
        (FINISH + "data: [DONE]", DONE),
        (FINISH + "data: [DONE]\n", DONE),
        (FINISH.replace('"choices"', '"error": null, "choices"') + DONE, DONE),
        (event([], error=None, usage={"prompt_tokens": 7, "completion_tokens": 2}) + DONE, DONE),
    ],
)
@pytest.mark.parametrize("assembled", [False, True])
def test_g7_a_stream_that_ends_a_little_differently_is_finished(counter, end, told, assembled):
    if assembled:
        counter.model.engine, counter.model.path = "llama.cpp", "/m.gguf"
        counter.model.save()
        counter.wait_for_catalogue()
    script = [{"send": SSE}, {"events": 2}, {"send": chunk(end) + "0\r\n\r\n"}]
    response = counter.chat(script=script, stream=not assembled)
    assert response.status_code == 200
    if assembled:
        assert response.json()["choices"][0]["message"]["content"] == "t0 t1 "
    else:
        assert response.text.endswith(told)
        assert "engine_error" not in response.text
    assert counter.usage()[0].status == "finished"


@pytest.mark.parametrize("end", ["", token(1), 'data: {"choices": [{"del'])
def test_g7_a_stream_that_just_ends_is_a_failure(counter, end):
    script = [{"send": SSE}, {"events": 2}, *([{"send": chunk(end)}] if end else []), {"send": "0\r\n\r\n"}]
    response = counter.chat(script=script, stream=True)
    assert '"engine_error"' in response.text
    assert counter.usage()[0].status == "failed"


def test_t5_an_incomplete_response_is_finished_and_metered(counter):
    usage = {"input_tokens": 9, "output_tokens": 4, "total_tokens": 13}
    last = {"type": "response.incomplete", "response": {"id": "r", "status": "incomplete", "usage": usage}}
    stream = f"event: response.incomplete\ndata: {json.dumps(last)}\n\n"
    body = {"model": "fake", "stream": True, "script": [{"send": SSE}, {"send": chunk(stream) + "0\r\n\r\n"}]}
    response = counter.client.post("/v1/responses", json=body)
    assert response.text == stream
    (row,) = counter.usage()
    assert (row.status, row.prompt_tokens, row.completion_tokens, row.estimated) == ("finished", 9, 4, False)


# --- silence


RESPONSES = (
    typed_event("response.created", sequence_number=0, response={"id": "r"}),
    typed_event("response.completed", sequence_number=1, response={"id": "r", "usage": {"input_tokens": 1}}),
)
MESSAGES = (
    typed_event(
        "message_start", message={"id": "m", "type": "message", "role": "assistant", "content": [], "usage": {}}
    ),
    typed_event("message_delta", delta={}, usage={"output_tokens": 1}) + typed_event("message_stop"),
)


@pytest.mark.parametrize(
    ("path", "start", "end", "ping"),
    [
        ("/v1/chat/completions", token(0), FINISH + DONE, ": waiting\n\n"),
        ("/v1/responses", *RESPONSES, ": waiting\n\n"),
        ("/v1/messages", *MESSAGES, 'event: ping\ndata: {"type": "ping"}\n\n'),
    ],
)
def test_g8_a_silent_stream_is_kept_alive_before_it_begins_and_in_its_middle(
    short_heartbeat, counter, path, start, end, ping
):
    script = [{"wait": 1.6}, {"send": SSE + chunk(start)}, {"wait": 2.4}, {"send": chunk(end) + "0\r\n\r\n"}]
    response = counter.client.post(path, json={"model": "fake", "stream": True, "messages": [], "script": script})
    before, _, after = response.text.partition(start)
    assert before
    assert before.replace(": waiting\n\n", "") == ""
    assert after.endswith(end)
    assert after.removesuffix(end)
    assert after.removesuffix(end).replace(ping, "") == ""
    assert counter.usage()[0].status == "finished"


def test_g8_no_heartbeat_comes_into_the_middle_of_an_event(short_heartbeat, counter):
    whole = token(0) + token(1)
    parts = [{"send": chunk(whole[:20])}, {"wait": 1.5}, {"send": chunk(whole[20:-1])}, {"wait": 1.5}]
    script = [{"send": SSE}, {"events": 1}, *parts, {"send": chunk(whole[-1])}, END]
    with counter.stream(script=script) as response:
        text = response.read().decode()
    assert ": waiting" in text
    for part in text.removesuffix("\n\n").split("\n\n"):
        assert part == ": waiting" or part == "data: [DONE]" or json.loads(part.removeprefix("data: "))


def test_g8_the_openai_sdk_reads_over_heartbeats_of_responses(short_heartbeat, counter):
    script = [{"wait": 1.6}, {"send": SSE + chunk("".join(RESPONSES)) + "0\r\n\r\n"}]
    sdk = openai.OpenAI(base_url=f"{counter.url}/v1", api_key=counter.key, max_retries=0)
    found = list(sdk.responses.create(model="fake", input="x", stream=True, extra_body={"script": script}))
    assert [one.type for one in found] == ["response.created", "response.completed"]


def test_g9_a_long_answer_in_one_piece_is_bounded_by_the_total_alone(counter):
    model = ServedModel.objects.create(
        name="hasty", engine="external", url=counter.engine.url, first_byte_timeout=0.5, total_timeout=4
    )
    Replica.objects.create(model=model, host=Host.objects.get(), state="ready", url=counter.engine.url)
    counter.wait_for_catalogue()
    whole = {**ANSWER, "usage": {"prompt_tokens": 7, "completion_tokens": 50}}
    assert counter.chat(model="hasty", script=[{"wait": 2.5}, {"send": unary(200, whole)}]).json() == whole
    late = counter.chat(model="hasty", script=[{"hang": True}])
    assert (late.status_code, code(late), late.headers["x-should-retry"]) == (504, "engine_timeout", "false")
    row = counter.usage(2)[-1]
    assert (row.status, row.estimated) == ("failed", True)
    assert row.prompt_tokens > 0
    assert row.completion_tokens > 20  # by the pace of the answer before


# --- counting what no engine reported


@pytest.mark.parametrize("words", [1, 50])
def test_m3_an_aborted_stream_is_counted_also_when_an_event_carries_many_tokens(counter, words):
    # A token is 4 bytes on average; " word" is one. Without a number they would be a loop.
    texts = [f"{number} " + "word " * words for number in range(30)]
    said = [event([{"index": 0, "delta": {"content": text}, "finish_reason": None}]) for text in texts]
    script = [{"send": SSE}, *[step for one in said for step in ({"send": chunk(one)}, {"wait": 0.01})], {"hang": True}]
    with counter.stream(script=script) as response:
        got = ""
        for piece in response.iter_text():
            got += piece
            if got.count("data: ") == 30:
                break
    (row,) = counter.usage()
    assert (row.status, row.estimated) == ("aborted", True)
    assert row.completion_tokens == pytest.approx(30 * words, rel=0.3)  # a short event counts as one


# --- connections


def test_g6_no_fault_between_taking_a_connection_and_its_answer_leaves_it_open(counter, monkeypatch):
    assert counter.chat().status_code == 200
    before = counter.engine.seen()["connections"]

    def fail(*_: object, **__: object) -> bytes:
        raise RecursionError

    monkeypatch.setattr("apiproxy.dataplane.relay.Exchange.attempt", fail)
    assert {counter.chat().status_code for _ in range(20)} == {500}
    monkeypatch.undo()
    until(lambda: sockets_to(counter.engine.url) <= 1)
    assert counter.engine.seen()["connections"] - before <= 25


def sockets_to(url: str) -> int:
    """Return the connections of this machine to an engine that both ends hold open."""
    port = f"{int(url.rpartition(':')[2]):04X}"
    with open("/proc/net/tcp") as table:
        return sum(line.split()[2].endswith(f":{port}") and line.split()[3] == "01" for line in table)


def test_m10_connections_that_will_not_be_used_again_are_closed_by_us(counter):
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        script = [{"wait": 0.3}, {"send": unary(200, ANSWER)}]
        together = [pool.submit(counter.chat, script=script) for _ in range(8)]
        assert {one.result().status_code for one in together} == {200}
    assert sockets_to(counter.engine.url) >= 8  # the fake engine closes none by itself
    until(lambda: sockets_to(counter.engine.url) == 0, IDLE_SECONDS + 6)


async def test_g17_a_name_that_is_not_resolved_holds_up_no_other(monkeypatch):
    import asyncio
    import threading

    silent, asked = threading.Event(), []
    real = socket.getaddrinfo

    def resolver(host, *args, **more):
        if host == "silent.invalid":
            asked.append(host)
            silent.wait(20)
        return real("127.0.0.1" if host == "model.invalid" else host, *args, **more)

    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    pool = Pool(Address.parse("http://silent.invalid:1"), lambda: 0.0)
    waiting = [asyncio.ensure_future(pool.connect(10)) for _ in range(8)]
    await eventually(lambda: asked)
    async with await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        other = Pool(Address.parse(f"http://model.invalid:{port}"), lambda: 0.0)
        begun = time.monotonic()
        for _ in range(5):
            (await other.connect(5)).abort()
        assert time.monotonic() - begun < 2
    silent.set()
    assert all(isinstance(one, Exception) for one in await asyncio.gather(*waiting, return_exceptions=True))
    pool.close()
    other.close()


@pytest.mark.parametrize("stream", [True, False])
def test_g6_an_error_that_nests_deeply_is_no_fault_of_ours(counter, caplog, stream):
    deep = '{"error": ' + "[" * 900 + "]" * 900 + "}"
    whole = {"send": f"HTTP/1.1 500 X\r\ncontent-length: {len(deep)}\r\n\r\n{deep}"}
    script = [{"send": SSE}, {"send": chunk(f"data: {deep}\n\n") + "0\r\n\r\n"}] if stream else [whole]
    assert counter.chat(stream=stream, script=script).status_code == (200 if stream else 502)
    assert not [record for record in caplog.records if record.exc_info]
