"""What a connection may do to others and to us before anybody knows who it is: upgrades, heads, requests sent ahead."""

import asyncio
import contextlib
import gc
import itertools
import json
import os
import re
import socket
import threading
import time
from pathlib import Path

import uvicorn

from apiproxy.server import protocol
from tests.apiproxy.conftest import HTTP
from tests.apiproxy.connections import connect, head
from tests.engine import SSE
from tests.waiting import until

MB = 1024 * 1024
UPGRADES = ["h2c", "foo", "TLS/1.0", "websocket"]


def chat(counter, *fields: str, **more) -> tuple[bytes, bytes]:
    """Head and body of a call."""
    body = json.dumps({"model": "fake", "messages": [], **more}).encode()
    given = [f"content-length: {len(body)}", *fields]
    return head("POST", "/v1/chat/completions", *given, key=counter.key), body


def answers(connection: socket.socket) -> list[tuple[int, dict[bytes, bytes], bytes]]:
    """Return all answers until the server closes: status, headers, body. None of them is chunked."""
    got = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            got += piece
    found = []
    while got:
        top, _, got = got.partition(b"\r\n\r\n")
        line, *fields = top.split(b"\r\n")
        headers = {name.lower(): value for name, value in (field.split(b": ", 1) for field in fields)}
        length = int(headers.get(b"content-length", b"0"))
        found.append((int(line.split()[1]), headers, got[:length]))
        got = got[length:]
    return found


def statuses(connection: socket.socket) -> list[int]:
    return [status for status, _, _ in answers(connection)]


LAST = head("GET", "/v1/models", "connection: close")  # without a key: 401, and the server closes


# --- upgrades


def test_g1_a_body_behind_an_unknown_upgrade_is_read_as_a_body(counter):
    inner = head("GET", "/v1/models/x", key=counter.key)
    for upgrade, parts in itertools.product(UPGRADES, (1, 2, 40)):
        top, body = chat(counter, f"upgrade: {upgrade}", "connection: Upgrade, HTTP2-Settings", user=inner.decode())
        whole = top + body + LAST
        size = len(whole) // parts + 1
        with connect(counter.url) as connection:
            for at in range(0, len(whole), size):
                connection.sendall(whole[at : at + size])
            assert statuses(connection) == [200, 401], (upgrade, parts)
        assert counter.engine.seen()["requests"][-1]["body"]["user"] == inner.decode()


def test_g1_a_body_that_comes_later_than_its_head_is_no_request(counter):
    """As it was seen: the body held a request, 0.4 s after a head that offered h2c."""
    inner = head("GET", "/v1/models/x", key=counter.key)
    top = head("POST", "/v1/chat/completions", "connection: Upgrade", "upgrade: h2c", f"content-length: {len(inner)}")
    with connect(counter.url) as connection:
        connection.sendall(top)
        assert b" 401 " in connection.recv(65536)
        connection.sendall(inner + LAST)
        assert statuses(connection) == [401]


def test_g1_a_chunked_body_behind_an_upgrade_is_read(counter):
    top, body = chat(counter, "upgrade: h2c", "connection: upgrade")
    top = top.replace(b"content-length: %d" % len(body), b"transfer-encoding: chunked")
    with connect(counter.url) as connection:
        connection.sendall(top + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) + LAST)
        assert statuses(connection) == [200, 401]


def test_g1_a_websocket_on_v1_is_a_request_like_any_other(counter):
    upgrade = ["connection: upgrade", "upgrade: websocket", "sec-websocket-version: 13", "sec-websocket-key: x"]
    with connect(counter.url) as connection:
        connection.sendall(head("GET", "/v1/realtime", *upgrade, key=counter.key) + LAST)
        assert statuses(connection) == [404, 401]


def test_g1_a_request_for_a_websocket_with_a_body_gets_an_answer(counter):
    upgrade = ["connection: upgrade", "upgrade: websocket", "sec-websocket-version: 13", "sec-websocket-key: x"]
    for method in ("POST", "GET"):
        with connect(counter.url) as connection:
            connection.sendall(head(method, "/ws/operations/", *upgrade, "content-length: 4") + b"abcd" + LAST)
            assert len(statuses(connection)) == 2  # the gateway alone knows no such path, but it is one request


