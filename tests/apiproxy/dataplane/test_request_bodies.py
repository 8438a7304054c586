"""Bodies of calls on their way in: bounded for each key and for all, counted from the head, ended when they rest."""

import concurrent.futures
import contextlib
import gzip
import json
import socket
import threading
import zlib
from collections.abc import AsyncIterator

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apiproxy.dataplane import content_encoding, request_bodies
from apiproxy.dataplane.content_encoding import decode_body
from apiproxy.dataplane.errors import BadRequest, UnknownCoding
from apiproxy.dataplane.formats import requests
from apiproxy.dataplane.gateway import LARGE
from portal.keys.lifecycle import issue_key
from portal.quotas.models import Quota
from tests.apiproxy.connections import connect, head
from tests.engine import ANSWER, SSE
from tests.waiting import until

MB = 1024 * 1024
CHAT = json.dumps({"model": "fake", "messages": [{"role": "user", "content": "hi"}]}).encode()


def begin(counter, length: int | None, body: bytes = b"", key: str = "") -> socket.socket:
    """Return a call of which this much has come; `length` None: without a length."""
    connection = connect(counter.url)
    told = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
    connection.sendall(head("POST", "/v1/chat/completions", told, key=key or counter.key) + body)
    return connection


def read_status(connection: socket.socket) -> int:
    return int(connection.recv(65536).split()[1])


def held_bytes(counter) -> int:
    return counter.application.budget.held


def test_g4_a_key_is_refused_at_the_head_of_what_its_bodies_may_not_hold_together(small_memory, counter):
    with begin(counter, 3 * MB, b"{") as first, begin(counter, 1 * MB, b"{") as second:
        until(lambda: held_bytes(counter) == 4 * MB)
        with begin(counter, 1000) as third:
            answer = third.recv(65536)
            assert answer.startswith(b"HTTP/1.1 429 ")
            assert b"retry-after: " in answer
        first.close()
        until(lambda: held_bytes(counter) == 1 * MB)
        assert counter.chat().json() == ANSWER
        second.sendall(CHAT[1:].ljust(MB - 1))
        assert read_status(second) == 200
    until(lambda: held_bytes(counter) == 0)


def test_g4_others_are_served_while_one_key_holds_all_that_it_may(small_memory, counter, research, alice):
    _, other = issue_key(tenant=research, user=alice, name="other")
    counter.wait_for_catalogue()
    with begin(counter, 4 * MB, b"{"):
        until(lambda: held_bytes(counter) == 4 * MB)
        assert counter.chat().status_code == 429
        with begin(counter, len(CHAT), CHAT, key=other) as connection:
            assert read_status(connection) == 200


def test_g4_all_keys_together_hold_no_more_than_the_budget(small_memory, counter, research, alice):
    keys = [issue_key(tenant=research, user=alice, name=f"key-{number}")[1] for number in range(4)]
    counter.wait_for_catalogue()
    large = [begin(counter, 3 * MB, b"{", key=key) for key in keys]
    until(lambda: held_bytes(counter) == 12 * MB)
    with begin(counter, 3 * MB) as more:
        assert more.recv(65536).startswith(b"HTTP/1.1 503 ")
    assert counter.chat().status_code == 200  # a small one
    for connection in large:
        connection.close()
    until(lambda: held_bytes(counter) == 0)


@pytest.mark.parametrize("kind", ["json", "form"])
def test_g4_bodies_that_never_come_keep_no_caller_out(small_memory, counter, research, alice, monkeypatch, kind):
    """Three keys of one person were enough to have everybody else's large calls refused for good."""
    keys = [issue_key(tenant=research, user=alice, name=f"key-{number}")[1] for number in range(5)]
    counter.wait_for_catalogue()
    if kind == "json":
        squatters = [begin(counter, 3 * MB + 500_000, b"{", key=key) for key in keys[:4]]
    else:
        form = b'--x\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n'.ljust(3 * MB + 500_000, b" ")
        squatters = [upload(counter, form, key) for key in keys[:4]]
    until(lambda: held_bytes(counter) > 13 * MB)
    with begin(counter, 2 * MB, key=keys[4]) as early:
        assert read_status(early) == 503
    monkeypatch.setattr(request_bodies, "SAFE_SECONDS", 0.0)  # all that came until now came long ago
    body = CHAT.ljust(2 * MB)
    with begin(counter, len(body), body, key=keys[4]) as late:
        assert read_status(late) == 200
    assert read_status(squatters[0]) == 503
    for connection in squatters:
        connection.close()
    until(lambda: held_bytes(counter) == 0)


