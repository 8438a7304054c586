"""A chat engine on a real socket that answers every prompt as a test wants it to, from one call to the next."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Reply:
    """`pieces` are tokens, each sent `every` seconds. `breaks_off`: the connection closes after them."""

    pieces: tuple[str, ...]
    finish: str = "stop"
    every: float = 0.0
    status: int = 200
    breaks_off: bool = False
    headers: tuple[tuple[str, str], ...] = ()


@dataclass
class TalkativeEngine:
    """`reply` is called with the last message; `requests` are the bodies that came."""

    reply: Callable[[str], Reply]
    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    engine: TalkativeEngine
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each answer takes 40 ms

    def do_GET(self) -> None:
        self._send(200, b'{"status": "ok"}')

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.engine.requests.append(body)
        answer = self.engine.reply(body["messages"][-1]["content"])
        if answer.status != 200:
            self._send(answer.status, b'{"error": {"message": "no", "code": 1}}', answer.headers)
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for piece in answer.pieces:
            self._event([{"index": 0, "delta": {"content": piece}, "finish_reason": None}])
            time.sleep(answer.every)
        if answer.breaks_off:
            self.close_connection = True
            return
        self._event([{"index": 0, "delta": {}, "finish_reason": answer.finish}])
        count = len(answer.pieces)
        usage = {"prompt_tokens": 9, "completion_tokens": count, "total_tokens": 9 + count}
        self._event([], usage=usage)
        self._chunk(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def _event(self, choices: list[dict[str, Any]], **more: Any) -> None:
        fields = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices}
        self._chunk(b"data: " + json.dumps({**fields, **more}).encode() + b"\n\n")

    def _chunk(self, text: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(text), text))

    def _send(self, status: int, body: bytes, headers: tuple[tuple[str, str], ...] = ()) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def talkative_engine(reply: Callable[[str], Reply]) -> Iterator[TalkativeEngine]:
    engine = TalkativeEngine(reply)
    handler = type("EngineHandler", (Handler,), {"engine": engine})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    engine.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield engine
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
