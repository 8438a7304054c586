"""One exchange: an engine's answer to the client as it comes, and its outcome.

The engine's connection calls in (`Receiver`); what may go on is handed to the client there and then: no task, queue or
future lies between the two sockets. While the client reads too slowly, reading from the engine is paused.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from functools import partial
from typing import Any, Protocol

from apiproxy.dataplane import engine_errors
from apiproxy.dataplane.context import RequestContext
from apiproxy.dataplane.downstream import Header
from apiproxy.dataplane.errors import BadRequest, EngineFailed, Language, Refusal, release_frames
from apiproxy.dataplane.formats import requests
from apiproxy.dataplane.formats.api_formats import ApiFormat
from apiproxy.dataplane.memory_budget import BudgetShare
from apiproxy.dataplane.stream import readers
from apiproxy.dataplane.stream.accumulators import Accumulator
from apiproxy.dataplane.stream.early_ends import usage_of
from apiproxy.dataplane.stream.loop_guard import STOPPED_HEADER, LoopGuard
from apiproxy.dataplane.stream.observers import EarlyStop, StreamObserver
from apiproxy.dataplane.token_usage import Tokens
from apiproxy.dataplane.upstream import Broken, Connection, Unreachable, UpstreamError

log = logging.getLogger("madoguchi.gateway")

# The most that one answer without a stream may make us hold: what an engine sends as one, what we put together of a
# stream. Four replies of 128,000 tokens are 2 MB, 20,000 embeddings as base64 60 MB.
MAX_ANSWER = 64 * 1024 * 1024
# Up to so many bytes it is not counted against anybody.
UNCOUNTED = 64 * 1024
# More of an error body helps no reader.
MAX_ERROR_BODY = 64 * 1024
# An engine that answers so has not begun: our key or name is wrong there, it is full, or it is loading its model.
UNTOUCHED = frozenset({401, 403, 404, 408, 429, 503})
PLAIN = (b"", b"identity")
STREAM_HEADERS: list[Header] = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class ExchangeOutcome(Enum):
    ANSWERED = "answered"  # the client has the whole answer, or an error event
    REFUSED = "refused"  # the engine answered with an error; the client has nothing
    BROKEN = "broken"  # the engine broke off or was too slow; the client has nothing
    LEFT = "left"  # the client disconnected


class Stage(Enum):
    """What the client has been sent. Stages only advance; from each but the last two any later one may follow."""

    NOT_STARTED = "not started"  # nothing: an error can still be any HTTP status
    HEARTBEAT = "heartbeat"  # the head of a stream and heartbeats: an error is an event
    STREAMING = "streaming"  # some of the answer
    COMPLETE = "complete"  # the last bytes
    DISCONNECTED = "disconnected"


STREAMING = Stage.STREAMING  # a member of an Enum takes 0.1 µs to look up


class Meter(Protocol):
    """Records what an exchange used."""

    def open(self) -> None:
        """Record that a stream begins, just before its first byte goes out."""

    def close(self, status: str, tokens: Tokens, *, estimated: bool) -> None:
        """Record what was used, exactly once, just before the last bytes go out."""

    def estimate(self, seconds: float) -> int:
        """Return the tokens that the engine has made by now, in so many seconds, of an answer that is not seen."""

    def observer_failed(self) -> None:
        """Count an observer that failed and was taken off its stream."""


def never(framed: bytes, start: int) -> bool:
    return False


class Exchange:
    """The answer to one call, over one or (before its first byte) several attempts.

    A `Receiver` of the engine's answer and a `Listener` to the client.
    """

    __slots__ = (
        "_api_format",
        "_assembly",
        "_client",
        "_connection",
        "_content_type",
        "_context",
        "_encoding",
        "_finish_reason",
        "_headers",
        "_latest",
        "_loop",
        "_meter",
        "_observer",
        "_open_share",
        "_outcome",
        "_pieces",
        "_reader",
        "_refusal",
        "_retry_after",
        "_says_dead",
        "_sent_at",
        "_share",
        "_size",
        "_stage",
        "_status",
        "_stopped",
        "_verbatim",
        "_waiter",
        "arriving",
        "assembles",
        "attempt_at",
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
        context: RequestContext,
        meter: Meter,
        *,
        assemble: bool,
        headers: list[Header],
        observer: StreamObserver | None,
        open_share: Callable[[], BudgetShare],
        now: Callable[[], float],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """`assemble`: the engine was asked for a stream, the client wants one JSON. `headers` go with the answer.

        `open_share` opens the caller's share of the memory budget, for what has to be held; `free` gives it back.
        """
        self._context = context
        self._api_format = context.endpoint.api_format
        self._client = context.client
        self._meter = meter
        self.assembles = assemble
        self._headers = headers
        self._observer = observer
        self.now = now
        # asyncio.get_running_loop() asks the kernel for the process's number each time: 5 % of a whole call.
        self._loop = loop
        self._connection: Connection | None = None
        self._reader: readers.Reader | None = None
        # Whether a chunk of the stream may go on as it came; no call of a method in between, for each token.
        self._verbatim: Callable[[bytes, int], bool] = never
        self._assembly: Accumulator | None = None
        self._status = 0
        self._pieces: list[bytes] = []
        self._size = 0
        self._content_type = self._encoding = b""
        self._open_share = open_share
        self._share: BudgetShare | None = None
        self._retry_after = ""
        self._says_dead = False
        self._stopped = False  # by the observer
        self._stage = Stage.HEARTBEAT if context.head_sent else Stage.NOT_STARTED
        self._outcome: ExchangeOutcome | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._refusal: Refusal | None = None
        self.error: UpstreamError | None = None
        self.began = self.attempt_at = self.heard_at = self.beat_at = self._sent_at = now()
        self._finish_reason = ""  # of an answer in one piece
        self._latest = b""  # of what the client was sent of the stream, when that was last looked at
        self.first_byte_at: float | None = None
        self.metered = False
        self.reached = False  # an engine has had the request
        self.arriving = False  # its body is still on the way from the client

    # --- for the gateway

    def attempt(self, connection: Connection, request: bytes) -> None:
        """Send the request; `outcome` waits for what comes of it. A second attempt only after BROKEN or REFUSED."""
        self._outcome = self._waiter = None
        if self._stage is Stage.DISCONNECTED:  # while the connection was made
            connection.abort()
            self._finish(ExchangeOutcome.LEFT)
            return
        self._connection = connection
        self._status = 0
        self.error = self._refusal = None  # an earlier attempt's
        self._says_dead = False
        self.reached = True
        self.attempt_at = self.heard_at = self.now()
        connection.request(request, self)

    async def outcome(self) -> ExchangeOutcome:
        """Wait until the attempt has ended one way or another."""
        if self._outcome is None:
            self._waiter = self._loop.create_future()
            await self._waiter
            assert self._outcome is not None
        return self._outcome

    def set_unreachable(self, error: UpstreamError, refusal: Refusal) -> None:
        """Note that no connection could be made, and the error for the client if no other attempt is made."""
        self.error = error
        self._refusal = refusal

    def set_refusal(self, refusal: Refusal) -> None:
        """Replace the error for the client, now that more is known about why nothing came."""
        self._refusal = refusal

    @property
    def untouched(self) -> bool:
        """Whether the engine surely did no work on the last attempt, so that another may be given it."""
        return isinstance(self.error, Unreachable) or (self.error is None and self._status in UNTOUCHED)

    @property
    def says_dead(self) -> bool:
        """Whether the engine's front reported that the engine behind it is dead."""
        return self._says_dead or (self._reader is not None and engine_errors.reports_dead_engine(self._reader.error))

    @property
    def refusal(self) -> Refusal:
        """The error for the client if no answer comes."""
        if self._refusal is None:
            self._refusal = EngineFailed()
        return self._refusal

    def cut_off(self, refusal: Refusal, *, lost: bool = False) -> bool:
        """Stop the engine for this reason. A client that has had some of the answer is sent an error event.

        Return whether it was; otherwise the refusal is still to be sent. `lost`: the engine's host is gone, so it is
        unknown whether an answer that has not begun was worked on, and it is not charged.
        """
        self._drop_engine()
        release_frames(refusal)
        self._refusal = refusal
        sent = self._stage in (Stage.STREAMING, Stage.COMPLETE)
        worked_on = self.reached and not self.awaited and self._status in (0, 200)  # since the request was sent
        try:
            if worked_on and not lost and self._stage is Stage.NOT_STARTED:
                self._close("failed")
            self._broke_off()
        finally:
            if self._stage is not Stage.COMPLETE:
                self._finish(ExchangeOutcome.BROKEN)
        return sent

    @property
    def awaited(self) -> bool:
        """Whether the engine should send something soon: an answer in one piece has its first byte when it is done."""
        return self.arriving or self.assembles or self._context.streams

    def heartbeat(self, every: float) -> None:
        """Send the client of a stream a comment when nothing has come for `every` seconds, and again after as many.

        Clients are sent whole events only, so it never falls into one.
        """
        over = self._stage is Stage.COMPLETE or self._stage is Stage.DISCONNECTED
        if over or not self._context.streams or self._client.waiting:
            return
        now, reader = self.now(), self._reader
        if self._stage is Stage.NOT_STARTED or self._stage is Stage.HEARTBEAT:
            if now - self.beat_at >= every:
                self.beat_at = now
                self._begin(Stage.HEARTBEAT)
                self._client.piece(self._api_format.heartbeat)
            return
        if reader is None or reader.done:
            return
        # Not all that is heard is sent: of an answer that was ended before its engine did, nothing is.
        if reader.latest is not self._latest:
            self._latest, self._sent_at = reader.latest, self.heard_at
        if now - max(self.beat_at, self._sent_at) >= every:
            self.beat_at = now
            self._client.piece(self._api_format.ping)

    def free(self) -> None:
        """Give back the memory that the answer took."""
        share, self._share = self._share, None
        if share is not None:
            share.close()

    def send_error(self, refusal: Refusal) -> bool:
        """Send an error event to a client that has had the head of a stream, and wait for the outcome then.

        Return whether the client had it; otherwise the refusal is still to be sent.
        """
        if self._stage is Stage.NOT_STARTED:
            return False
        if self._stage in (Stage.HEARTBEAT, Stage.STREAMING):
            self._outcome = self._waiter = None
            self._last(self._error_event(refusal) + self._api_format.stream_terminator)
        return True

    @property
    def is_streamed(self) -> bool:
        """Whether the engine answers with a stream, of which the first byte shows that it has read the prompt."""
        return self._reader is not None

    @property
    def finish_reason(self) -> str:
        """The engine's word for why its answer ended; "": it has not said so."""
        return self._finish_reason if self._reader is None else self._reader.finish_reason()

    @property
    def events(self) -> int:
        """How many of the stream's events carried a part of the answer so far."""
        return self._reader.events if self._reader is not None else 0

    @property
    def waits_for_client(self) -> bool:
        return self._client.waiting

    # --- Listener

    def client_left(self) -> None:
        """Stop the engine and meter what it had generated. Do nothing after the answer's end."""
        if self._stage is Stage.DISCONNECTED or self._outcome is ExchangeOutcome.ANSWERED:
            return
        self._stage = Stage.DISCONNECTED
        self._drop_engine()
        try:
            if self.reached and self._status in (0, 200):  # it was read and worked on, also before the first byte
                self._close("aborted")
        finally:  # whatever is at fault, `outcome` must not wait for ever
            self._finish(ExchangeOutcome.LEFT)

    def client_ready(self) -> None:
        if self._stage is Stage.COMPLETE:
            self._finish(ExchangeOutcome.ANSWERED)
        elif self._connection is not None:
            self._connection.resume()

    # --- Receiver

    def head(self, status: int, headers: list[Header]) -> None:
        self.heard_at = self.now()
        self._status = status
        self._pieces, self._size = [], 0
        self._reader, self._verbatim = None, never  # an earlier attempt's
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
            usage = self._context.call.asks_usage and not self.assembles
            call, language = self._context.call, self._context.key.language
            may_stop = self._observer is not None and self._observer.may_stop
            asked = readers.StreamContext(
                wants_usage=usage, n=call.n, prompts=call.prompts, model=call.model, may_stop=may_stop
            )
            self._reader = self._api_format.make_reader(asked, partial(sanitised_error, self._api_format, language))
            self._verbatim = self._reader.accept_verbatim
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
        except MALFORMED as error:
            raise invalid_answer(error) from error
        if through:
            self._forward(through, self._reader)
            self._end_if_over()

    def chunk(self, framed: bytes, start: int) -> None:
        """Pass a chunk on in the frame that it came in, as nearly every token goes; change it first where necessary."""
        if self._stage is not STREAMING or not self._verbatim(framed, start):
            self.data(framed[start:-2])
            return
        self.heard_at = self.now()
        if self._observer is not None and self._is_stopped(framed[start:-2], self._observer):
            self._end_if_over()
            return
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
        finally:  # whatever is at fault, `outcome` must not wait for ever
            if self._stage is not Stage.COMPLETE:
                self._finish(ExchangeOutcome.BROKEN)

    # --- the answer

    def _forward(self, through: bytes, reader: readers.Reader) -> None:
        """Pass whole events to the client, or to what assembles its answer, unless the observer stops them."""
        if self._observer is not None and self._is_stopped(through, self._observer):
            return
        if self._assembly is not None:
            self._assemble(through, self._assembly)
        else:
            self._pass(through, reader)

    def _end_if_over(self) -> None:
        """Stop the engine if the client has had the end of its answer."""
        reader = self._reader
        if reader is not None and reader.ends_here and self._connection is not None:
            self._drop_engine()
            self._end_stream(reader)

    def _is_stopped(self, events: bytes, observer: StreamObserver) -> bool:
        """Return whether the observer stopped the stream with these events; all is done about them then."""
        try:
            verdict = observer.feed(events)
        except Exception:  # an observer's fault must not cost the client its answer
            log.exception("call %s is no longer observed", self._context.request_id)
            self._drop_observer()
            return False
        if verdict is None:
            return False
        if isinstance(verdict, Refusal):
            self._stopped = True
            self.cut_off(verdict)
        else:
            self._end_early(verdict, events, observer)
        return True

    def _drop_observer(self) -> None:
        """Go on without the observer, which has just raised."""
        self._meter.observer_failed()
        self._observer = None

    def _end_early(self, stop: EarlyStop, events: bytes, observer: StreamObserver) -> None:
        """End the answer after these events, or one of several, unless it ends with them anyway."""
        reader = self._reader
        assert reader is not None
        ending = reader.end_early(stop, self._context.call.prompt_estimate)
        if not ending:
            observer.ended_itself(stop.choice)
        if self._assembly is not None:
            if ending and STOPPED_HEADER not in self._headers:
                self._headers.append(STOPPED_HEADER)
            self._assemble(events + ending, self._assembly)
        else:
            self._pass(events + ending, reader)

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
            self._status, body, self._context.call, self._context.endpoint, retry_after=self._retry_after
        )
        self._finish(ExchangeOutcome.REFUSED)

    def _assemble(self, through: bytes, assembly: Accumulator) -> None:
        with parse_errors_as_broken():
            assembly.feed(through)
        self._hold(assembly.size - self._size)

    def _hold(self, more: int) -> bool:
        """Count so many more bytes of the answer that are kept. Return False if they are too many: the call is over."""
        self._size += more
        try:
            if self._size > MAX_ANSWER:
                raise BadRequest("answer_too_large", limit=MAX_ANSWER // 2**20)
            if self._size > UNCOUNTED:
                if self._share is None:
                    self._share = self._open_share()
                self._share.take(self._size - self._share.held)
        except Refusal as refusal:
            self._drop_engine()
            release_frames(refusal)
            self._refusal = refusal
            self._close("failed")
            self._finish(ExchangeOutcome.BROKEN)
            return False
        return True

    def _pass(self, through: bytes, reader: readers.Reader) -> None:
        """Pass whole events of a stream to the client."""
        if self._stage is not Stage.STREAMING:
            if reader.error is not None and not reader.events:
                return  # without a part of an answer the error can still be an HTTP status
            self._meter.open()
            self._begin(Stage.STREAMING)
        if reader.done:
            self._close("finished" if reader.is_finished() else "failed")
        self._client.piece(through)
        if self._client.waiting and self._connection is not None:
            self._connection.pause()

    def _end_stream(self, reader: readers.Reader) -> None:
        rest = reader.close()
        if rest:
            self._forward(rest, reader)
        if self._outcome is not None or self._stage is Stage.COMPLETE:
            return
        done = reader.done and reader.is_finished()
        streaming = self._assembly is None and self._stage is Stage.STREAMING
        if self._assembly is not None and (done or reader.has_finish_reason()):
            self._end_assembly(reader, self._assembly)
        elif streaming and done:
            self._last(b"")
        elif streaming and not reader.done and reader.has_finish_reason():
            self._close("finished")
            self._last(self._api_format.stream_terminator)  # which the engine left out
        else:
            self._broke_off()

    def _end_unary(self, body: bytes) -> None:
        try:
            if self._encoding:
                body = engine_errors.decompress(body, self._encoding, MAX_ANSWER)
            engine_errors.check_answer(body, self._content_type, self._context.call, self._context.endpoint)
        except Refusal as refusal:
            release_frames(refusal)
            self._refusal = refusal
            self._finish(ExchangeOutcome.REFUSED)
            return
        tokens, estimated = requests.read_used_tokens(body, self._context.call, self._context.endpoint)
        if self._context.endpoint.costs == "prompt and answer":
            self._finish_reason = readers.find_finish_reason(body)
        if (guard := self._context.guard) is not None:
            body = self._read_whole(body, guard)
        not_started = self._stage is Stage.NOT_STARTED
        # A stream that was kept alive cannot become a JSON.
        self._meter.close("finished" if not_started else "failed", tokens, estimated=estimated)
        self.metered = True
        if not_started:
            self._answer(body, self._content_type)
        else:
            self._finish(ExchangeOutcome.BROKEN)

    def _read_whole(self, body: bytes, guard: LoopGuard) -> bytes:
        """Show the guard an answer in one piece; return what the client is sent of it."""
        try:
            through = guard.read_whole(body)
        except Exception:  # see `_is_stopped`
            log.exception("call %s is not observed", self._context.request_id)
            self._drop_observer()
            return body
        if guard.stopped:
            self._headers.append(STOPPED_HEADER)
        return through

    def _end_assembly(self, reader: readers.Reader, assembly: Accumulator) -> None:
        usage = reader.usage
        if usage is None:  # llama-cpp-python has none in streams; an answer in one piece always has it
            used, _ = reader.count_usage(self._context.call.prompt_estimate)
            usage = usage_of(used)
        with parse_errors_as_broken():
            body = assembly.body(usage)
        self._close("finished")
        self._answer(body, b"application/json")

    def _broke_off(self) -> None:
        """End an answer that is not complete. A client that has had some of it is sent an error event."""
        reader = self._reader
        if self._stage is Stage.STREAMING:
            self._close("failed")
            # Of events that an observer stopped the client has had nothing, whatever the reader made of them.
            had_error = not self._stopped and reader is not None and reader.error is not None
            had_end = not self._stopped and reader is not None and reader.done
            is_complete = had_end and reader is not None and reader.is_finished()
            event = b"" if had_error or is_complete else self._error_event(self.refusal)
            self._last(event if had_end else event + self._api_format.stream_terminator)
        elif self._stage is Stage.NOT_STARTED or self._stage is Stage.HEARTBEAT:
            if reader is not None and reader.events:
                self._close("failed")  # tokens that no client will see, but that a GPU has made
            self._finish(ExchangeOutcome.BROKEN)

    def _error_event(self, refusal: Refusal) -> bytes:
        return self._api_format.encode_event(refusal, self._context.key.language)

    def _close(self, status: str) -> None:
        """Meter what was generated, by the engine's own numbers or by what was counted."""
        if self.metered:
            return
        tokens, estimated = self.used()
        self.metered = True
        self._meter.close(status, tokens, estimated=estimated)

    def used(self) -> tuple[Tokens, bool]:
        """Return what the call has used so far, and whether that is an estimate."""
        prompt, reader = self._context.call.prompt_estimate, self._reader
        if reader is not None:
            return reader.count_usage(prompt)
        return Tokens(prompt=prompt, completion=self._meter.estimate(self.now() - self.began)), True

    # --- to the client

    def _begin(self, stage: Stage) -> None:
        if self._stage is Stage.NOT_STARTED:
            self._client.begin([*STREAM_HEADERS, *self._headers])
            self._context.head_sent = True
        self._stage = stage

    def _answer(self, body: bytes, content_type: bytes) -> None:
        self._stage = Stage.COMPLETE
        self._client.answer(200, [(b"content-type", content_type), *self._headers], body)
        self._served()

    def _last(self, body: bytes) -> None:
        self._stage = Stage.COMPLETE
        self._client.last(body)
        self._served()

    def _served(self) -> None:
        """Finish as soon as the client, or the server for it, has taken everything."""
        if not self._client.waiting:
            self._finish(ExchangeOutcome.ANSWERED)

    # --- ends

    def _drop_engine(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()

    def _finish(self, outcome: ExchangeOutcome) -> None:
        if self._outcome is None:
            self._outcome = outcome
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(None)


# Raised by parsing a malformed event, such as one with a text where a list should be.
MALFORMED = (ValueError, TypeError, LookupError, AttributeError, RecursionError)


@contextmanager
def parse_errors_as_broken() -> Iterator[None]:
    """Raise Broken for what an engine sends that is not JSON, or has a text where a list should be."""
    try:
        yield
    except MALFORMED as error:
        raise invalid_answer(error) from error


def invalid_answer(error: Exception) -> Broken:
    return Broken(f"an event is not what its format asks for ({type(error).__name__})")


def sanitised_error(api_format: ApiFormat, language: Language, error: Any) -> bytes:
    """Return the event that replaces an engine's own error event, which may name addresses and paths.

    Not a method: a reader and an exchange that know each other could be freed by the garbage collector only.
    """
    return api_format.encode_event(EngineFailed(), language)
