"""What a transcription costs, and the two kinds of streams that engines send for one. No I/O.

Engines report the tokens of a transcription only in a stream: vLLM, if `stream_include_usage` is set, counts 100 tokens
for each second of sound (a frame of Whisper's spectrogram each) and the text's own. Its answers without a stream report
seconds, or nothing (translations, plain text). So that a recording costs the same in whatever form it is requested,
seconds are turned into tokens by vLLM's rule, and where there is nothing, bytes into seconds. Both are estimates.
"""

import math
from typing import Any, ClassVar

from apiproxy.dataplane.engine_json import decode_object
from apiproxy.dataplane.stream.readers import ChunkReader, OnError, StreamContext
from apiproxy.dataplane.token_usage import Tokens, read_tokens

TOKENS_PER_SECOND = 100
# A recording's length before an engine has decoded it: 128 kbit/s, the usual MP3. Speech as Opus has a quarter of that
# (so is underestimated by as much), 16 kHz WAV twice as much.
BYTES_PER_SECOND = 16_000
# Tokens that quick speakers say in a second.
SPOKEN_PER_SECOND = 5
# The same as requests.BYTES_PER_TOKEN, which explains it.
BYTES_PER_TOKEN = 3
# Seconds: a day of sound. A number beyond this is not believed.
MAX_SECONDS = 86_400.0


def estimate_sound_tokens(size: int) -> int:
    """Estimate how many tokens a recording of this many bytes is."""
    return size * TOKENS_PER_SECOND // BYTES_PER_SECOND


def max_spoken_tokens(heard: int) -> int:
    """Return the most tokens of text in this many tokens of sound."""
    return heard * SPOKEN_PER_SECOND // TOKENS_PER_SECOND


def estimate_reservation(size: int) -> int:
    """Return the most tokens that a request body of this many bytes can be expected to cost: its sound and its text."""
    heard = estimate_sound_tokens(size)
    return 1 + heard + max_spoken_tokens(heard)


def read_used_tokens(body: bytes, estimate: int) -> tuple[Tokens, bool]:
    """Return what a unary answer used, and whether that is estimated.

    `estimate`: the sound's tokens by the upload's size. If the answer is JSON with `usage` in tokens, these count. With
    `usage` in seconds, or with `duration`: by the rule. Otherwise by size; the text by its length (subtitles are
    counted with their times, which errs upwards).
    """
    answer = decode_object(body) if body.lstrip()[:1] == b"{" else None
    if answer is None:
        return Tokens(prompt=estimate, completion=_text_tokens(body)), True
    usage = answer.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    if counted := _read_counted(usage):
        return counted, False
    text = answer.get("text")
    completion = _text_tokens(text.encode(errors="replace")) if isinstance(text, str) else 0
    prompt = _tokens_of_seconds(usage.get("seconds", answer.get("duration")))
    return Tokens(prompt=estimate if prompt is None else prompt, completion=completion), True


def _read_counted(usage: dict[str, Any]) -> Tokens | None:
    counted = read_tokens(usage)
    return counted if counted is not None and counted.total else None


def _text_tokens(text: bytes) -> int:
    return math.ceil(len(text.strip()) / BYTES_PER_TOKEN)


def _tokens_of_seconds(seconds: Any) -> int | None:
    """Convert a length to tokens; None if it is no length. vLLM writes the `duration` of a verbose answer as a text."""
    try:
        length = float(seconds)
    except (TypeError, ValueError):
        return None
    return math.ceil(length * TOKENS_PER_SECOND) if 0 <= length <= MAX_SECONDS else None


class TranscriptReader(ChunkReader):
    """vLLM's chunks, which are chat's but for their `object`; or OpenAI's and llama.cpp's `transcript.text.…` events.

    The latter end with `transcript.text.done`, which may hold the usage; a `[DONE]` may follow.
    """

    __slots__ = ("_text_done",)
    MARKERS: ClassVar[tuple[bytes, ...]] = (*ChunkReader.MARKERS, b"transcript.text.done")

    def __init__(self, context: StreamContext, on_error: OnError) -> None:
        super().__init__(context, on_error)
        self._text_done = False  # a `transcript.text.done` was seen

    def is_finished(self) -> bool:
        return self.error is None and (self._text_done or super().is_finished())

    def count_usage(self, prompt: int) -> tuple[Tokens, bool]:
        counted, estimated = super().count_usage(prompt)
        if self.usage is None:
            return counted, True
        if counted.total and not estimated:
            return counted, False
        seconds = _tokens_of_seconds(self.usage.get("seconds"))
        completion = max(0, self.events - 1)
        return counted._replace(prompt=prompt if seconds is None else seconds, completion=completion), True

    def _pass_event(self, event: bytes) -> bytes:
        if b"transcript.text.done" not in event:
            return super()._pass_event(event)
        lines = [line[5:] for line in event.split(b"\n") if line.startswith(b"data:")]
        data = decode_object(b"".join(lines)) or {}
        if data.get("type") != "transcript.text.done":  # the text contains these words
            return super()._pass_event(event)
        self.events += 1
        self.done = self._text_done = True
        usage = data.get("usage")
        self.usage = usage if isinstance(usage, dict) else self.usage
        return event + b"\n\n"
