"""The protocols of `/v1`: OpenAI's chat (and all else of its older API), transcripts, Responses; Anthropic's Messages.

A dialect is how errors look before and in a stream, how a stream ends, and who reads it.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass

import orjson

from apiproxy.dataplane.errors import Language, Refusal
from apiproxy.dataplane.formats.transcription import TranscriptReader
from apiproxy.dataplane.stream import readers
from apiproxy.dataplane.stream.accumulators import (
    Accumulator,
    ChunkAccumulator,
    MessageAccumulator,
    ResponseAccumulator,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """`error` and `event` give a refusal as a body and as an event of a stream, `farewell` what follows such an event.
    `heartbeat`: what a client may be sent before its stream begins; `ping`: in its middle, when nothing comes for long.

    `reader` is made for each stream, `assembly` where a stream has to become one JSON. `asks_usage`: usage comes in
    a stream only where `stream_options` asks for it.
    """

    error: Callable[[Refusal, Language], bytes]
    event: Callable[[Refusal, Language], bytes]
    farewell: bytes
    heartbeat: bytes
    ping: bytes
    reader: Callable[[readers.StreamContext, readers.OnError], readers.Reader]
    assembly: Callable[[], Accumulator]
    asks_usage: bool


def openai_error(refusal: Refusal, language: Language) -> bytes:
    return encoded({"error": refusal.error(language)})


def chat_event(refusal: Refusal, language: Language) -> bytes:
    # Dify's reader knows no `event:` lines.
    return b"data: " + openai_error(refusal, language) + b"\n\n"


def responses_event(refusal: Refusal, language: Language) -> bytes:
    error = refusal.error(language)
    # `error` is what the SDK raises on; the other members are what OpenAI's description of the event has.
    fields = {"code": error["code"], "message": error["message"], "param": error["param"], "error": error}
    return b"event: error\ndata: " + encoded({"type": "error", **fields}) + b"\n\n"


# Anthropic's API reference, "Errors"; every other 4xx is an invalid request there, every 5xx an api_error.
ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def anthropic_error(refusal: Refusal, language: Language) -> bytes:
    default = "invalid_request_error" if refusal.status < 500 else "api_error"
    kind = ANTHROPIC_TYPES.get(refusal.status, default)
    return encoded({"type": "error", "error": {"type": kind, "message": refusal.message(language)}})


def anthropic_event(refusal: Refusal, language: Language) -> bytes:
    return b"event: error\ndata: " + anthropic_error(refusal, language) + b"\n\n"


def encoded(body: object) -> bytes:
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError:  # half of a surrogate pair, in a name that a client sent
        return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode(errors="backslashreplace")


# The parsers of event streams skip comments (the HTML standard, 9.2.6): Dify's, and those of all SDKs.
COMMENT = b": waiting\n\n"

CHAT = Dialect(
    error=openai_error,
    event=chat_event,
    farewell=b"data: [DONE]\n\n",
    heartbeat=COMMENT,
    ping=COMMENT,
    reader=readers.chunk_reader,
    assembly=ChunkAccumulator,
    asks_usage=True,
)
# Errors as in chat. The form, not `stream_options`, asks for usage.
TRANSCRIPTS = Dialect(
    error=openai_error,
    event=chat_event,
    farewell=b"data: [DONE]\n\n",
    heartbeat=COMMENT,
    ping=COMMENT,
    reader=TranscriptReader,
    assembly=ChunkAccumulator,  # never used: an upload's form is not changed into a stream's
    asks_usage=False,
)
RESPONSES = Dialect(
    error=openai_error,
    event=responses_event,
    farewell=b"",
    heartbeat=COMMENT,
    ping=COMMENT,
    reader=readers.ResponsesReader,
    assembly=ResponseAccumulator,
    asks_usage=False,
)
MESSAGES = Dialect(
    error=anthropic_error,
    event=anthropic_event,
    farewell=b"",
    heartbeat=COMMENT,  # no ping: readers of this protocol want `message_start` first
    ping=b'event: ping\ndata: {"type": "ping"}\n\n',
    reader=readers.MessagesReader,
    assembly=MessageAccumulator,
    asks_usage=False,
)
