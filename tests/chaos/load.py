"""Callers of several models at once, who write down of every call how it began, what came and how it ended.

Each chat call has its own words, which the engine is made to say (by a grammar, where it is a real one); each embedding
is of a text whose vector is known. So of every byte it is known whether it is of this call.
"""

import asyncio
import itertools
import json
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import httpx2

from tests.vectors import cosine

LENGTHS = (2, 16)  # words of an answer; a real engine makes two or three tokens of one
SHORT = (1, 2)
PATIENCE = 120.0  # seconds; longer than the gateway's own total time-out: who waits longer is stuck
TEXTS = ("the counter", "窓口で申し込む", "a quarterly report", "an invoice of June", "冷蔵庫の取扱説明書", "rain")
ALIKE = 0.999  # cosine of the same text's embedding, alone and in a batch with others
BEFORE_A_STREAM_ENDS = 0.06  # of streams that their callers leave
# What a caller may be answered while something is broken, by status; None: by an event in a stream that had begun.
TOLD = {
    503: {"model_loading", "model_unavailable", "shutting_down", "engine_busy", "model_busy"},
    502: {"engine_error"},
    504: {"engine_timeout"},
    # A stream that waits in the queue has begun, and may hear that its model has not come back.
    None: {"engine_error", "engine_timeout", "shutting_down", "model_unavailable"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A model that is called. `speaks` are the fields that make it say exactly these words."""

    model: str
    task: str
    engine: str  # "llama.cpp", "vllm" or "tree"

    def speaks(self, words: str) -> dict[str, Any]:
        if self.engine == "llama.cpp":
            return {"grammar": f'root ::= "{words}"'}
        return {"structured_outputs": {"choice": [words]}} if self.engine == "vllm" else {}


@dataclass(slots=True, kw_only=True)
class Call:
    """`outcome` is "finished" (the whole answer came), "broken", "refused" or "left" (by the caller itself).

    `why` says what came instead; `wrong` what must not have come. Times are monotonic seconds.
    """

    number: int
    model: str
    kind: str
    began: float
    ended: float = 0.0
    request_id: str = ""
    status: int | None = None
    outcome: str = ""
    why: str = ""
    usage: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Return what is sent as the caller's own user, so that it is in the usage row."""
        return f"call-{self.number}"

    def end(self, outcome: str, why: str = "") -> None:
        self.outcome, self.why, self.ended = outcome, why, time.monotonic()


class Load:
    """Its callers live in a thread of their own. `calls` grows; a call without `outcome` is under way.

    `enter` is called in that thread first; it may enter another network.
    """

    def __init__(
        self, url: str, keys: Sequence[str], dice: random.Random, enter: Callable[[], None] = lambda: None
    ) -> None:
        self.calls: list[Call] = []
        self._url = url
        self.keys = keys
        self._dice = dice
        self._numbers = itertools.count(1)
        self._vectors: dict[str, list[float]] = {}
        self._going = True
        self._callers: list[Future[None]] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, args=[enter], daemon=True, name="load")
        self._thread.start()

    def _run(self, enter: Callable[[], None]) -> None:
        enter()
        self._loop.run_forever()

    def ask(self, target: Target) -> Call:
        """Return one call, not a stream; blocks until it has ended."""
        kind = "embedding" if target.task == "embedding" else "unary"
        return asyncio.run_coroutine_threadsafe(self._one(target, kind, SHORT), self._loop).result(PATIENCE + 30)

    def begin(self, targets: Sequence[Target]) -> None:
        """Start a caller for each, as often as it is named."""
        for target in targets:
            self._callers.append(asyncio.run_coroutine_threadsafe(self._caller(target), self._loop))

    def end(self) -> None:
        """Return when every call has ended."""
        self._going = False
        for caller in self._callers:
            caller.result(PATIENCE + 30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _caller(self, target: Target) -> None:
        while self._going:
            kind = "embedding" if target.task == "embedding" else self._dice.choice(["stream", "stream", "unary"])
            call = await self._one(target, kind, LENGTHS)
            # Who is refused at once does not ask a hundred times a second.
            await asyncio.sleep(self._dice.uniform(0.1, 0.6) if call.outcome == "finished" else 0.3)

    async def _one(self, target: Target, kind: str, lengths: tuple[int, int]) -> Call:
        call = Call(number=next(self._numbers), model=target.model, kind=kind, began=time.monotonic())
        self.calls.append(call)
        headers = {"authorization": f"Bearer {self._dice.choice(self.keys)}"}
        try:
            async with asyncio.timeout(PATIENCE), httpx2.AsyncClient(headers=headers, timeout=None) as http:
                await (self._embed(http, call) if kind == "embedding" else self._chat(http, call, target, lengths))
        except TimeoutError:
            call.wrong.append(f"was stuck for {PATIENCE:.0f} s")
            call.end("broken", "stuck")
        except httpx2.ConnectError:
            call.end("refused", "no listener")
        except httpx2.TransportError as error:
            call.end("broken", "cut in the answer" if call.request_id else "cut before the answer")
            call.wrong += [] if isinstance(error, httpx2.ReadError | httpx2.RemoteProtocolError) else [repr(error)]
        return call

    async def _chat(self, http: httpx2.AsyncClient, call: Call, target: Target, lengths: tuple[int, int]) -> None:
        words = " ".join(str(self._dice.randrange(1000)) for _ in range(self._dice.randint(*lengths)))
        words = f"{call.number} {words}"
        body = {
            "model": call.model,
            "messages": [{"role": "user", "content": words}],
            "max_tokens": 200,
            "temperature": 0,
            "user": call.name,
            **target.speaks(words),
        }
        if call.kind == "stream":
            leaves = self._dice.random() < BEFORE_A_STREAM_ENDS
            body |= {"stream": True, "stream_options": {"include_usage": True}}
            await self._stream(http, call, body, words, leaves_after=self._dice.randint(1, 5) if leaves else None)
        else:
            answer = await http.post(f"{self._url}/v1/chat/completions", json=body)
            if self._went_well(call, answer.status_code, answer.headers, answer.content):
                self._whole(call, answer.json(), words)

    async def _stream(
        self, http: httpx2.AsyncClient, call: Call, body: dict[str, Any], words: str, leaves_after: int | None
    ) -> None:
        heard = Heard(call, words)
        async with http.stream("POST", f"{self._url}/v1/chat/completions", json=body) as answer:
            whole = b"" if answer.status_code == 200 else await answer.aread()
            if not self._went_well(call, answer.status_code, answer.headers, whole):
                return
            try:
                async for piece in answer.aiter_raw():
                    heard.feed(piece)
                    if leaves_after is not None and heard.events > leaves_after and not heard.done:
                        call.end("left")
                        return
            finally:
                heard.judge()
        heard.close()

    async def _embed(self, http: httpx2.AsyncClient, call: Call) -> None:
        text = TEXTS[call.number % len(TEXTS)]
        body = {"model": call.model, "input": [text], "user": call.name}
        answer = await http.post(f"{self._url}/v1/embeddings", json=body)
        if not self._went_well(call, answer.status_code, answer.headers, answer.content):
            return
        told = answer.json()
        vector = told["data"][0]["embedding"]
        known = self._vectors.setdefault(text, vector)
        if (alike := cosine(vector, known)) < ALIKE:
            call.wrong.append(f"an embedding unlike the first one of the same text ({alike:.3f})")
        call.usage = {"prompt_tokens": told["usage"]["prompt_tokens"], "completion_tokens": 0}
        call.end("finished")

    def _went_well(self, call: Call, status: int, headers: httpx2.Headers, body: bytes) -> bool:
        call.status, call.request_id = status, headers.get("x-request-id", "")
        if not call.request_id:
            call.wrong.append("an answer without a request id")
        if status == 200:
            return True
        try:
            code = json.loads(body)["error"]["code"]
        except (ValueError, LookupError, TypeError):
            code = None
        if code not in TOLD.get(status, ()):
            call.wrong.append(f"was told {status} {body.decode(errors='replace')[:300]}")
        call.end("refused", f"{status} {code}")
        return False

    def _whole(self, call: Call, told: dict[str, Any], words: str) -> None:
        (choice,) = told["choices"]
        said = (told["model"], choice["message"]["content"], choice["finish_reason"])
        if said != (call.model, words, "stop"):
            call.wrong.append(f"heard {said}, asked {call.model} for {words!r}")
        call.usage = told["usage"]
        call.end("finished")


class Heard:
    """What came of one stream."""

    def __init__(self, call: Call, words: str) -> None:
        self._call = call
        self._words = words
        self._rest = b""
        self._text = ""
        self._ids: set[str] = set()
        self._finishes: list[str] = []
        self._error: dict[str, Any] | None = None
        self.events = 0
        self.done = False

    def feed(self, piece: bytes) -> None:
        *events, self._rest = (self._rest + piece).split(b"\n\n")
        for event in events:
            if event.startswith(b":"):
                continue  # a heartbeat
            if self.done:
                self._call.wrong.append(f"{event[:100]!r} after [DONE]")
            self.done = event == b"data: [DONE]"
            if not self.done:
                self._event(json.loads(event.removeprefix(b"data: ")))

    def _event(self, fields: dict[str, Any]) -> None:
        self.events += 1
        if "error" in fields:
            self._error = fields["error"]
            return
        self._ids.add(fields["id"])
        if fields["model"] != self._call.model:
            self._call.wrong.append(f"an event of {fields['model']}")
        for choice in fields["choices"]:
            self._text += choice["delta"].get("content") or ""
            self._finishes += [choice["finish_reason"]] if choice.get("finish_reason") else []
        self._call.usage = fields.get("usage") or self._call.usage

    def judge(self) -> None:
        """Record what came and is not of this call, whether the answer is whole or not."""
        if len(self._ids) > 1:
            self._call.wrong.append(f"events of several answers: {sorted(self._ids)}")
        if not self._words.startswith(self._text):
            self._call.wrong.append(f"heard {self._text!r}, asked for {self._words!r}")

    def close(self) -> None:
        """Record how the answer ended in the way of HTTP: complete or with an error, never in silence."""
        call = self._call
        if self._error is not None:
            if self._error.get("code") not in TOLD[None]:
                call.wrong.append(f"an error event {self._error}")
            call.end("broken", f"event {self._error.get('code')}")
            return
        call.end("finished")
        if not self.done or self._finishes != ["stop"] or self._text != self._words or not call.usage:
            call.wrong.append(
                f"ended as if finished: [DONE] {self.done}, finish {self._finishes}, usage {call.usage}, "
                f"heard {self._text!r} of {self._words!r}"
            )