def test_g1_frames_before_the_handshake_are_refused(counter):
    upgrade = ["connection: upgrade", "upgrade: websocket", "sec-websocket-version: 13", "sec-websocket-key: x"]
    with connect(counter.url) as connection:
        connection.sendall(head("GET", "/ws/", *upgrade) + b"\x81\x00")
        assert 101 not in statuses(connection)


def test_g1_connect_is_refused_and_what_follows_is_not_read(counter):
    with connect(counter.url) as connection:
        connection.sendall(b"CONNECT x:80 HTTP/1.1\r\nhost: x\r\n\r\n" + LAST)
        assert statuses(connection) == [405]


def test_a_trailer_changes_nothing_of_its_request(counter):
    top = head("POST", "/v1/chat/completions", "transfer-encoding: chunked")
    _, body = chat(counter)
    trailer = b"authorization: Bearer %b\r\n" % counter.key.encode()
    with connect(counter.url) as connection:
        connection.sendall(top + b"%x\r\n%b\r\n0\r\n%b\r\n" % (len(body), body, trailer) + LAST)
        assert statuses(connection)[0] == 401


# --- heads


def flood(connection: socket.socket, piece: bytes, most: int = 64 * MB) -> int:
    """Send it again and again until the server closes; how many bytes it took."""
    sent = 0
    with contextlib.suppress(OSError):
        while sent < most:
            connection.sendall(piece)
            sent += len(piece)
    return sent


FLOODS = {
    "small fields": (b"GET /v1/models HTTP/1.1\r\nhost: x\r\n", b"a: b\r\n" * 100, 431),
    "large fields": (b"GET /v1/models HTTP/1.1\r\nhost: x\r\n", b"a: " + b"b" * 8000 + b"\r\n", 431),
    "one value": (b"GET /v1/models HTTP/1.1\r\nhost: x\r\na: ", b"b" * 1000, 431),
    "one name": (b"GET /v1/models HTTP/1.1\r\nhost: x\r\n", b"b" * 1000, 431),
    "url": (b"GET /v1/", b"b" * 1000, 414),
    "query": (b"GET /v1/models?", b"b" * 1000, 414),
    "url of a socket": (b"GET /ws/", b"b" * 1000, 414),
    "fields of a socket": (
        b"GET /ws/ HTTP/1.1\r\nupgrade: websocket\r\nconnection: upgrade\r\n",
        b"a: b\r\n" * 100,
        431,
    ),
    "fields of a page": (b"GET /signin/ HTTP/1.1\r\nhost: x\r\n", b"a: b\r\n" * 100, 431),
    "trailers": (
        b"POST /v1/models HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n",
        b"a: b\r\n" * 100,
        None,
    ),
    "one trailer": (b"POST /v1/x HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\na: ", b"b" * 1000, None),
    "chunk extension": (b"POST /v1/x HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1;", b"b" * 1000, None),
    "empty lines": (b"", b"\r\n" * 500, 431),
}


def test_g2_an_endless_head_is_refused_before_it_is_held(counter):
    before = resident()
    for name, (start, piece, status) in FLOODS.items():
        with connect(counter.url) as connection:
            connection.sendall(start)
            # Of what was sent the sockets of both sides hold the most, and what is read is dropped.
            flood(connection, piece, 4 * MB)
            got = statuses(connection)
        # What has trailers was answered before they came.
        assert got == [status] if status else set(got) <= {401, 431}, name
    assert resident() - before < 16 * MB
    assert counter.chat().status_code == 200


def test_g2_one_endless_value_costs_others_no_time(counter):
    """Joined piece by piece it grew by the square: others waited five seconds."""
    counter.chat()
    with connect(counter.url) as connection:
        connection.sendall(b"GET /v1/models HTTP/1.1\r\nhost: x\r\na: ")
        flooding = threading.Thread(target=flood, args=(connection, b"b" * 65536, 16 * MB))
        flooding.start()
        begun = time.monotonic()
        assert counter.chat().status_code == 200
        assert time.monotonic() - begun < 2
        flooding.join()


def test_g2_a_hundred_fields_are_taken_and_no_more(counter):
    for fields, status in ((100, 200), (101, 431)):
        given = [f"x-{number}: y" for number in range(fields - 2)]  # host and the key are two
        with connect(counter.url) as connection:
            connection.sendall(head("GET", "/v1/models", *given, key=counter.key) + LAST)
            assert statuses(connection)[0] == status


