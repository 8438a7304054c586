"""Three models in room for two, called at random: our supervisor and gateway beside llama.cpp's own router.

Both start the same llama-server with the same model file under three names. Clients are like Dify's: they ask, wait for
the whole answer, and never try again. Our supervisor is shown a card that has room for two; the router is given
`--models-max 2`.
"""

import json
import os
import random
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from time import monotonic, sleep

import httpx2
from django.conf import settings

from modelregistry.engines import programs
from modelregistry.memory.placement import GPU_MARGIN
from tests import engines
from tests.bench import processes, scheduler
from tests.bench.contenders import free_port
from tests.bench.report import Goal, Part, table
from tests.installation import installed
from tests.waiting import until

RECORDED = Path(__file__).parent.parent / "modelregistry" / "supervisor" / "recorded_nvml"
NAMES, SHARES = ("a", "b", "c"), (5, 3, 2)
SLOTS, CONTEXT = 4, 2048
CLIENTS, LASTS = 6, 180.0  # seconds
PAUSE = (0.0, 4.0)  # seconds between an answer and the next question
TOKENS = (8, 64)
PATIENCE = 300.0  # seconds without a byte, as Dify
GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where to call. `loads`: returns how often an engine was started so far."""

    url: str
    key: str
    loads: Callable[[], int]


@dataclass(slots=True)
class Seen:
    waits: list[float] = field(default_factory=list)  # seconds until the first token
    failed: list[str] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0
    loads: int = 0


def llama_server() -> Path:
    """Return the program that `manage.py installengine llama-server` built."""
    found = [one for one in programs.all_installed(settings.CACHE) if one.launcher == "llama-server"]
    if not found:
        raise SystemExit("first: manage.py installengine llama-server")
    return Path(found[-1].program[0])


@contextmanager
def ours(directory: Path) -> Iterator[Place]:
    """Provide an installation whose card has room for two of its three models."""
    wrapper, cards = directory / "llama", directory / "nvml.json"
    # At another path: what we built for CPUs would be planned for RAM.
    wrapper.write_text(f'#!/bin/sh\nexec {llama_server()} "$@"\n')
    wrapper.chmod(0o755)

    def resize(total: int) -> None:
        card = {"uuid": "GPU-a", "name": "NVIDIA A100", "total": total, "used": 0, "processes": {}, "error": 0}
        models = str(engines.chat_model().parent)
        cards.write_text(json.dumps({"error": 0, "cards": [card], "models": models}))

    resize(80 * GIB)
    environment = {
        "PYTHONPATH": str(RECORDED),
        "RECORDED_NVML": str(cards),
        "LLAMA_SERVER_COMMAND": str(wrapper),
    }
    with installed(directory / "var", **environment) as installation:

        def register(name: str) -> None:
            model = ("--engine", "llama.cpp", "--launcher", "llama-server", "--path", str(engines.chat_model()))
            room = ("--context", str(CONTEXT), "--slots", str(SLOTS))
            installation.manage("registermodel", name, *model, *room)

        register("a")
        key = installation.start_for("a")
        [(predicted,)] = installation.read("select predicted from modelregistry_replica")
        need = json.loads(predicted)["weights"] + json.loads(predicted)["cache"] + json.loads(predicted)["overhead"]
        resize(GPU_MARGIN + need * 5 // 2)
        for name in NAMES[1:]:
            register(name)
        until(lambda: sorted(row["state"] for row in installation.rows("replicas")) == ["asleep", "ready", "ready"])

        def loads() -> int:
            [(swaps,)] = installation.read("select count(*) from modelregistry_evictionrecord")
            return int(swaps)

        yield Place(url=installation.url, key=key, loads=loads)


@contextmanager
def router(directory: Path) -> Iterator[Place]:
    """Provide llama.cpp's router, which may load two models at a time."""
    models, port, log = directory / "models", free_port(), directory / "router.log"
    models.mkdir()
    for name in NAMES:
        (models / f"{name}.gguf").symlink_to(engines.chat_model())
    options = ("--models-dir", str(models), "--models-max", "2", "--host", "127.0.0.1", "--port", str(port))
    engine = ("--parallel", str(SLOTS), "--ctx-size", str(SLOTS * CONTEXT))
    with processes.running(
        (str(llama_server()), *options, *engine),
        cores="0-1",
        answers=partial(processes.http, f"http://127.0.0.1:{port}/health"),
        log=log,
        env={},
    ):
        yield Place(
            url=f"http://127.0.0.1:{port}",
            key="none",
            loads=lambda: log.read_text(errors="replace").count("spawning server instance"),
        )


