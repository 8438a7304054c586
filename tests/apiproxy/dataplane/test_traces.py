"""Traces of calls: what a collector gets, what engines get, and what happens while no collector is there."""

import json
import threading
from collections.abc import Iterator
from http.client import BadStatusLine, InvalidURL
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx2
import pytest
from environs import ValidationError

from apiproxy.dataplane.traces import (
    BATCH,
    MOST_WAITING,
    EndedCall,
    TraceExporter,
    make_sender,
    make_spans,
    read_trace,
)
from apiproxy.dataplane.usage_events import Usage
from portal.environment import check_collector
from tests.apiproxy.exposition import samples
from tests.ports import unused_port
from tests.waiting import until

CALLER = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
SECRETS = ("my question", "alice", "mdg_")


def usage(**other: Any) -> Usage:
    values = {
        **{"request_id": "req_1", "key": 5, "user": 7, "tenant": 3, "model": "qwen", "replica": 1},
        **{"endpoint": "/v1/chat/completions", "started": 1_000_000.0, "first_token_ms": 250, "duration_ms": 2000},
        **{"prompt_tokens": 11, "cached_tokens": 0, "completion_tokens": 22, "reasoning_tokens": 0},
        **{"status": "finished", "estimated": False, "end_user": "alice", "address": "10.0.0.7", "queued_ms": 500},
        **{"engine": "vLLM 0.33"},
    }
    return Usage(**{**values, **other})


def read_attributes(span: dict[str, Any]) -> dict[str, Any]:
    values = {one["key"]: one["value"] for one in span["attributes"]}
    assert len(values) == len(span["attributes"])
    return {name: next(iter(value.values())) for name, value in values.items()}


