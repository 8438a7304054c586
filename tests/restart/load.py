"""Callers who do not try again: streams, calls at a fixed rate, pages. Each answer is judged by its bytes."""

import asyncio
import json
import ssl
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import httpx2

from tests.engine import ANSWER, DONE, FINISH, SSE, chunk, unary, usage_event

EVERY = 0.25  # seconds between two tokens of a stream


@dataclass
class Answer:
    """What became of a call. `why`: it failed; "": it did not."""

    kind: str
    began: float  # monotonic
    ended: float
    why: str
    request_id: str = ""

    @property
    def seconds(self) -> float:
        return self.ended - self.began


Call = Callable[[Answer], Awaitable[str]]  # returns why it failed; "": it did not


@dataclass
class Load:
    """`streams` of so many seconds are open all the time; each second `rate` calls are made and two pages asked for."""

    url: str
    key: str
    trust: ssl.SSLContext
    streams: int
    stream_seconds: float
    rate: int
    answers: list[Answer] = field(default_factory=list)
    open_streams: int = 0
    _going: bool = True
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def __aenter__(self) -> "Load":
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=20)
        headers = {"authorization": f"Bearer {self.key}"}
        self._http = httpx2.AsyncClient(
            base_url=self.url, headers=headers, verify=self.trust, limits=limits, timeout=self.stream_seconds + 60
        )
        self._tasks = [asyncio.create_task(self._stream_on(number)) for number in range(self.streams)]
        for kind, (rate, call) in self._calls().items():
            self._tasks.append(asyncio.create_task(self._keep_calling(kind, rate, call)))
        return self

    def _calls(self) -> dict[str, tuple[float, Call]]:
        """Return how often a second each kind of call is made, and how."""
        return {"call": (self.rate, self._call), "page": (2, self._ask_for_page)}

    async def __aexit__(self, *failure: object) -> None:
        """Return when all that was begun has ended."""
        self._going = False
        await asyncio.gather(*self._tasks)
        await self._http.aclose()

    def failed(self) -> list[Answer]:
        return [one for one in self.answers if one.why]

    def count(self) -> Counter[str]:
        return Counter(one.kind for one in self.answers)

    def slowest(self, kind: str, since: float = 0.0) -> float:
        return max(one.seconds for one in self.answers if one.kind == kind and one.began >= since)

    async def _stream_on(self, number: int) -> None:
        await asyncio.sleep(self.stream_seconds * number / self.streams)  # they end one after another
        while self._going:
            await self._judge("stream", self._stream)

    async def _keep_calling(self, kind: str, rate: float, call: Call) -> None:
        calls = set()
        following = time.monotonic()
        while self._going:
            task = asyncio.create_task(self._judge(kind, call))
            calls.add(task)
            task.add_done_callback(calls.discard)
            following += 1 / rate
            await asyncio.sleep(max(0.0, following - time.monotonic()))
        await asyncio.gather(*calls)

    async def _judge(self, kind: str, call: Call) -> None:
        answer = Answer(kind, time.monotonic(), 0.0, "")
        try:
            answer.why = await call(answer)
        except (httpx2.HTTPError, ValueError) as error:
            answer.why = repr(error)
        answer.ended = time.monotonic()
        self.answers.append(answer)

    async def _stream(self, answer: Answer) -> str:
        events = round(self.stream_seconds / EVERY)
        end = chunk(FINISH + usage_event(7, events) + DONE) + "0\r\n\r\n"
        script = [{"send": SSE}, {"events": events, "every": EVERY}, {"send": end}]
        body = {"model": "plain", "messages": [], "stream": True, "script": script}
        received = b""
        self.open_streams += 1
        try:
            async with self._http.stream("POST", "/v1/chat/completions", json=body) as response:
                answer.request_id = response.headers.get("x-request-id", "")
                async for piece in response.aiter_raw():
                    received += piece
        finally:
            self.open_streams -= 1
        if response.status_code != 200:
            return f"{response.status_code} {received[:200]!r}"
        tokens = received.count(b'"content"')
        whole = tokens == events and received.endswith(DONE.encode())
        return "" if whole else f"cut after {tokens} tokens"

    async def _call(self, answer: Answer) -> str:
        script = [{"wait": 0.02}, {"send": unary(200, ANSWER)}]
        body = {"model": "plain", "messages": [], "script": script}
        response = await self._http.post("/v1/chat/completions", json=body)
        answer.request_id = response.headers.get("x-request-id", "")
        whole = response.status_code == 200 and json.loads(response.content)["usage"] == ANSWER["usage"]
        return "" if whole else f"{response.status_code} {response.text[:200]}"

    async def _ask_for_page(self, answer: Answer) -> str:
        response = await self._http.get("/sign-in/")
        return "" if response.status_code == 200 else f"{response.status_code} {response.text[:200]}"
