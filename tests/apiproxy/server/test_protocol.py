"""The gateway's own uvicorn protocol, and the same gateway on a server that knows ASGI only."""

import asyncio
import contextlib
import gc
import json
import re
import socket
import time
from collections.abc import Awaitable, Callable
from functools import partialmethod

import pytest

from apiproxy.dataplane import access_log, request_bodies
from apiproxy.dataplane.call_meter import CallMeter
from apiproxy.dataplane.context import RequestContext
from apiproxy.dataplane.gateway import Gateway
from apiproxy.dataplane.relay import Exchange, ExchangeOutcome
from apiproxy.server import protocol
from portal.quotas.models import Quota
from tests.apiproxy.connections import connect, head
from tests.engine import ANSWER, LARGE, SSE, unary
from tests.waiting import until

OURS = {"timeout_keep_alive": 1}


@pytest.fixture(params=["apiproxy.server.protocol:Protocol", "httptools"])
def server_options(request):
    return {**OURS, "http": request.param}


ours = pytest.mark.parametrize("server_options", [OURS], ids=["ours"])


def request(counter, method: str, path: str, *more: str) -> bytes:
    return head(method, path, *more, key=counter.key)


def chat(counter, *more: str, **fields) -> bytes:
    body = json.dumps({"model": "fake", "messages": [], **fields}).encode()
    return request(counter, "POST", "/v1/chat/completions", f"content-length: {len(body)}", *more) + body


def is_closed(connection: socket.socket) -> bool:
    """Wait until the server closes, at most the connection's time-out."""
    while connection.recv(65536):
        pass
    return True


def test_whole_answers_streams_and_refusals_reach_the_client(counter):
    assert counter.chat().json()["choices"][0]["message"]["content"] == "hello"
    with counter.stream() as response:
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert response.read().endswith(b"data: [DONE]\n\n")
    refused = counter.chat(model="none")
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")
    assert refused.headers["x-request-id"].startswith("req_")
    assert "date" in refused.headers


def test_a_head_request_gets_no_body_and_its_connection_goes_on(counter):
    with connect(counter.url) as connection:
        connection.sendall(request(counter, "HEAD", "/v1/models"))
        got = connection.recv(65536)
        assert b" 200 " in got
        assert got.endswith(b"\r\n\r\n")
        connection.sendall(request(counter, "GET", "/v1/models"))
        assert b" 200 " in connection.recv(65536)


def test_a_connection_that_is_to_be_closed_is(counter):
    with connect(counter.url) as connection:
        connection.sendall(chat(counter, "connection: close"))
        got = b""
        while piece := connection.recv(65536):
            got += piece
        assert b"connection: close" in got
        assert b"hello" in got


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_the_engine(counter, stream):
    with connect(counter.url) as connection:
        connection.sendall(chat(counter, stream=stream, script=[{"send": SSE}, {"events": 1}, {"hang": True}]))
        until(lambda: counter.engine.seen()["running"] == 1)
    until(lambda: counter.engine.seen()["left"] == 1)
    (row,) = counter.usage()
    assert row.status == "aborted"


@ours
def test_who_asks_for_a_websocket_within_an_answer_is_still_seen_to_leave(counter):
    upgrade = ["connection: upgrade", "upgrade: websocket", "sec-websocket-version: 13", "sec-websocket-key: x"]
    with connect(counter.url) as connection:
        script = [{"send": SSE}, {"events": 1}, {"hang": True}]
        connection.sendall(chat(counter, stream=True, script=script) + request(counter, "GET", "/ws/", *upgrade))
        until(lambda: counter.engine.seen()["running"] >= 1)
    until(lambda: counter.engine.seen()["left"] >= 1)


def test_a_client_that_stops_reading_stops_the_engine_and_gets_all_when_it_reads_on(counter):
    events = 300  # 30 MB
    with connect(counter.url) as connection:
        connection.sendall(chat(counter, stream=True, script=[{"send": SSE}, {"flood": events}, {"close": True}]))
        stopped = -1
        while stopped != (stopped := counter.engine.seen()["flooded"]) or stopped == 0:
            pass
        assert stopped < events
        got = 0
        while piece := connection.recv(1 << 20):
            got += piece.count(LARGE[:20].encode())
            if b"[DONE]" in piece:
                break
    assert got == events


