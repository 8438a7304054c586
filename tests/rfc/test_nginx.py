"""What deploy/nginx.conf does beside passing on: walls of its own, no traces of people, hosts that do not answer."""

import asyncio
import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from apiproxy.server.stand_in import StandIn
from tests import base_urls, engine
from tests.nginx import Nginx, nginx
from tests.rfc.talking import Reader, request
from tests.waiting import until

CALL = "/v1/chat/completions"
MB = 1024 * 1024


def chat(**fields) -> bytes:
    return json.dumps({"model": "plain", "messages": [{"role": "user", "content": "hi"}], **fields}).encode()


def call(key: str, body: bytes, *fields: str) -> bytes:
    return request("POST", CALL, f"authorization: Bearer {key}", f"content-length: {len(body)}", *fields, body=body)


def test_g1_no_client_gets_the_answer_of_another(site):
    """As it was seen, 4 times of 4: a POST below /ws/ that offers h2c, its body many empty lines and a whole call.

    The next callers by way of the same nginx got the attacker's answer.
    """
    inner = call(site.key, chat(user="attacker"))
    body = b"\r\n" * 100_000 + inner
    for kind in ("h2c", "foo", "websocket"):
        for path in ("/ws/x", "/v1/x", "/x"):
            fields = ("connection: Upgrade", f"upgrade: {kind}", f"content-length: {len(body)}")
            with site.nginx.connect() as attacker, contextlib.suppress(OSError):
                attacker.sendall(request("POST", path, *fields) + body)
                Reader(attacker).one()
            with site.nginx.connect() as victim:
                for number in range(4):
                    victim.sendall(request("GET", f"/v1/models/victim-{number}", f"authorization: Bearer {site.key}"))
                    answer = Reader(victim).one()
                    assert (answer.status, answer.code) == (404, "model_not_found")
                    assert f"victim-{number}".encode() in answer.body
    assert "attacker" not in {seen["body"].get("user") for seen in site.engine.seen()["requests"]}


def test_p4_the_log_names_the_call_and_neither_address_nor_agent_nor_what_was_searched(site):
    with site.nginx.connect() as connection:
        fields = "user-agent: Spy/1.0", "referer: http://secret.example/", f"authorization: Bearer {site.key}"
        connection.sendall(request("GET", "/v1/models/logged?q=sato", *fields, "connection: close"))
        answer = Reader(connection).one()
    log = site.nginx.place / "madoguchi.log"
    line = until(lambda: next((one for one in log.read_text().splitlines() if "/v1/models/logged" in one), ""))
    assert answer.headers["x-request-id"] in line
    assert " 404 " in line
    upstream = f"127.0.0.1:{site.installation.port}"
    for secret in ("127.0.0.1", "Spy", "secret.example", "sato", site.key):
        assert secret not in line.replace(upstream, "")
    assert "client: " not in (site.nginx.place / "madoguchi-error.log").read_text()


def test_p4_a_body_does_not_touch_the_disk():
    """Above 16 KB nginx kept it in a file until all of it had come: now it is passed on as it comes."""
    for path in (CALL, "/v1/audio/transcriptions", "/api/v1/keys"):
        with (
            socket.create_server(("127.0.0.1", 0)) as host,
            nginx(f"127.0.0.1:{host.getsockname()[1]}") as proxy,
            proxy.connect() as connection,
        ):
            connection.sendall(request("POST", path, f"content-length: {2 * MB}", body=b"x" * MB))
            upstream, _ = host.accept()
            with upstream:
                got = 0
                while got < MB:
                    got += len(upstream.recv(65536))
                assert kept_by_nginx(proxy) == []


def kept_by_nginx(proxy: Nginx) -> list[str]:
    """Return files with something in them, deleted ones too, that its processes hold below its place; logs apart."""
    found = []
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if process.name.isdigit() and b"nginx" in (process / "cmdline").read_bytes():
                for descriptor in (process / "fd").iterdir():
                    path = os.readlink(descriptor)
                    if path.startswith(str(proxy.place)) and not path.endswith((".log", ".pid", "/output")):
                        found.append(path)
    return found


def test_too_large_bodies_are_refused_in_the_shape_of_the_api(site):
    with site.nginx.connect() as connection:
        connection.sendall(request("POST", CALL, f"content-length: {33 * MB}"))
        answer = Reader(connection).one()
    assert (answer.status, answer.code) == (413, "request_too_large")


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
def test_g12_paths_that_cohere_s_clients_write_take_the_same_bodies_as_ours(site, path):
    """Of 2,048 documents; by the bound of pages nginx had refused what is above 3 MB, in HTML."""
    documents = {"model": "plain", "query": "q", "documents": ["x" * 2000] * 2000}
    body = json.dumps(documents).encode()
    with site.nginx.connect() as connection:
        fields = f"authorization: Bearer {site.key}", f"content-length: {len(body)}"
        connection.sendall(request("POST", path, *fields, body=body))
        answer = Reader(connection).one()
    assert answer.status != 413
    with site.nginx.connect() as connection:
        connection.sendall(request("POST", path, f"content-length: {33 * MB}"))
        answer = Reader(connection).one()
    assert (answer.status, answer.code) == (413, "request_too_large")


