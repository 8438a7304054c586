"""uvicorn's HTTP protocol, with a way past ASGI's `send` for the gateway.

Used as `uvicorn --http apiproxy.server.protocol:Protocol`.

uvicorn checks every header by two regular expressions and frames every body message; a whole answer takes it 44 µs of
CPU, written straight to the transport 22 µs. All else, Django's pages too, goes through uvicorn as usual.

It also protects the process from clients that have not authenticated: it bounds what uvicorn takes without limit
(heads, requests sent ahead, time), and refuses what a proxy in front may read in another way than we do.
"""

import asyncio
from typing import Any

import httptools
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from apiproxy.dataplane.downstream import EXTENSION, Header, Listener
from apiproxy.dataplane.errors import (
    HeadTooLarge,
    Language,
    Malformed,
    Refusal,
    UnknownTransferCoding,
    UrlTooLong,
    WrongMethod,
)
from apiproxy.dataplane.formats.api_formats import CHAT
from apiproxy.dataplane.formats.requests import ENDPOINTS

# Seconds for the head of a request: from the connection for the first one, from its first byte for others.
# The same as nginx's client_header_timeout.
HEAD_SECONDS = 60.0
# Bounds of a request's head, its fields and its URL. nginx.conf passes on no more.
MAX_HEAD = 65536  # bytes
MAX_FIELDS = 100
MAX_URL = 16384  # bytes
# Requests that may wait on a connection for the answer to the one before.
MAX_WAITING = 4
# Bytes that are parsed at a time where there may be more requests than that. The shortest has 18, and takes 3 KB here.
PIECE = 2048
# Chunks that are parsed at a time. Each costs 2 µs however short it is, and 256 KB that one read brings may be 43,000.
MAX_CHUNKS = 500
VERSIONS = frozenset(("1.1", "1.0"))
# Fields of a head that the server itself obeys.
CHECKED_FIELDS = frozenset((b"expect", b"transfer-encoding"))  # beside `host` and `content-length`
# Bytes of a body that are still read after its answer; if more are missing, the connection ends.
MAX_DRAINED = 1024 * 1024
# Seconds that a connection which ends is still read from.
LINGER_SECONDS = 5.0
# Seconds in which a client must take something of an answer, as nginx (send_timeout).
ANSWER_SECONDS = 60.0
# Where WebSockets are; elsewhere a request for one is ignored.
WEBSOCKET_PATH = b"/ws/"
# Seconds that a socket's client may leave what was sent to it unread. uvicorn would wait for ever.
UNREAD_SECONDS = 10.0


