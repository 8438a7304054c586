"""python -m tests.bench.caching_engine COUNT: engines that keep what they have read, as vLLM does; prints their ports.

Each works in steps: a step reads as much of the waiting prompts as its budget holds beside one token for each answer,
and takes as long as that many tokens take on a GPU. Prompts are known in blocks, and the least used of them are
dropped when there is no more room. No text is computed: a prompt's tokens are its bytes, four each.

`GET /seen` returns what each has been asked and has read, `POST /forget` empties caches and counters.
"""

import asyncio
import json
import sys
from collections import OrderedDict
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

BYTES = 4  # of a token
BLOCK = 16  # tokens
CACHE = 60_000  # tokens
BUDGET = 2048  # tokens of a step
AT_ONCE = 64  # calls
# Seconds: of a step, of a token of a prompt, of an answer that goes on.
STEP, READ, WRITE = 0.012, 0.00015, 0.0002
EVERY = 8  # tokens of an answer that are sent as one event: what is compared is how prompts are read
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\n%b\r\n"
JSON, STREAM = b"application/json", b"text/event-stream"


@dataclass(eq=False)
class Asked:
    blocks: list[int]
    left: int  # tokens of the prompt to read
    answer: int  # tokens to make
    writer: asyncio.StreamWriter
    made: int = 0
    over: asyncio.Event = field(default_factory=asyncio.Event)


class CachingEngine:
    def __init__(self) -> None:
        """Begin with an empty cache."""
        self.cache: OrderedDict[int, None] = OrderedDict()
        self.seen = {"asked": 0, "read": 0, "calls": 0}
        self.running: list[Asked] = []
        self.waiting: list[Asked] = []
        self.come = asyncio.Event()

    def forget(self) -> None:
        self.cache.clear()
        self.seen = dict.fromkeys(self.seen, 0)

    def ask(self, prompt: bytes, answer: int, writer: asyncio.StreamWriter) -> Asked:
        """Queue a call."""
        blocks, mark, size = [], 0, BLOCK * BYTES
        for begin in range(0, len(prompt) - size + 1, size):
            mark = hash((mark, prompt[begin : begin + size]))
            blocks.append(mark)
        asked = Asked(blocks, len(prompt) // BYTES, answer, writer)
        self.waiting.append(asked)
        self.come.set()
        return asked

    async def work(self) -> None:
        due = monotonic()
        while True:
            if not self.running and not self.waiting:
                self.come.clear()
                await self.come.wait()
                due = monotonic()
            while self.waiting and len(self.running) < AT_ONCE:
                self._begin(self.waiting.pop(0))
            writing = [one for one in self.running if not one.left]
            budget = BUDGET - len(writing)
            reading = []
            for one in self.running:
                if one.left and budget:
                    part = min(one.left, budget)
                    one.left -= part
                    budget -= part
                    reading.append(one)
            due += STEP + (BUDGET - len(writing) - budget) * READ + len(writing) * WRITE
            await asyncio.sleep(max(0.0, due - monotonic()))
            for one in writing + [one for one in reading if not one.left]:
                self._write(one)

    def _begin(self, asked: Asked) -> None:
        known = 0
        for mark in asked.blocks:
            if mark not in self.cache:
                break
            self.cache.move_to_end(mark)
            known += BLOCK
        self.seen["asked"] += asked.left
        self.seen["calls"] += 1
        asked.left = max(1, asked.left - known)
        self.seen["read"] += asked.left
        self.running.append(asked)

    def _write(self, asked: Asked) -> None:
        if not asked.made:
            self.cache.update(dict.fromkeys(asked.blocks))
            while len(self.cache) > CACHE // BLOCK:
                self.cache.popitem(last=False)
        asked.made += 1
        if asked.made == 1 or asked.made % EVERY == 0:
            asked.writer.write(event({"content": "x" * BYTES * (1 if asked.made == 1 else EVERY)}))
        if asked.made >= asked.answer or asked.writer.is_closing():
            self.running.remove(asked)
            asked.over.set()


def event(delta: dict[str, Any], **more: Any) -> bytes:
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "m", **more}
    chunk.setdefault("choices", [{"index": 0, "delta": delta, "finish_reason": None}])
    framed = b"data: %b\n\n" % json.dumps(chunk).encode()
    return b"%x\r\n%b\r\n" % (len(framed), framed)


async def serve(engine: CachingEngine, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            if b" HTTP/1." not in head:  # a router tries whether the engine knows HTTP/2
                break
            path = head.split(b" ", 2)[1]
            size = 0
            for line in head.lower().split(b"\r\n"):
                if line.startswith(b"content-length:"):
                    size = int(line.partition(b":")[2])
            body = await reader.readexactly(size)
            if path == b"/v1/chat/completions":
                await answer(engine, json.loads(body), writer)
                continue
            if path == b"/forget":
                engine.forget()
            known = {b"/seen": engine.seen, b"/v1/models": {"object": "list", "data": [{"id": "m", "object": "model"}]}}
            whole = json.dumps(known.get(path, {"model_path": "m"})).encode()
            writer.write(HEAD % (JSON, b"content-length: %d\r\n" % len(whole)) + whole)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def answer(engine: CachingEngine, call: dict[str, Any], writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD % (STREAM, b"transfer-encoding: chunked\r\n"))
    prompt = "".join(f"<{one['role']}>{one['content']}" for one in call["messages"]).encode()
    asked = engine.ask(prompt, call.get("max_tokens") or call["max_completion_tokens"], writer)
    await asked.over.wait()
    finish = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    tokens = len(prompt) // BYTES
    usage = {"prompt_tokens": tokens, "completion_tokens": asked.made, "total_tokens": tokens + asked.made}
    last = [event({}, **finish), event({}, choices=[], usage=usage), b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"]
    writer.write(b"".join(last))
    await writer.drain()


async def main(count: int) -> None:
    ports, tasks = [], []
    for _ in range(count):
        engine = CachingEngine()

        async def come(
            reader: asyncio.StreamReader, writer: asyncio.StreamWriter, engine: CachingEngine = engine
        ) -> None:
            await serve(engine, reader, writer)

        server = await asyncio.start_server(come, "127.0.0.1", 0, limit=1 << 22, backlog=1024)
        ports.append(server.sockets[0].getsockname()[1])
        tasks.append(engine.work())
    print(*ports, flush=True)
    await asyncio.gather(*tasks)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