def test_g12_a_wrong_base_url_is_explained_by_the_gateway_and_not_by_a_page(site):
    gateway, dead = f"127.0.0.1:{site.installation.port}", "127.0.0.1:9"
    with nginx(gateway, pages=dead) as proxy:
        for path in base_urls.WRONG:
            for connection in (proxy.connect(), site.connect("straight")):
                with connection:
                    connection.sendall(request("POST", path, "content-length: 2", "connection: close", body=b"{}"))
                    answer = Reader(connection).one()
                    assert (path, answer.status, answer.code) == (path, 404, "unknown_url")
        for path in base_urls.NOTHING:
            for connection in (proxy.connect(), site.connect("straight")):
                with connection:
                    connection.sendall(request("GET", path, f"authorization: Bearer {site.key}", "connection: close"))
                    answer = Reader(connection).one()
                    assert (path, answer.status, answer.code) == (path, 404, "unknown_url")
        for path in base_urls.OF_THE_PORTAL:
            with proxy.connect() as connection:
                connection.sendall(request("GET", path, "connection: close"))
                assert (path, Reader(connection).one().status) == (path, 503)


# --- hosts that do not answer


@pytest.fixture
def silent() -> Iterator[str]:
    """Provide a host that is switched off: connections to it get no answer at all, not even a refusal."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        for _ in range(4):  # its queue is full from now on
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(address)
        yield f"127.0.0.1:{address[1]}"


def test_o9_a_dead_second_host_costs_two_seconds_once_and_fails_no_call(site, silent):
    seen = len(site.engine.seen()["requests"])
    with nginx(f"127.0.0.1:{site.installation.port}", silent) as proxy:
        lasted = []
        for _ in range(6):
            begun = time.monotonic()
            with proxy.connect() as connection:
                connection.sendall(call(site.key, chat(), "connection: close"))
                assert Reader(connection).one().status == 200
            lasted.append(time.monotonic() - begun)
    assert max(lasted) < 6
    assert len(site.engine.seen()["requests"]) == seen + 6  # none was sent twice


def test_o9_a_call_that_was_sent_is_not_sent_to_another_host(site):
    """The first host takes it and dies: it may have been generated and metered."""
    taken = threading.Event()

    def die(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        connection.recv(65536)
        taken.set()
        connection.close()

    with socket.create_server(("127.0.0.1", 0)) as dying, engine.running() as other:
        threading.Thread(target=die, args=(dying,)).start()
        second = other.url.removeprefix("http://")
        with nginx(f"127.0.0.1:{dying.getsockname()[1]}", second) as proxy, proxy.connect() as connection:
            connection.sendall(call("x", chat(), "connection: close"))
            answer = Reader(connection).one()
        assert taken.is_set()
        assert (answer.status, answer.code) == (503, "server_unavailable")
        assert other.seen()["requests"] == []


@pytest.fixture
def standing_in() -> Iterator[str]:
    """Provide a host on which no server starts, and which refuses callers at once."""
    ready, over = threading.Event(), threading.Event()

    async def refuse(listener: socket.socket) -> None:
        async with StandIn([listener], lambda: 0.0).running():
            ready.set()
            await asyncio.to_thread(over.wait)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=asyncio.run, args=(refuse(listener),))
        thread.start()
        ready.wait(10)
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        over.set()
        thread.join(10)


def test_calls_go_to_the_host_that_serves_and_not_to_one_that_refuses_quickly(standing_in):
    statuses = []
    with engine.running() as other, nginx(standing_in, other.url.removeprefix("http://")) as proxy:
        for _ in range(30):
            with proxy.connect() as connection:
                connection.sendall(call("x", chat(), "connection: close"))
                statuses.append(Reader(connection).one().status)
        assert len(other.seen()["requests"]) == statuses.count(200)
    assert statuses.count(503) <= 2  # one within ten seconds, by which nginx learns of it
    assert statuses.count(200) >= 28


def test_what_may_be_asked_again_is_asked_of_the_host_that_serves(standing_in):
    with engine.running() as other, nginx(standing_in, other.url.removeprefix("http://")) as proxy:
        for path in ("/v1/models", "/health"):
            with proxy.connect() as connection:
                connection.sendall(request("GET", path, "connection: close"))
                assert (path, Reader(connection).one().status) == (path, 200)


def test_where_no_host_serves_browsers_get_a_page_and_programs_an_error_of_the_api(standing_in):
    with nginx(standing_in, pages=standing_in) as proxy:
        for path in ("/", "/api/v1/keys", CALL):
            with proxy.connect() as connection:
                connection.sendall(request("POST", path, "content-length: 2", "connection: close", body=b"{}"))
                answer = Reader(connection).one()
                assert (path, answer.status, answer.code) == (path, 503, "server_unavailable")
        with proxy.connect() as connection:
            connection.sendall(request("GET", "/", "accept: text/html,*/*;q=0.8", "connection: close"))
            answer = Reader(connection).one()
    assert (answer.status, answer.headers["content-type"]) == (503, "text/html; charset=utf-8")
    assert 'lang="ja"' in answer.body.decode()


@pytest.mark.parametrize("path", ["/v1/models", "/v1/audio/transcriptions", "/v2/rerank", "/rerank"])
def test_errors_of_nginx_itself_are_errors_of_the_api(path):
    with nginx("127.0.0.1:9") as proxy, proxy.connect() as connection:
        connection.sendall(request("POST", path, "content-length: 2", body=b"{}"))
        answer = Reader(connection).one()
    assert (answer.status, answer.code) == (503, "server_unavailable")
    assert answer.headers["retry-after"] == "5"


def test_what_is_no_http_gets_an_error_of_the_api():
    with nginx("127.0.0.1:9") as proxy, proxy.connect() as connection:
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nhost: localhost\r\n\r\n")
        answer = Reader(connection).one()
    assert (answer.status, answer.code) == (400, "invalid_request")


def test_metrics_are_not_for_everybody_however_they_are_spelled():
    """Shown to this machine, which the tests are on, so what is held here is where requests go: see `corpus`."""
    text = (Path(__file__).resolve().parents[2] / "deploy" / "nginx.conf").read_text()
    metrics = text[text.index("location = /metrics") :]
    assert "deny all;" in metrics[: metrics.index("}")]
