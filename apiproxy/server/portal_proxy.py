"""Pages: what is not the gateway's own is handed to the portal's processes over a Unix socket, and their answers back.

A gateway's process renders nothing, so no page makes a token wait (p99 of 300 streams while browsers click: 270 ms in
one process). Behind nginx the portal is asked directly and this is not used; on one port without nginx a page costs the
gateway some 0.3 ms. `PortalProxy` is for requests, `Tunnel` for WebSockets.

The portal receives the address of the caller's connection in PEER, which it believes on this socket alone.
"""

import asyncio
import logging
import os
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

from uvicorn.config import Config
from uvicorn.server import ServerState

from apiproxy.dataplane.downstream import Header, Message, Receive, Scope, Send
from apiproxy.dataplane.upstream import Address, Broken, Connection, Pool, Unreachable, UpstreamError

log = logging.getLogger("madoguchi.pages")

PEER = b"x-madoguchi-peer"
# Where a WebSocket's connection finds the portal: a member of ASGI's `state`, which the lifespan fills.
STATE = "madoguchi.portal"
CONNECT_SECONDS = 5.0  # the portal's socket has a queue: even one that restarts takes connections
ANSWER_SECONDS = 300.0  # from a request to its answer's head, and between two pieces of it
MAX_BUFFERED = 256 * 1024  # bytes of an answer that wait for a slow browser
UNREAD_SECONDS = 10.0  # a browser that takes nothing more of a socket that has ended is cut off then
SAFE = frozenset(("GET", "HEAD", "OPTIONS"))
# RFC 9110, 7.6.1: of one connection alone. `expect` is answered by the server that reads the body.
HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"expect")
)

UNAVAILABLE = """<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Madoguchi</title><body style="font-family:system-ui,sans-serif;margin:4rem auto;max-width:32rem;padding:0 1rem">
<p lang="ja">ポータルを再起動しています。数秒後にもう一度お試しください。API は通常どおり利用できます。</p>
<p lang="en">The portal is restarting. Try again in a few seconds. The API works as usual.</p>
""".encode()


class PortalPool(Pool):
    """Connections to the portal's Unix socket."""

    def __init__(self, path: str, clock: Callable[[], float]) -> None:
        super().__init__(Address("portal", 0, False, "", "portal"), clock)
        self._path = path

    async def connect(self, patience: float) -> Connection:
        try:
            async with asyncio.timeout(patience):
                loop = asyncio.get_running_loop()
                _, connection = await loop.create_unix_connection(lambda: Connection(self), self._path)
        except (OSError, TimeoutError) as error:
            raise Unreachable(str(error)) from error
        return connection


class PortalProxy:
    """An ASGI application for HTTP in front of the portal's socket at `path`."""

    def __init__(self, path: Path) -> None:
        self.socket = short_socket_path(path)
        self._pool: PortalPool | None = None  # made in the loop that serves

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._pool is None:
            self._pool = PortalPool(self.socket, asyncio.get_running_loop().time)
        request = _Request(scope, receive, send)
        try:
            await request.run(self._pool)
        except UpstreamError as error:
            log.warning("the portal does not answer: %s", error)
            if not request.begun:
                await _send_unavailable(send)
            # Otherwise uvicorn closes the connection: the answer is incomplete.

    def close(self) -> None:
        if self._pool is not None:
            self._pool.close()


