"""Clients and engines that are slow, many, malformed or hostile: others are served as before, memory stays bounded."""

import concurrent.futures
import contextlib
import json
import resource
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from portal.keys import secret
from tests import engine
from tests.apiproxy.connections import connect
from tests.engine import ANSWER, DONE, FINISH, LARGE, SSE, chunk, event, token, unary, usage_event
from tests.installation import Installation, installed
from tests.waiting import at_rest, until

MB = 1024 * 1024
IDLE = 10_000


ANOTHER_KEY = """
from portal.accounts.models import Tenant
from portal.keys.lifecycle import issue_key
print(issue_key(tenant=Tenant.objects.get(), service="other", name="other")[1])
"""


def request(key: str, path: str = "/v1/models", body: bytes = b"", version: str = "1.1", *more: str) -> bytes:
    lines = [f"{'POST' if body else 'GET'} {path} HTTP/{version}", "host: x", f"authorization: Bearer {key}", *more]
    return ("\r\n".join([*lines, f"content-length: {len(body)}"]) + "\r\n\r\n").encode() + body


def chat(**more) -> bytes:
    return json.dumps({"model": "plain", "messages": [], **more}).encode()


def read_until(connection: socket.socket, end: bytes) -> bytes:
    got = b""
    while end not in got:
        piece = connection.recv(65536)
        assert piece, got
        got += piece
    return got


