"""Puts one prompt to a model through the gateway, and measures the answer as its client sees it.

Everything that is no statement about the model raises NotDone with the obstacle: then the run is tried again later.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import httpx2

from portal.canary.judging import Answer
from portal.canary.models import CanaryRun

Obstacle = CanaryRun.Obstacle

# Seconds. Batch calls may wait 240 for their turn; streams have a heartbeat every 15 meanwhile.
SILENCE = 60.0
MOST_SECONDS = 600.0  # of one answer, its wait included
MOST_BYTES = 64 * 1024  # of a text: an engine that ignores `max_tokens` is left
MOST_RAW = 8 * 1024 * 1024  # of a stream: an event of one token takes some 200 bytes
MOST_TOKENS = 1_000_000  # whatever an engine says that it counted
MOST_WAIT = 60.0  # seconds that are waited at a time for a full queue or quota; for longer ones the run is tried later
TRIES = 5
CONNECT = 5.0
# Codes of the gateway's errors: those that say that the engine is gone, and those that say to come back later.
GONE = frozenset({"model_unavailable", "model_without_room", "model_loading", "shutting_down", "engine_died"})
BUSY = frozenset(
    {"batch_held_back", "rate_limit_exceeded", "too_many_concurrent", "insufficient_quota", "too_many_bytes"}
) | {"server_busy", "model_busy", "engine_busy", "metering_unavailable"}


class NotDone(Exception):
    """The prompt could not be put to the model."""

    def __init__(self, obstacle: Obstacle, detail: str) -> None:
        super().__init__(f"{obstacle.label}: {detail}")
        self.obstacle = obstacle


class Question(Protocol):
    """What a model is asked."""

    @property
    def messages(self) -> list[dict[str, str]]: ...

    @property
    def max_tokens(self) -> int: ...


class Asker:
    """A client of the gateway at `base_url`. `sleep` and `clock` (monotonic seconds) are arguments for tests."""

    def __init__(
        self,
        base_url: str,
        key: str,
        *,
        sleep: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sleep = sleep
        self._clock = clock
        timeout = httpx2.Timeout(SILENCE, connect=CONNECT)
        self._client = httpx2.Client(base_url=base_url, headers={"authorization": f"Bearer {key}"}, timeout=timeout)

    def close(self) -> None:
        self._client.close()

    def ask(self, model: str, replica: int, prompt: Question) -> Answer:
        """Return the answer of this replica; wait for room. Blocks for minutes at most. Raises NotDone."""
        for _ in range(TRIES):
            answer, wait = self._try(model, replica, prompt)
            if answer is not None:
                return answer
            if wait > MOST_WAIT:
                break
            self._sleep(wait)
        raise NotDone(Obstacle.BUSY, "asked again in vain")

    def _try(self, model: str, replica: int, prompt: Question) -> tuple[Answer | None, float]:
        """Return the answer, or after how many seconds to ask again."""
        body = {
            "model": model,
            "messages": prompt.messages,
            "temperature": 0,
            "max_tokens": prompt.max_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        headers = {"x-madoguchi-replica": str(replica), "x-madoguchi-loops": "off"}
        began = self._clock()
        reader = StreamReader(began, self._clock)
        try:
            with self._client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as response:
                if response.status_code != 200:
                    response.read()
                    return self._read_refusal(response)
                return reader.read(split_lines(response.iter_bytes())), 0.0
        except httpx2.HTTPError as error:
            raise NotDone(Obstacle.GATEWAY, type(error).__name__) from error
        except Busy as busy:
            return None, busy.wait

    def _read_refusal(self, response: httpx2.Response) -> tuple[Answer | None, float]:
        """Return an error of the model as its answer, or the seconds to wait. Raises NotDone."""
        code = error_code(response.content)
        status = response.status_code
        if status in (401, 403, 404):
            raise NotDone(Obstacle.KEY, f"{status} {code}")
        if code in GONE:
            raise NotDone(Obstacle.ENGINE, code)
        if status in (429, 503) or code in BUSY:
            return None, read_seconds(response.headers.get("retry-after", ""))
        return Answer(text="", finish="error", error=f"{status} {code}".strip()), 0.0


class Busy(Exception):
    """There was no room, as a stream that had begun says. `wait`: seconds."""

    def __init__(self, wait: float) -> None:
        super().__init__(wait)
        self.wait = wait


class StreamReader:
    """Reads the events of one answer."""

    def __init__(self, began: float, clock: Callable[[], float]) -> None:
        self._began = began
        self._clock = clock
        self._first: float | None = None
        self._last = began
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._size = 0
        self._events = self._tokens = 0
        self._finish = ""

    def read(self, lines: Iterator[str]) -> Answer:
        """Return what came, of an endless answer its beginning. Raises NotDone or Busy."""
        for line in lines:
            if line.startswith("data:"):
                text = line[5:].strip()
                if text == "[DONE]":
                    return self._answer()
                if (error := self._take(text)) is not None:
                    return self._answer(error)
            if self._size > MOST_BYTES or self._clock() - self._began > MOST_SECONDS:
                self._finish = "length"
                return self._answer()
        return self._answer("" if self._finish else "the stream broke off")

    def _take(self, text: str) -> str | None:
        """Take one event; return the error that it is."""
        try:
            event = json.loads(text)
        except ValueError:
            return "an event that is no JSON"
        if not isinstance(event, dict):
            return "an event that is no object"
        if isinstance(error := event.get("error"), dict):
            return self._read_error(error)
        usage = event.get("usage")
        if isinstance(usage, dict) and isinstance(usage.get("completion_tokens"), int):
            self._tokens = min(MOST_TOKENS, max(0, usage["completion_tokens"]))
        choices = event.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict):
                self._take_choice(choice)
        return None

    def _take_choice(self, choice: dict[str, Any]) -> None:
        delta = choice.get("delta")
        delta = delta if isinstance(delta, dict) else {}
        content = delta.get("content")
        thought = delta.get("reasoning_content") or delta.get("reasoning")
        for piece, pieces in ((content, self._content), (thought, self._reasoning)):
            if isinstance(piece, str) and piece:
                self._last = self._clock()
                self._first = self._first or self._last
                self._events += 1
                self._size += len(piece.encode(errors="replace"))
                pieces.append(piece)
        if isinstance(choice.get("finish_reason"), str):
            self._finish = choice["finish_reason"]

    def _read_error(self, error: dict[str, Any]) -> str:
        code = str(error.get("code") or error.get("type") or "error")
        if code in GONE:
            raise NotDone(Obstacle.ENGINE, code)
        if code in BUSY:
            raise Busy(MOST_WAIT)
        return code

    def _answer(self, error: str = "") -> Answer:
        text = "".join(self._content) or "".join(self._reasoning)
        return Answer(
            text=make_storable(text),
            finish="error" if error else make_storable(self._finish)[:20],
            tokens=self._tokens or self._events,
            first_token_ms=None if self._first is None else round(1000 * (self._first - self._began)),
            duration_ms=round(1000 * (self._last - self._began)),
            error=make_storable(error)[:200],
        )


def split_lines(pieces: Iterable[bytes]) -> Iterator[str]:
    """Yield the complete lines of a stream, of one that is too long those of its beginning."""
    rest, size = b"", 0
    for piece in pieces:
        size += len(piece)
        if size > MOST_RAW:
            return
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield line.decode(errors="replace").rstrip("\r")


def make_storable(text: str) -> str:
    """Return the text with a mark for what no database takes: half a pair of surrogates, and the sign of number 0."""
    return text.encode(errors="replace").decode().replace("\0", "\ufffd")


def error_code(body: bytes) -> str:
    """Return the code of an error as the gateway sends it, or ""."""
    try:
        error = json.loads(body[:10_000])["error"]
        return make_storable(str(error.get("code") or error.get("type") or ""))[:100]
    except (ValueError, LookupError, TypeError, AttributeError):
        return ""


def read_seconds(text: str) -> float:
    """Return the seconds of a header Retry-After, or a guess."""
    return float(text) if text.isdecimal() and len(text) < 6 else 10.0


def find_gateway(addresses: Sequence[str]) -> str:
    """Return the first of these addresses where a gateway answers. Raises NotDone."""
    for address in addresses:
        try:
            # Other programs listen on port 8000 as well: they are not given the key.
            answer = httpx2.get(f"{address}/healthz", timeout=CONNECT)
        except (httpx2.HTTPError, httpx2.InvalidURL):
            continue
        if answer.status_code == 200 and answer.content == b"ok\n":
            return address
    raise NotDone(Obstacle.GATEWAY, ", ".join(addresses))