class Collector:
    """Takes what is posted, and answers with `status`, `headers` and `answer`; 200 to what is got."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.paths: list[str] = []
        self.status = 200
        self.headers: dict[str, str] = {}
        self.answer = b""
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                collector.paths.append(self.path)
                collector.bodies.append(self.rfile.read(int(self.headers["content-length"])))
                self.send_response(collector.status)
                for name, value in collector.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(collector.answer)

            def do_GET(self) -> None:
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    @property
    def spans(self) -> list[dict[str, Any]]:
        found = [json.loads(body)["resourceSpans"][0]["scopeSpans"][0]["spans"] for body in self.bodies]
        return [span for spans in found for span in spans]


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_a_callers_trace_is_continued():
    trace = read_trace({b"traceparent": CALLER})
    assert (trace.trace, trace.parent, trace.sampled) == (CALLER[3:35].decode(), CALLER[36:52].decode(), True)
    assert trace.traceparent == f"00-{trace.trace}-{trace.engine_span}-01"
    assert len({trace.span, trace.engine_span, trace.parent}) == 3
    assert not read_trace({b"traceparent": CALLER[:-2] + b"00"}).sampled


@pytest.mark.parametrize(
    "header",
    [
        *(b"", b"x", CALLER + b"-more", CALLER.upper(), b"ff" + CALLER[2:], CALLER * 1000, CALLER + b"\n"),
        CALLER.replace(b"4bf92f3577b34da6a3ce929d0e0e4736", b"0" * 32),
        CALLER.replace(b"00f067aa0ba902b7", b"0" * 16),
    ],
)
def test_a_call_without_a_readable_trace_begins_one(header):
    one, other = (read_trace({b"traceparent": header}) for _ in range(2))
    assert (one.parent, one.sampled) == ("", True)
    assert one.trace != other.trace
    assert [len(part) for part in (one.trace, one.span, one.engine_span)] == [32, 16, 16]


def test_spans_have_times_tokens_and_the_tenant_and_nothing_of_people():
    context = read_trace({b"traceparent": CALLER})
    gateway, engine = make_spans(EndedCall(context, usage(), "fast"))
    assert (gateway["kind"], gateway["parentSpanId"], gateway["name"]) == (2, context.parent, "chat qwen")
    assert (engine["kind"], engine["parentSpanId"], engine["spanId"]) == (3, context.span, context.engine_span)
    seconds = [int(gateway[f"{end}TimeUnixNano"]) / 1e9 for end in ("start", "end")]
    assert seconds == [999_999.5, 1_000_002.0]
    assert int(engine["startTimeUnixNano"]) == 1_000_000 * 10**9
    assert gateway["events"] == [{"name": "first token", "timeUnixNano": "1000000250000000"}]
    found = read_attributes(gateway)
    assert (found["gen_ai.request.model"], found["gen_ai.response.model"]) == ("fast", "qwen")
    assert (found["gen_ai.usage.input_tokens"], found["gen_ai.usage.output_tokens"]) == ("11", "22")
    assert (found["madoguchi.tenant.id"], found["madoguchi.queue.seconds"]) == ("3", 0.5)
    assert read_attributes(engine)["gen_ai.provider.name"] == "vLLM"
    text = json.dumps([gateway, engine])
    assert not [word for word in ("alice", "10.0.0.7") if word in text]
    assert gateway["status"] == {}
    failed, _ = make_spans(EndedCall(context, usage(status="failed", stopped_by="engine"), "fast"))
    assert (failed["status"]["code"], read_attributes(failed)["error.type"]) == (2, "engine")


def test_a_collector_that_is_away_costs_the_traces_and_is_found_again(collector, caplog):
    collector.status = 503
    exporter = TraceExporter(make_sender(collector.url), {"service.name": "madoguchi"}, every=0.01)
    counts = [0, 0]

    def count() -> list[int]:
        counts[:] = [old + new for old, new in zip(counts, exporter.take_counts(), strict=True)]
        return counts

    try:
        exporter.note(read_trace({}), usage(), "fast")
        until(lambda: count() == [0, 1])
        collector.status = 200
        exporter.note(read_trace({}), usage(request_id="req_2"), "fast")
        until(lambda: count() == [1, 1])
        assert set(collector.paths) == {"/v1/traces"}
        assert read_attributes(collector.spans[-2])["madoguchi.request.id"] == "req_2"
        assert len([record for record in caplog.records if "collector" in record.message]) == 1
    finally:
        exporter.close()


def test_no_collector_at_all_is_the_same():
    exporter = TraceExporter(make_sender(f"http://127.0.0.1:{unused_port()}"), {}, every=0.01)
    try:
        exporter.note(read_trace({}), usage(), "fast")
        until(lambda: exporter.take_counts() == (0, 1))
    finally:
        exporter.close()


def test_a_bounded_number_of_calls_waits_for_a_slow_collector():
    released, bodies = threading.Event(), []

    def send(body: bytes) -> int:
        assert released.wait(20)
        bodies.append(body)
        return 0

    exporter = TraceExporter(send, {}, every=60)
    for _ in range(MOST_WAITING + 3):
        exporter.note(read_trace({}), usage(), "fast")
    assert exporter.take_counts() == (0, 3)
    released.set()
    exporter.close(20)  # what waits is still sent
    until(lambda: sum(body.count(b'"kind":2') for body in bodies) == MOST_WAITING)


def test_a_trace_that_is_not_sampled_is_not_sent():
    bodies: list[bytes] = []

    def send(body: bytes) -> int:
        bodies.append(body)
        return 0

    exporter = TraceExporter(send, {}, every=60)
    exporter.note(read_trace({b"traceparent": CALLER[:-2] + b"00"}), usage(), "fast")
    exporter.note(read_trace({b"traceparent": CALLER}), usage(), "fast")
    exporter.close()
    until(lambda: len(bodies) == 1)
    assert bodies[0].count(b'"kind":2') == 1


@pytest.mark.parametrize("error", [BadStatusLine("\x00\x00\x06"), InvalidURL("nonnumeric port"), RuntimeError("odd")])
def test_whatever_a_sending_raises_the_next_one_is_tried(error, caplog):
    errors = [error]

    def send(body: bytes) -> int:
        if errors:
            raise errors.pop()
        return 0

    exporter = TraceExporter(send, {}, every=0.01)
    try:
        exporter.note(read_trace({}), usage(), "fast")
        until(lambda: exporter.take_counts() == (0, 1))
        exporter.note(read_trace({}), usage(), "fast")
        until(lambda: exporter.take_counts() == (1, 0))
    finally:
        exporter.close()
    assert [record.name for record in caplog.records] == ["madoguchi.gateway"]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_no_collector_that_took_them(collector, status):
    collector.status, collector.headers = status, {"location": collector.url + "/elsewhere"}
    exporter = TraceExporter(make_sender(collector.url), {}, every=60)
    exporter.note(read_trace({}), usage(), "fast")
    exporter.close(20)
    assert exporter.take_counts() == (0, 1)


@pytest.mark.parametrize(
    ("answer", "counts"),
    [
        (b'{"partialSuccess":{"rejectedSpans":"3","errorMessage":"full"}}', (1, 2)),
        (b'{"partialSuccess":{"rejectedSpans":2}}', (2, 1)),
        (b'{"partialSuccess":{"rejectedSpans":"999"}}', (0, 3)),
        *((odd, (3, 0)) for odd in (b'{"partialSuccess":{"rejectedSpans":-9}}', b"{}", b"[]", b"", b"\xff")),
        (b'{"partialSuccess":{"rejectedSpans":[]}}', (3, 0)),
    ],
)
def test_calls_whose_spans_the_collector_rejects_are_counted_as_dropped(collector, answer, counts):
    collector.answer = answer
    exporter = TraceExporter(make_sender(collector.url), {}, every=60)
    for _ in range(3):
        exporter.note(read_trace({}), usage(), "fast")
    exporter.close(20)
    assert exporter.take_counts() == counts


def test_what_a_collector_does_not_take_until_the_end_is_counted_as_dropped():
    begun, released = threading.Event(), threading.Event()

    def send(body: bytes) -> int:
        begun.set()
        assert released.wait(20)
        return 0

    exporter = TraceExporter(send, {}, every=0.01)
    exporter.note(read_trace({}), usage(), "fast")
    assert begun.wait(20)
    for _ in range(BATCH + 1):
        exporter.note(read_trace({}), usage(), "fast")
    exporter.close(0.01)
    assert exporter.take_counts() == (0, BATCH + 2)
    released.set()


@pytest.mark.parametrize("address", ["", "http://host:4318", "https://otel.example.co.jp/otlp/", "http://[::1]:4318"])
def test_an_address_of_a_collector_is_accepted(address):
    check_collector(address)


@pytest.mark.parametrize(
    "address",
    [
        *("host:4318", "http://", "http://:4318", "http://host:43x18", "http://host:99999", "http://a b", "http://a?b"),
        *("grpc://host:4317", "http://[::1", "http://user:password@host"),
    ],
)
def test_an_address_that_cannot_be_posted_to_is_refused(address):
    with pytest.raises(ValidationError):
        check_collector(address)


# --- of a running gateway


@pytest.fixture
def traced(collector, settings) -> Collector:
    settings.OTEL_EXPORTER_OTLP_ENDPOINT = collector.url
    return collector


def test_a_call_is_traced_from_its_caller_to_the_engine(traced, counter):
    body = {"model": "fake", "messages": [{"role": "user", "content": "my question"}], "user": "alice"}
    headers = {"traceparent": CALLER.decode()}
    assert counter.client.post("/v1/chat/completions", json=body, headers=headers).status_code == 200
    until(lambda: len(traced.spans) == 2)
    gateway, engine = traced.spans
    assert (gateway["traceId"], gateway["parentSpanId"]) == (CALLER[3:35].decode(), CALLER[36:52].decode())
    [sent] = [one["headers"] for one in counter.engine.seen()["requests"] if one["path"].endswith("/chat/completions")]
    assert sent["traceparent"] == f"00-{gateway['traceId']}-{engine['spanId']}-01"
    text = b"".join(traced.bodies).decode()
    assert not [word for word in (*SECRETS, counter.key) if word in text]

    def is_counted() -> bool:
        found = samples(httpx2.get(f"{counter.url}/metrics").text)
        return found.get("madoguchi_traces_sent_total[]") == 1

    until(is_counted)


def test_without_a_collector_engines_get_no_trace(counter):
    counter.client.post(
        "/v1/chat/completions",
        json={"model": "fake", "messages": [{"role": "user", "content": "hi"}]},
        headers={"traceparent": CALLER.decode()},
    )
    assert not [one for one in counter.engine.seen()["requests"] if "traceparent" in one["headers"]]