def upload(counter, form: bytes, key: str) -> socket.socket:
    """Return one that claims to be longer."""
    connection = connect(counter.url)
    fields = ("content-type: multipart/form-data; boundary=x", f"content-length: {len(form) + 1000}")
    connection.sendall(head("POST", "/v1/audio/transcriptions", *fields, key=key) + form)
    return connection


def test_g4_a_body_without_a_length_is_counted_as_it_comes(small_memory, counter):
    with begin(counter, None) as connection:
        piece = b"%x\r\n" % MB + b" " * MB + b"\r\n"
        for _ in range(3):
            connection.sendall(piece)
        until(lambda: held_bytes(counter) >= 3 * MB)
        connection.sendall(piece * 2)
        assert read_status(connection) == 429
    until(lambda: held_bytes(counter) == 0)


def test_g4_a_key_has_no_more_bodies_on_their_way_than_calls_at_the_same_time(counter):
    Quota.objects.create(key=counter.key_row, unit="concurrent", window="", amount=2)
    counter.wait_for_catalogue()
    with begin(counter, len(CHAT), CHAT[:5]) as first, begin(counter, len(CHAT)):
        until(lambda: held_bytes(counter) == 2 * len(CHAT))
        with begin(counter, len(CHAT)) as third:
            answer = third.recv(65536)
            assert answer.startswith(b"HTTP/1.1 429 ")
            assert b'"rate_limit_exceeded"' in answer
        first.sendall(CHAT[5:])
        assert read_status(first) == 200


@pytest.mark.parametrize("begun", [b"", b"{"])
def test_g4_a_body_that_stalls_is_given_up(counter, monkeypatch, begun):
    monkeypatch.setattr(request_bodies, "PIECE_SECONDS", 0.1)
    with begin(counter, 100, begun) as connection:
        assert read_status(connection) == 408
    until(lambda: held_bytes(counter) == 0)


def test_g4_a_body_that_trickles_in_for_ever_is_given_up(counter, monkeypatch):
    monkeypatch.setattr(request_bodies, "WHOLE_SECONDS", 0.1)
    with begin(counter, 100, b"{") as connection:
        assert read_status(connection) == 408


def test_g13_the_body_of_a_stream_is_free_as_soon_as_its_answer_begins(counter):
    with counter.stream(script=[{"send": SSE}, {"events": 1}, {"hang": True}], user="x" * MB) as response:
        next(response.iter_raw())
        assert held_bytes(counter) < MB / 32  # what distinguishes it from other calls


def test_g4_a_body_of_millions_of_empty_lists_is_refused_before_it_is_read(counter):
    bomb = b'{"model": "fake", "messages": [' + b"[]," * (3 * MB) + b"[]]}"
    response = counter.client.post("/v1/chat/completions", content=bomb)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_json")
    tokens = b'{"model": "fake", "input": [' + b"12345," * MB + b"1]}"
    assert counter.client.post("/v1/embeddings", content=tokens).status_code == 200


# --- compressed bodies