def ask(client: httpx2.Client, model: str, tokens: int, seen: Seen) -> None:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "Tell a long story."}],
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": True,
    }
    begun, first, why = monotonic(), None, "cut"
    try:
        with client.stream("POST", "/v1/chat/completions", json=body) as got:
            if got.status_code != 200:
                why = f"{got.status_code} {got.read()[:200]!r}"
            for line in got.iter_lines() if got.status_code == 200 else ():
                if line.startswith("data: ") and '"error"' in line:
                    why = line[:200]
                if first is None and line.startswith("data: ") and '"content":"' in line:
                    first = monotonic() - begun
                if line == "data: [DONE]" and first is not None:
                    seen.waits.append(first)
                    seen.tokens += tokens
                    return
    except httpx2.HTTPError as error:
        why = repr(error)
    seen.failed.append(why)


def put(place: Place, seconds: float) -> Seen:
    """Put the load on it: each client asks for models by chance, the same ones each time."""
    seen, before, begun = Seen(), place.loads(), monotonic()

    def work(number: int) -> None:
        dice = random.Random(number)
        headers = {"authorization": f"Bearer {place.key}"}
        with httpx2.Client(base_url=place.url, headers=headers, timeout=PATIENCE, trust_env=False) as client:
            while monotonic() < begun + seconds:
                ask(client, dice.choices(NAMES, SHARES)[0], dice.randint(*TOKENS), seen)
                sleep(dice.uniform(*PAUSE))

    clients = [threading.Thread(target=work, args=(number,)) for number in range(CLIENTS)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    seen.seconds, seen.loads = monotonic() - begun, place.loads() - before
    return seen


def line(name: str, seen: list[Seen]) -> list[str]:
    waits = [one.waits for one in seen]
    return [
        name,
        f"{median(len(one.waits) for one in seen):.0f}",
        f"{sum(len(one.failed) for one in seen)}",
        *(f"{median(scheduler.quantile(one, part) for one in waits):.1f} s" for part in (0.5, 0.95)),
        f"{median(map(max, waits)):.1f} s",
        f"{median(one.loads for one in seen):.0f}",
        f"{median(one.tokens / one.seconds for one in seen):.1f}",
    ]


PLACES = {"Madoguchi": ours, "llama.cpp's router": router}


def part(rounds: int) -> Part:
    """Return some seven minutes for each round."""
    seconds = float(os.environ.get("REAL_TURNS_SECONDS", LASTS))
    seen: dict[str, list[Seen]] = {name: [] for name in PLACES}
    for _ in range(rounds):
        for name, place in PLACES.items():
            with tempfile.TemporaryDirectory(prefix="madoguchi-bench-") as directory, place(Path(directory)) as there:
                seen[name].append(put(there, seconds))
    for name, found in seen.items():
        for why in sorted({why for one in found for why in one.failed}):
            print(f"{name}: {why}", file=sys.stderr)
    columns = ["", "answers", "failed", "first token p50", "p95", "most", "loads", "tokens/s"]
    [mine, theirs] = seen.values()
    failed = sum(len(one.failed) for one in mine)
    goal = Goal(
        text="three models of a real llama.cpp in room for two, clients that never try again: failed calls",
        wanted="0",
        reached=f"{failed} ({sum(len(one.failed) for one in theirs)} of llama.cpp's router)",
        met=failed == 0,
    )
    lines = [line(name, found) for name, found in seen.items()]
    return Part(name="real-turns", markdown=table(columns, lines), goals=(goal,))
