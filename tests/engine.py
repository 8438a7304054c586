"""A fake engine, a process of its own: does what the request's script says, as real engines cannot be made to do.

`python tests/engine.py` prints its port. A body with `"script": [step, …]` is answered by those steps:

    {"send": text, "times": n}  raw bytes (latin-1), once or so many times
    {"events": n, "every": s}   chat chunks
    {"flood": n}                n events of 100 KB; `GET /seen` reports how many have left
    {"wait": s}
    {"hang": true}              until the client leaves
    {"close": true}  {"reset": true}
    {"stale": true}             resets a connection that has carried an answer before; else does nothing
    {"die": true}               the whole process, as by a fault of its code

Without a script: a chat answer (a call of the first tool, if there are tools), streamed if asked. A client that can add
no field of its own says the script as JSON in `user`. `GET /seen` reports what it has seen.

An upload's script is a field of its form. Its field `reading` says how the file is read, once that has begun:

    {"wait": s}                 a rest before the next piece, every time
    {"stop": true}              no further
    {"answer": true}            no further: the script is played at once
"""

import asyncio
import contextlib
import hashlib
import json
import os
import select
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.request import urlopen

from python_multipart.multipart import MultipartParser, parse_options_header

SSE = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def chunk(text: str) -> str:
    """Return data as HTTP/1.1's chunked coding frames it."""
    return f"{len(text.encode('latin-1')):x}\r\n{text}\r\n"


def event(choices: list[dict[str, Any]], **more: Any) -> str:
    fields = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "fake", "choices": choices, **more}
    return f"data: {json.dumps(fields)}\n\n"


def typed_event(kind: str, **fields: Any) -> str:
    """Return an event whose name is its type as well, as those of responses and messages."""
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n"


def token(index: int) -> str:
    return event([{"index": 0, "delta": {"content": f"t{index} "}, "finish_reason": None}])


LARGE = event([{"index": 0, "delta": {"content": "x" * 100_000}, "finish_reason": None}])
FINISH = event([{"index": 0, "delta": {}, "finish_reason": "stop"}])
DONE = "data: [DONE]\n\n"


def usage_event(prompt: int, completion: int) -> str:
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return event([], usage=usage)


def unary(status: int, body: dict[str, Any]) -> str:
    text = json.dumps(body)
    return f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(text)}\r\n\r\n{text}"


ANSWER = {
    "id": "c1",
    "object": "chat.completion",
    "created": 1,
    "model": "fake",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12},
}


# As vLLM 0.32 answers for Whisper.
TRANSCRIPT = {"text": "hello there", "usage": {"type": "duration", "seconds": 3}}


def transcript_event(choices: list[dict[str, Any]], **more: Any) -> str:
    fields = {"id": "t1", "object": "transcription.chunk", "created": 1, "model": "fake", "choices": choices, **more}
    return f"data: {json.dumps(fields)}\n\n"


HEARD = [transcript_event([{"delta": {"content": word}}]) for word in ("hello", " there", "!")]
SILENT = transcript_event([{"delta": {"content": ""}, "finish_reason": "stop"}])


class Form:
    """What came of an upload: its fields, their order, and of its file the size and checksum alone."""

    def __init__(self, content_type: str) -> None:
        _, options = parse_options_header(content_type)
        self.fields: dict[str, str] = {}
        self.names: list[str] = []
        self.filename = ""
        self.size = 0
        self.sha256 = hashlib.sha256()
        self.header = bytearray()
        self.value = b""
        self.is_file = False
        self.parser = MultipartParser(
            options[b"boundary"],
            {
                "on_part_begin": self.begin,
                "on_header_value": lambda data, start, end: self.header.extend(data[start:end]),
                "on_header_end": self.header_end,
                "on_part_data": self.data,
                "on_part_end": self.end,
            },
        )

    def begin(self) -> None:
        self.header, self.value, self.is_file = bytearray(), b"", False

    def header_end(self) -> None:
        kind, options = parse_options_header(bytes(self.header))
        self.header = bytearray()
        if kind == b"form-data":
            self.names.append(options[b"name"].decode())
            if b"filename" in options:
                self.is_file = True
                self.filename = options[b"filename"].decode()

    def data(self, data: bytes, start: int, end: int) -> None:
        if self.is_file:
            self.size += end - start
            self.sha256.update(data[start:end])
        else:
            self.value += data[start:end]

    def end(self) -> None:
        if not self.is_file:
            self.fields[self.names[-1]] = self.value.decode()

    def told(self) -> dict[str, Any]:
        file = {"name": self.filename, "size": self.size, "sha256": self.sha256.hexdigest()}
        return {**self.fields, "names": self.names, "file": file}


