"""HTTP/1.1 to the engines: keep-alive connections on asyncio.Protocol and httptools, nothing else.

Answers are pushed: the parser calls the `Receiver` of the request as bytes arrive, without a task or a queue between
(half the CPU per token of a pull-style client, see tests/bench/RESULTS.md). A connection carries one request at a time.
"""

import asyncio
import errno
import ipaddress
import logging
import math
import socket
import ssl
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast
from urllib.parse import urlsplit

import httptools

from apiproxy.dataplane.executor import DaemonExecutor

# llama.cpp and uvicorn close a connection that was idle for 5 s; one that is about to be closed is not worth the risk.
IDLE_SECONDS = 4.0
# An engine's headers are a few hundred bytes. httptools has no bound of its own.
MAX_HEAD = 64 * 1024
# Seconds for which the addresses of a name are kept.
KNOWN_SECONDS = 30.0
# SO_LINGER, on and for no time: closing sends RST and drops unsent bytes.
RESET = struct.pack("ii", 1, 0)

# Sizes of chunks by their heads (RFC 9112, 7.1). An event is a few hundred bytes; larger ones go to the parser.
SIZES = {form % size: size for size in range(1, 0x1000) for form in (b"%x", b"%X")}

# The kernel's errors for a host that is not there.
UNREACHABLE_ERRNOS = frozenset(
    {errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN}
)

Header = tuple[bytes, bytes]
log = logging.getLogger("madoguchi.gateway")
HEAD_TOO_LARGE = "the answer's head is too large"


class UpstreamError(Exception):
    """The engine could not be reached or broke its answer off."""


class Unreachable(UpstreamError):
    """No connection was made; the engine has seen nothing of the request."""


class Broken(UpstreamError):
    """The connection ended before the answer did, or what came was not HTTP.

    `stale`: it was a kept-alive connection that the engine closed before a byte of the answer. Engines close idle
    connections at any time, so the request may be sent again on a fresh one. `lost`: it was none, and the engine had
    the whole request: it closed the connection although it owed an answer, as a dying engine does.
    """

    def __init__(self, message: str, *, stale: bool = False, lost: bool = False) -> None:
        super().__init__(message)
        self.stale = stale
        self.lost = lost


class Receiver(Protocol):
    """Receives one answer: `head` once, `data` and `chunk` any number of times, then `end`; or `failed` at any point.

    Never waits.
    """

    def head(self, status: int, headers: list[Header]) -> None: ...
    def data(self, piece: bytes) -> None: ...
    def chunk(self, framed: bytes, start: int) -> None:
        """Take one whole chunk, with its head and line end: as `data(framed[start:-2])`."""

    def end(self) -> None: ...
    def failed(self, error: UpstreamError) -> None: ...


@dataclass(frozen=True, slots=True)
class Address:
    """Where an engine listens."""

    host: str
    port: int
    tls: bool
    prefix: str  # comes before every path
    host_header: str

    @classmethod
    def parse(cls, url: str) -> "Address":
        parts = urlsplit(url)
        tls = parts.scheme == "https"
        host = parts.hostname or ""
        return cls(
            host, parts.port or (443 if tls else 80), tls, parts.path.rstrip("/"), parts.netloc.rpartition("@")[2]
        )


