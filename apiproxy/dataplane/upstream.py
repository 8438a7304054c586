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
# Seconds for which the addresses of a name are taken as they were.
KNOWN_SECONDS = 30.0
# SO_LINGER, on and for no time: closing sends RST and drops what is not sent yet.
RESET = struct.pack("ii", 1, 0)

# Of chunks, by their heads (RFC 9112, 7.1). An event is a few hundred bytes; a larger one is the parser's.
SIZES = {form % size: size for size in range(1, 0x1000) for form in (b"%x", b"%X")}

# What the kernel says of a host that is not there.
NO_WAY = frozenset({errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN})

Header = tuple[bytes, bytes]
log = logging.getLogger("madoguchi.gateway")


class UpstreamError(Exception):
    """The engine could not be reached or broke its answer off."""


class Unreachable(UpstreamError):
    """No connection came about; the engine has seen nothing of the request."""


class Broken(UpstreamError):
    """The connection ended before the answer did, or what came was not HTTP.

    `stale`: it was a kept-alive connection that the engine closed before a byte of the answer. Engines close idle
    connections at any time, so a request on a fresh one is in order. `lost`: it was none, and the engine had the whole
    request: it closed the connection although it owed an answer, as one does that dies.
    """

    def __init__(self, message: str, *, stale: bool = False, lost: bool = False) -> None:
        super().__init__(message)
        self.stale = stale
        self.lost = lost


class Receiver(Protocol):
    """Hears one answer: `head` once, `data` and `chunk` any number of times, then `end`; or `failed` at any point.

    Never waits.
    """

    def head(self, status: int, headers: list[Header]) -> None: ...
    def data(self, piece: bytes) -> None: ...
    def chunk(self, framed: bytes, start: int) -> None:
        """As `data(framed[start:-2])`: one whole chunk, head and line end included."""

    def end(self) -> None: ...
    def failed(self, error: UpstreamError) -> None: ...


@dataclass(frozen=True, slots=True)
class Address:
    """Where an engine listens. `prefix` stands before every path."""

    host: str
    port: int
    tls: bool
    prefix: str
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
        self._barren = 0  # bytes since the last of the body
        self._sized = False  # the head says where the body ends
        self._informational = False
        self._until_close = False
        self._answered = False
        self._heard: list[bytes] = []  # of the body, by the parser, in this read
        self._fault: Exception | None = None
        self._paused = False
        self._between_chunks = False  # all that the parser has seen ends with a chunk of the body
        self._bodiless = False  # a request is under way whose body is not all written
        self._full: asyncio.Future[None] | None = None  # ends when there is room for more of the body
        self._served = 0  # answers that this connection has carried
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
        self._barren = 0
        self._fault = None
        self._transport.write(data)

    def expect_body(self) -> None:
        """The request just sent was a head alone: its body follows with `write`, up to `body_ended`."""
        self._bodiless = True

    async def write(self, piece: bytes) -> None:
        """Send a piece of the body; returns when the engine has taken enough of it for another, or is gone."""
        if self._receiver is None or self._transport is None or not self.usable:
            return  # answered before the body's end, broken off or given up: the receiver knows
        self._transport.write(piece)
        if self._full is not None:
            await self._full

    def body_ended(self) -> None:
        self._bodiless = False

    def abort(self) -> None:
        """Close at once, which tells the engine to stop generating. The receiver hears nothing more."""
        self._receiver = None
        if self._transport is None:
            return
        if self._bodiless and (sock := self._transport.get_extra_info("socket")) is not None:
            # Reset: an engine that has stopped reading would never come to the end that stands behind the body.
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
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but its bases

    def data_received(self, data: bytes) -> None:
        if self._receiver is None:  # nobody asked for anything
            self.abort()
            return
        if self._between_chunks:
            # Engines send a token as one chunk in one piece. The parser would find the same (5 of 30 µs per token) and
            # need not know: it waits for a chunk's head before and after.
            head = data.find(b"\r\n", 1, 5)
            if len(data) - head - 4 == SIZES.get(data[:head]) and data.endswith(b"\r\n"):
                try:
                    self._receiver.chunk(data, head + 2)
                except Exception as error:  # noqa: BLE001 - see _faulty
                    self._faulty(error)
                return
        self._parse(data)
        if self._fault is not None:
            self._faulty(self._fault)

    def _parse(self, data: bytes) -> None:
        self._answered = True
        assert self._parser is not None
        if self._barren > MAX_HEAD:  # httptools joins what comes of a header line to what came before, again and again
            self._fault = Broken("the answer's head is too large")
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._deliver()
            self._fail(Broken(f"not HTTP: {error}"))
        self._barren = 0 if self._heard else self._barren + len(data)
        self._deliver()
        if self._between_chunks and not data.endswith(b"\r\n"):  # some of the next chunk's head
            self._between_chunks = False

    def pause_writing(self) -> None:
        self._full = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        full, self._full = self._full, None
        if full is not None and not full.done():
            full.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.resume_writing()
        self._pool.forget(self)
        if self._receiver is None:
            return
        if self._until_close and exc is None:
            self._finish()
            if self._fault is not None:
                self._faulty(self._fault)
        else:
            stale = self._served > 0 and not self._answered
            # A host that can be reached no more says nothing about its engine.
            lost = not stale and not self._bodiless and not is_unreachable(exc)
            self._fail(Broken("the engine closed the connection", stale=stale, lost=lost))

    # --- httptools. No callback raises: httptools would tell it as if the engine's bytes were at fault.

    def on_message_begin(self) -> None:
        self._headers = []
        self._head_size = 0
        self._sized = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_size += len(name) + len(value)
        if self._head_size > MAX_HEAD:
            self._fault = Broken("the answer's head is too large")
            return
        name = name.lower()
        if name == b"content-length" or name == b"transfer-encoding":
            self._sized = True
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        status = self._parser.get_status_code()
        self._informational = status < 200
        if self._informational or self._receiver is None or self._fault is not None:
            return
        self._until_close = not self._sized and status not in (204, 304)
        try:
            self._receiver.head(status, self._headers)
        except Exception as error:  # noqa: BLE001 - see _faulty
            self._fault = error

    def on_body(self, piece: bytes) -> None:
        self._heard.append(piece)

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
        """What one read brought of the body, at once: a burst of tokens is one write to the client."""
        heard, self._heard = self._heard, []
        if not heard or self._receiver is None or self._fault is not None:
            return
        try:
            self._receiver.data(heard[0] if len(heard) == 1 else b"".join(heard))
        except Exception as error:  # noqa: BLE001 - see _faulty
            self._fault = error

    # --- ends

    def _finish(self) -> None:
        receiver = self._receiver
        if receiver is None or self._fault is not None:
            return
        try:
            receiver.end()
        except Exception as error:  # noqa: BLE001 - see _faulty
            self._fault = error
            return
        assert self._parser is not None
        self._receiver = None
        self._served += 1
        if self._bodiless:  # the engine would take what follows for the rest of the body
            self.abort()
        elif self.usable and not self._until_close and self._parser.should_keep_alive():
            self.resume()
            self._pool.put_back(self)
        elif self._transport is not None:
            self._transport.close()

    def _faulty(self, error: Exception) -> None:
        """The receiver raised: that must end its call, not leave a client waiting for ever."""
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
    """Return whether a connection ended because its other end did not answer any more."""
    return isinstance(error, TimeoutError) or (isinstance(error, OSError) and error.errno in NO_WAY)


