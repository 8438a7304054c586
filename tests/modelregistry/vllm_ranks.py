"""A substitute for a vLLM whose model is split over hosts, as vLLM 0.32's source has it: it insists on all ranks.

Rank 0 waits at its master port until every other rank has come, of as many as it was started for, and only then listens
for HTTP; the others come again and again until it is there (torch's TCPStore). Then, as in vLLM:

- Rank 0 reports health whatever becomes of the others, as it watches its own workers only; an answer takes all of them
  (v1/executor/multiproc_executor.py, collective_rpc). So the next question fails when one has ended, and rank 0 with
  it; and it hangs for ever when a rank's host is gone without a word.
- A rank whose rank 0 has gone waits for ever (run_headless, which watches its own workers only).
- One that does not get through in time ends, with torch's words.

What it does beyond that is in `behave.json` in the model's directory: {"crash": [RANK, …]} ends these ranks at their
start; {"patience": SECONDS} is the time for all to come; {"deaf": true}: rank 0 does not let anyone in; {"wordless":
true}: what ends does so as a host without power, so that nothing learns of it. Each start is a line in `starts` beside
it.
"""

import argparse
import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import uvicorn

PATIENCE = 600.0  # seconds, as torch's
OUT_OF_MEMORY = "(Worker pid=1) ERROR torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1.31 GiB."


class Ranks:
    """The other ranks, as rank 0 has them."""

    def __init__(self, count: int, *, wordless: bool) -> None:
        self.count = count
        self.wordless = wordless
        self.there: dict[int, tuple[asyncio.StreamReader, asyncio.StreamWriter]] = {}
        self.complete = asyncio.Event()
        self.turn = asyncio.Lock()

    async def come_in(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        said = json.loads(await reader.readline())
        if said["nnodes"] != self.count or said["rank"] in self.there:
            sys.exit(f"a rank {said} has come, of {self.count}, beside {sorted(self.there)}")
        self.there[said["rank"]] = reader, writer
        if len(self.there) == self.count - 1:
            self.complete.set()

    async def compute(self) -> None:
        """Have each rank do its part."""
        async with self.turn:
            for rank, (reader, writer) in self.there.items():
                writer.write(b"compute\n")
                if not await reader.readline():
                    if self.wordless:
                        await asyncio.Event().wait()
                    print(f"(EngineCore pid=1) ERROR RuntimeError: Worker failed: rank {rank} closed its connection")
                    os._exit(1)


class Application:
    """Its paths."""

    def __init__(self, ranks: Ranks, name: str) -> None:
        self.ranks = ranks
        self.name = name
        self.tokens = 0
        self.running = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        while (await receive()).get("more_body"):
            pass
        answer = await self.answer(scope["path"])
        data = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": data})

    async def answer(self, path: str) -> Any:
        if path == "/version":
            return {"version": "0.32.0"}
        if path == "/metrics":
            return (
                f"vllm:num_requests_running {self.running}\nvllm:num_requests_waiting 0\nvllm:kv_cache_usage_perc 0\n"
                f"vllm:prompt_tokens_total 0\nvllm:generation_tokens_total {self.tokens}\n"
            )
        if path != "/v1/chat/completions":
            return ""
        self.running += 1
        try:
            await self.ranks.compute()
        finally:
            self.running -= 1
        self.tokens += 3
        choices = [{"message": {"content": "all ranks answer"}}]
        return {"model": self.name, "choices": choices, "usage": {"prompt_tokens": 2, "completion_tokens": 3}}


async def lead(options: argparse.Namespace, behave: dict[str, Any]) -> None:
    ranks = Ranks(options.nnodes, wordless=bool(behave.get("wordless")))
    if options.nnodes == 1:
        ranks.complete.set()
    elif not behave.get("deaf"):
        await asyncio.start_server(ranks.come_in, options.master_addr, options.master_port)
    patience = behave.get("patience", PATIENCE)
    try:
        async with asyncio.timeout(patience):
            await ranks.complete.wait()
    except TimeoutError:
        there = f"{len(ranks.there) + 1}/{options.nnodes} clients joined"
        sys.exit(
            f"torch.distributed.DistStoreError: Timed out after {patience:g} seconds waiting for clients. {there}."
        )
    config = uvicorn.Config(
        Application(ranks, options.served_model_name),
        host=options.host,
        port=options.port,
        log_level="warning",
        lifespan="off",
    )
    await uvicorn.Server(config).serve()


async def follow(options: argparse.Namespace, behave: dict[str, Any]) -> None:
    patience = behave.get("patience", PATIENCE)
    where, deadline = f"({options.master_addr}, {options.master_port})", time.monotonic() + patience
    while True:
        try:
            reader, writer = await asyncio.open_connection(options.master_addr, options.master_port)
            break
        except OSError:
            if time.monotonic() > deadline:
                took = f"after {1000 * patience:g}ms while trying to connect to {where}"
                sys.exit(f"torch.distributed.DistNetworkError: The client socket has timed out {took}.")
            await asyncio.sleep(0.1)
    writer.write(json.dumps({"rank": options.node_rank, "nnodes": options.nnodes}).encode() + b"\n")
    while await reader.readline():
        writer.write(b"done\n")
    await asyncio.Event().wait()


def main() -> None:
    if "serve" not in sys.argv:
        sys.exit(2)  # asked for its options: it has no parser to show
    parser = argparse.ArgumentParser()
    for word in ("--host", "--served-model-name", "--master-addr"):
        parser.add_argument(word)
    for word, usual in (("--port", 0), ("--nnodes", 1), ("--node-rank", 0), ("--master-port", 0)):
        parser.add_argument(word, type=int, default=usual)
    parser.add_argument("--headless", action="store_true")
    options, _ = parser.parse_known_args(sys.argv[sys.argv.index("serve") + 2 :])
    model = Path(sys.argv[sys.argv.index("serve") + 1])
    path = model / "behave.json"
    behave = json.loads(path.read_text()) if path.exists() else {}
    if options.headless != (options.node_rank > 0):
        sys.exit("rank 0 serves, and no other one")
    started = {"rank": options.node_rank, "port": options.master_port, "pid": os.getpid(), "argv": sys.argv}
    with (model / "starts").open("a") as starts:
        starts.write(json.dumps({**started, "cards": os.environ.get("CUDA_VISIBLE_DEVICES", "")}) + "\n")
    if options.node_rank in behave.get("crash", ()):
        sys.exit(OUT_OF_MEMORY)
    asyncio.run(follow(options, behave) if options.headless else lead(options, behave))


if __name__ == "__main__":
    main()