def fail(*_: object) -> None:
    raise RuntimeError("a fault of the gateway")


async def fail_soon(exchange: Exchange, outcome: Callable[[Exchange], Awaitable[ExchangeOutcome]]) -> ExchangeOutcome:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(outcome(exchange), 0.5)
    raise RuntimeError("a fault of the gateway")


def read(connection: socket.socket) -> bytes:
    """Return what comes until the server closes."""
    got = b""
    while piece := connection.recv(65536):
        got += piece
    return got


@pytest.mark.parametrize("stream", [True, False])
def test_a_fault_after_the_answer_adds_nothing_to_it(counter, monkeypatch, stream):
    monkeypatch.setattr(access_log, "log_call", fail)
    with connect(counter.url) as connection:
        connection.sendall(
            chat(counter, stream=stream) + request(counter, "GET", "/v1/models/none", "connection: close")
        )
        got = read(connection)
    assert re.findall(rb"HTTP/1.1 (\d+)", got) == [b"200", b"404"]
    assert b"internal_error" not in got
    (row,) = counter.usage()
    assert row.status == "finished"
    assert counter.application.gateway.in_flight == 0


def test_a_fault_within_a_stream_is_an_event_of_it_and_what_was_made_is_metered(counter, monkeypatch):
    monkeypatch.setattr(Exchange, "outcome", partialmethod(fail_soon, Exchange.outcome))
    with connect(counter.url) as connection:
        script = [{"send": SSE}, {"events": 5}, {"hang": True}]
        connection.sendall(chat(counter, "connection: close", stream=True, script=script))
        got = read(connection)
    assert re.findall(rb"HTTP/1.1 (\d+)", got) == [b"200"]
    assert b'"internal_error"' in got
    assert got.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    (row,) = counter.usage()
    assert (row.status, row.completion_tokens) == ("failed", 4)
    until(lambda: counter.engine.seen()["left"] == 1)
    assert counter.application.gateway.in_flight == 0


def test_a_fault_of_metering_is_an_event_of_the_stream(counter, monkeypatch):
    monkeypatch.setattr(CallMeter, "close", fail)
    with connect(counter.url) as connection:
        script = [{"send": SSE}, {"events": 2}, {"close": True}]
        more = request(counter, "GET", "/v1/models/none", "connection: close")
        connection.sendall(chat(counter, stream=True, script=script) + more)
        got = read(connection)
    assert re.findall(rb"HTTP/1.1 (\d+)", got) == [b"200", b"404"]
    assert got.count(b'"engine_error"') == 1


def test_a_fault_that_cannot_be_told_within_a_stream_ends_the_connection(counter, monkeypatch):
    monkeypatch.setattr(Exchange, "outcome", partialmethod(fail_soon, Exchange.outcome))
    monkeypatch.setattr(Exchange, "cut_off", fail)
    monkeypatch.setattr(Gateway, "_end_stream", fail)
    with connect(counter.url) as connection:
        script = [{"send": SSE}, {"events": 2}, {"hang": True}]
        connection.sendall(chat(counter, stream=True, script=script) + request(counter, "GET", "/v1/models"))
        got = read(connection)
    assert re.findall(rb"HTTP/1.1 (\d+)", got) == [b"200"]
    assert not got.endswith(b"0\r\n\r\n")  # no client takes it for complete


def test_an_idle_connection_is_closed_and_one_in_use_is_not(counter):
    with connect(counter.url) as connection:
        connection.sendall(chat(counter, script=[{"wait": 2}, {"send": "HTTP/1.1 204 X\r\n\r\n"}]))
        assert connection.recv(65536)
        connection.sendall(request(counter, "GET", "/v1/models"))
        assert b" 200 " in connection.recv(65536)
        assert is_closed(connection)


@ours
@pytest.mark.parametrize("start", [b"", b"GET /v1/mod"])
def test_a_head_that_does_not_come_is_not_waited_for(counter, monkeypatch, start):
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.3)
    with connect(counter.url) as connection:
        connection.sendall(start)
        assert is_closed(connection)


@ours
def test_the_head_of_a_later_request_is_not_waited_for_either(counter, monkeypatch):
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.3)
    with connect(counter.url) as connection:
        connection.sendall(request(counter, "GET", "/v1/models"))
        assert connection.recv(65536)
        connection.sendall(b"GET /v1/mod")
        assert is_closed(connection)


