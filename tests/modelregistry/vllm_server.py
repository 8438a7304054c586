"""A substitute for a vLLM on a GPU: its paths, its metrics, and its sleep mode as vLLM 0.32's source has it.

It is behind the real guard if it is started with it. What it does beyond that is in `behave.json` in the model's
directory, read again for each call, so that a test can change it:

    {"sleep": 500}          refuses to sleep            {"sleep": "hang"}     never answers that
    {"wake": 500}           refuses to wake             {"wake": "hang"}      never answers that
    {"damaged": true}       answers "!!!!" after waking, whatever was reloaded
    {"cards": PATH, "awake": BYTES, "asleep": BYTES}    reports its memory in recorded_nvml's file
    {"loading": SECONDS}    answers no health check for so long after its start

Like vLLM it also answers "!!!!" where weights were discarded (level 2) and not reloaded, and answers nothing while it
sleeps. Calls of its sleep mode are written into `calls` beside that file, one a line.
"""

import argparse
import asyncio
import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import uvicorn

TEXT = "one, two, three, four, five, six"
DAMAGED = "!" * 24
WEIGHTS, CACHE = "weights", "kv_cache"


class Engine:
    """Its state: which parts of its memory sleep, and whether its weights are what they were."""

    def __init__(self, model: Path) -> None:
        self.model = model
        self.began = time.monotonic()
        self.asleep: set[str] = set()
        self.discarded = False
        self.damaged = False
        self.awake = asyncio.Event()
        self.awake.set()
        self.tokens = 0

    def behaviour(self) -> dict[str, Any]:
        path = self.model / "behave.json"
        return dict(json.loads(path.read_text())) if path.exists() else {}

    def note(self, call: str) -> None:
        with (self.model / "calls").open("a") as calls:
            calls.write(call + "\n")

    def report_memory(self) -> None:
        behave = self.behaviour()
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if "cards" in behave and visible:  # a build for CPUs has none
            path = Path(behave["cards"])
            recorded = json.loads(path.read_text())
            held = behave["asleep"] if self.asleep else behave["awake"]
            card = recorded["cards"][int(visible)]
            card["used"] += held - card["processes"].get(str(os.getpid()), 0)
            card["processes"][str(os.getpid())] = held
            draft = path.with_suffix(f".{os.getpid()}")
            draft.write_text(json.dumps(recorded))
            draft.replace(path)

    def sleep(self, level: int) -> None:
        self.asleep = {WEIGHTS, CACHE}
        self.discarded = level == 2
        self.awake.clear()
        self.report_memory()

    def wake(self, tags: list[str]) -> None:
        wanted = set(tags or self.asleep)
        if not wanted <= self.asleep:
            return  # as vLLM: a warning, and nothing happens
        self.asleep -= wanted
        if not self.asleep:
            self.damaged = self.discarded or bool(self.behaviour().get("damaged"))
            self.awake.set()
        self.report_memory()

    def text(self) -> str:
        return DAMAGED if self.damaged else TEXT


class Application:
    """Its paths."""

    def __init__(self, engine: Engine, name: str) -> None:
        self.engine = engine
        self.name = name

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        status, answer = await self.answer(scope, body)
        data = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": data})

    async def answer(self, scope: Any, body: bytes) -> tuple[int, Any]:
        engine, path = self.engine, scope["path"]
        query = parse_qs(scope["query_string"].decode())
        if path == "/health":
            loading = time.monotonic() - engine.began < engine.behaviour().get("loading", 0)
            return (503 if loading else 200), ""
        if path == "/version":
            return 200, {"version": "0.32.0"}
        if path == "/metrics":
            return 200, (
                f"vllm:num_requests_running 0\nvllm:num_requests_waiting 0\nvllm:kv_cache_usage_perc 0\n"
                f"vllm:prompt_tokens_total 0\nvllm:generation_tokens_total {engine.tokens}\n"
            )
        if path == "/v1/chat/completions":
            await engine.awake.wait()
            engine.tokens += 6
            return 200, {"model": self.name, "choices": [{"message": {"content": engine.text()}}]}
        if os.environ.get("VLLM_SERVER_DEV_MODE") == "1":
            return await self.control(path, query, body)
        return 404, {"error": {"message": "Not Found", "code": 404}}

    async def control(self, path: str, query: dict[str, list[str]], body: bytes) -> tuple[int, Any]:
        engine = self.engine
        if path == "/is_sleeping":
            return 200, {"is_sleeping": bool(engine.asleep)}
        engine.note(f"{path} {' '.join(f'{name}={value[0]}' for name, value in sorted(query.items()))}".strip())
        behave = engine.behaviour().get({"/sleep": "sleep", "/wake_up": "wake"}.get(path, ""))
        if behave == "hang":
            await asyncio.Event().wait()
        if behave:
            return behave, {"error": {"message": "it cannot", "code": behave}}
        if path == "/sleep":
            engine.sleep(int(query["level"][0]))
            return 200, {"status": "sleeping"}
        if path == "/wake_up":
            engine.wake(query.get("tags", []))
            return 200, {"status": "sleeping" if engine.asleep else "awake"}
        if path == "/collective_rpc" and json.loads(body)["method"] == "reload_weights":
            engine.discarded = WEIGHTS in engine.asleep  # there is nowhere to put them before they are awake
            return 200, {"results": [None]}
        return 404, {"error": {"message": "Not Found", "code": 404}}


def main() -> None:
    if "serve" not in sys.argv:
        sys.exit(2)  # asked for its options: it has no parser to show
    parser = argparse.ArgumentParser()
    for word in ("--host", "--port", "--served-model-name", "--middleware"):
        parser.add_argument(word)
    options, _ = parser.parse_known_args(sys.argv[sys.argv.index("serve") + 2 :])
    engine = Engine(Path(sys.argv[sys.argv.index("serve") + 1]))
    engine.report_memory()
    application: Any = Application(engine, options.served_model_name)
    if options.middleware:
        # vLLM's environment alone has what PYTHONPATH names; this one is the tests'.
        sys.path.insert(0, os.environ["PYTHONPATH"])
        module, _, name = options.middleware.rpartition(".")
        application = getattr(importlib.import_module(module), name)(application)
    uvicorn.run(application, host=options.host, port=int(options.port), log_level="warning", lifespan="off")


if __name__ == "__main__":
    main()