class Engine:
    def __init__(self) -> None:
        self.seen: dict[str, Any] = {"requests": [], "running": 0, "left": 0, "flooded": 0, "connections": 0}
        self.seen["most_running"] = 0
        self.seen |= {"uploading": 0, "uploaded": 0}

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.seen["connections"] += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            answered = 0
            while await self.request(reader, writer, answered):
                answered += 1
        writer.close()

    async def request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answered: int) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        lines = head.split("\r\n")
        method, path, _ = lines[0].split(" ")
        headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
        if headers.get("content-type", "").startswith("multipart/"):
            form = await self.upload(reader, writer, lines, headers)
            fields = form.told()
            self.seen["requests"].append({"path": path, "headers": headers, "body": fields})
            steps = json.loads(form.fields.get("script", "null")) or heard(fields)
            return await self.answer(reader, writer, steps, answered)
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        if method == "GET":
            writer.write(unary(200, self.seen if path == "/seen" else {"status": "ok", "data": []}).encode())
            return True
        fields = json.loads(body)
        self.seen["requests"].append({"path": path, "headers": headers, "body": fields})
        try:
            steps = script(fields)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):  # tools that are none, say
            steps = [{"send": unary(400, {"error": {"message": "not understood"}})}]
        return await self.answer(reader, writer, steps, answered)

    async def upload(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, lines: list[str], headers: dict[str, str]
    ) -> Form:
        """Read a chunked form, as its `reading` says. A client that leaves raises IncompleteReadError."""
        form = Form(next(line.split(": ", 1)[1] for line in lines if line.lower().startswith("content-type: multi")))
        assert headers["transfer-encoding"] == "chunked"
        assert "content-length" not in headers
        # Else asyncio takes 128 MB in before it stops.
        reader._limit = 65536  # type: ignore[attr-defined]  # noqa: SLF001
        self.seen["uploading"] += 1
        try:
            while (size := int(await reader.readuntil(b"\r\n"), 16)) > 0:
                left = size
                while left:
                    piece = await reader.read(left)
                    if not piece:
                        raise asyncio.IncompleteReadError(b"", left)
                    left -= len(piece)
                    form.parser.write(piece)
                    self.seen["uploaded"] = form.size
                    reading = json.loads(form.fields.get("reading", "{}")) if form.size else {}
                    await asyncio.sleep(reading.get("wait", 0))
                    if "answer" in reading:
                        return form
                    while "stop" in reading:
                        await asyncio.sleep(0.01)
                        if hung_up(writer):
                            raise asyncio.IncompleteReadError(b"", left)
                await reader.readexactly(2)
            await reader.readexactly(2)
        finally:
            self.seen["uploading"] -= 1
        return form

    async def answer(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, steps: list[dict[str, Any]], answered: int
    ) -> bool:
        gone = asyncio.ensure_future(self.gone(reader))
        with contextlib.ExitStack() as running:
            self.count_running(1)
            running.callback(self.count_running, -1)
            work = asyncio.ensure_future(self.play(steps, writer, answered, running))
            await asyncio.wait({gone, work}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            self.seen["left"] += 1
            work.cancel()
            return False
        gone.cancel()
        return not work.exception() and work.result()

    def count_running(self, change: int) -> None:
        self.seen["running"] += change
        self.seen["most_running"] = max(self.seen["most_running"], self.seen["running"])

    async def gone(self, reader: asyncio.StreamReader) -> None:
        """Return when the client closes; a client that writes on (it never does) would wait."""
        while not reader.at_eof() and reader.exception() is None:
            await asyncio.sleep(0.005)
            if reader._buffer:  # type: ignore[attr-defined]  # noqa: SLF001
                return

    async def write(self, step: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        for _ in range(step.get("times", 1) if "send" in step else 0):
            writer.write(step["send"].encode("latin-1"))
            await writer.drain()
        for index in range(step.get("events", 0)):
            writer.write(chunk(token(index)).encode())
            await writer.drain()
            await asyncio.sleep(step.get("every", 0))
        for _ in range(step.get("flood", 0)):
            writer.write(chunk(LARGE).encode())
            await writer.drain()
            self.seen["flooded"] += 1

    async def play(
        self, script: list[dict[str, Any]], writer: asyncio.StreamWriter, answered: int, running: contextlib.ExitStack
    ) -> bool:
        for step in script:
            if step is script[-1] and step.keys() == {"send"}:
                running.close()  # a client that has read this may begin the next call before this one continues here
            await self.write(step, writer)
            await asyncio.sleep(step.get("wait", 0))
            if "hang" in step:
                await asyncio.sleep(3600)
            if "die" in step:
                os._exit(139)
            if "close" in step:
                return False
            if "reset" in step or ("stale" in step and answered):
                linger = struct.pack("ii", 1, 0)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                writer.transport.abort()
                return False
        return True


def script(fields: dict[str, Any]) -> list[dict[str, Any]]:
    said = str(fields.get("user", ""))
    return fields.get("script") or (json.loads(said) if said.startswith("[{") else default(fields))


def default(fields: dict[str, Any]) -> list[dict[str, Any]]:
    if "input" in fields:
        data = [{"object": "embedding", "index": 0, "embedding": [0.1, 0.2]}]
        return [
            {"send": unary(200, {"object": "list", "data": data, "usage": {"prompt_tokens": 4, "total_tokens": 4}})}
        ]
    if fields.get("tools"):
        return tool_call(fields)
    if not fields.get("stream"):
        return [{"send": unary(200, ANSWER)}]
    told = (fields.get("stream_options") or {}).get("include_usage")
    end = FINISH + (usage_event(7, 3) if told else "") + DONE
    return [{"send": SSE}, {"events": 3}, {"send": chunk(end) + "0\r\n\r\n"}]


def tool_call(fields: dict[str, Any]) -> list[dict[str, Any]]:
    """Call the first tool, in three pieces if streamed."""
    name, arguments = fields["tools"][0]["function"]["name"], '{"city":"Osaka"}'
    whole = {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}
    if not fields.get("stream"):
        message = {"role": "assistant", "content": None, "tool_calls": [whole]}
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
        return [{"send": unary(200, {**ANSWER, "choices": [choice]})}]
    pieces: tuple[dict[str, Any], ...] = (
        {**whole, "function": {"name": name, "arguments": ""}},
        *({"function": {"arguments": part}} for part in (arguments[:7], arguments[7:])),
    )
    deltas = [{"role": "assistant", "content": None}, *({"tool_calls": [{"index": 0, **piece}]} for piece in pieces)]
    events = [event([{"index": 0, "delta": delta, "finish_reason": None}]) for delta in deltas]
    end = FINISH.replace('"stop"', '"tool_calls"') + usage_event(7, 5) + DONE
    return [{"send": SSE}, *({"send": chunk(text)} for text in events), {"send": chunk(end) + "0\r\n\r\n"}]


def hung_up(writer: asyncio.StreamWriter) -> bool:
    """Return whether the client has closed its end, also while there is more to read."""
    poll = select.poll()
    poll.register(writer.get_extra_info("socket").fileno(), select.POLLRDHUP)
    return bool(poll.poll(0))


def heard(fields: dict[str, Any]) -> list[dict[str, Any]]:
    if fields.get("stream") != "true":
        return [{"send": unary(200, TRANSCRIPT)}]
    told = fields.get("stream_include_usage") == "true"
    usage = {"prompt_tokens": 304, "completion_tokens": 6, "total_tokens": 310}
    end = SILENT + (transcript_event([], usage=usage) if told else "") + DONE
    return [{"send": SSE}, *({"send": chunk(event)} for event in HEARD), {"send": chunk(end) + "0\r\n\r\n"}]


async def main(address: str = "127.0.0.1") -> None:
    server = await asyncio.start_server(Engine().connection, address, 0, limit=2**26)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@dataclass
class Running:
    """A fake engine under way."""

    url: str
    process: "subprocess.Popen[str]"

    def seen(self) -> dict[str, Any]:
        with urlopen(f"{self.url}/seen") as answer:
            return json.load(answer)


@contextlib.contextmanager
def running() -> Iterator[Running]:
    process = subprocess.Popen([sys.executable, __file__], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield Running(f"http://127.0.0.1:{int(process.stdout.readline())}", process)
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    asyncio.run(main())
