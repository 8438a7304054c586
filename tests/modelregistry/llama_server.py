"""A substitute for llama-server: its arguments, its paths, its metrics, and whatever `--behave` asks for.

    loading=S   answers 503 for S seconds          exit=TEXT   prints TEXT and ends with code 3 at once
    refuse      answers every question with 400    worker      has a grandchild in a session of its own
    stubborn    ignores SIGTERM                    deaf        never listens
    chatty      writes "line 1", "line 2" …, two a second      says=TEXT  answers TEXT instead of "pong"
    mortal      dies of a call that says "die"

SIGUSR1 makes it ill (500 to everything) and well again, SIGUSR2 unable to work although its health is
good. A stream has `max_tokens` chunks, 20 a second.
"""

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class State:
    began = time.monotonic()
    ill = False
    unable = False
    running = 0
    predicted = 0
    lock = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/health":
            loading = time.monotonic() - State.began < float(behave.get("loading", 0))
            return self.answer(500 if State.ill else 503 if loading else 200, {"status": "ok"})
        if self.refused():
            return None
        if self.path == "/v1/models":
            return self.answer(200, {"object": "list", "data": [{"id": options.alias}]})
        if self.path == "/props":
            return self.answer(200, {"build_info": "b4711-stand-in"})
        text = "llamacpp:requests_deferred 0\n"
        text += f"llamacpp:requests_processing {State.running}\nllamacpp:tokens_predicted_total {State.predicted}\n"
        return self.answer(200, text)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.refused():
            return
        if "mortal" in behave and "die" in json.dumps(body["messages"]):
            os._exit(139)
        if "refuse" in behave or State.ill or State.unable:
            self.answer(400, {"error": {"message": "this model cannot do that", "code": 400}})
            return
        with State.lock:
            State.running += 1
        try:
            self.work(body)
        finally:
            with State.lock:
                State.running -= 1

    def work(self, body: Any) -> None:
        if not body.get("stream"):
            State.predicted += 1
            self.answer(
                200, {"choices": [{"message": {"content": behave.get("says", "pong")}}], "model": body["model"]}
            )
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        for number in range(body["max_tokens"]):
            State.predicted += 1
            ended = "length" if number == body["max_tokens"] - 1 else None
            choice = {"index": 0, "delta": {"content": f"{number} "}, "finish_reason": ended}
            self.wfile.write(b"data: %s\n\n" % json.dumps({"choices": [choice]}).encode())
            time.sleep(0.05)
        self.wfile.write(b"data: [DONE]\n\n")

    def refused(self) -> bool:
        if self.headers.get("authorization") == f"Bearer {os.environ['LLAMA_API_KEY']}":
            return False
        self.answer(401, {"error": {"message": "Invalid API Key"}})
        return True

    def answer(self, status: Any, body: Any) -> None:
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def fall_ill(*_: Any) -> None:
    State.ill = not State.ill


def be_unable(*_: Any) -> None:
    State.unable = not State.unable


def chat() -> Any:
    for number in itertools.count(1):
        print("line", number, flush=True)
        time.sleep(0.5)


parser = argparse.ArgumentParser()
for word in ("--model", "--alias", "--host", "--port", "--parallel", "--ctx-size"):
    parser.add_argument(word)
parser.add_argument("--behave", action="append", default=[])
options, _ = parser.parse_known_args()
behave = dict((each + "=").split("=")[:2] for each in options.behave)
if "exit" in behave:
    print("loading model", flush=True)
    sys.exit(print(f"error: {behave['exit']}", file=sys.stderr) or 3)
if "worker" in behave:
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
signal.signal(signal.SIGTERM, signal.SIG_IGN if "stubborn" in behave else signal.SIG_DFL)
signal.signal(signal.SIGUSR1, fall_ill)
signal.signal(signal.SIGUSR2, be_unable)
if "chatty" in behave:
    threading.Thread(target=chat, daemon=True).start()
if "deaf" in behave:
    time.sleep(600)
ThreadingHTTPServer((options.host, int(options.port)), Handler).serve_forever()
