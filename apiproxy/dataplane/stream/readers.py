"""Incremental event-stream readers: bytes go through, facts come out. No I/O.

Engines send a chunk per event, and nearly every piece that arrives ends with one. Such a piece goes on as it came after
a few searches for words that would need a closer look; parsing every event's JSON instead costs 11 µs per token
(tests/bench/RESULTS.md). Only whole events are let through, so that an answer can be metered before its last byte
leaves.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from apiproxy.dataplane.engine_json import decode_object
from apiproxy.dataplane.formats.responses import EventCompleter, lacks_numbers
from apiproxy.dataplane.stream import early_ends
from apiproxy.dataplane.stream.accumulators import index_of
from apiproxy.dataplane.stream.early_ends import ResponseDraft, encode_event
from apiproxy.dataplane.stream.observers import EarlyStop
from apiproxy.dataplane.token_usage import Tokens, read_tokens

# An event is at most a few KB; 100 KB was seen with logprobs; the last event of Responses repeats all of the answer.
# Beyond this the engine is broken. To decode as much takes 50 ms, for which all calls wait.
MAX_EVENT = 4 * 1024 * 1024
# A token's text is 4 bytes on average. An event with more than SEVERAL carries more than one, as engines with
# speculative decoding or a stream interval send them.
TOKEN_BYTES = 4
MAX_TOKEN_BYTES = 12
# Bytes of the events without a text among those that are counted: the first and the last.
EVENT_ENDS = 1024

CR = 0x0D
OnError = Callable[[Any], bytes]


# With these an engine ends a block of Messages, and with it perhaps the message.
ENDS_OF_BLOCK = frozenset({"content_block_stop", "message_delta", "message_stop"})
FINISH_REASON = re.compile(rb'"(?:finish|stop)_reason": ?"(\w{1,40})"')
INCOMPLETE_REASON = re.compile(rb'"incomplete_details": ?\{"reason": ?"(\w{1,40})"')
ABORTED = re.compile(rb'"finish_reason": ?"abort"')


class EventTooLong(Exception):
    """The engine sent more than MAX_EVENT bytes without ending an event."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamContext:
    """What a reader knows of the call."""

    wants_usage: bool  # the client asked for the usage chunk
    n: int = 1  # answers to each prompt
    prompts: int = 1
    model: str = ""  # the name that the client used
    may_stop: bool = False  # an observer may end an answer