def test_a_body_that_does_not_come_is_a_time_out(counter, monkeypatch):
    monkeypatch.setattr(request_bodies, "PIECE_SECONDS", 0.3)
    with connect(counter.url) as connection:
        connection.sendall(request(counter, "POST", "/v1/chat/completions", "content-length: 1000") + b"{")
        got = connection.recv(65536)
        assert b" 408 " in got
        while b"request_timeout" not in got:  # the body may come by itself
            more = connection.recv(65536)
            assert more
            got += more
    assert counter.engine.seen()["requests"] == []


@ours
def test_calls_leave_nothing_to_the_garbage_collector(counter):
    gc.collect()
    gc.disable()
    try:
        counter.chat()
        counter.chat(model="none")
        with counter.stream() as response:
            response.read()
        with connect(counter.url) as leaving:
            leaving.sendall(chat(counter, stream=True, script=[{"send": SSE}, {"events": 1}, {"hang": True}]))
            leaving.recv(1)
        until(lambda: not any(isinstance(one, Exchange | protocol.DirectClient) for one in gc.get_objects()), 10)
    finally:
        gc.enable()


@ours
@pytest.mark.parametrize("end", ["none", "engine", "hang-up", "away", "stream", "limit"])
def test_calls_that_fail_leave_nothing_to_the_garbage_collector(counter, alice, end):
    script = {"engine": [{"send": unary(400, {"error": {"message": "no"}})}], "hang-up": [{"reset": True}]}.get(end)
    fields = {"messages": [{"role": "user", "content": "x" * 300_000}], **({"script": script} if script else {})}
    if end == "none":
        fields["model"] = "none"
    if end == "away":
        counter.engine.process.kill()
    if end == "stream":
        fields |= {"stream": True, "script": [{"send": SSE}, {"events": 1}, {"reset": True}]}
    if end == "limit":
        Quota.objects.create(user=alice, unit="requests", window="day", amount=1)
        counter.wait_for_catalogue()
        counter.chat()
    gc.collect()
    gc.disable()
    try:
        answer = counter.chat(**fields)
        assert (answer.status_code == 200) == (end == "stream")
        until(lambda: not any(isinstance(one, RequestContext) for one in gc.get_objects()), 10)
    finally:
        gc.enable()


@ours
@pytest.mark.parametrize("garbage", [b"\x16\x03\x01\x02\x00\x01\x00", b"GET / HTTP/1.1\r\nbad header\r\n\r\n"])
def test_what_is_no_http_gets_an_error_that_clients_can_read(counter, garbage):
    with connect(counter.url) as connection:
        connection.sendall(garbage + b"\r\n\r\n")
        got = connection.recv(65536)
        assert got.startswith(b"HTTP/1.1 400 ")
        assert json.loads(got.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"
        assert is_closed(connection)


def test_what_an_abandoned_call_made_is_guessed_by_the_pace_of_others(counter):
    answer = {**ANSWER, "usage": {"prompt_tokens": 7, "completion_tokens": 100, "total_tokens": 107}}
    counter.chat(script=[{"wait": 0.5}, {"send": unary(200, answer)}])
    with connect(counter.url) as connection:
        connection.sendall(chat(counter, script=[{"hang": True}]))
        until(lambda: counter.engine.seen()["running"] == 1)
        time.sleep(0.5)  # the engine works; there is nothing to see of it
    _, row = counter.usage(2)
    assert (row.status, row.estimated) == ("aborted", True)
    assert 40 < row.completion_tokens < 1000  # 200 tokens a second; a busy machine takes its time to leave


def test_an_abandoned_call_is_not_guessed_to_have_made_more_than_it_may(counter):
    answer = {**ANSWER, "usage": {"prompt_tokens": 7, "completion_tokens": 5000, "total_tokens": 5007}}
    counter.chat(script=[{"wait": 0.1}, {"send": unary(200, answer)}])
    with connect(counter.url) as connection:
        connection.sendall(chat(counter, max_tokens=3, script=[{"hang": True}]))
        until(lambda: counter.engine.seen()["running"] == 1)
        time.sleep(0.1)
    _, row = counter.usage(2)
    assert row.completion_tokens == 3
