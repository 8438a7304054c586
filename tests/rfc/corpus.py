# ruff: noqa: E501 - tables
"""Two hundred odd requests, by name. What looks like a request within a body is for a model named `smuggled`."""

from collections.abc import Iterator

from tests.rfc.talking import request

INNER = b"GET /v1/models/smuggled HTTP/1.1\r\nhost: localhost\r\n\r\n"
LENGTH = f"content-length: {len(INNER)}"
CHUNKED = b"%x\r\n%b\r\n0\r\n\r\n" % (len(INNER), INNER)
UPGRADE = ("connection: Upgrade", "sec-websocket-version: 13", "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==")

KINDS = ("h2c", "foo", "websocket", "h2c, websocket")
PATHS = ["/v1/models", "/v1/nothing", "/healthz", "/ws/", "/sign-in/", "/nowhere/", "/api/v1/keys", "/static/none.css"]
METHODS = ["GET", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "PROPFIND"]
TARGETS = [
    "//v1/models", "/v1//models", "/v1%2Fmodels", "/v1/%6dodels", "/v1/../sign-in/", "/v1/./models",
    "/sign-in/../v1/models", "/%2e%2e/v1/models", "/v1/models?x=%00", "/v1/models%00", "/v1/mod\x00els", "/v1/\xe3\x83\xa2",
    "/v1/%ff", "/v1/%zz", "/v1/%", "http://localhost/v1/models", "http://elsewhere/v1/models", "HTTP://localhost/v1/models",
    "https://localhost/v1/models", "ftp://localhost/v1/models", "http:///v1/models", "*", "v1/models", "/v1/models#part",
    "/v1/models;x=1", "/v1\\models", "/v1/models?a b", "/v1/a b", "/v1/models\t", "/%2fv1/models", "/v1/%2e%2e/metrics/",
    "/V1/models", "/v1", "/v1/", "/v1/models/", "/ws", "/ws/../v1/models", "/ws/%2e%2e/v1/models", "/\x7f", "/\x01",
    "/metrics/", "/METRICS", "/metrics%2f", "/metrics%3fx", "/readyz", "/healthz?x", "/?next=//elsewhere", "/" + "x" * 9000,
    "/v1/" + "x" * 20000, "/sign-in/?" + "x" * 20000,
]  # fmt: skip
VERSIONS = [
    "HTTP/1.0",
    "HTTP/0.9",
    "HTTP/1.2",
    "HTTP/2.0",
    "HTTP/3.0",
    "HTTP/1.10",
    "http/1.1",
    "HTTP/1.1 ",
    "HTTP/",
    "",
]
FIELDS = {
    "no colon": "nonsense", "colon first": ": x", "space before colon": "x : y", "space in name": "x y: z",
    "fold": "x: y\r\n z", "fold first": "x:\r\n\ty", "nul": "x: a\0b", "control": "x: a\x01b", "delete": "x: a\x7fb",
    "latin": "x: \xe9", "name in latin": "\xe9: x", "tab": "x:\ty", "empty": "x:", "bare cr": "x: a\rb", "bare lf": "x: a\nb: c",
    "underscore": "x_y: z", "second host": "host: elsewhere", "same host": "host: localhost", "expect else": "expect: a-lot",
    "connection names a field": "connection: authorization", "close and keep": "connection: close, keep-alive",
    "keep-alive": "connection: keep-alive", "8 kB": "x: " + "y" * 8000, "15 kB": "x: " + "y" * 15000,
    "40 kB": "x: " + "y" * 40000, "80 kB": "x: " + "y" * 80000,
    "80 fields": "\r\n".join(f"x-{number}: y" for number in range(80)),
    "500 fields": "\r\n".join(f"x-{number}: y" for number in range(500)),
}  # fmt: skip
LENGTHS = {
    "twice the same": f"{LENGTH}\r\n{LENGTH}", "twice other": f"{LENGTH}\r\ncontent-length: 0",
    "list": f"{LENGTH}, {len(INNER)}", "negative": "content-length: -1", "plus": f"content-length: +{len(INNER)}",
    "hex": "content-length: 0x10", "empty": "content-length:", "word": "content-length: many", "huge": f"content-length: {10**30}",
    "zeros": f"content-length: 000{len(INNER)}", "spaces": f"content-length:   {len(INNER)}  ", "right": LENGTH,
    "space before colon": f"content-length : {len(INNER)}", "fraction": f"content-length: {len(INNER)}.0",
}  # fmt: skip
CODINGS = {
    "right": "transfer-encoding: chunked", "capital": "Transfer-Encoding: Chunked", "space": "transfer-encoding:   chunked  ",
    "parameter": "transfer-encoding: chunked;q=1", "unknown first": "transfer-encoding: x, chunked",
    "unknown last": "transfer-encoding: chunked, identity", "identity": "transfer-encoding: identity",
    "gzip": "transfer-encoding: gzip", "prefix": "transfer-encoding: xchunked", "empty": "transfer-encoding:",
    "twice": "transfer-encoding: chunked\r\ntransfer-encoding: chunked", "tab": "transfer-encoding:\tchunked",
    "two of which one is unknown": "transfer-encoding: chunked\r\ntransfer-encoding: x", "quoted": 'transfer-encoding: "chunked"',
    "length before": f"{LENGTH}\r\ntransfer-encoding: chunked", "length behind": f"transfer-encoding: chunked\r\n{LENGTH}",
    "short length behind": "transfer-encoding: chunked\r\ncontent-length: 4", "vertical tab": "transfer-encoding: \x0bchunked",
    "space before colon": "transfer-encoding : chunked", "fold": "transfer-encoding:\r\n chunked",
}  # fmt: skip
SIZE = b"%x" % len(INNER)
CHUNKS = {
    "extension": SIZE + b";a=b\r\n%b\r\n0\r\n\r\n", "quoted extension": SIZE + b';a="b;c"\r\n%b\r\n0\r\n\r\n',
    "bare extension": SIZE + b";\r\n%b\r\n0\r\n\r\n", "trailer": SIZE + b"\r\n%b\r\n0\r\nx: y\r\n\r\n",
    "trailer with length": SIZE + b"\r\n%b\r\n0\r\ncontent-length: 3\r\n\r\n", "zeros": b"000" + SIZE + b"\r\n%b\r\n0\r\n\r\n",
    "capital": SIZE.upper() + b"\r\n%b\r\n0\r\n\r\n", "0x": b"0x" + SIZE + b"\r\n%b\r\n0\r\n\r\n",
    "plus": b"+" + SIZE + b"\r\n%b\r\n0\r\n\r\n", "space before": b" " + SIZE + b"\r\n%b\r\n0\r\n\r\n",
    "space behind": SIZE + b" \r\n%b\r\n0\r\n\r\n", "overflow": b"1" * 20 + SIZE + b"\r\n%b\r\n0\r\n\r\n",
    "bare lf": SIZE + b"\n%b\n0\n\n", "no end of data": SIZE + b"\r\n%b0\r\n\r\n", "negative": b"-1\r\n%b\r\n0\r\n\r\n",
    "no size": b"\r\n%b\r\n0\r\n\r\n", "lf in extension": SIZE + b";a\nb\r\n%b\r\n0\r\n\r\n", "two": b"1\r\nx\r\n" + SIZE + b"\r\n%b\r\n0\r\n\r\n",
}  # fmt: skip