class Reader(ABC):
    """Reads one stream; each subclass knows a protocol.

    `on_error(error)` gives the bytes of the error event that replaces the engine's own.
    """

    __slots__ = (
        *("_context", "_on_error", "_rest", "_tail", "_tokens_at_end"),
        *("done", "ends_here", "error", "events", "size", "usage"),
    )
    # A piece with one of these is inspected event by event; any other goes on as it came.
    MARKERS: ClassVar[tuple[bytes, ...]]
    # Occurs once in every event that carries a part of the answer.
    PART_MARKER: ClassVar[bytes]

    def __init__(self, context: StreamContext, on_error: OnError) -> None:
        self._context = context
        self._on_error = on_error
        self._rest = bytearray()
        self._tail = [b"", b"", b""]  # the last pieces that went on
        self.error: Any = None
        self.usage: dict[str, Any] | None = None  # the engine's own, as far as it was reported
        self.done = False  # the protocol's last event was seen
        self.ends_here = False  # by `end_early`: whatever the engine still makes, the client has the end
        self._tokens_at_end: Tokens | None = None  # by `end_early`: what the client was sent of them
        self.events = 0  # those with a part of the answer: about one per token
        self.size = 0  # bytes of events that may carry a part of the answer

    def feed(self, piece: bytes) -> bytes:
        """Return what of the stream may go on now: whole events, or b"" when none is complete. Raises EventTooLong."""
        if self._rest or not piece.endswith(b"\n\n") or piece.find(b"\r") >= 0:
            piece = self._take_whole(piece)
            if not piece:
                return b""
        for marker in self.MARKERS:
            if piece.find(marker) >= 0:
                return self._feed_events(piece)
        parts = piece.count(self.PART_MARKER)
        if parts > 1:  # several events, or an answer that has these words in its text
            self._count_parts(piece)
        elif parts:
            self.events += 1
            self.size += len(piece)
        self._remember(piece)
        return piece

    def accept_verbatim(self, framed: bytes, start: int) -> bool:
        """Return whether the chunk `framed[start:-2]` is one event that may go on unchanged, and count it if so.

        Otherwise pass it to `feed`.
        """
        # `find`, because `in` makes and drops an exception each time (a quarter of a microsecond).
        if self._rest or not framed.endswith(b"\n\n\r\n") or framed.find(b"\r", start, -2) >= 0:
            return False
        find = framed.find
        for marker in self.MARKERS:
            if find(marker) >= 0:
                return False
        if framed.count(self.PART_MARKER) != 1:
            return False
        self.events += 1
        self.size += len(framed) - start - 2
        tail = self._tail
        tail[0], tail[1], tail[2] = tail[1], tail[2], framed
        return True

    def close(self) -> bytes:
        """Return what may go on when the stream has ended: a whole event that lacks only its empty line."""
        rest = bytes(self._rest).strip()
        self._rest.clear()
        data = rest.rpartition(b"data:")[2].strip()
        if data != b"[DONE]" and decode_object(data) is None:
            return b""
        return self.feed(rest + b"\n\n")

    @property
    def latest(self) -> bytes:
        """The last piece that went on."""
        return self._tail[2]

    def has_finish_reason(self) -> bool:
        """Return whether the engine has said why its answer ends, so that only a last word can be missing."""
        return False

    def finish_reason(self) -> str:
        """Return the engine's word for why its answer ended; "": it has not said so in its last events."""
        return find_finish_reason(b"".join(self._tail))

    def has_ended_text(self) -> bool:
        """Return whether the engine has ended the text that it was writing, be it the answer's last or not."""
        return self.has_finish_reason()

    def end_early(self, stop: EarlyStop, prompt: int) -> bytes:
        """Return the events that end the answer before its engine does; b"" if that has ended its text already.

        If `ends_here` is true then, the stream is over. `prompt`: its tokens if the engine did not report them.
        """
        if self.done or self.error is not None or self.has_ended_text():
            return b""
        ending = self._make_end(stop, self._end_here(prompt))
        self._remember(ending)
        return ending

    def count_usage(self, prompt: int) -> tuple[Tokens, bool]:
        """Return what was used so far, and whether that is an estimate.

        `prompt`: its tokens if the engine did not report them.
        """
        return self._count_usage(prompt) if self._tokens_at_end is None else (self._tokens_at_end, True)

    def _end_here(self, prompt: int) -> Tokens:
        """Take no more of the stream; return what was used."""
        tokens, _ = self._count_usage(prompt)
        self._rest.clear()
        self._tokens_at_end = tokens
        self.done = self.ends_here = True
        return tokens

    def estimate_tokens(self, events: int) -> int:
        """Estimate how many tokens this many events carry, by the sizes of all and the texts of the last."""
        for event in reversed(b"".join(self._tail).split(b"\n\n")[-4:]):
            event = event.rpartition(b"\r\n")[2]  # without the head of its chunk
            data = decode_object(event.partition(b"data:")[2].strip())
            text = completion_text(data).encode(errors="replace") if data is not None else b""
            if text:
                spoken = self.size - events * (len(event) + 2 - len(text))
                return round(spoken / TOKEN_BYTES) if spoken > events * MAX_TOKEN_BYTES + EVENT_ENDS else events
        return events

    @abstractmethod
    def is_finished(self) -> bool:
        """Return whether the engine has sent the end of its answer."""

    @abstractmethod
    def _count_usage(self, prompt: int) -> tuple[Tokens, bool]:
        """Count what was used of a stream that the engine ends itself, as `count_usage` does."""

    @abstractmethod
    def _pass_event(self, event: bytes) -> bytes:
        """Return what goes on of one event (given without its empty line)."""

    @abstractmethod
    def _make_end(self, stop: EarlyStop, tokens: Tokens) -> bytes:
        """Return the last events of an answer that is ended here, after so many tokens."""

    def _last_events(self) -> list[dict[str, Any]]:
        """Return the last events that went on, the latest first."""
        events = b"".join(self._tail).split(b"\n\n")[::-1]
        data = [event.rpartition(b"\r\n")[2].partition(b"data:")[2].strip() for event in events]  # no chunk's head
        return [found for text in data if (found := decode_object(text)) is not None]

    def _feed_events(self, piece: bytes) -> bytes:
        """Return what goes on of whole events, inspecting each of them."""
        through = b"".join([self._pass_unless_error(event) for event in piece.split(b"\n\n") if event])
        if through:
            self.size += sum(len(event) + 2 for event in through.split(b"\n\n") if self.PART_MARKER in event)
            self._remember(through)
        return through

    def _pass_unless_error(self, event: bytes) -> bytes:
        error = find_named_error(event) if b"error" in event else None
        if error is None:
            return self._pass_event(event)
        self.error = error
        return self._on_error(error)

    def _count_parts(self, piece: bytes) -> None:
        for event in piece.split(b"\n\n"):
            if self.PART_MARKER in event:
                self.events += 1
                self.size += len(event) + 2

    def _remember(self, through: bytes) -> None:
        tail = self._tail
        tail[0], tail[1], tail[2] = tail[1], tail[2], through

    def _take_whole(self, piece: bytes) -> bytes:
        """Add a piece to what was held back, and take out everything up to the last complete event."""
        rest = self._rest
        new = len(rest)
        if new and rest[-1] == CR:
            new -= 1
        rest += piece
        if rest.find(b"\r", new) >= 0:
            # Dify's reader knows "\n\n" only. A CR inside JSON is escaped, so this touches line ends alone.
            rest[new:] = rest[new:].replace(b"\r\n", b"\n")
        # Only what is new is searched: an event of megabytes comes in hundreds of pieces.
        end = rest.rfind(b"\n\n", max(0, new - 1)) + 2
        if end < 2:
            if len(rest) > MAX_EVENT:
                raise EventTooLong
            return b""
        whole = bytes(rest[:end])
        del rest[:end]
        return whole