class _Request:
    """One request for the portal. A `Receiver` of its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._head_only = scope["method"] == "HEAD"
        self._events: deque[Message | UpstreamError] = deque()
        self._buffered_bytes = 0
        self._more = asyncio.Event()
        self._connection: Connection | None = None
        self.begun = False  # the client has had some of the answer

    async def run(self, pool: PortalPool) -> None:
        """Return when the answer has gone out or the client has left. Raise UpstreamError."""
        head, body = build_request_head(self._scope)
        # A request with a body cannot be sent twice, and one that changes something must not be (RFC 9110, 9.2.2). So
        # neither gets a connection that the portal may just be closing.
        once = body or self._scope["method"] not in SAFE
        kept = None if once else pool.take_idle(asyncio.get_running_loop().time())
        try:
            await self._attempt(kept or await pool.connect(CONNECT_SECONDS), head, body)
        except Broken as error:
            if not error.stale or self.begun:
                raise
            self._events.clear()
            await self._attempt(await pool.connect(CONNECT_SECONDS), head, body)

    async def _attempt(self, connection: Connection, head: bytes, body: bool) -> None:
        self._connection = connection
        connection.request(head, self)
        if body:
            connection.expect_body()
        reading = asyncio.create_task(self._pass_body(connection, body))
        try:
            await self._pass_answer()
        finally:
            if self._connection is not None:  # otherwise it has carried the whole answer, and may carry another by now
                self._connection.abort()
                self._connection = None
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _pass_body(self, connection: Connection, more: bool) -> None:
        """Pass on the request's body, no quicker than the portal takes it; then wait until the client leaves."""
        chunked = b"content-length" not in dict(self._scope["headers"])
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                break
            piece, more = message.get("body", b""), message.get("more_body", False)
            if piece:
                await connection.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            if not more:
                await connection.write(b"0\r\n\r\n" if chunked else b"")
                connection.finish_body()
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._put({"type": "left"})

    async def _pass_answer(self) -> None:
        while True:
            while not self._events:
                self._more.clear()
                try:
                    async with asyncio.timeout(ANSWER_SECONDS):
                        await self._more.wait()
                except TimeoutError as error:
                    raise Broken("the portal took too long") from error
            event = self._events.popleft()
            if isinstance(event, UpstreamError):
                raise event
            if event["type"] == "left":
                return
            self.begun = True
            await self._send(event)
            if not self._note_sent(event):
                return

    def _note_sent(self, event: Message) -> bool:
        """Count what the client has just taken; return whether more follows."""
        self._buffered_bytes -= len(event.get("body", b""))
        if self._buffered_bytes <= MAX_BUFFERED and self._connection is not None:
            self._connection.resume()
        return event["type"] == "http.response.start" or bool(event["more_body"])

    def _put(self, event: Message | UpstreamError) -> None:
        self._events.append(event)
        self._more.set()

    # --- Receiver

    def head(self, status: int, headers: list[Header]) -> None:
        kept = [(name, value) for name, value in headers if name not in HOP and name != b"date"]
        self._put({"type": "http.response.start", "status": status, "headers": kept})
        if self._head_only:  # the parser would wait for the body of which the head speaks
            self._put({"type": "http.response.body", "body": b"", "more_body": False})

    def data(self, piece: bytes) -> None:
        self._buffered_bytes += len(piece)
        if self._buffered_bytes > MAX_BUFFERED and self._connection is not None:
            self._connection.pause()
        self._put({"type": "http.response.body", "body": piece, "more_body": True})

    def chunk(self, framed: bytes, start: int) -> None:
        self.data(framed[start:-2])

    def end(self) -> None:
        self._connection = None
        self._put({"type": "http.response.body", "body": b"", "more_body": False})

    def failed(self, error: UpstreamError) -> None:
        self._connection = None
        self._put(error)


def build_request_head(scope: Scope) -> tuple[bytes, bool]:
    """Return the head of the same request for the portal, and whether a body follows it."""
    target = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
    lines = [b"%b %b HTTP/1.1" % (scope["method"].encode(), target), format_peer_line(scope.get("client"))]
    body = False
    for name, value in scope["headers"]:
        body = body or name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
        if name not in HOP and name != PEER:
            lines.append(b"%b: %b" % (name, value))
    if body and b"content-length" not in dict(scope["headers"]):
        lines.append(b"transfer-encoding: chunked")
    return b"\r\n".join(lines) + b"\r\n\r\n", body


def format_peer_line(client: tuple[str, int] | None) -> bytes:
    return b"%b: %b" % (PEER, (client[0] if client else "").encode())


