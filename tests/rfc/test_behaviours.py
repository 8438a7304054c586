"""HTTP as in the RFCs, row by row, straight and through nginx with the shipped configuration.

RFC 9110 (semantics), 9112 (HTTP/1.1), 6455 (WebSocket). `test_differences` has the odd ones.
"""

import json
import time

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect as websocket

from tests.engine import ANSWER, SSE, token, unary
from tests.engine import chunk as framed
from tests.rfc.conftest import Site
from tests.rfc.talking import Answer, Reader, request
from tests.waiting import until

CALL = "/v1/chat/completions"
BODY = json.dumps({"model": "plain", "messages": [{"role": "user", "content": "hi"}]}).encode()
# One of each kind: an answer from memory, an unknown one, a probe, a page, a missing page, the API, files, sockets.
CLASSES = [
    "/v1/models",
    "/v1/nothing",
    "/v1",
    "/healthz",
    "/readyz",
    "/metrics",
    "/sign-in/",
    "/",
    "/nowhere/",
    "/api/v1/keys",
]
CLASSES += ["/static/none.css", "/ws/", "/ws/none/", "/admin/login/"]


def ask(site: Site, way: str, sent: bytes, *methods: str) -> list[Answer]:
    """Return all answers to these bytes; the last request among them must end the connection."""
    with site.connect(way) as connection:
        connection.sendall(sent)
        return list(Reader(connection).answers(*methods))


def refusal(site: Site, way: str, sent: bytes) -> Answer:
    """Return the first answer. For its end one would wait: nginx reads on for a while what is still sent."""
    with site.connect(way) as connection:
        connection.sendall(sent)
        return Reader(connection).one()


def last(site: Site) -> bytes:
    return request("GET", "/v1/models/last", f"authorization: Bearer {site.key}", "connection: close")


def call(site: Site, *fields: str, body: bytes = BODY, method: str = "POST") -> bytes:
    return request(method, CALL, f"authorization: Bearer {site.key}", *fields, body=body)


@pytest.mark.parametrize("path", CLASSES)
def test_head_is_answered_as_get_without_the_body_and_the_connection_goes_on(site, way, path):
    known = f"authorization: Bearer {site.key}"
    (get, *_) = ask(site, way, request("GET", path, known, "connection: close"))
    head, after = ask(site, way, request("HEAD", path, known) + last(site), "HEAD")
    if path.startswith("/ws/") and way == "nginx":
        assert head.status == 405  # only GET is passed on to there
    elif path != "/v1/models" and path != "/v1/nothing":
        assert head.status == get.status
    told = head.headers.get("content-length")
    if head.status == get.status and path != "/metrics" and told and "content-length" in get.headers:
        assert abs(int(told) - len(get.body)) < 200  # pages have words and tokens of their own each time
    assert after.code == "model_not_found"


@pytest.mark.parametrize("path", CLASSES)
def test_options_is_answered_and_the_connection_goes_on(site, way, path):
    options, after = ask(site, way, request("OPTIONS", path) + last(site))
    assert options.status < 500
    assert after.code == "model_not_found"


@pytest.mark.parametrize("upgrade", ["h2c", "foo", "websocket"])
def test_g1_a_post_that_offers_an_upgrade_is_a_post(site, way, upgrade):
    """As JDK's HttpClient sends each request over plain HTTP."""
    offer = ["connection: Upgrade, HTTP2-Settings", f"upgrade: {upgrade}", "http2-settings: AAEAAEAAAAIAAAAB"]
    answer, after = ask(site, way, call(site, *offer, f"content-length: {len(BODY)}") + last(site))
    assert (answer.status, json.loads(answer.body)) == (200, ANSWER)
    assert after.code == "model_not_found"