def raw_deflate(body: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(body) + packer.flush()


def encodings_of(body: bytes) -> dict[str, bytes]:
    return {"gzip": gzip.compress(body), "x-gzip": gzip.compress(body), "deflate": zlib.compress(body), "": body}


def test_g12_compressed_bodies_are_decoded(counter):
    for name in ("gzip", "x-gzip", "GZIP", "deflate", "identity"):
        body = encodings_of(CHAT).get(name.lower(), CHAT)
        response = counter.client.post("/v1/chat/completions", content=body, headers={"content-encoding": name})
        assert response.json() == ANSWER
        seen = counter.engine.seen()["requests"][-1]
        assert seen["body"] == json.loads(CHAT)
        assert "content-encoding" not in seen["headers"]


def test_g2_a_body_of_very_many_members_that_hold_nothing_is_not_read_to_its_end(counter):
    """Each costs a copy of what is behind it: all calls waited for 1.5 s of each second."""
    for body in (gzip.compress(b"") * 15_000 + gzip.compress(CHAT), gzip.compress(b" ") * 5_000 + gzip.compress(CHAT)):
        response = counter.client.post("/v1/chat/completions", content=body, headers={"content-encoding": "gzip"})
        assert response.status_code == 400
    until(lambda: held_bytes(counter) == 0)


def test_g12_other_codings_are_refused_by_name(counter):
    for name in ("br", "zstd", "compress", "gzip, gzip"):
        response = counter.client.post("/v1/chat/completions", content=CHAT, headers={"content-encoding": name})
        assert (response.status_code, response.json()["error"]["code"]) == (415, "unsupported_content_encoding")
        assert name in response.json()["error"]["message"]
        assert response.headers["accept-encoding"] == "gzip, deflate"


def test_g12_a_body_that_is_not_what_its_encoding_says_is_a_400(counter):
    for body in (CHAT, gzip.compress(CHAT)[:-4], b"", gzip.compress(CHAT) + b"rest"):
        response = counter.client.post("/v1/chat/completions", content=body, headers={"content-encoding": "gzip"})
        assert response.status_code == 400


def test_g12_a_bomb_is_refused_at_the_bound_and_costs_little(small_memory, counter):
    """64 MB in 64 KB, and no more than the key's 4 MB are ever held."""
    bomb = gzip.compress(b" " * (64 * MB))
    response = counter.client.post("/v1/chat/completions", content=bomb, headers={"content-encoding": "gzip"})
    assert response.status_code == 429
    until(lambda: held_bytes(counter) == 0)
    assert counter.chat().status_code == 200


def receiving(pieces: list[bytes]):
    rest = iter([*pieces, b""])
    left = len(pieces)

    async def receive() -> dict:
        nonlocal left
        left -= 1
        return {"type": "http.request", "body": next(rest), "more_body": left > 0}

    return receive


async def whole(receive) -> AsyncIterator[bytes]:
    more = True
    while more:
        message = await receive()
        assert len(message["body"]) <= content_encoding.PIECE
        yield message["body"]
        more = message["more_body"]


@given(st.binary(max_size=300_000), st.integers(1, 5000), st.sampled_from(["gzip", "deflate", "raw", "two"]))
async def test_g12_whatever_the_pieces_the_body_is_what_it_was(body, length, kind):
    packed = {
        "gzip": gzip.compress(body),
        "deflate": zlib.compress(body),
        "raw": raw_deflate(body),
        "two": gzip.compress(body[:100]) + gzip.compress(body[100:]),
    }[kind]
    name = b"gzip" if kind in ("gzip", "two") else b"deflate"
    pieces = [packed[at : at + length] for at in range(0, len(packed), length)]
    assert b"".join([piece async for piece in whole(decode_body(receiving(pieces), name))]) == body


@given(st.binary(max_size=2000), st.sampled_from([b"gzip", b"deflate"]))
async def test_g12_anything_else_is_decoded_or_refused_but_never_a_fault(body, name):
    try:
        async for _ in whole(decode_body(receiving([body]), name)):
            pass
    except BadRequest:
        pass


def test_g12_an_unknown_coding_is_refused_at_once():
    with pytest.raises(UnknownCoding):
        decode_body(receiving([]), b"br")


def test_t3_a_chunked_body_over_the_bound_is_refused_while_it_comes(counter, settings):
    def endless():
        yield b'{"model": "fake", "messages": ["'
        while True:
            yield b"x" * 1_000_000

    with contextlib.suppress(httpx2.WriteError, httpx2.RemoteProtocolError):
        refused = counter.client.post("/v1/chat/completions", content=endless())
        assert refused.status_code == 413
    assert counter.engine.seen()["requests"] == []
    assert counter.application.budget.held == 0


def test_g15_a_large_body_is_read_while_the_gateway_answers_others(counter, monkeypatch):
    reading, others = threading.Event(), threading.Event()

    def parse(body: bytes) -> requests.Call:
        reading.set()
        assert others.wait(30)
        return parsed(body)

    parsed = requests.parse
    monkeypatch.setattr(requests, "parse", parse)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        large = pool.submit(counter.chat, filler="x" * LARGE)
        assert reading.wait(30)
        assert counter.client.get("/v1/models").status_code == 200
        others.set()
        assert large.result().status_code == 200