def test_g2_heads_of_64_kb_are_taken_and_no_larger_ones_also_in_one_piece(counter):
    for size, status, code in ((60_000, 200, None), (70_000, 431, "headers_too_large")):
        with connect(counter.url) as connection:
            connection.sendall(head("GET", "/v1/models", f"x: {'y' * size}", key=counter.key))
            connection.sendall(LAST)
            got, _, body = answers(connection)[0]
        assert (got, json.loads(body).get("error", {}).get("code")) == (status, code)


def test_g2_a_refusal_is_in_the_shape_and_language_of_its_path(counter):
    with connect(counter.url) as connection:
        connection.sendall(head("POST", "/v1/messages", "accept-language: ja", *["a: b"] * 200))
        ((status, _, body),) = answers(connection)
    assert status == 431
    error = json.loads(body)
    assert (error["type"], error["error"]["type"]) == ("error", "invalid_request_error")
    assert not error["error"]["message"].isascii()


def test_g2_a_head_in_single_bytes_is_as_good_as_any(counter):
    with connect(counter.url) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in head("GET", "/v1/models", key=counter.key) + LAST:
            connection.sendall(bytes([byte]))
        assert statuses(connection) == [200, 401]


TWO_WAYS = [
    b"GET /v1/models HTTP/1.1\r\n",  # no host
    b"GET /v1/models HTTP/1.1\r\nhost: x\r\nhost: y\r\n",
    b"GET /v1/models HTTP/2.0\r\nhost: x\r\n",
    b"GET /v1/models HTTP/0.9\r\nhost: x\r\n",
    b"GET /v1/models\r\n",
    b"POST /v1/x HTTP/1.0\r\ntransfer-encoding: chunked\r\n",
    b"POST /v1/x HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip, chunked\r\n",
    b"POST /v1/x HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n",
]


def test_g1_what_can_be_read_in_two_ways_is_refused_and_the_connection_ends(counter):
    for start in TWO_WAYS:
        with connect(counter.url) as connection:
            connection.sendall(start + b"\r\n" + LAST)
            (status,) = statuses(connection)
        assert status in (400, 501), start


def test_a_refusal_does_not_cut_into_the_answer_before_it(counter):
    top, body = chat(counter, script=[{"wait": 0.3}, {"send": "HTTP/1.1 204 X\r\n\r\n"}])
    with connect(counter.url) as connection:
        connection.sendall(top + body + b"\x16\x03\x01 no http at all\r\n\r\n")
        first, second = statuses(connection)
    assert first < 300 or first == 502  # whatever that engine's answer becomes, it comes first and whole
    assert second == 400


# --- requests sent ahead


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def cycles() -> int:
    return sum(isinstance(one, protocol.RequestResponseCycle) for one in gc.get_objects())


