"""What is said: JSON bodies, answers of engines, requests as bytes, lines of a spool, addresses of pages."""

import json
import re
from typing import Any
from urllib.parse import quote

from hypothesis import strategies as st

from tests import engine
from tests.engine import DONE, FINISH, SSE, chunk, token

NUMBERS = st.one_of(
    st.integers(-3, 300),
    st.sampled_from([2**31 - 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**18, -(10**18), 10**400]),
    st.sampled_from([0.5, -0.0, 1.0, 5.0, 1e308, float("inf"), float("nan")]),
)
TEXTS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ["", "5", "true", "null", "\0", "\ud83d", "窓口🙂", "x" * 5000, "../..", "http://169.254.169.254/"]
    ),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
# Not deeper than a few levels by chance; deep ones are made on purpose.
VALUES = st.one_of(
    SCALARS,
    st.recursive(
        SCALARS,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
        max_leaves=8,
    ),
    st.sampled_from([20, 120, 700, 990, 3000]).map(lambda depth: f"\0deep{depth}"),
    st.sampled_from([(1, 200), (1.5, 3000), ("x", 500), ([1], 300)]).map(lambda pair: [pair[0]] * pair[1]),
)


def said(fields: Any, *, ascii_only: bool = True) -> str:
    """Return JSON of it. A text "\\0deep300" becomes so many lists in each other, more than an encoder takes."""
    text = json.dumps(fields, ensure_ascii=ascii_only)
    return re.sub(r'"\\u0000deep(\d+)"', lambda found: "[" * int(found[1]) + "]" * int(found[1]), text)


MEMBERS = (
    *("n", "best_of", "max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict", "min_tokens"),
    *("stream", "stream_options", "stop", "temperature", "top_p", "top_k", "logprobs", "top_logprobs", "logit_bias"),
    *("tools", "tool_choice", "functions", "response_format", "grammar", "json_schema", "structured_outputs", "text"),
    *("user", "seed", "messages", "prompt", "input", "system", "instructions", "dimensions", "encoding_format"),
    *("top_n", "query", "documents", "text_1", "text_2", "echo", "suffix", "priority", "cache_salt", "cache_prompt"),
    *("id_slot", "MODEL", "Stream", "use_beam_search", "metadata", "thinking", "reasoning", "return_documents"),
)
MESSAGES = [{"role": "user", "content": "hi"}]
PATHS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES},
    "/v1/completions": {"prompt": "hi"},
    "/v1/responses": {"input": "hi"},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 16},
    "/v1/messages/count_tokens": {"messages": MESSAGES},
    "/v1/embeddings": {"input": ["a", "b"]},
    "/v1/rerank": {"query": "a", "documents": ["a", "b"]},
    "/v1/score": {"text_1": "a", "text_2": ["b"]},
}
MODELS = ("plain", "assembled", "vectors")