class Connection(asyncio.Protocol):
    """One connection of a pool."""

    def __init__(self, pool: "Pool") -> None:
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._receiver: Receiver | None = None
        self._headers: list[Header] = []
        self._head_size = 0
        self._bytes_without_body = 0  # since the last of the body
        self._has_length = False  # the head says where the body ends
        self._informational = False
        self._until_close = False
        self._answered = False
        self._body_pieces: list[bytes] = []  # of the body, by the parser, in this read
        self._fault: Exception | None = None
        self._paused = False
        self._between_chunks = False  # all that the parser has seen ends with a chunk of the body
        self._body_pending = False  # a request is under way whose body is not all written
        self._writable: asyncio.Future[None] | None = None  # ends when there is room for more of the body
        self._answer_count = 0  # answers that this connection has carried
        self.idle_since = 0.0

    # --- for the caller

    def request(self, data: bytes, receiver: Receiver) -> None:
        """Send a whole request (head and body); the answer goes to the receiver."""
        assert self._receiver is None
        assert self._transport is not None
        self._receiver = receiver
        if self._parser is None:
            self._parser = httptools.HttpResponseParser(self)
        self._answered = self._between_chunks = False
        self._bytes_without_body = 0
        self._fault = None
        self._transport.write(data)

    def expect_body(self) -> None:
        """Note that the request just sent was only a head: its body follows with `write`, up to `finish_body`."""
        self._body_pending = True

    async def write(self, piece: bytes) -> None:
        """Send a piece of the body; return when the engine has taken enough of it for another, or is gone."""
        if self._receiver is None or self._transport is None or not self.usable:
            return  # answered before the body's end, broken off or given up: the receiver knows
        self._transport.write(piece)
        if self._writable is not None:
            await self._writable

    def finish_body(self) -> None:
        self._body_pending = False

    def abort(self) -> None:
        """Close at once, so that the engine stops generating. The receiver gets nothing more."""
        self._receiver = None
        if self._transport is None:
            return
        if self._body_pending and (sock := self._transport.get_extra_info("socket")) is not None:
            # Reset: an engine that has stopped reading would never reach an end behind the body.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self._transport.abort()

    def pause(self) -> None:
        """Read no more until `resume`, so that a slow client slows the engine instead of filling our memory."""
        if self._transport is not None and self.usable and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._transport is not None and self.usable and self._paused:
            self._paused = False
            self._transport.resume_reading()

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    # --- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's has all of its methods, not its base class

    def data_received(self, data: bytes) -> None:
        if self._receiver is None:  # no request is under way
            self.abort()
            return
        if self._between_chunks:
            # Engines send a token as one chunk in one piece. The parser would find the same (5 of 30 µs per token) and
            # need not know: it waits for a chunk's head before and after.
            head = data.find(b"\r\n", 1, 5)
            if len(data) - head - 4 == SIZES.get(data[:head]) and data.endswith(b"\r\n"):
                try:
                    self._receiver.chunk(data, head + 2)
                except Exception as error:  # noqa: BLE001 - see _fail_receiver
                    self._fail_receiver(error)
                return
        self._parse(data)
        if self._fault is not None:
            self._fail_receiver(self._fault)

    def _parse(self, data: bytes) -> None:
        self._answered = True
        assert self._parser is not None
        # httptools joins each piece of a header line to the pieces before, again and again.
        if self._bytes_without_body > MAX_HEAD:
            self._fault = Broken(HEAD_TOO_LARGE)
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._deliver()
            self._fail(Broken(f"not HTTP: {error}"))
        self._bytes_without_body = 0 if self._body_pieces else self._bytes_without_body + len(data)
        self._deliver()
        if self._between_chunks and not data.endswith(b"\r\n"):  # some of the next chunk's head
            self._between_chunks = False

    def pause_writing(self) -> None:
        self._writable = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        writable, self._writable = self._writable, None
        if writable is not None and not writable.done():
            writable.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.resume_writing()
        self._pool.forget(self)
        if self._receiver is None:
            return
        if self._until_close and exc is None:
            self._finish()
            if self._fault is not None:
                self._fail_receiver(self._fault)
        else:
            stale = self._answer_count > 0 and not self._answered
            # A host that can no longer be reached says nothing about its engine.
            lost = not stale and not self._body_pending and not is_unreachable(exc)
            self._fail(Broken("the engine closed the connection", stale=stale, lost=lost))

    # --- httptools. No callback raises: httptools would report it as an error in the engine's bytes.

    def on_message_begin(self) -> None:
        self._headers = []
        self._head_size = 0
        self._has_length = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_size += len(name) + len(value)
        if self._head_size > MAX_HEAD:
            self._fault = Broken(HEAD_TOO_LARGE)
            return
        name = name.lower()
        if name == b"content-length" or name == b"transfer-encoding":
            self._has_length = True
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        status = self._parser.get_status_code()
        self._informational = status < 200
        if status < 100 or status == 101:  # no answer would follow: another protocol was not asked for
            self._fault = Broken(f"status {status}")
        if self._informational or self._receiver is None or self._fault is not None:
            return
        self._until_close = not self._has_length and status not in (204, 304)
        try:
            self._receiver.head(status, self._headers)
        except Exception as error:  # noqa: BLE001 - see _fail_receiver
            self._fault = error

    def on_body(self, piece: bytes) -> None:
        self._body_pieces.append(piece)

    def on_chunk_header(self) -> None:
        self._between_chunks = False

    def on_chunk_complete(self) -> None:
        self._between_chunks = True

    def on_message_complete(self) -> None:
        self._between_chunks = False
        self._deliver()
        if not self._informational:
            self._finish()

    def _deliver(self) -> None:
        """Deliver what one read brought of the body at once: a burst of tokens is one write to the client."""
        pieces, self._body_pieces = self._body_pieces, []
        if not pieces or self._receiver is None or self._fault is not None:
            return
        try:
            self._receiver.data(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        except Exception as error:  # noqa: BLE001 - see _fail_receiver
            self._fault = error

    # --- ends

    def _finish(self) -> None:
        receiver = self._receiver
        if receiver is None or self._fault is not None:
            return
        try:
            receiver.end()
        except Exception as error:  # noqa: BLE001 - see _fail_receiver
            self._fault = error
            return
        assert self._parser is not None
        self._receiver = None
        self._answer_count += 1
        if self._body_pending:  # the engine would take what follows for the rest of the body
            self.abort()
        elif self.usable and not self._until_close and self._parser.should_keep_alive():
            self.resume()
            self._pool.put_back(self)
        elif self._transport is not None:
            self._transport.close()

    def _fail_receiver(self, error: Exception) -> None:
        """End the call of a receiver that raised this; otherwise its client would wait for ever."""
        if isinstance(error, UpstreamError):
            self._fail(error)
            return
        log.error("an answer could not be passed on", exc_info=error)
        self._fail(Broken("the answer could not be passed on"))

    def _fail(self, error: UpstreamError) -> None:
        receiver, self._receiver = self._receiver, None
        if self._transport is not None:
            self._transport.abort()
        if receiver is not None:
            receiver.failed(error)


def is_unreachable(error: Exception | None) -> bool:
    """Return whether a connection ended because its other end no longer answered."""
    return isinstance(error, TimeoutError) or (isinstance(error, OSError) and error.errno in UNREACHABLE_ERRNOS)


class HostAddresses:
    """The addresses behind one name.

    Each name has a thread of its own: a name server that says nothing for a minute holds up calls to this name and no
    others. (The loop has four threads for all names.) The known addresses are used while the name is looked up again.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._addresses = [name] if is_address(name) else []
        self._valid_until = math.inf if self._addresses else 0.0
        self._thread: DaemonExecutor | None = None
        self._lookup: asyncio.Future[list[str]] | None = None

    async def resolve(self, now: float) -> list[str]:
        """Return the addresses in the order of preference; `now` by the loop's clock. Raises OSError."""
        if now >= self._valid_until and self._lookup is None:
            self._thread = self._thread or DaemonExecutor("names")
            self._lookup = asyncio.get_running_loop().run_in_executor(self._thread, resolve_name, self._name)
            self._lookup.add_done_callback(self._on_resolved)
        if self._addresses or self._lookup is None:
            return self._addresses
        return await asyncio.shield(self._lookup)

    def invalidate(self) -> None:
        """Forget the addresses, because none of them answers: they are looked up before the next use."""
        if self._valid_until != math.inf:
            self._addresses, self._valid_until = [], 0.0

    def close(self) -> None:
        if self._thread is not None:
            self._thread.shutdown(wait=False)

    def _on_resolved(self, lookup: "asyncio.Future[list[str]]") -> None:
        self._lookup = None
        if not lookup.cancelled() and lookup.exception() is None:
            self._addresses = lookup.result()
            self._valid_until = lookup.get_loop().time() + KNOWN_SECONDS


def resolve_name(name: str) -> list[str]:
    """Ask the system's resolver. Blocks; raises OSError."""
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def enable_keepalive(connection: socket.socket) -> None:
    """Let the kernel ask after 15 s of silence whether the other end is still there, and again every 5 s.

    An engine that thinks is silent for minutes; a host that lost its power is silent for ever.
    """
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in ((socket.TCP_KEEPIDLE, 15), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3)):
        connection.setsockopt(socket.IPPROTO_TCP, option, value)


