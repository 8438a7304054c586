"""The API formats of `/v1`: OpenAI's chat (with its older API), transcripts and Responses; Anthropic's Messages.

A format says how errors look before and in a stream, how a stream ends, and which reader reads it.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace

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
class ApiFormat:
    """How one API writes errors and streams."""

    encode_error: Callable[[Refusal, Language], bytes]  # a refusal as a body
    encode_event: Callable[[Refusal, Language], bytes]  # a refusal as an event of a stream
    stream_terminator: bytes  # follows such an event
    heartbeat: bytes  # may be sent to a client before its stream begins
    ping: bytes  # may be sent in the middle of a stream when nothing comes for long
    make_reader: Callable[[readers.StreamContext, readers.OnError], readers.Reader]  # called for each stream
    make_accumulator: Callable[[], Accumulator]  # called where a stream has to become one JSON object
    needs_usage_option: bool  # a stream contains usage only if `stream_options` asks for it


def encode_openai_error(refusal: Refusal, language: Language) -> bytes:
    return encode_json({"error": refusal.error(language)})


def encode_chat_event(refusal: Refusal, language: Language) -> bytes:
    # Dify's reader knows no `event:` lines.
    return b"data: " + encode_openai_error(refusal, language) + b"\n\n"


def encode_responses_event(refusal: Refusal, language: Language) -> bytes:
    error = refusal.error(language)
    # `error` is what the SDK raises on; the other members are what OpenAI's description of the event has.
    fields = {"code": error["code"], "message": error["message"], "param": error["param"], "error": error}
    return b"event: error\ndata: " + encode_json({"type": "error", **fields}) + b"\n\n"


# Anthropic's API reference, "Errors"; every other 4xx is an invalid request there, every 5xx an api_error.
ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def encode_anthropic_error(refusal: Refusal, language: Language) -> bytes:
    default = "invalid_request_error" if refusal.status < 500 else "api_error"
    kind = ANTHROPIC_TYPES.get(refusal.status, default)
    return encode_json({"type": "error", "error": {"type": kind, "message": refusal.message(language)}})


def encode_anthropic_event(refusal: Refusal, language: Language) -> bytes:
    return b"event: error\ndata: " + encode_anthropic_error(refusal, language) + b"\n\n"


def encode_json(body: object) -> bytes:
    try:
        return orjson.dumps(body)
    except orjson.JSONEncodeError:  # half of a surrogate pair, in a name that a client sent
        return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode(errors="backslashreplace")


# The parsers of event streams skip comments (the HTML standard, 9.2.6): Dify's, and those of all SDKs.
COMMENT = b": waiting\n\n"

CHAT = ApiFormat(
    encode_error=encode_openai_error,
    encode_event=encode_chat_event,
    stream_terminator=b"data: [DONE]\n\n",
    heartbeat=COMMENT,
    ping=COMMENT,
    make_reader=readers.make_chunk_reader,
    make_accumulator=ChunkAccumulator,
    needs_usage_option=True,
)
# The form, not `stream_options`, asks for usage. Nothing is accumulated: an upload is not changed into a stream.
TRANSCRIPTS = replace(CHAT, make_reader=TranscriptReader, needs_usage_option=False)
RESPONSES = ApiFormat(
    encode_error=encode_openai_error,
    encode_event=encode_responses_event,
    stream_terminator=b"",
    heartbeat=COMMENT,
    ping=COMMENT,
    make_reader=readers.ResponsesReader,
    make_accumulator=ResponseAccumulator,
    needs_usage_option=False,
)
MESSAGES = ApiFormat(
    encode_error=encode_anthropic_error,
    encode_event=encode_anthropic_event,
    stream_terminator=b"",
    heartbeat=COMMENT,  # no ping: readers of this protocol want `message_start` first
    ping=b'event: ping\ndata: {"type": "ping"}\n\n',
    make_reader=readers.MessagesReader,
    make_accumulator=MessageAccumulator,
    needs_usage_option=False,
)