class ChunkReader(Reader):
    """Reads chunks of chat and of completions, up to `data: [DONE]`."""

    __slots__ = ()
    MARKERS: ClassVar[tuple[bytes, ...]] = (b'"usage"', b"error", b"[DONE]")
    PART_MARKER = b"data:"

    def is_finished(self) -> bool:
        """Return whether there was a usage object, or a finish_reason in the last events.

        `[DONE]` alone is no such sign: vLLM sends it after the error event of a crashed engine as well. Nor is the
        reason "abort", which vLLM gives for calls that it abandons when it is stopped.
        """
        if self.error is not None:
            return False
        if ABORTED.search(b"".join(self._tail)):
            return False
        return self.usage is not None or self.has_finish_reason()

    def has_finish_reason(self) -> bool:
        tail = b"".join(self._tail)
        given = b'"finish_reason":"' in tail or b'"finish_reason": "' in tail
        return self.error is None and given and not ABORTED.search(tail)

    def _count_usage(self, prompt: int) -> tuple[Tokens, bool]:
        if (reported := read_tokens(self.usage)) is not None:
            return reported, False
        # One event carries about one token; the first one only says who speaks.
        return Tokens(prompt=prompt, completion=self.estimate_tokens(max(0, self.events - 1))), True

    def _make_end(self, stop: EarlyStop, tokens: Tokens) -> bytes:
        last = next((chunk for chunk in self._last_events() if "choices" in chunk), {})
        ending = early_ends.end_choices(last, [stop.choice], stop.notice)
        if self._context.wants_usage:
            usage = early_ends.usage_of(tokens)
            ending += encode_event({**early_ends.head_of(last), "choices": [], "usage": usage})
        return ending + b"data: [DONE]\n\n"

    def _pass_event(self, event: bytes) -> bytes:
        data = event.removeprefix(b"data:").strip()
        if data == b"[DONE]":
            self.done = True
            return event + b"\n\n"
        if not self._context.wants_usage:  # what vLLM puts into every chunk when usage was asked for
            event = event.replace(b',"usage":null', b"")
            data = data.replace(b',"usage":null', b"")
        if not event.startswith(b"data:") or (b'"usage"' not in data and b'"error"' not in data):
            self.events += event.startswith(b"data:")
            return event + b"\n\n"
        chunk = decode_object(data)
        if chunk is None:
            return event + b"\n\n"
        if chunk.get("error"):  # some write null into every chunk
            self.error = chunk["error"]
            return self._on_error(self.error)
        return self._without_usage(event, chunk)

    def _without_usage(self, event: bytes, chunk: dict[str, Any]) -> bytes:
        usage = chunk.pop("usage", None)
        self.events += bool(chunk.get("choices"))
        if isinstance(usage, dict):
            self.usage = usage
            if not self._context.wants_usage and not chunk.get("choices"):
                return b""
        elif usage is None and event.find(b'"usage"') < 0:
            return event + b"\n\n"
        if self._context.wants_usage:
            return event + b"\n\n"
        return encode_event(chunk)