@pytest.mark.parametrize("pieces", [1, 3, len(BODY)])
def test_a_chunked_body_is_read_however_it_is_cut(site, way, pieces):
    size = -(-len(BODY) // pieces)
    parts = [BODY[at : at + size] for at in range(0, len(BODY), size)]
    body = b"".join(b"%x;name=value\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\nx-trailer: y\r\n\r\n"
    answer, after = ask(site, way, call(site, "transfer-encoding: chunked", body=body) + last(site))
    assert (answer.status, after.code) == (200, "model_not_found")


def test_requests_sent_ahead_are_answered_in_order(site, way):
    names = [f"none-{number}" for number in range(20)]
    known = f"authorization: Bearer {site.key}"
    got = ask(site, way, b"".join(request("GET", f"/v1/models/{name}", known) for name in names) + last(site))
    assert len(got) == 21
    for name, answer in zip(names, got, strict=False):
        assert name in answer.body.decode()


def test_a_client_that_asks_whether_to_continue_gets_100_and_an_answer(site, way):
    with site.connect(way) as connection:
        connection.sendall(
            call(site, "expect: 100-continue", f"content-length: {len(BODY)}", "connection: close", body=b"")
        )
        assert connection.recv(65536).startswith(b"HTTP/1.1 100 ")
        connection.sendall(BODY)
        (answer,) = Reader(connection).answers()
    assert answer.status == 200


@pytest.mark.parametrize("path", [CALL, "/sign-in/"])
def test_who_asks_whether_to_continue_with_too_much_is_refused_and_the_connection_ends(site, way, path):
    sent = request(
        "POST", path, f"authorization: Bearer {site.key}", "expect: 100-continue", "content-length: 99999999999"
    )
    assert refusal(site, way, sent).status == 413


def test_http_1_0_gets_a_whole_answer_and_the_end_of_the_connection(site, way):
    fields = f"authorization: Bearer {site.key}", f"content-length: {len(BODY)}"
    (answer,) = ask(site, way, request("POST", CALL, *fields, body=BODY, version="HTTP/1.0"))
    assert (answer.status, json.loads(answer.body)) == (200, ANSWER)


def test_who_wants_the_connection_closed_gets_that(site, way):
    (answer,) = ask(site, way, call(site, f"content-length: {len(BODY)}", "connection: close"))
    assert (answer.status, answer.headers["connection"]) == (200, "close")


def test_tokens_pass_one_by_one(site, way):
    """The first is there while the engine has not made the second."""
    steps = [{"send": SSE}, {"send": framed(token(1))}, {"wait": 1}, {"send": framed(token(2)) + "0\r\n\r\n"}]
    body = json.dumps({"model": "plain", "messages": [], "stream": True, "script": steps}).encode()
    with site.connect(way) as connection:
        connection.sendall(call(site, f"content-length: {len(body)}", "connection: close", body=body))
        got, begun, first = b"", time.monotonic(), 0.0
        while piece := connection.recv(65536):
            got += piece
            if not first and b"data:" in got:
                first = time.monotonic()
    assert time.monotonic() - first > 0.5
    assert first - begun < 60


def test_a_client_that_leaves_frees_the_engine(site, way):
    left = site.engine.seen()["left"]
    body = json.dumps({"model": "plain", "messages": [], "script": [{"hang": True}]}).encode()
    with site.connect(way) as connection:
        connection.sendall(call(site, f"content-length: {len(body)}", body=body))
        until(lambda: site.engine.seen()["running"] == 1)
    until(lambda: site.engine.seen()["left"] == left + 1, 10)


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (request("GET", "/v1/models", "x: " + "y" * 70_000), 431, "headers_too_large"),
        (request("GET", "/v1/models", *["x: y"] * 150), 431, "headers_too_large"),
        (request("GET", "/v1/models?" + "x" * 20_000), 414, "url_too_long"),
        (request("POST", CALL, "content-length: 99999999999"), {401, 413}, {"invalid_api_key", "request_too_large"}),
    ],
    ids=["large field", "many fields", "long url", "large body"],
)
def test_g2_refusals_of_size_are_errors_that_clients_read(site, way, sent, status, code):
    answer = refusal(site, way, sent)
    assert answer.status in ({status} if isinstance(status, int) else status)
    assert answer.headers["content-type"] == "application/json"
    assert answer.code in code


@pytest.mark.parametrize("field", ["x: " + "y" * 14_000, "cookie: sessionid=" + "y" * 14_000])
@pytest.mark.parametrize("path", ["/sign-in/", "/ws/usage/"])
def test_g2_a_large_field_is_taken_or_refused_on_pages_and_sockets(site, way, path, field):
    quota_request = [
        "connection: upgrade",
        "upgrade: websocket",
        "sec-websocket-version: 13",
        "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==",
    ]
    with site.connect(way) as connection:
        connection.sendall(request("GET", path, field, *(quota_request if path.startswith("/ws/") else [])))
        assert Reader(connection).one().status < 500


def test_g3_a_stranger_cannot_fill_the_disk_by_a_page(site, way):
    for path in ("/sign-in/", "/nowhere/", "/api/v1/keys", "/admin/login/"):
        assert refusal(site, way, request("POST", path, "content-length: 100000000000")).status == 413
        pieces = (b"10000\r\n" + b"x" * 0x10000 + b"\r\n") * 12  # nginx itself lets so much through
        assert refusal(site, way, request("POST", path, "transfer-encoding: chunked") + pieces).status == 413


def test_a_websocket_elsewhere_than_below_ws_is_a_plain_request(site, way):
    quota_request = [
        "connection: upgrade",
        "upgrade: websocket",
        "sec-websocket-version: 13",
        "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==",
    ]
    known = f"authorization: Bearer {site.key}"
    answer, after = ask(site, way, request("GET", "/v1/realtime", known, *quota_request) + last(site))
    assert (answer.status, answer.code, after.code) == (404, "unknown_url", "model_not_found")


def test_a_websocket_reaches_the_portal(site, way):
    """No person is signed in, so it is turned away there and not before."""
    address = f"ws://127.0.0.1:{site.installation.port}" if way == "straight" else f"wss://localhost:{site.nginx.port}"
    context = None if way == "straight" else site.nginx.trust()
    with (
        pytest.raises(InvalidStatus) as refused,
        websocket(f"{address}/ws/usage/", ssl=context, origin="http://elsewhere"),
    ):
        pass
    assert refused.value.response.status_code == 403


def test_an_answer_of_several_reads_is_whole(site, way):
    long = {**ANSWER, "id": "x" * 500_000}
    body = json.dumps({"model": "plain", "messages": [], "script": [{"send": unary(200, long)}]}).encode()
    answer, after = ask(site, way, call(site, f"content-length: {len(body)}", body=body) + last(site))
    assert json.loads(answer.body) == long
    assert after.code == "model_not_found"
