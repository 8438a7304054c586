"""The client of one call, as the relay sees it.

Two implementations: `AsgiClient` speaks ASGI and works on every server; `apiproxy.server.protocol.DirectClient` writes
to the transport of our own uvicorn protocol, which takes half the CPU (22 instead of 44 µs per whole answer, see
tests/bench/RESULTS.md). No method waits.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol

Header = tuple[bytes, bytes]
Message = dict[str, Any]
Scope = dict[str, Any]
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]

# Where a server that can do better than ASGI's `send` puts the client, see `client_of`.
EXTENSION = "madoguchi.client"


class Listener(Protocol):
    def client_left(self) -> None:
        """Note that the connection is gone; what is sent from now on goes nowhere."""

    def client_ready(self) -> None:
        """Note that all that had to wait has been taken."""


class Client(Protocol):
    """Either one `answer`, or `begin`, any number of `piece`, and `last`. `always`: headers of whatever is answered."""

    always: list[Header]

    def arrived(self) -> bytes | None:
        """Return the whole body of the request if it is here already; it must not be received then."""

    @property
    def waiting(self) -> bool:
        """Whether the client reads too slowly: until `client_ready`, what is sent fills our memory."""

    def answer(self, status: int, headers: list[Header], body: bytes) -> None:
        """Send a whole answer, with its length. If one has begun already, end that one where it is."""

    def begin(self, headers: list[Header]) -> None:
        """Send the head (200) of an answer of unknown length."""

    def piece(self, body: bytes) -> None:
        """Send some of it, not empty."""

    def chunk(self, framed: bytes, start: int) -> bool:
        """Send `framed[start:-2]`, of which `framed` is a chunk of HTTP/1.1 already. Return `waiting`."""

    def last(self, body: bytes) -> None:
        """Send the rest of it. After its end do nothing."""

    def listen(self, listener: Listener) -> None:
        """Call the listener from now on, until `unsubscribe`."""

    def unsubscribe(self) -> None: ...

    async def sent(self) -> None:
        """Wait until the server has taken everything, or the client is gone."""


class InlineCoroutine:
    """Runs a coroutine without a task: at once as far as it goes, then on from each future that it waits for.

    `then(value, error)` is called once, possibly before the constructor returns.
    """

    __slots__ = ("_coroutine", "_then")

    def __init__(self, coroutine: Awaitable[Any], then: Callable[[Any, Exception | None], None]) -> None:
        assert isinstance(coroutine, Coroutine)
        self._coroutine: Coroutine[Any, None, Any] | None = coroutine
        self._then = then
        self._step()

    def stop(self) -> None:
        """End the coroutine where it waits; `then` is not called any more."""
        coroutine, self._coroutine = self._coroutine, None
        if coroutine is not None:
            coroutine.close()

    def _step(self, _: object = None) -> None:
        coroutine = self._coroutine
        if coroutine is None:
            return
        try:
            waits_for = coroutine.send(None)
        except StopIteration as stop:
            self._coroutine = None
            self._then(stop.value, None)
        except Exception as error:  # noqa: BLE001 - whatever the server raises; here it would kill the engine's connection
            self._coroutine = None
            self._then(None, error)
        else:
            if waits_for is None:  # asyncio.sleep(0)
                asyncio.get_running_loop().call_soon(self._step)
            else:
                waits_for._asyncio_future_blocking = False  # as a task does to acknowledge it
                waits_for.add_done_callback(self._step)


class AsgiClient:
    """A `Client` by ASGI's `send` and `receive`.

    `send` is a coroutine that finishes at once unless the client reads too slowly; so it is driven by hand and no task
    or future lies between the two sockets.
    """

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._listener: Listener | None = None
        self._watch: InlineCoroutine | None = None
        self._backlog: deque[Message] = deque()
        self._flushing = False
        self._gone = False
        self._taken: asyncio.Future[None] | None = None
        self.waiting = False
        self.always: list[Header] = []

    def arrived(self) -> None:
        """Return None: only the server knows."""

    def answer(self, status: int, headers: list[Header], body: bytes) -> None:
        self._start(status, [*headers, (b"content-length", b"%d" % len(body))])
        self.last(body)

    def begin(self, headers: list[Header]) -> None:
        self._start(200, headers)

    def piece(self, body: bytes) -> None:
        self._push({"type": "http.response.body", "body": body, "more_body": True})

    def chunk(self, framed: bytes, start: int) -> bool:
        self.piece(framed[start:-2])
        return self.waiting

    def last(self, body: bytes) -> None:
        self._push({"type": "http.response.body", "body": body, "more_body": False})

    def listen(self, listener: Listener) -> None:
        self._listener = listener
        self._watch = InlineCoroutine(self._until_disconnect(), lambda _value, _error: self._lost())

    def unsubscribe(self) -> None:
        self._listener = None
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.stop()

    async def sent(self) -> None:
        while self.waiting:
            self._taken = asyncio.get_running_loop().create_future()
            await self._taken

    def _start(self, status: int, headers: list[Header]) -> None:
        self._push({"type": "http.response.start", "status": status, "headers": [*headers, *self.always]})

    def _push(self, message: Message) -> None:
        if self._gone:
            return
        self._backlog.append(message)
        if not self.waiting:
            self._flush()

    def _flush(self) -> None:
        """Send what is there, as far as the client takes it."""
        self._flushing = True
        while self._backlog and not self.waiting:
            self.waiting = True
            InlineCoroutine(self._send(self._backlog.popleft()), self._one_sent)
        self._flushing = False

    def _one_sent(self, _: Any, error: Exception | None) -> None:
        self.waiting = False
        if error is not None:
            self._lost()
        elif not self._flushing:  # the client had made us wait
            self._flush()
            if self._listener is not None and not self.waiting:
                self._listener.client_ready()
        if self._taken is not None and not self._taken.done():
            self._taken.set_result(None)

    async def _until_disconnect(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    def _lost(self) -> None:
        self._gone = True
        self._backlog.clear()
        if self._listener is not None:
            self._listener.client_left()


def client_of(scope: Scope, receive: Receive, send: Send) -> Client:
    """Return the client of an ASGI request: the server's own where it brings one."""
    extensions = scope.get("extensions")
    client: Client | None = extensions.get(EXTENSION) if extensions else None
    return client or AsgiClient(receive, send)