class MultiChoiceReader(ChunkReader):
    """Reads chunks of several answers, which come mixed: of `n` > 1, or of a batch of prompts.

    vLLM reports one sum at the end. llama.cpp reports each answer's usage by itself, in between: in chat as a chunk
    without choices, in completions on the chunk that has the finish_reason. An engine that reports too little even so
    is caught by counting. All usage is taken out; a client that asked for it gets one chunk with the sum.
    """

    __slots__ = (
        "_choice_usages",
        "_finished_choices",
        "_first",
        "_prompt",
        "_seen_choices",
        "_stopped_choices",
        "_total_usages",
    )
    MARKERS = (b"",)  # every piece

    def __init__(self, context: StreamContext, on_error: OnError) -> None:
        super().__init__(context, on_error)
        self._first: dict[str, Any] = {}
        self._total_usages: list[dict[str, Any]] = []  # usage of chunks without choices
        self._choice_usages: list[dict[str, Any]] = []  # usage of chunks that end an answer
        self._seen_choices: set[int] = set()
        self._finished_choices: set[int] = set()
        self._stopped_choices: set[int] = set()  # by us; their engine may go on with them
        self._prompt = 0  # tokens, as `end_early` got them

    def is_finished(self) -> bool:
        """Return whether every answer that began has ended; some engines give one whatever `n` is."""
        return self.error is None and bool(self._finished_choices) and self._seen_choices == self._finished_choices

    def end_early(self, stop: EarlyStop, prompt: int) -> bytes:
        if self.done or self.error is not None or stop.choice in self._finished_choices:
            return b""
        self._seen_choices.add(stop.choice)
        self._finished_choices.add(stop.choice)
        self._stopped_choices.add(stop.choice)
        ending = early_ends.end_choices(self._first, [stop.choice], stop.notice)
        self._prompt = prompt
        if self._have_all_ended():
            ending += self._end(prompt)
        self._remember(ending)
        return ending

    def _end(self, prompt: int) -> bytes:
        self.usage = early_ends.usage_of(self._end_here(prompt))
        return self._usage_chunk() + b"data: [DONE]\n\n"

    def _count_usage(self, prompt: int) -> tuple[Tokens, bool]:
        if (reported := read_tokens(self.usage)) is None:
            return Tokens(prompt=prompt, completion=self.estimate_tokens(self.events)), True
        if reported.completion >= self.events:
            return reported, False
        return reported._replace(completion=self.events), True

    def _pass_event(self, event: bytes) -> bytes:
        data = event.removeprefix(b"data:").strip()
        if data == b"[DONE]":
            self.done = True
            return self._usage_chunk() + event + b"\n\n"
        if not event.startswith(b"data:"):
            return event + b"\n\n"
        chunk = decode_object(data)
        if chunk is None:
            return b""  # llama.cpp begins a batch with `data: null`
        if chunk.get("error"):  # some write null into every chunk
            self.error = chunk["error"]
            return self._on_error(self.error)
        return self._without_usage(event, chunk)

    def _without_usage(self, event: bytes, chunk: dict[str, Any]) -> bytes:
        has_usage = "usage" in chunk
        usage, choices = chunk.pop("usage", None), chunk.get("choices") or []
        self._first = self._first or chunk
        ends = self._count_choices(choices)
        if isinstance(usage, dict) and (ends or not choices):
            (self._choice_usages if choices else self._total_usages).append(usage)
            self.usage = add_usage(self._total_usages or self._choice_usages, self._context.n)
        if self._stopped_choices and choices:
            return self._without_stopped(chunk)
        if not has_usage:
            return event + b"\n\n"
        return encode_event(chunk) if choices else b""

    def _without_stopped(self, chunk: dict[str, Any]) -> bytes:
        """Return the chunk without answers that were ended before; b"" if none is left."""
        left = [choice for choice in chunk["choices"] if index_of(choice.get("index")) not in self._stopped_choices]
        through = encode_event({**chunk, "choices": left}) if left else b""
        return through + self._end(self._prompt) if self._have_all_ended() else through

    def _have_all_ended(self) -> bool:
        return len(self._finished_choices) == self._context.n * self._context.prompts

    def _count_choices(self, choices: list[dict[str, Any]]) -> bool:
        """Count what these carry; return whether one of them ends."""
        ends = False
        for choice in choices:
            index = index_of(choice.get("index"))
            self._seen_choices.add(index)
            added = {name: value for name, value in (choice.get("delta") or {}).items() if name != "role"}
            self.events += bool(choice.get("text") or any(added.values()))
            if choice.get("finish_reason"):
                self._finished_choices.add(index)
                ends = True
        return ends

    def _usage_chunk(self) -> bytes:
        if self.usage is None or not self._context.wants_usage:
            return b""
        return encode_event({**self._first, "choices": [], "usage": self.usage})