class Hosts:
    """The addresses behind one name.

    Each name has a thread of its own: a name server that says nothing for a minute holds up who asks for this name and
    nobody else. (The loop has four threads for all names.) What is known is used while it is looked up again.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._known = [name] if is_address(name) else []
        self._until = math.inf if self._known else 0.0
        self._thread: DaemonExecutor | None = None
        self._look: asyncio.Future[list[str]] | None = None

    async def now(self, now: float) -> list[str]:
        """In the order of preference; `now` by the loop's clock. Raises OSError."""
        if now >= self._until and self._look is None:
            self._thread = self._thread or DaemonExecutor("names")
            self._look = asyncio.get_running_loop().run_in_executor(self._thread, resolved, self._name)
            self._look.add_done_callback(self._found)
        if self._known or self._look is None:
            return self._known
        return await asyncio.shield(self._look)

    def doubt(self) -> None:
        """None of them answers: they are looked up again before the next time."""
        if self._until != math.inf:
            self._known, self._until = [], 0.0

    def close(self) -> None:
        if self._thread is not None:
            self._thread.shutdown(wait=False)

    def _found(self, look: "asyncio.Future[list[str]]") -> None:
        self._look = None
        if not look.cancelled() and look.exception() is None:
            self._known = look.result()
            self._until = look.get_loop().time() + KNOWN_SECONDS


def resolved(name: str) -> list[str]:
    """Ask the system's resolver. Blocks; raises OSError."""
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def notice_death(connection: socket.socket) -> None:
    """Have the kernel ask after 15 s of silence whether the other end is still there, and again every 5 s.

    An engine that thinks is silent for minutes; a host that lost its power is silent for ever.
    """
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in ((socket.TCP_KEEPIDLE, 15), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3)):
        connection.setsockopt(socket.IPPROTO_TCP, option, value)


class Pool:
    """Connections to one engine. Not bounded: how many calls an engine takes is for limits and its own queue."""

    def __init__(self, address: Address, clock: Callable[[], float]) -> None:
        """`clock` gives seconds, as time.monotonic."""
        self.address = address
        self._clock = clock
        self._idle: dict[Connection, None] = {}
        self._tls = ssl.create_default_context() if address.tls else None
        self._hosts = Hosts(address.host)

    def idle(self, now: float) -> Connection | None:
        """Return a kept-alive connection, the most recently used first; None if there is none. `now` by the pool's
        clock.
        """
        while self._idle:
            connection, _ = self._idle.popitem()
            if connection.usable and now - connection.idle_since < IDLE_SECONDS:
                return connection
            connection.abort()
        return None

    async def addresses(self, now: float) -> list[str]:
        """Of the engine's host; `now` by the loop's clock. Raises OSError."""
        return await self._hosts.now(now)

    async def connect(self, patience: float) -> Connection:
        """Return a new connection; waits at most so many seconds. Raises Unreachable."""
        loop = asyncio.get_running_loop()
        address = self.address
        name = address.host if address.tls else None
        failure: Exception | None = None
        try:
            async with asyncio.timeout(patience):
                hosts = await self._hosts.now(loop.time())
                for host in hosts:
                    try:
                        async with asyncio.timeout(patience / len(hosts)):
                            transport, connection = await loop.create_connection(
                                lambda: Connection(self), host, address.port, ssl=self._tls, server_hostname=name
                            )
                    except (OSError, TimeoutError) as error:
                        failure = error
                    else:
                        notice_death(transport.get_extra_info("socket"))
                        return connection
        except (OSError, TimeoutError) as error:
            failure = error
        self._hosts.doubt()
        raise Unreachable(str(failure) or f"no connection within {patience:g} s") from failure

    def sweep(self, now: float) -> None:
        """Close what was idle for so long that nobody will use it again. Call it about once a second."""
        while self._idle:
            oldest = next(iter(self._idle))  # they stand in the order in which they became idle
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
        """Close what is idle; connections in use end with their answers."""
        self._hosts.close()
        idle, self._idle = self._idle, {}
        for connection in idle:
            connection.abort()