class DirectClient:
    """A `Client` that writes to the connection of one request."""

    __slots__ = ("_chunked", "_cycle", "_flow", "_listener", "_protocol", "_transport", "always")

    def __init__(self, protocol: "Protocol", cycle: RequestResponseCycle) -> None:
        self._protocol = protocol
        self._transport = protocol.transport
        self._flow = protocol.flow
        self._cycle = cycle
        self._listener: Listener | None = None
        self._chunked = cycle.scope["http_version"] != "1.0"
        self.always: list[Header] = []

    def arrived(self) -> bytes | None:
        cycle = self._cycle
        if cycle.more_body or cycle.disconnected:
            return None
        body, cycle.body = bytes(cycle.body), bytearray()
        return body

    @property
    def waiting(self) -> bool:
        return self._flow.write_paused and not self._cycle.disconnected

    def answer(self, status: int, headers: list[Header], body: bytes) -> None:
        if self._cycle.response_started:
            self._give_up()
            return
        length = b"content-length: %d\r\n\r\n" % len(body)
        if self._cycle.scope["method"] == "HEAD":
            body = b""
        self._start(status, headers, length + body)
        self._complete()

    def begin(self, headers: list[Header]) -> None:
        self._start(200, headers, b"transfer-encoding: chunked\r\n\r\n" if self._chunked else b"\r\n")

    def piece(self, body: bytes) -> None:
        if not self._cycle.disconnected:
            self._transport.write(b"%x\r\n%b\r\n" % (len(body), body) if self._chunked else body)

    def chunk(self, framed: bytes, start: int) -> bool:
        if self._cycle.disconnected:
            return False
        self._transport.write(framed if self._chunked else framed[start:-2])
        return self._flow.write_paused

    def last(self, body: bytes) -> None:
        if self._cycle.response_complete:
            return
        if body:
            self.piece(body)
        if self._chunked and not self._cycle.disconnected:
            self._transport.write(b"0\r\n\r\n")
        self._complete()

    def listen(self, listener: Listener) -> None:
        self._listener = listener
        self._protocol.direct = self
        # uvicorn stops reading when a body's last piece is larger than 64 KB, and a connection that is not read from
        # is never seen to close.
        self._flow.resume_reading()
        if self._cycle.disconnected:
            listener.client_left()

    def unsubscribe(self) -> None:
        self._listener = None
        self._cycle.scope.pop("extensions", None)
        if self._protocol.direct is self:
            self._protocol.direct = None

    async def sent(self) -> None:
        """Return at once: the transport sends what it holds by itself."""

    def client_left(self) -> None:
        if self._listener is not None:
            self._listener.client_left()

    def client_ready(self) -> None:
        if self._listener is not None:
            self._listener.client_ready()

    def _give_up(self) -> None:
        """End the connection if the answer that has begun is not complete.

        A second head on it would be read as the answer to the next request, perhaps another person's.
        """
        if not self._cycle.response_complete and not self._cycle.disconnected:
            self._transport.close()

    def _start(self, status: int, headers: list[Header], rest: bytes) -> None:
        cycle = self._cycle
        if cycle.disconnected:
            return
        cycle.response_started = True
        cycle.waiting_for_100_continue = False
        if cycle.more_body and not self._protocol.drains_body:
            cycle.keep_alive = False
        lines = [STATUS_LINE[status]]
        for name, value in cycle.default_headers:
            lines += (name, b": ", value, b"\r\n")
        for name, value in headers:
            lines += (name, b": ", value, b"\r\n")
        for name, value in self.always:
            lines += (name, b": ", value, b"\r\n")
        if not cycle.keep_alive:
            lines.append(b"connection: close\r\n")
        lines.append(rest)
        self._transport.write(b"".join(lines))

    def _complete(self) -> None:
        """Do what uvicorn does after an answer's last message."""
        cycle = self._cycle
        cycle.scope.pop("extensions", None)  # us: otherwise only the garbage collector could free any of this
        if cycle.disconnected:
            return
        cycle.response_complete = True
        cycle.message_event.set()
        if not cycle.keep_alive and not cycle.more_body:
            self._transport.close()
        cycle.on_response()


class Flow(FlowControl):
    """uvicorn's, which resumes reading whenever an application waits for its request's body or its client's leaving.

    While it is `held`, nothing is read even so: some of what has come is not parsed yet.
    """

    held = False

    def hold(self) -> None:
        self.held = True
        self.pause_reading()

    def resume_reading(self) -> None:
        if not self.held:
            super().resume_reading()