def make_chunk_reader(context: StreamContext, on_error: OnError) -> ChunkReader:
    kind = MultiChoiceReader if context.n * context.prompts > 1 else ChunkReader
    return kind(context, on_error)


class TypedReader(Reader):
    """Reads events that have a `type`, with usage as part of the protocol: nothing is taken out of them."""

    __slots__ = ()

    def is_finished(self) -> bool:
        return self.done and self.error is None

    def _count_usage(self, prompt: int) -> tuple[Tokens, bool]:
        reported = read_tokens(self.usage)
        if reported is not None and self.done:
            return reported, False
        reported = reported or Tokens()
        completion = self.estimate_tokens(self.events)
        return Tokens(prompt=reported.prompt or prompt, cached=reported.cached, completion=completion), True

    def _pass_event(self, event: bytes) -> bytes:
        self.events += self.PART_MARKER in event
        data = decode_object(b"".join(line[5:] for line in event.split(b"\n") if line.startswith(b"data:")))
        if data is None:
            return event + b"\n\n"
        error = self._inspect(data)
        if error is None:
            return self._rewrite_event(event, data)
        self.error = error
        return self._on_error(error)

    def _rewrite_event(self, event: bytes, data: dict[str, Any]) -> bytes:
        return event + b"\n\n"

    @abstractmethod
    def _inspect(self, data: dict[str, Any]) -> Any:
        """Note what one event reports; return the error if it is one."""


class ResponsesReader(TypedReader):
    """Reads OpenAI's Responses, which end with an event that holds the whole response and its usage.

    If the engine leaves out the numbers of its events, each is inspected and completed (see `responses`).
    """

    __slots__ = ("_completion", "_draft", "_ended_by")
    MARKERS = (
        *(b'"usage"', b"error", b"response.created"),
        *(b"response.completed", b"response.incomplete", b"response.failed"),
    )
    PART_MARKER = b'.delta"'  # a quote within a text is escaped, so this is the end of a type

    def __init__(self, context: StreamContext, on_error: OnError) -> None:
        super().__init__(context, on_error)
        self._completion: EventCompleter | None = None
        self._ended_by = ""
        # The end of a response repeats all of it, so it is kept where it may have to be written here.
        self._draft = ResponseDraft() if context.may_stop else None

    def feed(self, piece: bytes) -> bytes:
        through = super().feed(piece) if self._completion is None else self._feed_events(self._take_whole(piece))
        if self._draft is not None:
            self._draft.feed(through)
        return through

    def accept_verbatim(self, framed: bytes, start: int) -> bool:
        return self._completion is None and self._draft is None and super().accept_verbatim(framed, start)

    def finish_reason(self) -> str:
        return self._ended_by

    def has_ended_text(self) -> bool:
        return self._draft is not None and not self._draft.is_writing

    def _make_end(self, stop: EarlyStop, tokens: Tokens) -> bytes:
        assert self._draft is not None
        return self._draft.end(tokens, stop.notice)

    def _rewrite_event(self, event: bytes, data: dict[str, Any]) -> bytes:
        if self._completion is None and lacks_numbers(data):
            self._completion = EventCompleter(self._context.model)
        if self._completion is None:
            return event + b"\n\n"
        whole = encode_event(self._completion.complete(data))
        return b"event: %s\n%s" % (str(data.get("type")).encode(), whole)

    def _inspect(self, data: dict[str, Any]) -> Any:
        response = data.get("response")
        response = response if isinstance(response, dict) else {}
        if data.get("type") in ("error", "response.failed") or (data.get("error") and "type" not in data):
            return response.get("error") or data
        if data.get("type") in ("response.completed", "response.incomplete"):
            self.done = True
            self.usage = response.get("usage")
            details = response.get("incomplete_details")
            reason = details.get("reason") if isinstance(details, dict) else "completed"
            self._ended_by = reason if isinstance(reason, str) else ""
        return None


