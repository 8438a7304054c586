"""uvicorn's HTTP protocol, with a way past ASGI's `send` for the gateway: `uvicorn --http apiproxy.server:Protocol`.

uvicorn checks every header by two regular expressions and frames every body message; a whole answer takes it 44 µs of
CPU, written straight to the transport 22 µs. All else, Django's pages too, goes through uvicorn as ever. It also ends
what uvicorn waits for without end: a connection on which a request's head does not come.
"""

import asyncio
import json
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from apiproxy.client import EXTENSION, Header, Listener

# Seconds for the head of a request: from the connection for the first one, from its first byte for others.
# As nginx (client_header_timeout).
HEAD_SECONDS = 60.0
# Seconds that a socket's client may leave what was sent to it unread. uvicorn would wait for ever.
UNREAD_SECONDS = 10.0


class DirectClient:
    """A `Client` that writes to the connection of one request."""

    __slots__ = ("_chunked", "_cycle", "_flow", "_listener", "_protocol", "_transport")

    def __init__(self, protocol: "Protocol", cycle: RequestResponseCycle) -> None:
        self._protocol = protocol
        self._transport = protocol.transport
        self._flow = protocol.flow
        self._cycle = cycle
        self._listener: Listener | None = None
        self._chunked = cycle.scope["http_version"] != "1.0"

    @property
    def waiting(self) -> bool:
        return self._flow.write_paused and not self._cycle.disconnected

    def answer(self, status: int, headers: list[Header], body: bytes) -> None:
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

    def deafen(self) -> None:
        self._listener = None
        self._cycle.scope.pop("extensions", None)
        if self._protocol.direct is self:
            self._protocol.direct = None

    async def sent(self) -> None:
        """What the transport holds it sends by itself."""

    def lost(self) -> None:
        if self._listener is not None:
            self._listener.client_left()

    def ready(self) -> None:
        if self._listener is not None:
            self._listener.client_ready()

    def _start(self, status: int, headers: list[Header], rest: bytes) -> None:
        cycle = self._cycle
        if cycle.disconnected:
            return
        cycle.response_started = True
        cycle.waiting_for_100_continue = False
        lines = [STATUS_LINE[status]]
        for name, value in cycle.default_headers:
            lines += (name, b": ", value, b"\r\n")
        for name, value in headers:
            lines += (name, b": ", value, b"\r\n")
        if not cycle.keep_alive:
            lines.append(b"connection: close\r\n")
        lines.append(rest)
        self._transport.write(b"".join(lines))

    def _complete(self) -> None:
        """What uvicorn does after an answer's last message."""
        cycle = self._cycle
        cycle.scope.pop("extensions", None)  # us: or only the garbage collector could free any of this
        if cycle.disconnected:
            return
        cycle.response_complete = True
        cycle.message_event.set()
        if not cycle.keep_alive:
            self._transport.close()
        cycle.on_response()


class Protocol(HttpToolsProtocol):
    """One connection of a client."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.direct: DirectClient | None = None  # of the call under way
        self._late: asyncio.TimerHandle | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._answered_at = 0.0
        self._handed_over = False  # the connection is a WebSocket's from now on

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._late = self.loop.call_later(HEAD_SECONDS, self._too_late)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_timers()
        if self.direct is not None:
            self.direct.lost()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._late is None and self._between_requests() and not self._handed_over:  # some of a head
            self._late = self.loop.call_later(HEAD_SECONDS, self._too_late)

    def handle_websocket_upgrade(self) -> None:
        """uvicorn gives the transport away and tells us of it no more, not even that it was closed."""
        self._handed_over = True
        self._stop_timers()
        super().handle_websocket_upgrade()

    def on_headers_complete(self) -> None:
        self._in_time()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        """As uvicorn's, which makes and cancels a timer for each answer (5 µs). One for a connection does."""
        if self.pipeline or self.transport.is_closing():
            super().on_response_complete()
            return
        self.server_state.total_requests += 1
        self.flow.resume_reading()
        self._answered_at = self.loop.time()
        if self._idle is None:
            self._idle = self.loop.call_later(self.timeout_keep_alive, self._perhaps_idle)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.direct is not None:
            self.direct.ready()

    def send_400_response(self, msg: str) -> None:
        """For what is no HTTP. As an error of `/v1`, where clients look for nothing else."""
        error = {"message": msg, "type": "invalid_request_error", "param": None, "code": "invalid_request"}
        body = json.dumps({"error": error}).encode()
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINE[400] + head + body)
        self.transport.close()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        cycle.scope["extensions"] = {EXTENSION: DirectClient(self, cycle)}  # type: ignore[dict-item]
        super()._start_asgi_task(cycle, app)

    def _should_upgrade(self) -> bool:
        # Not while an answer goes on: nobody would learn that its client left.
        return self._between_requests() and super()._should_upgrade()

    def _between_requests(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _in_time(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _stop_timers(self) -> None:
        self._in_time()
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def _perhaps_idle(self) -> None:
        self._idle = None
        if not self._between_requests():
            return  # the end of the answer begins anew
        left = self._answered_at + self.timeout_keep_alive - self.loop.time()
        if left > 0:
            self._idle = self.loop.call_later(left, self._perhaps_idle)
        elif self._late is None:  # a head that has begun has its own time
            self.timeout_keep_alive_handler()

    def _too_late(self) -> None:
        self._late = None
        if self._between_requests() and not self.transport.is_closing():
            self.transport.close()


class Socket(WebSocketsSansIOProtocol):
    """A connection that became a WebSocket. A client that reads nothing for ten seconds is cut off."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._unread: asyncio.TimerHandle | None = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(UNREAD_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._read()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._read()

    def _read(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