def test_g19_requests_whose_answers_are_not_read_are_not_parsed(counter):
    before, already = resident(), cycles()
    for short in (b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n", b"OPTIONS / RTSP/1.1\r\nhost:\r\n\r\n"):
        with connect(counter.url) as connection:
            connection.settimeout(1)
            assert flood(connection, short * 1000) < 32 * MB  # until the sockets of both sides are full
            assert cycles() - already < 150
            assert resident() - before < 48 * MB
            assert counter.chat().status_code == 200


def test_g19_requests_behind_an_open_stream_wait_where_they_are(counter):
    before, already = resident(), cycles()
    top, body = chat(counter, stream=True, script=[{"send": SSE}, {"events": 1}, {"hang": True}])
    with connect(counter.url) as connection:
        connection.settimeout(1)
        connection.sendall(top + body)
        until(lambda: counter.engine.seen()["running"] == 1)
        assert flood(connection, head("GET", "/v1/models", key=counter.key) * 100, 64 * MB) < 32 * MB
        assert cycles() - already < 150
        assert resident() - before < 48 * MB
        assert counter.chat().status_code == 200


def test_g19_a_client_that_sends_a_little_ahead_and_leaves_is_seen_to_leave(counter):
    top, body = chat(counter, script=[{"hang": True}])
    with connect(counter.url) as connection:
        connection.sendall(top + body + LAST * 100)
        until(lambda: counter.engine.seen()["running"] == 1)
    until(lambda: counter.engine.seen()["left"] == 1, 10)


def test_g19_requests_sent_ahead_are_all_answered_in_order(counter):
    names = [f"none-{number}" for number in range(500)]
    with connect(counter.url) as connection:
        connection.sendall(b"".join(head("GET", f"/v1/models/{name}", key=counter.key) for name in names) + LAST)
        got = answers(connection)
    assert [status for status, _, _ in got] == [404] * 500 + [401]
    assert [re.findall(r"none-\d+", body.decode()) for _, _, body in got[:-1]] == [[name] for name in names]


async def page(scope, receive, send):
    """Answer as the proxy of the portal does: it waits all the while for its client to leave."""
    if scope["type"] == "lifespan":
        return

    async def wait_for_disconnect() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    waiting = asyncio.create_task(wait_for_disconnect())
    await asyncio.sleep(0)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body"})
    await waiting


def test_g19_requests_ahead_of_a_page_are_not_read_either():
    config = uvicorn.Config(page, loop="uvloop", http=HTTP, lifespan="off", log_level="error")
    server = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        with socket.create_connection(listener.getsockname(), timeout=1) as connection:
            assert flood(connection, head("GET", "/") * 1000) < 32 * MB
    finally:
        server.should_exit = server.force_exit = True
        thread.join(20)
        listener.close()


def test_g19_a_client_that_takes_no_answers_loses_its_connection(counter, monkeypatch):
    monkeypatch.setattr(protocol, "ANSWER_SECONDS", 0.3)
    open_before = len(counter.server.server_state.connections)
    with connect(counter.url) as connection:
        connection.settimeout(1)
        flood(connection, head("GET", "/v1/models") * 1000)
        until(lambda: len(counter.server.server_state.connections) <= open_before, 20)


# --- bodies in many chunks


def test_g15_a_body_in_single_bytes_leaves_others_their_turns(counter, monkeypatch):
    turns: list[int] = []  # chunks parsed in each turn of the loop
    original = protocol.Protocol.on_body

    def on_body(self: protocol.Protocol, body: bytes) -> None:
        if not turns or turns[-1] == 0:
            self.loop.call_soon(turns.append, 0)
        turns[-1:] = [(turns or [0])[-1] + 1]
        original(self, body)

    monkeypatch.setattr(protocol.Protocol, "on_body", on_body)
    _, body = chat(counter, padding="x" * 200_000)
    top = head("POST", "/v1/chat/completions", "transfer-encoding: chunked", key=counter.key)
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    with connect(counter.url) as connection:
        connection.sendall(top + chunks + LAST)
        assert statuses(connection) == [200, 401]
    assert sum(turns) == len(body)
    assert max(turns) <= 2 * protocol.MAX_CHUNKS
    assert counter.engine.seen()["requests"][-1]["body"]["padding"] == "x" * 200_000


# --- bodies that are not waited for


def test_an_answer_before_a_large_body_ends_the_connection_and_is_read(counter):
    top = head("POST", "/v1/chat/completions", "content-length: 100000000000")
    with connect(counter.url) as connection:
        connection.sendall(top)
        flood(connection, b"x" * 65536, 8 * MB)
        ((status, headers, _),) = answers(connection)
    assert (status, headers[b"connection"]) == (401, b"close")


def test_an_answer_before_a_small_body_keeps_the_connection(counter):
    with connect(counter.url) as connection:
        connection.sendall(head("POST", "/v1/chat/completions", "content-length: 3"))
        assert b" 401 " in connection.recv(65536)
        connection.sendall(b"abc" + LAST)
        assert statuses(connection) == [401]


def test_a_client_that_waits_for_100_and_is_refused_gets_no_second_answer(counter):
    with connect(counter.url) as connection:
        connection.sendall(head("POST", "/v1/chat/completions", "content-length: 3", "expect: 100-continue"))
        ((status, headers, _),) = answers(connection)
    assert (status, headers[b"connection"]) == (401, b"close")


def test_a_client_that_waits_for_100_gets_it(counter):
    top, body = chat(counter, "expect: 100-continue", "connection: close")
    with connect(counter.url) as connection:
        connection.sendall(top)
        assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert statuses(connection) == [200]