# --- a portal process of its own, whose memory can be looked at


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Iterator[tuple[Installation, engine.Running, str]]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 16384), hard))  # what it starts inherits it
    with engine.running() as fake, installed(tmp_path_factory.mktemp("var")) as installation:
        key = installation.furnish(fake.url)
        installation.serve()
        until(installation.answers)
        yield installation, fake, key
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def read_memory(installation: Installation) -> int:
    """Return bytes that the gateway's process holds."""
    status = Path(f"/proc/{installation.process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024


def answers_quickly(installation: Installation, key: str) -> bool:
    headers = {"authorization": f"Bearer {key}"}
    begun = time.monotonic()
    answer = httpx2.post(f"{installation.url}/v1/chat/completions", content=chat(), headers=headers, timeout=20)
    return answer.json() == ANSWER and time.monotonic() - begun < 2


def test_a_client_that_stops_reading_stops_the_engine_and_fills_no_memory(place):
    installation, fake, key = place
    before = read_memory(installation)
    script = [{"send": SSE}, {"flood": 1000}, {"send": chunk(FINISH + DONE) + "0\r\n\r\n"}]
    with connect(installation.url) as lazy:
        lazy.sendall(request(key, "/v1/chat/completions", chat(stream=True, script=script)))
        lazy.recv(1000)
        # Of 1000: what the buffers of four sockets hold, and a little.
        assert at_rest(lambda: fake.seen()["flooded"]) < 200
        assert read_memory(installation) - before < 16 * MB
        assert answers_quickly(installation, key)
        while lazy.recv(MB)[-5:] != b"0\r\n\r\n":  # it reads again, and gets all of it
            pass
    assert fake.seen()["flooded"] == 1000
    assert read_memory(installation) - before < 24 * MB


def test_ten_thousand_idle_connections_cost_little_and_disturb_no_call(place):
    """Half of them have had an answer and are kept alive, half have said nothing so far."""
    installation, _, key = place
    before = read_memory(installation)
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(connect(installation.url)) for _ in range(IDLE // 2)]
        for at in range(0, IDLE // 2, 100):
            for connection in idle[at : at + 100]:
                connection.sendall(request(key))
            for connection in idle[at : at + 100]:
                assert read_until(connection, b"]}").startswith(b"HTTP/1.1 200")
        idle += [stack.enter_context(connect(installation.url)) for _ in range(IDLE // 2)]
        until(lambda: connections(installation) >= IDLE)
        each = (read_memory(installation) - before) / IDLE
        print(f"{each:.0f} bytes for each of {IDLE} idle connections")
        assert each < 20 * 1024
        for _ in range(20):
            assert answers_quickly(installation, key)
        idle[0].sendall(request(key))
        assert read_until(idle[0], b"]}").startswith(b"HTTP/1.1 200")
    until(lambda: connections(installation) < 100)
    assert answers_quickly(installation, key)


def connections(installation: Installation) -> int:
    return len(list(Path(f"/proc/{installation.process.pid}/fd").iterdir()))


def test_up_gives_the_gateway_as_many_open_files_as_it_may_have(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Many shells give 1,024; other tests of this process may have more open just now.
    few = len(list(Path("/proc/self/fd").iterdir())) + 1024
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, hard))
    try:
        with installed(tmp_path / "var") as installation:
            installation.start()
            gateway = installation.pid_of("gateway_worker")
            assert resource.prlimit(gateway, resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_heads_and_bodies_that_trickle_in_hold_up_no_call(place):
    installation, fake, key = place
    whole = request(key, "/v1/chat/completions", chat(user="slow"))
    asked = len(fake.seen()["requests"])
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(connect(installation.url)) for _ in range(200)]
        for at in range(0, len(whole) - 1, 25):
            for connection in slow:
                connection.sendall(whole[at : min(at + 25, len(whole) - 1)])
        assert answers_quickly(installation, key)
        assert len(fake.seen()["requests"]) == asked + 1  # none of the slow ones occupies the engine
        for connection in slow:
            connection.sendall(whole[-1:])
        for connection in slow:
            assert read_until(connection, b"}}").startswith(b"HTTP/1.1 200")


def what_is_kept(installation: Installation) -> tuple[list[int], list[int], int]:
    """Return the rows of all tables that calls fill, the bytes of the spool's files and of SQLite's log."""
    tables = ("usage_usagerecord", "usage_refusedrequest", "usage_rejectionhour")
    rows = [installation.read(f"select count(*) from {table}")[0][0] for table in tables]
    spool = [path.stat().st_size for path in sorted((installation.var / "spool").glob("*.jsonl"))]
    return rows, spool, (installation.var / "madoguchi.sqlite3-wal").stat().st_size


def test_floods_of_bad_keys_touch_neither_spool_nor_database(place):
    installation, fake, key = place
    assert answers_quickly(installation, key)
    until(lambda: len(installation.usage()) == len(fake.seen()["requests"]))
    before = what_is_kept(installation)
    body = chat()
    with connect(installation.url) as stranger:
        for number in range(500):
            made_up = key[:-1] + ("0" if key[-1] != "0" else "1") if number % 2 else f"sk-{number}"
            stranger.sendall(request(made_up, "/v1/chat/completions", body))
            assert read_until(stranger, b"}}").startswith(b"HTTP/1.1 401")
    for _ in range(3):  # well formed, and unknown
        headers = {"authorization": f"Bearer {secret.make_secret()}"}
        assert httpx2.get(f"{installation.url}/v1/models", headers=headers).status_code == 401
    after = what_is_kept(installation)
    assert after[:2] == before[:2]
    assert after[2] - before[2] < 100 * 4096  # what the gateway writes by the clock; each transaction takes a page
    assert answers_quickly(installation, key)


def test_g2_floods_of_headers_are_refused_and_the_next_caller_is_served(place):
    installation, _, key = place
    before = read_memory(installation)
    for field in (b"x: " + b"y" * 10_000 + b"\r\n", b"x: y\r\n" * 2000, b"y" * 10_000):
        with connect(installation.url) as hostile:
            with contextlib.suppress(ConnectionError):
                hostile.sendall(b"GET /v1/models HTTP/1.1\r\nhost: x\r\n")
                for _ in range(500):
                    hostile.sendall(field)
            assert read_until(hostile, b"\r\n\r\n").startswith(b"HTTP/1.1 431 ")
    assert answers_quickly(installation, key)
    assert read_memory(installation) - before < 16 * MB


def test_g13_memory_of_many_small_bodies_comes_back_too(place):
    """Blocks that lie among others, which glibc keeps for later unless it is asked."""
    installation, _, key = place
    until(lambda: answers_quickly(installation, key))
    before = read_memory(installation)
    head = f"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-length: 120000\r\n\r\n"
    with contextlib.ExitStack() as stack:
        for _ in range(600):
            stack.enter_context(connect(installation.url)).sendall(head.encode() + b" " * 119_999)
        until(lambda: read_memory(installation) - before > 60 * MB)
    until(lambda: read_memory(installation) - before < 24 * MB, 20)


# --- HTTP as it may also be spoken


def test_pipelined_requests_are_answered_in_order(place):
    installation, _, key = place
    answers = [unary(200, {**ANSWER, "id": f"answer-{number}"}) for number in range(5)]
    scripts = [[{"wait": 0.2 - number * 0.04}, {"send": answer}] for number, answer in enumerate(answers)]
    with connect(installation.url) as connection:
        connection.sendall(b"".join(request(key, "/v1/chat/completions", chat(script=script)) for script in scripts))
        got = read_until(connection, b'"answer-4"').decode()
    places = [got.index(f'"answer-{number}"') for number in range(5)]
    assert places == sorted(places)


def test_http_1_0_is_answered_whole_and_closed(place):
    installation, _, key = place
    for stream in (False, True):
        with connect(installation.url) as connection:
            connection.sendall(request(key, "/v1/chat/completions", chat(stream=stream), "1.0"))
            got = b""
            while piece := connection.recv(65536):
                got += piece
        assert b" 200 " in got.split(b"\r\n")[0]
        assert (DONE.encode() if stream else b"hello") in got


# --- engines


@pytest.mark.parametrize("length", [3, 100_000])
def test_a_wrong_length_of_an_engines_answer_harms_no_other_call(counter, length):
    text = json.dumps(ANSWER)
    lying = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{text}"
    answer = counter.chat(script=[{"send": lying}, {"close": True}])
    if length > len(text):  # part of an answer is never taken for the whole
        assert answer.status_code == 502
        assert counter.usage()[0].status == "failed"
    for _ in range(3):
        assert counter.chat().json() == ANSWER


def test_informational_answers_of_an_engine_are_not_the_answer(counter):
    hints = "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n"
    assert counter.chat(script=[{"send": hints}, {"send": unary(200, ANSWER)}]).json() == ANSWER
    assert counter.chat().json() == ANSWER


@pytest.mark.parametrize("stream", [False, True])
def test_a_kept_connection_that_is_reset_under_a_request_is_replaced_by_a_fresh_one(counter, stream):
    """The engine closes it at the moment at which the gateway writes: nothing of an answer has come, so ask again."""
    with concurrent.futures.ThreadPoolExecutor(5) as pool:
        together = [pool.submit(counter.chat, script=[{"wait": 0.5}, {"send": unary(200, ANSWER)}]) for _ in range(5)]
        assert [one.result().status_code for one in together] == [200] * 5
    asked = len(counter.engine.seen()["requests"])
    end = [{"send": SSE}, {"events": 2}, {"send": chunk(FINISH + usage_event(7, 5) + DONE) + "0\r\n\r\n"}]
    script = [{"stale": True}, *(end if stream else [{"send": unary(200, ANSWER)}])]
    answer = counter.chat(script=script, stream=stream)
    assert answer.status_code == 200
    assert answer.text.endswith(DONE) if stream else answer.json() == ANSWER
    # Twice, not five times: the other kept ones are as old as the first.
    requests = counter.engine.seen()["requests"][asked:]
    assert len(requests) == 2
    assert requests[0] == requests[1]
    rows = counter.usage(6)
    assert len(rows) == 6
    assert (rows[-1].request_id, rows[-1].status) == (answer.headers["x-request-id"], "finished")
    assert 'madoguchi_replicas_skipped{model="fake"} 0' in counter.client.get("/metrics").text


def test_an_answer_that_is_reset_after_its_first_byte_is_not_asked_for_again(counter):
    counter.chat()
    answer = counter.chat(script=[{"send": "HTTP/1.1 2"}, {"reset": True}])
    assert answer.status_code == 502
    assert len(counter.engine.seen()["requests"]) == 2


def test_a_reset_between_two_requests_is_not_the_callers_concern(counter):
    for _ in range(3):
        answer = counter.chat(script=[{"send": unary(200, ANSWER)}, {"reset": True}])
        assert answer.json() == ANSWER
    assert {row.status for row in counter.usage(3)} == {"finished"}


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_characters_and_frames_cut_at_every_byte_come_through_whole(counter, line_end):
    said = [{"index": 0, "delta": {"content": "窓口🙂é"}, "finish_reason": None}]
    plain = f"data: {json.dumps({'choices': said}, ensure_ascii=False)}\n\n"
    whole = plain * 2 + FINISH + usage_event(7, 5) + DONE
    octets = whole.replace("\n", line_end).encode().decode("latin-1")  # as the engine's script says bytes
    steps = [{"send": f"1\r\n{octet}\r\n"} for octet in octets]
    with counter.stream(script=[{"send": SSE}, *steps, {"send": "0\r\n\r\n"}]) as response:
        assert response.read().decode() == plain * 2 + FINISH + DONE
    (row,) = counter.usage()
    assert (row.completion_tokens, row.status, row.estimated) == (5, "finished", False)


def test_events_of_100_kb_come_through_whole(counter):
    script = [{"send": SSE}, {"flood": 5}, {"send": chunk(FINISH + usage_event(7, 5) + DONE) + "0\r\n\r\n"}]
    with counter.stream(script=script) as response:
        text = response.read().decode()
    assert text == LARGE * 5 + FINISH + DONE
    assert counter.usage()[0].completion_tokens == 5


def test_a_stream_without_usage_is_counted_and_marked_estimated(counter):
    script = [{"send": SSE}, {"events": 9}, {"send": chunk(FINISH + DONE) + "0\r\n\r\n"}]
    with counter.stream(script=script) as response:
        assert response.read().decode().endswith(DONE)
    (row,) = counter.usage()
    assert (row.status, row.estimated) == ("finished", True)
    assert abs(row.completion_tokens - 9) <= 1


def test_usage_in_every_chunk_counts_once_the_last(counter):
    def running(number: int) -> str:
        usage = {"prompt_tokens": 7, "completion_tokens": number, "total_tokens": 7 + number}
        return event(json.loads(token(number)[6:])["choices"], usage=usage)

    text = "".join(running(number) for number in range(1, 6)) + FINISH + usage_event(7, 5) + DONE
    with counter.stream(script=[{"send": SSE}, {"send": chunk(text) + "0\r\n\r\n"}]) as response:
        got = response.read().decode()
    assert '"usage"' not in got
    assert got.count("data: ") == 7
    (row,) = counter.usage()
    assert (row.prompt_tokens, row.completion_tokens, row.estimated) == (7, 5, False)


def test_half_a_surrogate_pair_is_answered_metered_and_passed_on(counter):
    """JSON can say it (clients cut emoji in two), UTF-8 cannot."""
    half = '"\\ud83d"'
    for more in ("", ', "stream": true, "stream_options": {}'):
        body = f'{{"model": "fake", "messages": [{{"role": "user", "content": {half}}}], "user": {half}{more}}}'
        assert counter.client.post("/v1/chat/completions", content=body).status_code == 200
    assert [row.status for row in counter.usage(2)] == ["finished", "finished"]
    seen = counter.engine.seen()["requests"]
    assert [request["body"]["messages"][0]["content"] for request in seen] == ["\ud83d"] * 2
    assert counter.client.post("/v1/chat/completions", content=f'{{"model": {half}}}').status_code == 404


@pytest.mark.parametrize("kind", ["external", "llama.cpp"])
def test_half_a_surrogate_pair_in_an_answer_reaches_the_client(counter, kind):
    counter.model.engine = kind
    counter.model.save()
    counter.wait_for_catalogue()
    choice = '{"index":0,"delta":{"content":"\\ud83d"},"finish_reason":null}'
    half = f'data: {{"choices":[{choice}],"usage":{{"prompt_tokens":1}}}}\n\n'
    script = [{"send": SSE}, {"send": chunk(half + FINISH + usage_event(7, 2) + DONE) + "0\r\n\r\n"}]
    answer = counter.chat(script=script, stream=kind == "external")
    assert answer.status_code == 200
    assert "\\ud83d" in answer.text
    assert counter.usage()[0].completion_tokens == 2