@st.composite
def bodies(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """Return a path and a body for it, of which some members are not what they should be."""
    path = draw(st.sampled_from(sorted(PATHS)))
    body: dict[str, Any] = {"model": draw(st.sampled_from(MODELS)), **PATHS[path]}
    if draw(st.booleans()):
        body["stream"] = True
    body |= draw(st.dictionaries(st.sampled_from(MEMBERS), VALUES, max_size=4))
    if draw(st.integers(0, 9)) == 0:
        body["model"] = draw(VALUES)
    return path, body


@st.composite
def feedback(draw: st.DrawFn) -> dict[str, Any]:
    """Return what is said about an answer, of which some members are not what they should be."""
    body = {"request_id": f"req_{draw(st.integers(0, 9)):024x}", "score": draw(st.sampled_from([1, -1, 1.0, "1"]))}
    names = (*("request_id", "score", "comment", "model", "use_case", "use_case_version"), "prompt", "Score")
    return body | draw(st.dictionaries(st.sampled_from(names), VALUES, max_size=3))


@st.composite
def encoded(draw: st.DrawFn) -> tuple[str, bytes]:
    """Return a path and the bytes of a body, perhaps with some of them changed."""
    path, body = draw(bodies())
    data = said(body, ascii_only=draw(st.booleans())).encode(errors="surrogatepass")
    if draw(st.integers(0, 4)) == 0:
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(st.binary(max_size=8)) + data[at + draw(st.integers(0, 8)) :]
    return path, data


USAGES = st.fixed_dictionaries(
    {},
    optional={
        name: VALUES
        for name in (
            *("prompt_tokens", "completion_tokens", "total_tokens", "input_tokens", "output_tokens"),
            *("prompt_tokens_details", "completion_tokens_details", "input_tokens_details", "seconds"),
        )
    },
)
DELTAS = st.fixed_dictionaries({}, optional={"content": VALUES, "tool_calls": VALUES})
CHUNKS = st.fixed_dictionaries(
    {},
    optional={
        "id": SCALARS,
        "object": SCALARS,
        "model": SCALARS,
        "type": st.sampled_from(["message_start", "message_stop", "response.completed", "response.failed", "error", 5]),
        "choices": st.one_of(
            VALUES,
            st.lists(
                st.fixed_dictionaries(
                    {},
                    optional={
                        "index": st.one_of(st.integers(0, 2), VALUES),
                        "delta": st.one_of(
                            VALUES, st.fixed_dictionaries({}, optional={"content": VALUES, "tool_calls": VALUES})
                        ),
                        "text": VALUES,
                        "finish_reason": st.sampled_from([None, "stop", "length", "abort", 5, []]),
                        "logprobs": VALUES,
                    },
                ),
                max_size=3,
            ),
        ),
        "usage": st.one_of(USAGES, VALUES),
        "error": VALUES,
        "message": VALUES,
        "response": VALUES,
        "delta": VALUES,
        "index": VALUES,
        "content_block": VALUES,
    },
)


def _event(fields: Any) -> str:
    return f"data: {said(fields)}\n\n"


EVENTS = st.one_of(
    CHUNKS.map(_event),
    st.sampled_from(
        [
            DONE,
            FINISH,
            token(1),
            "data: null\n\n",
            ": ping\n\n",
            "event: x\n",
            "data: [DONE]\n",
            "data:\r\n\r\n",
            "\n\n",
        ]
    ),
    st.text(st.characters(max_codepoint=255), max_size=30),
)


@st.composite
def answers(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Draw the steps of a fake engine: a stream of odd events, an odd answer, or bytes that are no HTTP."""
    kind = draw(st.sampled_from(["stream", "stream", "unary", "bytes"]))
    if kind == "stream":
        steps = [{"send": SSE}, *({"send": chunk(text)} for text in draw(st.lists(EVENTS, max_size=8)) if text)]
        return [
            *steps,
            {"send": draw(st.sampled_from([chunk(DONE) + "0\r\n\r\n", "0\r\n\r\n", "", "zz\r\n"]))},
            {"close": 1},
        ]
    if kind == "unary":
        status = draw(st.sampled_from([200, 200, 200, 201, 204, 302, 400, 404, 429, 500, 503, 999]))
        body = draw(st.one_of(CHUNKS.map(said), st.text(st.characters(max_codepoint=255), max_size=50)))
        content_type = draw(st.sampled_from(["application/json", "text/html", "", "text/event-stream", "x\x80y"]))
        length = len(body) + draw(st.sampled_from([0, 0, 0, 5, -1]))
        head = f"HTTP/1.1 {status} X\r\ncontent-type: {content_type}\r\ncontent-length: {length}\r\n\r\n"
        return [{"send": head + body}, {"close": 1}]
    return [{"send": draw(st.text(st.characters(max_codepoint=255), min_size=1, max_size=80))}, {"close": 1}]


TARGETS = st.one_of(
    st.sampled_from(
        ["/v1/chat/completions", "/v1/models", "/v1/models/plain", "/healthz", "/", "/sign-in/", "*", "/v1"]
    ),
    st.text(max_size=20).map(lambda text: "/" + quote(text, safe="/%?#")),
)
HEADERS = st.lists(
    st.one_of(
        st.sampled_from(
            [
                *("content-length: 5", "content-length: 0", "content-length: -1", "content-length: 5, 5"),
                *(
                    "content-length: 99999999999999999999",
                    "transfer-encoding: chunked",
                    "transfer-encoding: gzip, chunked",
                ),
                *("transfer-encoding: identity", "upgrade: h2c", "upgrade: websocket", "connection: upgrade", "host:"),
                *(
                    "connection: close",
                    "connection: keep-alive, x",
                    "expect: 100-continue",
                    "expect: 42",
                    "te: trailers",
                ),
                *(
                    "content-encoding: gzip",
                    "content-encoding: br",
                    "x-forwarded-for: ,,,",
                    "origin: null",
                    "cookie: a=b=c;;",
                ),
                *("content-type: multipart/form-data; boundary=x", "accept-language: ja", "range: bytes=0-"),
            ]
        ),
        st.text(st.characters(max_codepoint=255, exclude_characters="\r\n"), max_size=30),
    ),
    max_size=5,
)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """Return a strategy for HTTP, more or less."""
    method = draw(st.sampled_from(["GET", "POST", "HEAD", "OPTIONS", "PUT", "PRI", "get", "TRACE", "CONNECT"]))
    lines = [f"{method} {draw(TARGETS)} HTTP/{draw(st.sampled_from(['1.1', '1.1', '1.0', '2.0', '9']))}", "host: x"]
    head = "\r\n".join([*lines, *draw(HEADERS)]) + "\r\n\r\n"
    return head.encode("latin-1", errors="replace") + draw(
        st.one_of(st.binary(max_size=40), st.just(b"5\r\nhello\r\n0\r\n\r\n"))
    )


LINE: dict[str, Any] = {
    "request_id": "req_fuzz",
    "key": 1,
    "user": None,
    "tenant": 1,
    "model": "plain",
    "replica": None,
    "endpoint": "/v1/chat/completions",
    "started": 1_790_000_000.0,
    "first_token_ms": None,
    "duration_ms": 5,
    "prompt_tokens": 1,
    "cached_tokens": 0,
    "completion_tokens": 1,
    "reasoning_tokens": 0,
    "looped_tokens": 0,
    "saved_tokens": 0,
    "temperature": 70,
    "queued_ms": 0,
    "loading_ms": None,
    "prefill_ms": 4,
    "retries": 0,
    "stopped_by": "stop",
    "engine": "vllm 0.32.0",
    "status": "finished",
    "estimated": False,
    "end_user": "",
}


@st.composite
def lines(draw: st.DrawFn) -> bytes:
    """Return a line of a spool as no gateway wrote it."""
    fields = {**LINE, "request_id": f"req_{draw(st.integers(0, 2**64)):024x}"}
    fields |= draw(st.dictionaries(st.sampled_from([*LINE, "unknown"]), VALUES, min_size=1, max_size=2))
    event = {draw(st.sampled_from(["close", "close", "open", "other"])): fields}
    data = said(event).encode()
    if draw(st.integers(0, 3)) == 0:
        at = draw(st.integers(0, len(data) - 1))
        data = data[:at] + bytes([data[at] ^ (1 << draw(st.integers(0, 7)))]) + data[at + 1 :]
    return data.replace(b"\n", b" ") + b"\n"


PARTS = st.one_of(
    st.sampled_from(
        ["0001-01", "9999-12", "2026-13", "1" * 30, "-1", "%00", "..", "a" * 300, "研究部", "'\"<script>", "1e9"]
    ),
    st.text(max_size=12),
)
QUERIES = st.dictionaries(
    st.sampled_from(
        [
            *(
                "period",
                "by",
                "tenant",
                "scope",
                "page",
                "q",
                "since",
                "until",
                "format",
                "model",
                "sort",
                "key",
                "next",
            ),
            *("from", "to", "user", "kind", "who", "action", "before", "cursor", "limit", "offset", "language"),
        ]
    ),
    PARTS,
    max_size=3,
)
COOKIES = st.one_of(
    st.none(),
    st.sampled_from(
        ["sessionid=x", "sessionid=" + "y" * 4000, "csrftoken=1", "language=xx; language=ja", "messages=[[", "=;;="]
    ),
    st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=40),
)

DEFAULT = engine.ANSWER
