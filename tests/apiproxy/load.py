"""Clients that call under load and judge each answer by the bytes that reached them."""

import asyncio
import json
import random
from dataclasses import dataclass, field
from typing import Any

import httpx2

from tests import engine
from tests.engine import DONE, FINISH, SSE, chunk, unary, usage_event


@dataclass
class Call:
    """What a client knows of one call: its id (once a head came), what it should cost, how it looked in the end."""

    kind: str
    prompt: int
    completion: int
    request_id: str = ""
    received: bytearray = field(default_factory=bytearray)
    left: bool = False  # the client went away by itself

    @property
    def finished(self) -> bool:
        """Whether the whole answer arrived."""
        if self.kind == "stream":
            return self.received.endswith(DONE.encode()) and b'"error"' not in self.received
        try:
            return json.loads(self.received)["usage"]["completion_tokens"] == self.completion
        except (ValueError, KeyError):
            return False

    @property
    def body(self) -> dict[str, Any]:
        """Numbers that no other call has, reported by the engine itself."""
        tokens = {"prompt_tokens": self.prompt, "completion_tokens": self.completion}
        end = chunk(FINISH + usage_event(self.prompt, self.completion) + DONE) + "0\r\n\r\n"
        stream = [{"send": SSE}, {"events": self.completion % 8 + 1, "every": 0.01}, {"send": end}]
        whole = [{"wait": 0.03}, {"send": unary(200, {**engine.ANSWER, "usage": tokens})}]
        return {
            "model": "assembled" if self.kind == "assembled" else "plain",
            "messages": [],
            "stream": self.kind == "stream",
            "script": whole if self.kind == "unary" else stream,
        }


class Load:
    """Clients that call one after another until they are stopped, whether or not a gateway answers."""

    def __init__(self, url: str, key: str, dice: random.Random) -> None:
        self.calls: list[Call] = []
        self.going = True
        self._url = f"{url}/v1/chat/completions"
        self._headers = {"authorization": f"Bearer {key}"}
        self._dice = dice

    async def client(self) -> None:
        async with httpx2.AsyncClient(headers=self._headers, timeout=30) as http:
            while self.going:
                number = len(self.calls) + 1
                kind = self._dice.choice(["stream", "stream", "unary", "assembled"])
                call = Call(kind, prompt=100_000 + number, completion=200_000 + number)
                self.calls.append(call)
                try:
                    await self.one(http, call, leaves=self._dice.random() < 0.1)
                except httpx2.TransportError:
                    await asyncio.sleep(0.02)

    async def one(self, http: httpx2.AsyncClient, call: Call, *, leaves: bool) -> None:
        async with http.stream("POST", self._url, json=call.body) as response:
            assert response.status_code in (200, 503), await response.aread()
            if response.status_code == 503:
                return
            call.request_id = response.headers["x-request-id"]
            async for piece in response.aiter_raw():
                call.received += piece
                if leaves and call.kind == "stream":
                    call.left = not call.finished
                    return