class Protocol(HttpToolsProtocol):
    """One connection of a client.

    What it may make us hold: a head of MAX_HEAD bytes, a few requests that wait for the answer to the one before, and
    about as much again that was not parsed. While there is more, nothing is read.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.direct: DirectClient | None = None  # of the call under way
        self._active: RequestResponseCycle | None = None  # the request that is answered; `cycle` is the newest
        self._head_timer: asyncio.TimerHandle | None = None
        self._idle_timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None
        self._answered_at = 0.0
        self._input_closed = False  # nothing more is parsed: a WebSocket has the connection, or it ends
        self._final_error = b""  # ends the connection once the requests before have been answered
        self._pending = bytearray()  # came while enough requests waited, or in too many chunks for one turn of the loop
        self._next_turn: asyncio.Handle | None = None  # goes on with the chunks
        self._progressed = False  # the last bytes ended a head or brought some of a body
        self._bytes_without_progress = 0  # since the parser made progress, with those that are parsed now
        self._host_count = 0  # of the head that comes
        self._length = 0
        self._body_left = 0  # bytes still to come of a body whose length is known; of another at most 0
        self._retiring = False
        self.url = b""

    @property
    def drains_body(self) -> bool:
        """Whether to wait for the rest of the newest request's body after its answer."""
        # A client that waits for 100 (Continue) and got none may send the body or another request.
        return 0 < self._body_left <= MAX_DRAINED and not self.expect_100_continue

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow: Flow = Flow(transport)
        self._answered_at = self.loop.time()
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._on_head_timeout)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._input_closed = True
        self._pending.clear()
        self.pipeline.clear()
        self._stop_timers()
        if self._active is not None:  # uvicorn notifies the newest request only
            report_disconnect(self._active)
        if self.direct is not None:
            self.direct.client_left()

    # --- reading

    def data_received(self, data: bytes) -> None:
        if self._input_closed:
            return
        if self._pending or self.pipeline or self.flow.write_paused or len(data) > PIECE:
            self._receive(data)
        else:  # as nearly always
            self._parse(data)
        if self._head_timer is None and self._between_requests() and not self._input_closed:  # some of a head
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self._on_head_timeout)

    def _receive(self, data: bytes) -> None:
        if self._pending or len(self.pipeline) >= MAX_WAITING or (self.flow.write_paused and self._is_saturated()):
            self._buffer(data)
        else:
            self._feed(data)

    def _is_saturated(self) -> bool:
        """Return whether no further request is parsed for now: others wait, or the client takes no answers."""
        return len(self.pipeline) >= MAX_WAITING or (self.flow.write_paused and self._between_requests())

    def _buffer(self, data: bytes) -> None:
        # Read on while there is room: a connection that is not read from is never seen to close.
        self._pending += data
        if len(self._pending) > MAX_HEAD:
            self.flow.hold()

    def _feed_pending(self) -> None:
        """Go on with what was held back, if it can be parsed now."""
        if self._pending and not self._is_saturated():
            held, self._pending = bytes(self._pending), bytearray()
            self.flow.held = False
            self._feed(held)

    def _on_next_turn(self) -> None:
        self._next_turn = None
        if self._input_closed:
            return
        self._feed_pending()
        # What is more than the application has taken is read when it asks for it.
        if self.cycle is None or len(self.cycle.body) <= HIGH_WATER_LIMIT:
            self.flow.resume_reading()

    def _feed(self, data: bytes) -> None:
        """Give the bytes to the parser, which cannot be stopped between two requests.

        At a time, no more than one request is known to have, or than a few others fit in.
        """
        if len(data) <= PIECE or len(data) <= self._body_left:
            self._parse(data)
            return
        view, at = memoryview(data), 0
        while at < len(data) and not self._input_closed:
            if self._is_saturated() or self._next_turn is not None:
                self._buffer(data[at:])
                return
            size = max(PIECE, self._body_left)
            if self.cycle is not None and self.cycle.more_body and self._body_left <= 0:
                if data.count(b"\r\n", at) > 2 * MAX_CHUNKS:  # others have their turn before the next piece
                    self._next_turn = self.loop.call_soon(self._on_next_turn)
                elif data.count(b"/1.", at) < MAX_WAITING:
                    size = len(data)  # chunks, and hardly a request behind them
            self._parse(view[at : at + size])
            at += size

    def _parse(self, data: bytes | memoryview) -> None:
        self._progressed = False
        self._bytes_without_progress += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._bytes_without_progress = 0
            self._upgrade(bytes(data[upgrade.args[0] :]))
        except httptools.HttpParserError as error:
            cause = error.__context__  # what a callback below raised
            self._refuse(cause if isinstance(cause, Refusal) else Malformed("invalid_request"))
        else:
            if self._progressed:
                self._bytes_without_progress = 0
            elif self._bytes_without_progress > MAX_HEAD or (self.headers and len(self.headers) > MAX_FIELDS):
                self._refuse(HeadTooLarge("headers_too_large"))

    def _upgrade(self, rest: bytes) -> None:
        """Make the connection a WebSocket's; otherwise ignore the upgrade, as RFC 9110 (7.8) allows.

        httptools leaves the body to another protocol and would take it for further requests. So the head is parsed
        again without the field that made it do so: JDK's HttpClient offers h2c with each request over plain HTTP.
        """
        method, names = self.scope["method"], {name for name, _ in self.headers}
        if method == "CONNECT":
            self._refuse(WrongMethod("method_not_allowed", path="CONNECT", method=method))
            return
        bare = not rest and not names & {b"content-length", b"transfer-encoding"}
        if bare and method == "GET" and self.url.startswith(WEBSOCKET_PATH) and self._should_upgrade():
            self.handle_websocket_upgrade()
            return
        version = self.parser.get_http_version()
        lines = [method.encode(), b" ", self.url, b" HTTP/", version.encode(), b"\r\n"]
        for name, value in self.headers:
            if name != b"upgrade":
                lines += (name, b": ", value, b"\r\n")
        lines += (b"\r\n", rest)
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
        self._parse(b"".join(lines))

    def _refuse(self, refusal: Refusal) -> None:
        """Answer a request that we do not accept, after those before it. Nothing further is read."""
        self._input_closed = True
        self._pending.clear()
        self._stop_head_timer()
        words = self._encode_error(refusal)
        cycle = self.cycle
        if cycle is not None and cycle.more_body and not cycle.response_complete:  # something is wrong with its body
            if self.pipeline:
                self.pipeline.popleft()
            elif cycle.response_started:
                self.transport.close()
                return
            else:
                report_disconnect(cycle)
                self._end_connection(words)
                return
        if self._between_requests():
            self._end_connection(words)
        else:
            self._final_error = words

    def _encode_error(self, refusal: Refusal) -> bytes:
        """Return a whole answer, as an error of `/v1`: elsewhere a person reads it just as well."""
        language: Language = "ja" if dict(self.headers or ()).get(b"accept-language", b"").startswith(b"ja") else "en"
        endpoint = ENDPOINTS.get(self.url.partition(b"?")[0].decode("latin-1"))
        body = (endpoint.api_format if endpoint else CHAT).encode_error(refusal, language)
        lines = [STATUS_LINE[refusal.status]]
        for name, value in self.server_state.default_headers:
            lines += (name, b": ", value, b"\r\n")
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        return b"".join([*lines, head, body])

    def _continue(self) -> None:
        """Go on after an answer: with the next request that waits, with what was held back, or with the end."""
        if self.flow.write_paused:
            return  # `resume_writing` calls this again
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        self._feed_pending()
        if self._final_error and self._between_requests():
            self._end_connection(self._final_error)
        else:
            self.flow.resume_reading()

    def _end_connection(self, words: bytes = b"") -> None:
        """End the connection. What the client still sends is read for a moment and dropped.

        If it were closed at once, the system would send the client a reset, and the answer would be lost.
        """
        self._input_closed = True
        self._stop_timers()
        if self.transport.is_closing():
            return
        self.transport.write(words)
        self.transport.write_eof()
        self.flow.held = False
        self.flow.resume_reading()
        self._unread_timer = self.loop.call_later(LINGER_SECONDS, self.transport.abort)

    # --- callbacks of the parser

    def on_url(self, url: bytes) -> None:
        self.url += url
        if len(self.url) > MAX_URL:
            raise UrlTooLong("url_too_long")

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"host":
            self._host_count += 1
        elif name == b"content-length":
            self._length = int(value)
        elif name in CHECKED_FIELDS:
            self._check_field(name, value)
        self.headers.append((name, value))

    def _check_field(self, name: bytes, value: bytes) -> None:
        """Raise Refusal for what several parties on the way might read in several ways."""
        if name == b"expect":
            self.expect_100_continue = value.lower() == b"100-continue"
        elif self.parser.get_http_version() != "1.1":  # it knows no transfer-encoding
            raise Malformed("invalid_request")
        elif value.strip().lower() != b"chunked":
            raise UnknownTransferCoding("transfer_encoding")

    def on_headers_complete(self) -> None:
        self._progressed = True
        self._stop_head_timer()
        version, hosts = self.parser.get_http_version(), self._host_count
        self._body_left, self._length, self._host_count = self._length, 0, 0
        if version not in VERSIONS or hosts > 1 or (hosts == 0 and version == "1.1"):
            raise Malformed("invalid_request")
        # A head may have come in one piece with others before and behind it.
        if (
            self._bytes_without_progress > MAX_HEAD
            and sum(len(name) + len(value) for name, value in self.headers) > MAX_HEAD
        ):
            raise HeadTooLarge("headers_too_large")
        if len(self.headers) > MAX_FIELDS:
            raise HeadTooLarge("headers_too_large")
        if self.parser.should_upgrade():  # done in `_upgrade`, when it is known where the head ends
            self.scope["method"] = self.parser.get_method().decode()
            return
        super().on_headers_complete()
        if self._retiring:
            self.cycle.keep_alive = False
        self.headers = []  # of the trailers from now on: nothing that was checked may change by them

    def on_body(self, body: bytes) -> None:
        self._progressed = True
        self._body_left -= len(body)
        cycle = self.cycle
        if cycle.response_complete:
            return
        cycle.body += body
        if len(cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        cycle.message_event.set()

    def on_message_complete(self) -> None:
        self._progressed = True
        self._body_left = self._length = self._host_count = 0  # also what trailers said
        if self.parser.should_upgrade():
            return
        cycle = self.cycle
        cycle.more_body = False
        if not cycle.response_complete:
            cycle.message_event.set()

    # --- writing

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._active = cycle
        cycle.scope["extensions"] = {EXTENSION: DirectClient(self, cycle)}  # type: ignore[dict-item]
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """Do as uvicorn does, without a timer for each answer (5 µs). One for a connection is enough."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        cycle = self._active
        if cycle is not None and cycle.more_body and not (cycle.keep_alive and self.drains_body):
            self._end_connection()
            return
        if self.pipeline or self._pending or self._final_error or self.flow.write_paused:
            self._continue()
        else:
            self.flow.resume_reading()
        self._answered_at = self.loop.time()
        if self._idle_timer is None and not self._input_closed:
            self._idle_timer = self.loop.call_later(self.timeout_keep_alive, self._check_idle)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._unread_timer is None:
            self._watch_unread()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread_timer is not None and not self._input_closed:
            self._unread_timer.cancel()
            self._unread_timer = None
        if self.direct is not None:
            self.direct.client_ready()
        if self._active is not None and self._active.response_complete:
            self._continue()

    def _watch_unread(self) -> None:
        size = self.transport.get_write_buffer_size()
        self._unread_timer = self.loop.call_later(ANSWER_SECONDS, self._check_unread, size)

    def _check_unread(self, size: int) -> None:
        """End the connection of a client that has taken nothing of its answers. Calls have time-outs of their own."""
        if self.direct is None and self.transport.get_write_buffer_size() >= size:
            self.transport.abort()
        else:
            self._watch_unread()

    def handle_websocket_upgrade(self) -> None:
        """Give the transport to the WebSocket's protocol.

        uvicorn calls us no more for it, not even when it is closed.
        """
        self._input_closed = True
        self._stop_timers()
        super().handle_websocket_upgrade()

    def _should_upgrade(self) -> bool:
        # Not while an answer goes on: its client could leave unnoticed.
        return self._between_requests() and super()._should_upgrade()

    def _between_requests(self) -> bool:
        return not self.pipeline and (self._active is None or self._active.response_complete)

    # --- the end of the process

    def retire(self) -> None:
        """End the connection with the next answer that begins, and say so in its head.

        It is not closed by itself, idle or after an answer that has begun: its client may be sending a call already.
        """
        self._retiring = True
        if self.cycle is not None and not self.cycle.response_started:
            self.cycle.keep_alive = False

    @property
    def idle_seconds(self) -> float:
        """How long ago the last answer ended, or the connection was made; 0.0 while a request comes or is answered."""
        idle = self._between_requests() and self._bytes_without_progress == 0
        return self.loop.time() - self._answered_at if idle else 0.0

    # --- time

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_timers(self) -> None:
        self._stop_head_timer()
        for timer in (self._idle_timer, self._unread_timer):
            if timer is not None:
                timer.cancel()
        self._idle_timer = self._unread_timer = None

    def _check_idle(self) -> None:
        self._idle_timer = None
        if not self._between_requests():
            return  # the end of the answer sets the timer again
        left = self._answered_at + self.timeout_keep_alive - self.loop.time()
        if left > 0:
            self._idle_timer = self.loop.call_later(left, self._check_idle)
        elif self._head_timer is None:  # a head that has begun has its own time
            self._close_idle()

    def _on_head_timeout(self) -> None:
        self._head_timer = None
        if self._between_requests():
            self._close_idle()

    def _close_idle(self) -> None:
        if self.transport.get_write_buffer_size():
            self.transport.abort()  # a client that has not taken an answer by now would keep the connection for ever
        else:
            self.transport.close()


def report_disconnect(cycle: RequestResponseCycle) -> None:
    """Notify a request's application that its client has left."""
    if not cycle.response_complete:
        cycle.disconnected = True
        cycle.message_event.set()


class Socket(WebSocketsSansIOProtocol):
    """A connection that became a WebSocket. A client that reads nothing for ten seconds is cut off."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._unread_timer: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        if self.handshake_initiated and not self.handshake_complete:  # too early: uvicorn would fail at it
            self.transport.abort()
            return
        super().data_received(data)
        if self.conn.handshake_exc is not None and not self.transport.is_closing():
            # A line that is too long for it, or the like. uvicorn would say nothing.
            self.transport.write(STATUS_LINE[400] + b"content-length: 0\r\nconnection: close\r\n\r\n")
            self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread_timer = self.loop.call_later(UNREAD_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_unread_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_unread_timer()

    def _stop_unread_timer(self) -> None:
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None