class Pool:
    """Connections to one engine. Not bounded: limits and the engine's own queue decide how many calls it takes."""

    def __init__(self, address: Address, clock: Callable[[], float]) -> None:
        """Prepare a pool without connections. `clock` gives seconds, as time.monotonic."""
        self.address = address
        self._clock = clock
        self._idle: dict[Connection, None] = {}
        self._tls = ssl.create_default_context() if address.tls else None
        self._hosts = HostAddresses(address.host)

    def take_idle(self, now: float) -> Connection | None:
        """Return a kept-alive connection, the most recently used first; None if there is none.

        `now` by the pool's clock.
        """
        while self._idle:
            connection, _ = self._idle.popitem()
            if connection.usable and now - connection.idle_since < IDLE_SECONDS:
                return connection
            connection.abort()
        return None

    async def addresses(self, now: float) -> list[str]:
        """Return the addresses of the engine's host; `now` by the loop's clock. Raises OSError."""
        return await self._hosts.resolve(now)

    async def connect(self, patience: float) -> Connection:
        """Return a new connection; wait at most `patience` seconds. Raises Unreachable."""
        loop = asyncio.get_running_loop()
        address = self.address
        name = address.host if address.tls else None
        failure: Exception | None = None
        try:
            async with asyncio.timeout(patience):
                hosts = await self._hosts.resolve(loop.time())
                for host in hosts:
                    try:
                        async with asyncio.timeout(patience / len(hosts)):
                            transport, connection = await loop.create_connection(
                                lambda: Connection(self), host, address.port, ssl=self._tls, server_hostname=name
                            )
                    except (OSError, TimeoutError) as error:
                        failure = error
                    else:
                        enable_keepalive(transport.get_extra_info("socket"))
                        return connection
        except (OSError, TimeoutError) as error:
            failure = error
        self._hosts.invalidate()
        raise Unreachable(str(failure) or f"no connection within {patience:g} s") from failure

    def sweep(self, now: float) -> None:
        """Close connections that were idle for too long to be used again. Call it about once a second."""
        while self._idle:
            oldest = next(iter(self._idle))  # they are in the order in which they became idle
            if now - oldest.idle_since < IDLE_SECONDS:
                return
            del self._idle[oldest]
            oldest.abort()

    def put_back(self, connection: Connection) -> None:
        connection.idle_since = self._clock()
        self._idle[connection] = None

    def forget(self, connection: Connection) -> None:
        self._idle.pop(connection, None)

    def close(self) -> None:
        """Close idle connections; those in use end with their answers."""
        self._hosts.close()
        idle, self._idle = self._idle, {}
        for connection in idle:
            connection.abort()
