"""A stand-in for an engine whose work is done by processes below its front, as vLLM's is, in llama-server's words.

    front     HTTP; ends with code 0 half a second after the core has gone
    └ core    in a session of its own; ends when the worker has gone, not when the front has
      └ worker   in a session of its own; makes the words, one every WORD seconds; ends for no other process

So a killed front leaves two processes that no other listens to, as a real vLLM was seen to do. It says the words that
it is asked to say, each as one token; a prompt has as many tokens as characters. A stream that breaks ends with an
error event and `[DONE]`, as vLLM's.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WORD = 0.02
LOADING = 1.5  # seconds until it is healthy


class State:
    lock = threading.Lock()
    began = time.monotonic()
    running = 0
    made = 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    port = 0  # the worker's

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/health":
            loading = time.monotonic() - State.began < LOADING
            return self.answer(503 if loading else 200, {"status": "loading" if loading else "ok"})
        if self.unknown():
            return None
        text = f"llamacpp:requests_processing {State.running}\nllamacpp:tokens_predicted_total {State.made}\n"
        return self.answer(200, text)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.unknown():
            return
        with State.lock:
            State.running += 1
        try:
            self.work(body)
        finally:
            with State.lock:
                State.running -= 1

    def unknown(self) -> bool:
        if self.headers.get("authorization") == f"Bearer {os.environ['LLAMA_API_KEY']}":
            return False
        self.answer(401, {"error": {"message": "Invalid API Key"}})
        return True

    def work(self, body: Any) -> None:
        asked = body["messages"][-1]["content"]
        words = asked.split()[: body.get("max_tokens") or None]
        try:
            worker = socket.create_connection(("127.0.0.1", self.port), timeout=30)
            worker.sendall(json.dumps(words).encode() + b"\n")
            lines = worker.makefile()
            (self.stream if body.get("stream") else self.whole)(body, lines, len(asked), len(words))
        except OSError:
            self.answer(500, {"error": {"message": "the worker is gone", "type": "InternalServerError", "code": 500}})

    def whole(self, body: Any, lines: Any, prompt: Any, count: Any) -> None:
        text = "".join(json.loads(line) for line in lines)
        if text.count(" ") != count - 1:
            raise ConnectionError
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        self.answer(200, self.facts(body, "chat.completion", [choice], usage=usage(prompt, count)))

    def stream(self, body: Any, lines: Any, prompt: Any, count: Any) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        made = 0
        try:
            for line in lines:
                made += 1
                delta = {"index": 0, "delta": {"content": json.loads(line)}, "finish_reason": None}
                self.event(self.facts(body, "chat.completion.chunk", [delta]))
        except OSError:  # the worker's connection was reset
            made = -1
        if made == count:
            end = {"index": 0, "delta": {}, "finish_reason": "stop"}
            self.event(self.facts(body, "chat.completion.chunk", [end]))
            if (body.get("stream_options") or {}).get("include_usage"):
                self.event(self.facts(body, "chat.completion.chunk", [], usage=usage(prompt, count)))
        else:
            self.event({"error": {"message": "the worker is gone", "type": "InternalServerError", "code": 500}})
        self.chunk(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def facts(self, body: Any, kind: Any, choices: Any, **more: Any) -> dict[str, Any]:
        return {"id": f"c{id(self)}", "object": kind, "created": 1, "model": body["model"], "choices": choices, **more}

    def event(self, fields: Any) -> None:
        self.chunk(f"data: {json.dumps(fields)}\n\n".encode())
        State.made += 1

    def chunk(self, data: Any) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def answer(self, status: Any, body: Any) -> None:
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def usage(prompt: Any, completion: Any) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def front(options: Any) -> None:
    core = subprocess.Popen(
        [sys.executable, __file__, "--part=core"], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert core.stdout
    Handler.port = int(core.stdout.readline())
    threading.Thread(target=follow, args=(core, 0.5), daemon=True).start()
    ThreadingHTTPServer((options.host, int(options.port)), Handler).serve_forever()


def core() -> None:
    worker = subprocess.Popen([sys.executable, __file__, "--part=worker"], start_new_session=True)
    follow(worker, 0.0)


def follow(process: Any, seconds: Any) -> None:
    process.wait()
    time.sleep(seconds)
    os._exit(0)


def worker() -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    print(listener.getsockname()[1], flush=True)
    while True:
        caller, _ = listener.accept()
        threading.Thread(target=speak, args=(caller,), daemon=True).start()


def speak(caller: Any) -> None:
    try:
        with caller, caller.makefile() as lines:
            for number, word in enumerate(json.loads(lines.readline())):
                caller.sendall(json.dumps((" " if number else "") + word).encode() + b"\n")
                time.sleep(WORD)
    except OSError:
        pass  # who asked has gone


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--part", default="front")
    for word in ("--host", "--port", "--alias"):
        parser.add_argument(word)
    options, _ = parser.parse_known_args()
    {"front": lambda: front(options), "core": core, "worker": worker}[options.part]()
