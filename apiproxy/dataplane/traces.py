"""Traces of calls for an OpenTelemetry collector: a span of the gateway and one of the engine for each call.

Off unless a collector is set. A span has times, the model, the endpoint, tokens and the tenant's number; nothing of
people, keys, addresses, prompts or answers. It is made from what is metered when a call has ended, and sent by a thread
as OTLP in JSON: OpenTelemetry's own library makes its spans within the call, and brings a dozen packages. While the
collector is away spans are dropped and counted; no call waits for it.
"""

import logging
import re
import secrets
import threading
import urllib.request
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPException
from typing import Any

import orjson

from apiproxy.dataplane.usage_events import Usage

log = logging.getLogger("madoguchi.gateway")

HEADER = b"traceparent"
# Version 00 of W3C's Trace Context. Callers with another one get a trace of their own.
TRACEPARENT = re.compile(rb"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
NO_TRACE, NO_SPAN = "0" * 32, "0" * 16
MOST_WAITING = 4096  # calls; 2,000 a second between two sendings
SPANS = 2  # of each call
BATCH = 50  # calls of one request: their spans are made in about 2 ms
EVERY = 2.0  # seconds between two sendings
PATIENCE = 5.0  # seconds that the collector has for one
LAST = 1.0  # seconds that it has for what waits when the gateway ends
MOST_ANSWER = 64 * 1024  # bytes of an answer that are read
SERVER, CLIENT = 2, 3  # kinds of spans
ERROR = 2  # status
OPERATIONS = {
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
    "/v1/audio/transcriptions": "transcription",
    "/v1/rerank": "rerank",
    "/v1/score": "score",
}
# What ended well, as far as the gateway and the engine are concerned.
WELL = frozenset({"finished", "looped", "aborted"})

# Returns how many spans of a body the collector took, but rejected.
Send = Callable[[bytes], int]


@dataclass(frozen=True, slots=True)
class TraceContext:
    """Of one call. `parent`: the caller's span, "" for none. `sampled`: its spans are to be sent."""

    trace: str
    span: str  # of the gateway
    engine_span: str
    parent: str
    sampled: bool

    @property
    def traceparent(self) -> str:
        """The header for the engine."""
        return f"00-{self.trace}-{self.engine_span}-{'01' if self.sampled else '00'}"


@dataclass(frozen=True, slots=True)
class EndedCall:
    """What spans are made of. `asked`: the name by which the caller called the model."""

    context: TraceContext
    usage: Usage
    asked: str


def read_trace(headers: Mapping[bytes, bytes]) -> TraceContext:
    """Return the trace of a call: the caller's, if it sent one that can be read, else a new one."""
    found = TRACEPARENT.fullmatch(headers.get(HEADER, b""))
    own = secrets.token_hex(32)
    if found is None:
        return TraceContext(own[:32], own[32:48], own[48:], "", True)
    trace, parent, flags = (group.decode() for group in found.groups())
    if trace == NO_TRACE or parent == NO_SPAN:
        return TraceContext(own[:32], own[32:48], own[48:], "", True)
    return TraceContext(trace, own[32:48], own[48:], parent, bool(int(flags, 16) & 1))


class TraceExporter:
    """Sends spans in batches from a thread of its own."""

    def __init__(self, send: Send, resource: Mapping[str, str], *, every: float = EVERY) -> None:
        """Have `send` take bodies; it may block for PATIENCE, and raises OSError for a collector that is away."""
        # Calls so far. The first is written by the event loop's thread, the others with the lock.
        self._refused = self._sent = self._lost = 0
        self._in_hand = 0  # calls that are being sent
        self._lock = threading.Lock()
        self._taken = (0, 0)
        self._send = send
        self._resource = {"attributes": encode_attributes(resource)}
        self._every = every
        self._waiting: deque[EndedCall] = deque()
        self._ending = threading.Event()
        self._is_away = False
        self._thread = threading.Thread(target=self._run, name="traces", daemon=True)
        self._thread.start()

    def note(self, context: TraceContext, usage: Usage, asked: str) -> None:
        """Have the spans of a call that has ended sent, if its caller wants that and there is room."""
        if not context.sampled:
            return
        if len(self._waiting) >= MOST_WAITING:
            self._refused += 1
        else:
            self._waiting.append(EndedCall(context, usage, asked))

    def take_counts(self) -> tuple[int, int]:
        """Return how many calls' spans were sent and dropped since this was last asked."""
        sent, dropped = self._sent, self._refused + self._lost
        before, self._taken = self._taken, (sent, dropped)
        return sent - before[0], dropped - before[1]

    def close(self, patience: float = LAST) -> None:
        """Have what waits sent; block for at most `patience` seconds, and count the rest as dropped."""
        self._ending.set()
        self._thread.join(patience)
        with self._lock:
            self._lost += self._in_hand + len(self._waiting)
            self._in_hand = 0
            self._waiting.clear()

    def _run(self) -> None:
        while not self._ending.wait(self._every):
            self._take_turn()
        self._take_turn()

    def _take_turn(self) -> None:
        try:
            self._send_all()
        except Exception:
            log.exception("traces of calls are dropped, as they could not be sent")
            self._settle(dropped=BATCH)

    def _send_all(self) -> None:
        while calls := self._take_batch():
            try:
                rejected = self._send(encode_spans(calls, self._resource))
            except (OSError, ValueError, HTTPException) as error:  # the last two: an address or an answer that is none
                self._settle(dropped=BATCH)
                self._note_away(error)
                return  # what waits is tried at the next turn
            self._settle(dropped=-(-rejected // SPANS))
            self._is_away = False

    def _take_batch(self) -> list[EndedCall]:
        with self._lock:
            calls = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
            self._in_hand = len(calls)
        return calls

    def _settle(self, *, dropped: int) -> None:
        """Count the calls in hand, so many of them as dropped; none is left of those that `close` has counted."""
        with self._lock:
            dropped = max(0, min(dropped, self._in_hand))
            self._lost += dropped
            self._sent += self._in_hand - dropped
            self._in_hand = 0

    def _note_away(self, error: Exception) -> None:
        if not self._is_away:
            log.warning("the collector takes no traces, they are dropped until it does: %s", error)
        self._is_away = True


class NoRedirects(urllib.request.HTTPRedirectHandler):
    """Makes an error of a redirect: urllib would follow it with a GET, which carries no spans."""

    def redirect_request(self, *_: Any) -> None:
        return None


def make_sender(endpoint: str) -> Send:
    """Return what posts to a collector's OTLP endpoint (`http://host:4318`), without proxies or redirects."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), NoRedirects)
    url = endpoint.rstrip("/") + "/v1/traces"

    def send(body: bytes) -> int:
        request = urllib.request.Request(url, data=body, headers={"content-type": "application/json"})  # noqa: S310
        with opener.open(request, timeout=PATIENCE) as response:
            if response.status != HTTPStatus.OK:
                raise OSError(f"it answered {response.status}")
            return read_rejected(response.read(MOST_ANSWER))

    return send


def read_rejected(answer: bytes) -> int:
    """Return how many spans a collector says that it has rejected; 0 for an answer that does not say it."""
    try:
        return int(orjson.loads(answer)["partialSuccess"]["rejectedSpans"])  # a text, as OTLP has numbers of 64 bits
    except (ValueError, KeyError, TypeError, OverflowError):
        return 0


def encode_spans(calls: Sequence[EndedCall], resource: Mapping[str, Any]) -> bytes:
    """Return the body of a request to the collector."""
    spans = [span for call in calls for span in make_spans(call)]
    scoped = {"scope": {"name": "madoguchi.gateway"}, "spans": spans}
    return orjson.dumps({"resourceSpans": [{"resource": resource, "scopeSpans": [scoped]}]})


def make_spans(call: EndedCall) -> list[dict[str, Any]]:
    """Return the spans of a call: the gateway's, from when it came, and the engine's, from when it was its turn."""
    context, usage = call.context, call.usage
    began = usage.started - ((usage.queued_ms or 0) + (usage.loading_ms or 0)) / 1000
    ended = usage.started + usage.duration_ms / 1000
    operation = OPERATIONS.get(usage.endpoint, "chat")
    common = {
        "gen_ai.operation.name": operation,
        "gen_ai.request.model": call.asked,
        "gen_ai.response.model": usage.model,
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.output_tokens": usage.completion_tokens,
    }
    gateway = {
        **common,
        "http.request.method": "POST",
        "http.route": usage.endpoint,
        "madoguchi.request.id": usage.request_id,
        "madoguchi.tenant.id": usage.tenant,
        "madoguchi.queue.seconds": (usage.queued_ms or 0) / 1000,
        "madoguchi.loading.seconds": (usage.loading_ms or 0) / 1000,
        "madoguchi.status": usage.status,
    }
    engine = {**common, "gen_ai.provider.name": usage.engine.partition(" ")[0] or "unknown"}
    engine |= {"madoguchi.engine": usage.engine, "madoguchi.retries": usage.retries or 0}
    first = []
    if usage.first_token_ms is not None:
        gateway["madoguchi.first_token.seconds"] = usage.first_token_ms / 1000
        at = usage.started + usage.first_token_ms / 1000
        first = [{"name": "first token", "timeUnixNano": to_nanoseconds(at)}]
    status: dict[str, Any] = {}
    if usage.status not in WELL:
        status = {"code": ERROR, "message": usage.status}
        gateway["error.type"] = engine["error.type"] = usage.stopped_by or usage.status
    name = f"{operation} {usage.model}"
    span = {"traceId": context.trace, "name": name, "status": status, "endTimeUnixNano": to_nanoseconds(ended)}
    return [
        {
            **span,
            "spanId": context.span,
            "parentSpanId": context.parent,
            "kind": SERVER,
            "startTimeUnixNano": to_nanoseconds(began),
            "attributes": encode_attributes(gateway),
            "events": first,
        },
        {
            **span,
            "spanId": context.engine_span,
            "parentSpanId": context.span,
            "kind": CLIENT,
            "startTimeUnixNano": to_nanoseconds(usage.started),
            "attributes": encode_attributes(engine),
        },
    ]


def to_nanoseconds(seconds: float) -> str:
    """Return Unix nanoseconds as OTLP's JSON has numbers of 64 bits: as a text."""
    return str(round(seconds * 1e6) * 1000)


def encode_attributes(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"key": name, "value": _encode_value(value)} for name, value in values.items()]


def _encode_value(value: str | int | float) -> dict[str, Any]:
    if isinstance(value, int):
        return {"intValue": str(value)}
    return {"doubleValue": value} if isinstance(value, float) else {"stringValue": value}
