"""One exchange: an engine's answer to the client as it comes, and how it ended.

The engine's connection calls in (`Receiver`); what may go on is handed to the client there and then: no task, queue or
future lies between the two sockets. While the client reads too slowly, reading from the engine is paused.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from functools import partial
from typing import Any, Protocol

from apiproxy.dataplane import engine_errors
from apiproxy.dataplane.downstream import Client, Header
from apiproxy.dataplane.errors import BadRequest, EngineFailed, Language, Refusal
from apiproxy.dataplane.formats import requests
from apiproxy.dataplane.formats.api_formats import ApiFormat
from apiproxy.dataplane.memory_budget import BudgetShare
from apiproxy.dataplane.stream import readers
from apiproxy.dataplane.stream.accumulators import Accumulator
from apiproxy.dataplane.token_usage import Tokens
from apiproxy.dataplane.upstream import Broken, Connection, Unreachable, UpstreamError

# The most that one answer without a stream may make us hold: what an engine sends as one, what we put together of a
# stream. Four replies of 128,000 tokens are 2 MB, 20,000 embeddings as base64 60 MB.
MAX_ANSWER = 64 * 1024 * 1024
# Up to so many bytes it is not counted against anybody.
UNCOUNTED = 64 * 1024
# An error body larger than this tells a person nothing more.
MAX_ERROR_BODY = 64 * 1024
# By these an engine says that it has not begun: our key or name is wrong there, it is full, or it loads its model.
UNTOUCHED = frozenset({401, 403, 404, 408, 429, 503})
PLAIN = (b"", b"identity")
STREAM_HEADERS: list[Header] = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class Outcome(Enum):
    ANSWERED = "answered"  # the whole answer (or an error event) has gone to the client
    REFUSED = "refused"  # the engine answered with an error; nothing has gone to the client
    BROKEN = "broken"  # the engine broke off or was too slow; nothing has gone to the client
    LEFT = "left"  # the client is gone


class Stage(Enum):
    """How far the client is. Only onwards: each stage but the last two may be followed by any below it."""

    SILENT = "silent"  # has been sent nothing: it can still be told anything, by an HTTP status too
    PATIENT = "patient"  # the head and heartbeats of a stream: it can be told by an event
    LISTENING = "listening"  # some of the answer
    SERVED = "served"  # the last bytes
    GONE = "gone"


LISTENING = Stage.LISTENING  # a member of an Enum takes 0.1 µs to look up


class Meter(Protocol):
    """Is told what an exchange used. `close` comes before the last bytes go to the client, exactly once."""

    def open(self) -> None:
        """The first byte of a stream is about to go out."""

    def close(self, status: str, tokens: Tokens, *, estimated: bool) -> None: ...

    def guess(self, seconds: float) -> int:
        """Tokens that the engine will have made in so many seconds of an answer that nobody has seen."""


class Exchange:
    """The answer to one call, over one or (before its first byte) several attempts.

    A `Receiver` of the engine's answer and a `Listener` to the client.
    """

    __slots__ = (
        "_api_format",
        "_assembly",
        "_call",
        "_client",
        "_connection",
        "_content_type",
        "_encoding",
        "_endpoint",
        "_headers",
        "_language",
        "_loop",
        "_meter",
        "_outcome",
        "_pieces",
        "_reader",
        "_refusal",
        "_retry_after",
        "_says_dead",
        "_share",
        "_shares",
        "_size",
        "_stage",
        "_status",
        "_waiter",
        "arriving",
        "assembles",
        "beat_at",
        "began",
        "error",
        "first_byte_at",
        "heard_at",
        "metered",
        "now",
        "reached",
    )

    def __init__(
        self,
        call: requests.Call,
        endpoint: requests.Endpoint,
        client: Client,
        meter: Meter,
        *,
        assemble: bool,
        headers: list[Header],
        language: Language,
        shares: Callable[[], BudgetShare],
        now: Callable[[], float],
        loop: asyncio.AbstractEventLoop,
        patient: bool = False,
    ) -> None:
        """`assemble`: the engine was asked for a stream, the client wants one JSON. `headers` go with the answer.
        `shares` opens the caller's share of the memory, for what has to be held; `free` gives it back.

        `patient`: the client has been sent the head of a stream and heartbeats already.
        """
        self._call = call
        self._endpoint = endpoint
        self._api_format = endpoint.api_format
        self._client = client
        self._meter = meter
        self.assembles = assemble
        self._headers = headers
        self._language = language
        self.now = now
        # asyncio.get_running_loop() asks the kernel for the process's number each time: 5 % of a whole call.
        self._loop = loop
        self._connection: Connection | None = None
        self._reader: readers.Reader | None = None
        self._assembly: Accumulator | None = None
        self._status = 0
        self._pieces: list[bytes] = []
        self._size = 0
        self._content_type = self._encoding = b""
        self._shares = shares
        self._share: BudgetShare | None = None
        self._retry_after = ""
        self._says_dead = False
        self._stage = Stage.PATIENT if patient else Stage.SILENT
        self._outcome: Outcome | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._refusal: Refusal | None = None
        self.error: UpstreamError | None = None
        self.began = self.heard_at = self.beat_at = now()
        self.first_byte_at: float | None = None
        self.metered = False
        self.reached = False  # an engine has had the request
        self.arriving = False  # its body is still on the way from the client

    # --- for the gateway

    def attempt(self, connection: Connection, request: bytes) -> None:
        """Send the request; wait for the ending with `ending`. A second attempt only after BROKEN or REFUSED."""
        self._outcome = self._waiter = None
        if self._stage is Stage.GONE:  # while the connection was made
            connection.abort()
            self._finish(Outcome.LEFT)
            return
        self._connection = connection
        self._status = 0
        self.error = self._refusal = None  # an earlier attempt's
        self._says_dead = False
        self.reached = True
        self.heard_at = self.now()
        connection.request(request, self)

    async def ending(self) -> Outcome:
        if self._outcome is None:
            self._waiter = self._loop.create_future()
            await self._waiter
            assert self._outcome is not None
        return self._outcome

    def know(self, call: requests.Call) -> None:
        """All of a call whose form has now been read to its end, before any of the answer."""
        self.arriving = False
        self._call = call

    def unreachable(self, error: UpstreamError, refusal: Refusal) -> None:
        """No connection came about."""
        self.error = error
        self._refusal = refusal

    def explain(self, refusal: Refusal) -> None:
        """What to tell the client, now that more is known of why nothing came."""
        self._refusal = refusal

    @property
    def untouched(self) -> bool:
        """Whether the engine surely did no work on the last attempt, so that another may be given it."""
        return isinstance(self.error, Unreachable) or (self.error is None and self._status in UNTOUCHED)

    @property
    def says_dead(self) -> bool:
        """Whether the engine's front told that the engine behind it is dead."""
        return self._says_dead or (self._reader is not None and engine_errors.reports_dead_engine(self._reader.error))

    @property
    def refusal(self) -> Refusal:
        """What to tell the client if nothing better comes."""
        if self._refusal is None:
            self._refusal = EngineFailed()
        return self._refusal

    def cut_off(self, refusal: Refusal, *, lost: bool = False) -> bool:
        """Stop the engine for this reason; a client that has had some of the answer is told by an event.

        Gives whether that was so: otherwise the refusal is still to be sent. `lost`: its host is gone, so of an answer
        that has not begun nobody knows whether it was worked on, and nobody pays for it.
        """
        self._drop_engine()
        self._refusal = refusal
        told = self._stage in (Stage.LISTENING, Stage.SERVED)
        worked_on = self.reached and not self.awaited and self._status in (0, 200)  # all the time
        try:
            if worked_on and not lost and self._stage is Stage.SILENT:
                self._close("failed")
            self._broke_off()
        finally:
            if self._stage is not Stage.SERVED:
                self._finish(Outcome.BROKEN)
        return told

    @property
    def awaited(self) -> bool:
        """Whether something should come of the engine soon: what is no stream has its first byte when all is made."""
        return self.arriving or self.assembles or (self._call.stream and self._endpoint.streams)

    def heartbeat(self, every: float) -> None:
        """Keep the client of a stream patient of which nothing came for `every` seconds, and again after as many.

        The client has whole events alone, so this comes between two of them.
        """
        over = self._stage is Stage.SERVED or self._stage is Stage.GONE
        if over or not (self._call.stream and self._endpoint.streams) or self._client.waiting:
            return
        now, reader = self.now(), self._reader
        if self._stage is Stage.SILENT or self._stage is Stage.PATIENT:
            if now - self.beat_at >= every:
                self.beat_at = now
                self._begin(Stage.PATIENT)
                self._client.piece(self._api_format.heartbeat)
        elif reader is not None and not reader.done and now - max(self.beat_at, self.heard_at) >= every:
            self.beat_at = now
            self._client.piece(self._api_format.ping)

    def free(self) -> None:
        """Give the memory back that the answer took."""
        share, self._share = self._share, None
        if share is not None:
            share.close()

    def say(self, refusal: Refusal) -> bool:
        """Tell a client whose stream was kept alive that nothing comes; then wait for the ending.

        Gives whether that was so: otherwise the refusal is still to be sent.
        """
        if self._stage is Stage.SILENT:
            return False
        if self._stage in (Stage.PATIENT, Stage.LISTENING):
            self._outcome = self._waiter = None
            self._last(self._api_format.encode_event(refusal, self._language) + self._api_format.stream_terminator)
        return True

    @property
    def events(self) -> int:
        """How many of the stream's events carried a part of the answer so far."""
        return self._reader.events if self._reader is not None else 0

    @property
    def waits_for_client(self) -> bool:
        return self._client.waiting

    # --- Listener

    def client_left(self) -> None:
        """Stop the engine and meters what it had generated. After the answer's end: does nothing."""
        if self._stage is Stage.GONE or self._outcome is Outcome.ANSWERED:
            return
        self._stage = Stage.GONE
        self._drop_engine()
        try:
            if self.reached and self._status in (0, 200):  # it was read and worked on, also before the first byte
                self._close("aborted")
        finally:  # whatever is at fault, nobody waits for ever
            self._finish(Outcome.LEFT)

    def client_ready(self) -> None:
        if self._stage is Stage.SERVED:
            self._finish(Outcome.ANSWERED)
        elif self._connection is not None:
            self._connection.resume()

    # --- Receiver

    def head(self, status: int, headers: list[Header]) -> None:
        self.heard_at = self.now()
        self._status = status
        self._pieces, self._size = [], 0
        self._reader = None  # an earlier attempt's
        self._content_type = b"application/json"
        self._encoding, self._retry_after = b"", ""
        for name, value in headers:
            if name == b"content-type":
                self._content_type = value
            elif name == b"retry-after":
                self._retry_after = value.decode("latin-1").strip()
            elif name == b"content-encoding":
                self._encoding = value.strip().lower()
        if status == 200 and self._content_type.startswith(b"text/event-stream"):
            if self._encoding not in PLAIN:
                raise Broken("a stream in an encoding that was not asked for")
            usage = self._call.asks_usage and not self.assembles
            asked = readers.StreamContext(
                wants_usage=usage, n=self._call.n, prompts=self._call.prompts, model=self._call.model
            )
            self._reader = self._api_format.make_reader(
                asked, partial(sanitised_error, self._api_format, self._language)
            )
            self._assembly = self._api_format.make_accumulator() if self.assembles else None

    def data(self, piece: bytes) -> None:
        self.heard_at = self.now()
        if self.first_byte_at is None and self._status == 200:
            self.first_byte_at = self.heard_at
        if self._reader is None:
            self._collect(piece)
            return
        try:
            through = self._reader.feed(piece)
        except readers.EventTooLong:
            self._drop_engine()
            self._broke_off()
            return
        except ODD as error:
            raise invalid_answer(error) from error
        if self._assembly is not None:
            self._assemble(through, self._assembly)
        elif through:
            self._pass(through, self._reader)

    def chunk(self, framed: bytes, start: int) -> None:
        """The way of nearly every token: what need not be changed goes on in the frame that it came in."""
        reader = self._reader
        if self._stage is not LISTENING or reader is None or not reader.accept_verbatim(framed, start):
            self.data(framed[start:-2])
            return
        self.heard_at = self.now()
        if self._client.chunk(framed, start) and self._connection is not None:
            self._connection.pause()

    def end(self) -> None:
        self._connection = None
        if self._status != 200:
            self._refused()
        elif self._reader is None:
            self._end_unary(b"".join(self._pieces))
        else:
            self._end_stream(self._reader)

    def failed(self, error: UpstreamError) -> None:
        self._connection = None
        self.error = error
        try:
            self._broke_off()
        finally:  # whatever is at fault, nobody waits for ever
            if self._stage is not Stage.SERVED:
                self._finish(Outcome.BROKEN)

    # --- the answer

    def _collect(self, piece: bytes) -> None:
        if self._status == 200:
            if self._size + len(piece) <= UNCOUNTED:
                self._size += len(piece)
            elif not self._hold(len(piece)):
                return
            self._pieces.append(piece)
            return
        self._size += len(piece)
        self._pieces.append(piece)
        if self._size > MAX_ERROR_BODY:
            self._drop_engine()
            self._refused()

    def _refused(self) -> None:
        body = b"".join(self._pieces)[:MAX_ERROR_BODY]
        self._says_dead = self._status == 500 and engine_errors.reports_dead_engine(body)
        self._refusal = engine_errors.make_refusal(
            self._status, body, self._call, self._endpoint, retry_after=self._retry_after
        )
        self._finish(Outcome.REFUSED)

    def _assemble(self, through: bytes, assembly: Accumulator) -> None:
        with is_understood():
            assembly.feed(through)
        self._hold(assembly.size - self._size)

    def _hold(self, more: int) -> bool:
        """Count so many bytes more of the answer that are kept; if they are too many the call has ended."""
        self._size += more
        try:
            if self._size > MAX_ANSWER:
                raise BadRequest("answer_too_large", limit=MAX_ANSWER // 2**20)
            if self._size > UNCOUNTED:
                if self._share is None:
                    self._share = self._shares()
                self._share.take(self._size - self._share.held)
        except Refusal as refusal:
            self._drop_engine()
            self._refusal = refusal
            self._close("failed")
            self._finish(Outcome.BROKEN)
            return False
        return True

    def _pass(self, through: bytes, reader: readers.Reader) -> None:
        """Whole events of a stream, to the client."""
        if self._stage is not Stage.LISTENING:
            if reader.error is not None and not reader.events:
                return  # there is no part of an answer, so the client can still be told by an HTTP status
            self._meter.open()
            self._begin(Stage.LISTENING)
        if reader.done:
            self._close("finished" if reader.is_finished() else "failed")
        self._client.piece(through)
        if self._client.waiting and self._connection is not None:
            self._connection.pause()

    def _end_stream(self, reader: readers.Reader) -> None:
        if (rest := reader.close()) and self._assembly is not None:
            self._assemble(rest, self._assembly)
        elif rest:
            self._pass(rest, reader)
        if self._outcome is not None:
            return
        done = reader.done and reader.is_finished()
        if self._assembly is not None and (done or reader.has_finish_reason()):
            self._end_assembly(reader, self._assembly)
        elif self._assembly is None and self._stage is Stage.LISTENING and done:
            self._last(b"")
        elif (
            self._assembly is None and self._stage is Stage.LISTENING and not reader.done and reader.has_finish_reason()
        ):
            self._close("finished")
            self._last(self._api_format.stream_terminator)  # which the engine left out
        else:
            self._broke_off()

    def _end_unary(self, body: bytes) -> None:
        try:
            if self._encoding:
                body = engine_errors.decompress(body, self._encoding, MAX_ANSWER)
            engine_errors.check_answer(body, self._content_type, self._call, self._endpoint)
        except Refusal as refusal:
            self._refusal = refusal
            self._finish(Outcome.REFUSED)
            return
        tokens, estimated = requests.read_used_tokens(body, self._call, self._endpoint)
        silent = self._stage is Stage.SILENT
        # A stream that was kept alive cannot become a JSON.
        self._meter.close("finished" if silent else "failed", tokens, estimated=estimated)
        self.metered = True
        if silent:
            self._answer(body, self._content_type)
        else:
            self._finish(Outcome.BROKEN)

    def _end_assembly(self, reader: readers.Reader, assembly: Accumulator) -> None:
        usage = reader.usage
        if usage is None:  # llama-cpp-python tells none in streams; an answer in one piece always has it
            used, _ = reader.count_usage(self._call.prompt_estimate)
            usage = {"prompt_tokens": used.prompt, "completion_tokens": used.completion, "total_tokens": used.total}
        with is_understood():
            body = assembly.body(usage)
        self._close("finished")
        self._answer(body, b"application/json")

    def _broke_off(self) -> None:
        """The answer ended before its end. A client that has had some of it is told by an event."""
        reader = self._reader
        if self._stage is Stage.LISTENING:
            self._close("failed")
            event = (
                b""
                if reader and reader.error is not None
                else self._api_format.encode_event(self.refusal, self._language)
            )
            self._last(event if reader and reader.done else event + self._api_format.stream_terminator)
        elif self._stage is Stage.SILENT or self._stage is Stage.PATIENT:
            if reader is not None and reader.events:
                self._close("failed")  # tokens that no client will see, but a GPU has made
            self._finish(Outcome.BROKEN)

    def _close(self, status: str) -> None:
        """Meters what was generated, by the engine's own numbers or by what was counted."""
        if self.metered:
            return
        tokens, estimated = self.used()
        self.metered = True
        self._meter.close(status, tokens, estimated=estimated)

    def used(self) -> tuple[Tokens, bool]:
        """What the call has used so far, and whether that is an estimate."""
        prompt, reader = self._call.prompt_estimate, self._reader
        if reader is not None:
            return reader.count_usage(prompt)
        return Tokens(prompt=prompt, completion=self._meter.guess(self.now() - self.began)), True

    # --- to the client

    def _begin(self, stage: Stage) -> None:
        if self._stage is Stage.SILENT:
            self._client.begin([*STREAM_HEADERS, *self._headers])
        self._stage = stage

    def _answer(self, body: bytes, content_type: bytes) -> None:
        self._stage = Stage.SERVED
        self._client.answer(200, [(b"content-type", content_type), *self._headers], body)
        self._served()

    def _last(self, body: bytes) -> None:
        self._stage = Stage.SERVED
        self._client.last(body)
        self._served()

    def _served(self) -> None:
        """The answer's end counts when the client has it, or the server for it."""
        if not self._client.waiting:
            self._finish(Outcome.ANSWERED)

    # --- ends

    def _drop_engine(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()

    def _finish(self, ending: Outcome) -> None:
        if self._outcome is None:
            self._outcome = ending
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(None)


# What comes of an event with a text where a list should be, say.
ODD = (ValueError, TypeError, LookupError, AttributeError, RecursionError)


@contextmanager
def is_understood() -> Iterator[None]:
    """What an engine sends may be no JSON, or a text where a list should be: its fault, not ours. Raises Broken."""
    try:
        yield
    except ODD as error:
        raise invalid_answer(error) from error


def invalid_answer(error: Exception) -> Broken:
    return Broken(f"an event is not what its format asks for ({type(error).__name__})")


def sanitised_error(api_format: ApiFormat, language: Language, error: Any) -> bytes:
    """Return the event that takes the place of an engine's own error event, which may name addresses and paths.

    No method: a reader that knew the exchange which knows it could be freed by the garbage collector only.
    """
    return api_format.encode_event(EngineFailed(), language)