def name_target(target: str) -> str:
    return f"target {target[:30]!a} ({len(target)})"


Entry = tuple[str, str, bytes]  # name, method and bytes of a request


def corpus(key: str) -> Iterator[Entry]:
    """Yield all requests; each has a key."""
    known = f"authorization: Bearer {key}"
    yield from method_requests(known)
    yield from line_requests(known)
    yield from body_requests(known)
    yield from upgrade_requests(known)
    yield from malformed_requests(known)


def method_requests(known: str) -> Iterator[Entry]:
    for path in PATHS:
        for method in METHODS:
            yield f"{method} {path}", method, request(method, path, known)
        yield f"POST {path} with a body", "POST", request("POST", path, known, LENGTH, body=INNER)
    for method in ("TRACE", "CONNECT", "get", "FOO", "PRI", "M-SEARCH", "SOURCE"):
        yield f"method {method}", method, request(method, "/v1/models", known)
    yield "CONNECT to a host", "CONNECT", request("CONNECT", "localhost:80", known)


def line_requests(known: str) -> Iterator[Entry]:
    """Yield requests that differ in their target, their version or one field."""
    for target in TARGETS:
        yield name_target(target), "GET", request("GET", target, known)
    for version in VERSIONS:
        yield f"version {version!r}", "GET", request("GET", "/v1/models", known, version=version)
    yield "1.0 kept", "GET", request("GET", "/v1/models", known, "connection: keep-alive", version="HTTP/1.0")
    for name, line in FIELDS.items():
        yield f"field: {name}", "GET", request("GET", "/v1/models", known, line)


def body_requests(known: str) -> Iterator[Entry]:
    """Yield requests that differ in how they frame their body."""
    for name, line in LENGTHS.items():
        yield f"length: {name}", "POST", request("POST", "/v1/chat/completions", known, line, body=INNER)
    for name, line in CODINGS.items():
        yield f"coding: {name}", "POST", request("POST", "/v1/chat/completions", known, line, body=CHUNKED)
    old = request("POST", "/v1/chat/completions", known, CODINGS["right"], body=CHUNKED, version="HTTP/1.0")
    yield "coding: in 1.0", "POST", old
    for name, chunks in CHUNKS.items():
        body = chunks.replace(b"%b", INNER)
        yield f"chunk: {name}", "POST", request("POST", "/v1/chat/completions", known, CODINGS["right"], body=body)
    for path in ("/v1/chat/completions", "/sign-in/", "/ws/"):
        asking = request("POST", path, known, "expect: 100-continue", LENGTH, body=INNER)
        yield f"{path} after 100", "POST", asking


def upgrade_requests(known: str) -> Iterator[Entry]:
    coding = CODINGS["right"]
    for kind in KINDS:
        for path in ("/v1/chat/completions", "/ws/operations/", "/sign-in/"):
            upgrade = (*UPGRADE, f"upgrade: {kind}")
            yield f"GET {path} as {kind}", "GET", request("GET", path, known, *upgrade)
            yield f"POST {path} as {kind}", "POST", request("POST", path, known, *upgrade, LENGTH, body=INNER)
            yield f"chunks {path} as {kind}", "POST", request("POST", path, known, *upgrade, coding, body=CHUNKED)


def malformed_requests(known: str) -> Iterator[Entry]:
    bare = request("GET", "/v1/models", known)
    yield "lf for crlf", "GET", bare.replace(b"\r\n", b"\n")
    yield "empty lines before", "GET", b"\r\n\r\n" + bare
    yield "two spaces", "GET", bare.replace(b"GET ", b"GET  ")
    yield "space before", "GET", b" " + bare
    yield "no host", "GET", bare.replace(b"host: localhost\r\n", b"")
    yield "empty host", "GET", bare.replace(b"host: localhost", b"host:")
    yield "strange host", "GET", bare.replace(b"host: localhost", b"host: a b/c")
    yield "no http", "GET", b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n"
    yield "preface of http/2", "PRI", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
