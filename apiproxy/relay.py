"""One exchange: an engine's answer to the client as it comes, and how it ended.

The engine's connection calls in (`Receiver`); what may go on is handed to the server's `send` there and then. `send` is
a coroutine that finishes at once unless the client reads too slowly; so it is driven by hand and no task, queue or
future lies between the two sockets. While it does wait, reading from the engine is paused.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from enum import Enum
from typing import Any, Protocol

from apiproxy import protocol, sse
from apiproxy.assembly import Assembly
from apiproxy.errors import EngineFailed, Language, Refusal
from apiproxy.tokens import Tokens
from apiproxy.upstream import Connection, Header, UpstreamError

Message = dict[str, Any]
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]

# An error body larger than this tells a person nothing more.
MAX_ERROR_BODY = 64 * 1024


class Drive:
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
        """Ends the coroutine where it waits; `then` is not called any more."""
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
                waits_for._asyncio_future_blocking = False  # what a task does to say that it heard
                waits_for.add_done_callback(self._step)


class Ending(Enum):
    ANSWERED = "answered"  # the whole answer (or an error event) has gone to the client
    REFUSED = "refused"  # the engine answered with an error; nothing has gone to the client
    BROKEN = "broken"  # the engine broke off or was too slow; nothing has gone to the client
    LEFT = "left"  # the client is gone


class Meter(Protocol):
    """Is told what an exchange used. `close` comes before the last bytes go to the client, exactly once."""

    def open(self) -> None:
        """The first byte of a stream is about to go out."""

    def close(self, status: str, tokens: Tokens, *, estimated: bool) -> None: ...


class Exchange:
    """The answer to one call, over one or (before its first byte) several attempts. A `Receiver`."""

    def __init__(
        self,
        call: protocol.Call,
        endpoint: protocol.Endpoint,
        send: Send,
        meter: Meter,
        *,
        assemble: bool,
        headers: list[Header],
        language: Language,
        now: Callable[[], float],
    ) -> None:
        """`assemble`: the engine was asked for a stream, the client wants one JSON. `headers` go with the answer."""
        self._call = call
        self._endpoint = endpoint
        self._dialect = endpoint.dialect
        self._send = send
        self._meter = meter
        self.assembles = assemble
        self._headers = headers
        self._language = language
        self.now = now
        self._connection: Connection | None = None
        self._reader: sse.Reader | None = None
        self._assembly: Assembly | None = None
        self._status = 0
        self._pieces: list[bytes] = []
        self._size = 0
        self._content_type = b""
        self._started = False  # the client has been sent a head
        self._passing = False  # and some of the answer
        self._sending = False
        self._flushing = False
        self._ended = False
        self._left = False
        self._answered = False
        self._backlog: deque[Message] = deque()
        self._ending: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        self.refusal: Refusal = EngineFailed()
        self.error: UpstreamError | None = None
        self.began = self.heard_at = self._beat_at = now()
        self.first_byte_at: float | None = None
        self.metered = False
        self.reached = False  # an engine has had the request

    # --- for the gateway

    def attempt(self, connection: Connection, request: bytes) -> None:
        """Sends the request; wait for the ending with `ending`. A second attempt only after BROKEN or REFUSED."""
        self._ending = asyncio.get_running_loop().create_future()
        if self._left:  # while the connection was made
            connection.abort()
            self._finish(Ending.LEFT)
            return
        self._connection = connection
        self._status = 0
        self.error = None
        self.refusal = EngineFailed()
        self.reached = True
        self.heard_at = self.now()
        connection.request(request, self)

    async def ending(self) -> Ending:
        return await self._ending

    def client_left(self) -> None:
        """Stops the engine and meters what it had generated. After the answer's end: does nothing."""
        if self._left or self._answered:
            return
        self._left = True
        self._drop_engine()
        self._backlog.clear()
        if self.reached and self._status in (0, 200):  # it was read and worked on, also before the first byte
            self._close("aborted")
        self._finish(Ending.LEFT)

    def unreachable(self, error: UpstreamError, refusal: Refusal) -> None:
        """No connection came about."""
        self.error = error
        self.refusal = refusal

    def cut_off(self, refusal: Refusal) -> bool:
        """Stops the engine for this reason; a client that has had some of the answer is told by an event.

        Gives whether that was so: otherwise the refusal is still to be sent.
        """
        self._drop_engine()
        self.refusal = refusal
        self._broke_off()
        return self._passing

    def heartbeat(self, every: float) -> None:
        """Keeps the client of a stream patient that has not begun for `every` seconds, and again after as many."""
        waits = self._call.stream and self._endpoint.streams and not (self._passing or self._sending or self._left)
        if waits and not self._ended and self._dialect.heartbeat and self.now() - self._beat_at >= every:
            self._beat_at = self.now()
            self._stream_head()
            self._push({"type": "http.response.body", "body": self._dialect.heartbeat, "more_body": True})

    def say(self, refusal: Refusal) -> bool:
        """Tells a client whose stream was kept alive that nothing comes; then wait for the ending.

        Gives whether that was so: otherwise the refusal is still to be sent.
        """
        if self._started and not (self._ended or self._left):
            self._ending = asyncio.get_running_loop().create_future()
            self._last(self._dialect.event(refusal, self._language) + self._dialect.farewell)
        return self._started

    @property
    def events(self) -> int:
        """How many of the stream's events carried a part of the answer so far."""
        return self._reader.events if self._reader is not None else 0

    @property
    def waits_for_client(self) -> bool:
        return self._sending

    # --- Receiver

    def head(self, status: int, headers: list[Header]) -> None:
        self.heard_at = self.now()
        self._status = status
        self._pieces, self._size = [], 0
        self._reader = None  # an earlier attempt's
        self._content_type = next((value for name, value in headers if name == b"content-type"), b"application/json")
        if status == 200 and self._content_type.startswith(b"text/event-stream"):
            usage = self._call.asks_usage and not self.assembles
            asked = sse.Asked(usage=usage, n=self._call.n, prompts=self._call.prompts)
            self._reader = self._dialect.reader(asked, self._engine_error)
            self._assembly = self._dialect.assembly() if self.assembles else None

    def data(self, piece: bytes) -> None:
        self.heard_at = self.now()
        if self.first_byte_at is None and self._status == 200:
            self.first_byte_at = self.heard_at
        if self._reader is None:
            self._collect(piece)
            return
        try:
            through = self._reader.feed(piece)
        except sse.EventTooLong:
            self._drop_engine()
            self._broke_off()
            return
        if self._assembly is not None:
            self._assembly.feed(through)
        elif through:
            self._pass(through)

    def end(self) -> None:
        self._connection = None
        if self._status != 200:
            self.refusal = protocol.engine_refusal(self._status, b"".join(self._pieces), self._call, self._endpoint)
            self._finish(Ending.REFUSED)
        elif self._reader is None:
            self._end_unary(b"".join(self._pieces))
        elif self._assembly is not None:
            self._end_assembly(self._reader, self._assembly)
        elif self._reader.done and self._reader.finished() and self._passing:
            self._last(b"")
        else:
            self._broke_off()

    def failed(self, error: UpstreamError) -> None:
        self._connection = None
        self.error = error
        try:
            self._broke_off()
        finally:  # whatever is at fault, nobody waits for ever
            if not self._ended:
                self._finish(Ending.BROKEN)

    # --- the answer

    def _collect(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._status == 200 or self._size <= MAX_ERROR_BODY:
            self._pieces.append(piece)

    def _pass(self, through: bytes) -> None:
        """Whole events of a stream, to the client."""
        assert self._reader is not None
        if self._reader.error is not None and not self._passing:
            return  # nothing has gone out, so the client can still be told by an HTTP status
        if not self._passing:
            self._passing = True
            self._meter.open()
            self._stream_head()
        if self._reader.done:
            self._close("finished" if self._reader.finished() else "failed")
        self._push({"type": "http.response.body", "body": through, "more_body": True})

    def _end_unary(self, body: bytes) -> None:
        tokens, estimated = protocol.used(body, self._call, self._endpoint)
        # A stream that was kept alive cannot become a JSON.
        self._meter.close("failed" if self._started else "finished", tokens, estimated=estimated)
        self.metered = True
        if self._started:
            self._finish(Ending.BROKEN)
        else:
            self._answer(body, self._content_type)

    def _end_assembly(self, reader: sse.Reader, assembly: Assembly) -> None:
        if not (reader.done and reader.finished()):
            self._broke_off()
            return
        self._close("finished")
        self._answer(assembly.body(reader.usage), b"application/json")

    def _answer(self, body: bytes, content_type: bytes) -> None:
        self._start(content_type, (b"content-length", b"%d" % len(body)))
        self._last(body)

    def _engine_error(self, error: Any) -> bytes:
        """The event that takes the place of an engine's own error event, which may name addresses and paths."""
        return self._dialect.event(EngineFailed(), self._language)

    def _broke_off(self) -> None:
        """The answer ended before its end. A client that has had some of it is told by an event."""
        if self._ended or self._left:
            return
        if not self._passing:
            if self._reader is not None and self._reader.events:
                self._close("failed")  # tokens that no client will see, but a GPU has made
            self._finish(Ending.BROKEN)
            return
        self._close("failed")
        reader = self._reader
        event = b"" if reader and reader.error is not None else self._dialect.event(self.refusal, self._language)
        self._last(event if reader and reader.done else event + self._dialect.farewell)

    def _close(self, status: str) -> None:
        """Meters a stream, by the engine's own numbers or by what was counted."""
        if self.metered:
            return
        self.metered = True
        prompt, reader = self._call.prompt_estimate, self._reader
        tokens, estimated = (Tokens(prompt=prompt), True) if reader is None else reader.used(prompt)
        self._meter.close(status, tokens, estimated=estimated)

    # --- to the client

    def _stream_head(self) -> None:
        if not self._started:
            self._start(
                b"text/event-stream; charset=utf-8", (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")
            )

    def _start(self, content_type: bytes, *headers: Header) -> None:
        self._started = True
        self._push(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"content-type", content_type), *headers, *self._headers],
            }
        )

    def _last(self, body: bytes) -> None:
        self._ended = True
        self._push({"type": "http.response.body", "body": body, "more_body": False})

    def _push(self, message: Message) -> None:
        self._backlog.append(message)
        if not self._sending:
            self._flush()

    def _flush(self) -> None:
        """Sends what is waiting, as far as the client takes it."""
        self._flushing = True
        while self._backlog and not self._sending:
            self._sending = True
            Drive(self._send(self._backlog.popleft()), self._sent)
        self._flushing = False
        if self._sending:
            if self._connection is not None:
                self._connection.pause()
        elif self._ended:
            self._finish(Ending.ANSWERED)

    def _sent(self, _: Any, error: Exception | None) -> None:
        self._sending = False
        if error is not None:
            self.client_left()
        elif not self._flushing:  # the client had made us wait
            self._flush()
            if not self._sending and self._connection is not None:
                self._connection.resume()

    # --- ends

    def _drop_engine(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()

    def _finish(self, ending: Ending) -> None:
        self._answered = ending is Ending.ANSWERED
        if not self._ending.done():
            self._ending.set_result(ending)
