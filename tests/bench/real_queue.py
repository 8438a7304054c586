"""How long people wait beside one key's 200 calls, for a real llama.cpp with four slots behind the running gateway.

The engine is asked under two names: of one the gateway knows the slots, so it is the fair queue that orders calls; of
the other it knows nothing and sends everything at once, so they are served in the order in which they came.
"""

import asyncio
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from time import monotonic

import httpx2

from tests import engines
from tests.bench import processes, scheduler
from tests.bench.contenders import free_port
from tests.bench.prepare import AT_ONCE, QUEUED
from tests.bench.report import Goal, Part, table

SLOTS, CONTEXT = 4, 512
PEOPLE, BURST = 40, 200
BEGIN, LASTS = 10.0, 130.0  # seconds until the burst, and until people ask no more
TOKENS = {"burst": 48, "person": 24}  # of an answer
PAUSE = (20.0, 70.0)  # seconds between two questions of a person
MODELS = {AT_ONCE: "first come, first served", QUEUED: "fair queue"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    url: str
    keys: list[str]  # the first is that of the burst


@dataclass(slots=True)
class Answers:
    """Of one run; seconds."""

    waits: list[float] = field(default_factory=list)  # of people, until their first token
    burst: float = 0.0
    tokens: int = 0
    failed: int = 0
    over: float = 0.0


@contextmanager
def installation(directory: Path) -> Iterator[Installation]:
    """Provide an engine and a gateway before it."""
    with ExitStack() as stack:
        options = ["--alias=m", f"--parallel={SLOTS}", f"--ctx-size={SLOTS * CONTEXT}"]
        engine, url = engines.launch(directory, engines.chat_model(), *options)
        stack.enter_context(engine)  # waits for its end
        stack.callback(engine.terminate)
        port, env = free_port(), {"MADOGUCHI_VAR": str(directory / "var"), "LOG_LEVEL": "WARNING"}
        os.mkdir(env["MADOGUCHI_VAR"])
        prepare = [sys.executable, "-m", "tests.bench.prepare", url, f"--people={PEOPLE}", f"--slots={SLOTS}"]
        keys = subprocess.check_output(prepare, cwd=processes.ROOT, env=os.environ | env, text=True).split()
        stack.enter_context(
            processes.running(
                (sys.executable, "manage.py", "up", "--port", str(port), "--no-supervisor"),
                cores="0-1",
                answers=partial(processes.http, f"http://127.0.0.1:{port}/readyz"),
                log=directory / "gateway.log",
                env=env,
            )
        )
        yield Installation(url=f"http://127.0.0.1:{port}", keys=keys)


async def ask(client: httpx2.AsyncClient, key: str, model: str, tokens: int, number: int) -> float | None:
    """Return the seconds until the first token; None: the call failed."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": f"{number}: tell a long story."}],
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": True,
    }
    begun, first = monotonic(), None
    try:
        headers = {"authorization": f"Bearer {key}"}
        async with client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as got:
            got.raise_for_status()
            async for line in got.aiter_lines():
                if first is None and line.startswith("data: ") and '"content":"' in line:
                    first = monotonic() - begun
                if line == "data: [DONE]":
                    return first
    except httpx2.HTTPError:
        pass
    return None


async def put(site: Installation, model: str, seed: int) -> Answers:
    """Put the load on a model: times and questions do not depend on the answers."""
    seen, begun, dice = Answers(), monotonic(), random.Random(seed)
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx2.AsyncClient(base_url=site.url, timeout=900, limits=limits, trust_env=False) as client:

        async def call(at: float, key: str, kind: str, number: int) -> None:
            await asyncio.sleep(begun + at - monotonic())
            wait = await ask(client, key, model, TOKENS[kind], number)
            if wait is None:
                seen.failed += 1
                return
            seen.tokens += TOKENS[kind]
            if kind == "burst":
                seen.burst = max(seen.burst, monotonic() - begun - BEGIN)
            elif at >= BEGIN:
                seen.waits.append(wait)

        calls = [call(BEGIN, site.keys[0], "burst", number) for number in range(BURST)]
        for key in site.keys[1:]:
            at = dice.uniform(0, PAUSE[1])
            while at < LASTS:
                calls.append(call(at, key, "person", len(calls)))
                at += dice.uniform(*PAUSE)
        await asyncio.gather(*calls)
    seen.over = monotonic() - begun
    return seen


def line(name: str, seen: list[Answers]) -> list[str]:
    waits = [one.waits for one in seen]
    return [
        name,
        *(f"{median(scheduler.quantile(one, part) for one in waits):.1f} s" for part in (0.5, 0.95)),
        f"{median(map(max, waits)):.1f} s",
        f"{median(one.burst for one in seen):.0f} s",
        f"{median(one.tokens / one.over for one in seen):.1f}",
        f"{sum(one.failed for one in seen)}",
    ]


def part(rounds: int) -> Part:
    """Return some ten minutes for each round."""
    seen: dict[str, list[Answers]] = {model: [] for model in MODELS}
    with tempfile.TemporaryDirectory(prefix="madoguchi-bench-") as directory, installation(Path(directory)) as site:
        for number in range(rounds):
            for model in MODELS if number % 2 else reversed(MODELS):
                seen[model].append(asyncio.run(put(site, model, number)))
    columns = ["", "others' first token p50", "p95", "most", "burst ends after", "tokens/s", "failed"]
    p95 = {model: median(scheduler.quantile(one.waits, 0.95) for one in seen[model]) for model in MODELS}
    before, fair = p95.values()
    speeds = [fast.tokens / fast.over / (slow.tokens / slow.over) for slow, fast in zip(*seen.values(), strict=True)]
    goals = (
        Goal(
            text="the same for a real llama.cpp of four slots: p95 of the others' first token",
            wanted="≤ 5 s",
            reached=f"{fair:.1f} s ({before:.0f} s first come, first served)",
            met=fair <= 5,
        ),
        Goal(
            text="… and tokens a second, of those first come, first served",
            wanted="≥ 98%",
            reached=f"{median(speeds):.1%}",
            met=median(speeds) >= 0.98,
        ),
    )
    return Part(
        name="real-queue", markdown=table(columns, [line(MODELS[model], seen[model]) for model in MODELS]), goals=goals
    )