class MessagesReader(TypedReader):
    """Reads Anthropic's Messages: the prompt's usage comes first, the answer's last."""

    __slots__ = ()
    MARKERS = (b'"usage"', b"error", b"message_stop")
    PART_MARKER = b'content_block_delta"'

    def has_ended_text(self) -> bool:
        kinds = [event.get("type") for event in self._last_events()]
        return next((kind in ENDS_OF_BLOCK for kind in kinds if kind != "ping"), False)

    def _make_end(self, stop: EarlyStop, tokens: Tokens) -> bytes:
        block = next((event["index"] for event in self._last_events() if "index" in event), 0)
        return early_ends.end_message(block, tokens, stop.notice)

    def _inspect(self, data: dict[str, Any]) -> Any:
        if data.get("type") == "error" or (data.get("error") and "type" not in data):
            return data.get("error") or data
        message = data.get("message")
        for found in (message.get("usage") if isinstance(message, dict) else None, data.get("usage")):
            if isinstance(found, dict):
                self.usage = {**(self.usage or {}), **found}
        self.done = self.done or data.get("type") == "message_stop"
        return None


def add_usage(usages: list[dict[str, Any]], n: int) -> dict[str, Any]:
    """Return one usage object for several.

    Each of `n` answers to the same prompt reports the whole prompt: it counts once.
    """
    if len(usages) == 1:
        return usages[0]
    reported = [found for usage in usages if (found := read_tokens(usage)) is not None]
    if not reported:  # nonsense, each of them
        return usages[0]
    prompt, cached = sum(one.prompt for one in reported) // n, sum(one.cached for one in reported) // n
    completion = sum(one.completion for one in reported)
    usage = early_ends.usage_of(Tokens(prompt=prompt, completion=completion))
    return {**usage, "prompt_tokens_details": {"cached_tokens": cached}}


def find_finish_reason(text: bytes) -> str:
    """Return the last word in this JSON, or these events, for why an answer ended; "": there is none.

    Within a text the quotes would be escaped. An answer in one piece of Responses has a status for it.
    """
    end = max(text.rfind(b'"finish_reason"'), text.rfind(b'"stop_reason"'))
    while end >= 0:
        found = FINISH_REASON.match(text, end)
        if found is not None:
            return found[1].decode()
        end = max(text.rfind(b'"finish_reason"', 0, end), text.rfind(b'"stop_reason"', 0, end))
    found = INCOMPLETE_REASON.search(text)
    if found is not None:
        return found[1].decode()
    return "completed" if b'"status":"completed"' in text or b'"status": "completed"' in text else ""


def find_named_error(event: bytes) -> Any:
    """Return the error of an event that is one by its name, or by a field of this name (llama.cpp before b4000)."""
    lines = event.split(b"\n")
    for line in lines:
        field, _, value = line.partition(b":")
        if field == b"error":
            return decode_object(value) or value.decode(errors="replace")
        if field == b"event" and value.strip() == b"error":
            data = b"".join(line[5:] for line in lines if line.startswith(b"data:"))
            return decode_object(data) or data.decode(errors="replace") or "error"
    return None


def completion_text(data: dict[str, Any]) -> str:
    """Return what an event adds to the answer: text, thoughts, a tool's input."""
    choices = data.get("choices")
    parts = choices if isinstance(choices, list) else [data]
    return "".join(choice_texts(part.get("delta"), part.get("text")) for part in parts if isinstance(part, dict))


def choice_texts(*values: Any) -> str:
    found = []
    for value in values:
        if isinstance(value, str):
            found.append(value)
        elif isinstance(value, dict):
            found.append(
                choice_texts(*(part for name, part in value.items() if name not in ("type", "role", "id", "name")))
            )
        elif isinstance(value, list):
            found.append(choice_texts(*value))
    return "".join(found)