def short_socket_path(path: Path) -> str:
    """Return a path by which a socket can be bound or connected to, however long its own is.

    The kernel takes 107 bytes; through the descriptor of its directory, which stays open, any path is short enough.
    """
    if len(os.fsencode(path)) <= 107:
        return str(path)
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    return f"/proc/self/fd/{directory}/{path.name}"


async def _send_unavailable(send: Send) -> None:
    headers = [
        (b"content-type", b"text/html; charset=utf-8"),
        (b"content-length", b"%d" % len(UNAVAILABLE)),
        (b"retry-after", b"5"),
        (b"cache-control", b"no-store"),
    ]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": UNAVAILABLE})


class Tunnel(asyncio.Protocol):
    """A connection that became a WebSocket, joined to the portal's: bytes go on both ways as they come.

    uvicorn's `ws` class for gateways. It is given the head of the request as if it had just arrived. Until the portal
    has agreed it gets nothing but that: bytes that the portal does not take for a WebSocket's it would take for further
    requests, whose senders could put any address into PEER.
    """

    def __init__(self, config: Config, server_state: ServerState, app_state: dict[str, Any]) -> None:
        self._connections = server_state.connections
        self._path: str = app_state[STATE]
        self._browser: asyncio.Transport | None = None
        self._portal: asyncio.Transport | None = None
        self._head = b""
        self._upgraded = False  # the portal speaks WebSocket from now on
        self._joining: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._browser = cast(asyncio.Transport, transport)
        self._connections.add(self)  # type: ignore[arg-type]  # the server closes it like any other connection
        self._joining = asyncio.get_running_loop().create_task(self._join())

    def data_received(self, data: bytes) -> None:
        if self._upgraded:
            if self._portal is not None:
                self._portal.write(data)
            return
        assert self._browser is not None
        if self._head:  # no client may send more before it is answered (RFC 6455, 4.1)
            self._browser.abort()
            return
        # Only we may name the caller's address.
        first, _, rest = data.partition(b"\r\n")
        kept = [line for line in rest.split(b"\r\n") if line.partition(b":")[0].lower() != PEER]
        client = self._browser.get_extra_info("peername")
        self._head = b"\r\n".join([first, format_peer_line(client if isinstance(client, tuple) else None), *kept])

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        self._browser = None
        if self._joining is not None:
            self._joining.cancel()
        if self._portal is not None:
            self._portal.close()

    def pause_writing(self) -> None:
        if self._portal is not None:
            self._portal.pause_reading()

    def resume_writing(self) -> None:
        if self._portal is not None:
            self._portal.resume_reading()

    def shutdown(self) -> None:
        """Close the connection, because the server stops."""
        if self._browser is not None:
            self._browser.close()

    async def _join(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                transport, _ = await loop.create_unix_connection(partial(_PortalSide, self), self._path)
        except (OSError, TimeoutError) as error:
            log.warning("the portal does not answer: %s", error)
            self.portal_lost()
            return
        if self._browser is None:
            transport.close()
            return
        self._portal = transport
        transport.write(self._head)

    # --- of the portal's side

    def from_portal(self, data: bytes) -> None:
        if self._browser is not None:
            self._upgraded = self._upgraded or data.startswith(b"HTTP/1.1 101 ")
            self._browser.write(data)

    def portal_lost(self) -> None:
        self._portal = None
        if self._browser is not None:
            self._browser.close()
            # A browser that reads nothing could keep a closing connection open for ever.
            asyncio.get_running_loop().call_later(UNREAD_SECONDS, self._browser.abort)

    def portal_full(self) -> None:
        if self._browser is not None:
            self._browser.pause_reading()

    def portal_ready(self) -> None:
        if self._browser is not None and not self._browser.is_closing():
            self._browser.resume_reading()


class _PortalSide(asyncio.Protocol):
    """The other end of a tunnel."""

    def __init__(self, tunnel: Tunnel) -> None:
        self._tunnel = tunnel

    def data_received(self, data: bytes) -> None:
        self._tunnel.from_portal(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._tunnel.portal_lost()

    def pause_writing(self) -> None:
        self._tunnel.portal_full()

    def resume_writing(self) -> None:
        self._tunnel.portal_ready()
