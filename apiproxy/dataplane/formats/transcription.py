"""What a transcription costs, and the two kinds of streams that engines send for one. No I/O.

Engines tell the tokens of a transcription only in a stream: vLLM, asked by `stream_include_usage`, counts 100 tokens
for each second of sound (a frame of Whisper's spectrogram each) and the text's own. Its answers without a stream tell
seconds, or nothing (translations, plain text). So that one recording costs the same in whatever form it is asked for,
seconds are turned into tokens by vLLM's rule, and where there is nothing, bytes into seconds. Both are estimates.
"""

import math
from typing import Any, ClassVar

from apiproxy.dataplane.stream.readers import ChunkReader, OnError, StreamContext, decoded
from apiproxy.dataplane.token_usage import Tokens, read_tokens

TOKENS_PER_SECOND = 100
# A recording's length before anybody has decoded it: 128 kbit/s, the usual MP3. Speech as Opus has a quarter of it (so
# is underestimated by as much), 16 kHz WAV twice as much.
BYTES_PER_SECOND = 16_000
# What quick speakers say in a second.
SPOKEN_PER_SECOND = 5
# As of any text: see protocol.BYTES_PER_TOKEN.
BYTES_PER_TOKEN = 3
# A day of sound; what claims to be longer is no number to count with.
LONGEST = 86_400.0


def sound(size: int) -> int:
    """About how many tokens a recording of so many bytes is."""
    return size * TOKENS_PER_SECOND // BYTES_PER_SECOND


def spoken(heard: int) -> int:
    """Return the most tokens of text in so many of sound."""
    return heard * SPOKEN_PER_SECOND // TOKENS_PER_SECOND


def reservation(size: int) -> int:
    """Return the most that a request body of so many bytes can be expected to cost.

    Its sound and what is said in it.
    """
    heard = sound(size)
    return 1 + heard + spoken(heard)


def used(body: bytes, estimate: int) -> tuple[Tokens, bool]:
    """What an unary answer used, and whether that is estimated. `estimate`: the sound's tokens by the upload's size.

    JSON with `usage` as tokens: these. With `usage` as seconds or with `duration`: by the rule. Else by size; the text
    by its length (subtitles are counted with their times, which errs upwards).
    """
    answer = decoded(body) if body.lstrip()[:1] == b"{" else None
    if answer is None:
        return Tokens(prompt=estimate, completion=_text(body)), True
    usage = answer.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    if told := _told(usage):
        return told, False
    text = answer.get("text")
    said = _text(text.encode(errors="replace")) if isinstance(text, str) else 0
    prompt = _of_seconds(usage.get("seconds", answer.get("duration")))
    return Tokens(prompt=estimate if prompt is None else prompt, completion=said), True


def _told(usage: dict[str, Any]) -> Tokens | None:
    counted = read_tokens(usage)
    return counted if counted is not None and counted.total else None


def _text(text: bytes) -> int:
    return math.ceil(len(text.strip()) / BYTES_PER_TOKEN)


def _of_seconds(seconds: Any) -> int | None:
    """vLLM writes the `duration` of a verbose answer as a text."""
    try:
        length = float(seconds)
    except (TypeError, ValueError):
        return None
    return math.ceil(length * TOKENS_PER_SECOND) if 0 <= length <= LONGEST else None


class TranscriptReader(ChunkReader):
    """vLLM's chunks, which are chat's but for their `object`; or OpenAI's and llama.cpp's `transcript.text.…` events.

    The latter end with `transcript.text.done`, which may hold the usage; a `[DONE]` may follow.
    """

    __slots__ = ("_whole_text",)
    SIGNS: ClassVar[tuple[bytes, ...]] = (*ChunkReader.SIGNS, b"transcript.text.done")

    def __init__(self, asked: StreamContext, on_error: OnError) -> None:
        super().__init__(asked, on_error)
        self._whole_text = False  # a `transcript.text.done` was seen

    def finished(self) -> bool:
        return self.error is None and (self._whole_text or super().finished())

    def used(self, prompt: int) -> tuple[Tokens, bool]:
        counted, estimated = super().used(prompt)
        if self.usage is None:
            return counted, True
        if counted.total and not estimated:
            return counted, False
        seconds = _of_seconds(self.usage.get("seconds"))
        said = max(0, self.events - 1)
        return counted._replace(prompt=prompt if seconds is None else seconds, completion=said), True

    def _event(self, event: bytes) -> bytes:
        if b"transcript.text.done" not in event:
            return super()._event(event)
        lines = [line[5:] for line in event.split(b"\n") if line.startswith(b"data:")]
        data = decoded(b"".join(lines)) or {}
        if data.get("type") != "transcript.text.done":  # somebody says these words
            return super()._event(event)
        self.events += 1
        self.done = self._whole_text = True
        usage = data.get("usage")
        self.usage = usage if isinstance(usage, dict) else self.usage
        return event + b"\n\n"
