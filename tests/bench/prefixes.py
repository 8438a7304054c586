"""Four replicas that keep what they have read: how much of all prompts is read again, and how long people wait for it.

The engines are made up (`caching_engine`), everything else is real: clients hold conversations over HTTP, each begins
with one of a few system prompts. The same conversations go through the gateway as it is, through the gateway with a
model whose engines are said to keep nothing (then it takes the replica with the fewest calls), and through the
prefix-aware policies of two Rust routers.
"""

import asyncio
import itertools
import json
import os
import random
import subprocess
import sys
import timeit
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import monotonic, process_time
from urllib.request import Request, urlopen

from apiproxy.dataplane.catalogue import Replica
from apiproxy.dataplane.formats import requests
from apiproxy.dataplane.formats.requests import ENDPOINTS
from apiproxy.dataplane.prefix_routing import PrefixMemory, read_prefix
from tests.bench import processes, tools
from tests.bench.contenders import free_port
from tests.bench.processes import ROOT
from tests.bench.report import Goal, Part, table
from tests.bench.scheduler import quantile
from tests.installation import Installation, installed
from tests.waiting import until

REPLICAS = 4
SYSTEMS, TURNS = 12, (1, 8)
SYSTEM, QUESTION, ANSWER = (3200, 12_000), (120, 1600), (16, 160)  # bytes, bytes, tokens
THINKS = 2.0  # seconds on average between an answer and the next question
LOADS = {"low": 0.6, "middle": 1.2, "high": 2.0}  # conversations that begin in a second
LASTS = 40.0  # seconds in which they begin
ENDS = 120.0  # seconds after which the last is given up
WORDS = ("the", "of", "and", "to", "in", "is", "that", "for", "it", "as", "was", "with", "be", "by", "on", "not", "he")
PREPARE = """
from modelregistry.models import Host, Replica, ServedModel
from portal.accounts.models import Tenant
from portal.keys.lifecycle import issue_key
from portal.keys.models import ModelAccess
tenant = Tenant.objects.create(slug="bench", name="Bench")
for name, tenants in ("keeps", [tenant]), ("forgets", []):
    model = ServedModel.objects.create(name=name, engine="llama.cpp", path="/m.gguf")
    ModelAccess.objects.bulk_create(ModelAccess(model=model, tenant=one) for one in tenants)
    for number, port in enumerate({ports}):
        host, _ = Host.objects.get_or_create(name=f"gpu{{number}}")
        Replica.objects.create(model=model, host=host, state="ready", url=f"http://127.0.0.1:{{port}}", slots=64)
print(issue_key(tenant=tenant, service="bench", name="bench")[1])
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """Where calls are sent."""

    port: int
    key: str = "none"
    model: str = "m"


@dataclass(slots=True)
class Seen:
    waits: list[float] = field(default_factory=list)  # seconds to the first token
    failed: int = 0
    asked: int = 0  # tokens of prompts
    read: int = 0  # of these, that engines had to read


@contextmanager
def engines() -> Iterator[list[int]]:
    """Provide the ports of engines."""
    command = [sys.executable, "-m", "tests.bench.caching_engine", str(REPLICAS)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        yield [int(port) for port in process.stdout.readline().split()]
    finally:
        process.kill()
        process.wait()


def seen_by(ports: Sequence[int]) -> list[dict[str, int]]:
    return [json.loads(urlopen(f"http://127.0.0.1:{port}/seen", timeout=10).read()) for port in ports]


def forget(ports: Sequence[int]) -> None:
    for port in ports:
        urlopen(Request(f"http://127.0.0.1:{port}/forget", data=b"{}"), timeout=10).read()


@contextmanager
def gateway(directory: Path, ports: Sequence[int]) -> Iterator[dict[str, Way]]:
    with installed(directory / "var") as place:
        key = place.manage("shell", "--verbosity", "0", "--command", PREPARE.format(ports=list(ports)))
        place.serve()
        until(place.answers)
        until(lambda: ready(place))
        yield {
            "Madoguchi": Way(port=place.port, key=key, model="keeps"),
            "fewest calls": Way(port=place.port, key=key, model="forgets"),
        }
        place.process.terminate()
        place.process.wait(30)


def ready(place: Installation) -> bool:
    with urlopen(f"{place.url}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    found = [line for line in lines if line.startswith("madoguchi_replicas_ready{")]
    return len(found) == 2 and all(line.endswith(f" {REPLICAS}") for line in found)


@contextmanager
def router(name: str, directory: Path, ports: Sequence[int]) -> Iterator[Way]:
    port = free_port()
    urls = [f"http://127.0.0.1:{one}" for one in ports]
    options = ["--host", "127.0.0.1", "--port", str(port), "--policy", "cache_aware", "--log-level", "error"]
    options += ["--prometheus-port", str(free_port())]
    with processes.running(
        (str(tools.python()), "-m", f"{name}.launch_router", "--worker-urls", *urls, *options),
        cores="0-1",
        answers=partial(processes.http, f"http://127.0.0.1:{port}/health"),
        log=directory / f"{name}.log",
        env={},
    ):
        yield Way(port=port)


class Talk:
    """One conversation, the same each time."""

    def __init__(self, number: int, systems: Sequence[str]) -> None:
        """Draw it by chance; of the system prompts the first ones are used most."""
        self._dice = random.Random(number)
        weights = [1 / place for place in range(1, len(systems) + 1)]
        self._messages = [{"role": "system", "content": self._dice.choices(systems, weights)[0]}]
        self._turns = self._dice.randint(*TURNS)

    async def hold(self, way: Way, seen: Seen) -> None:
        for turn in range(self._turns):
            if turn:
                await asyncio.sleep(self._dice.expovariate(1 / THINKS))
            self._messages.append({"role": "user", "content": text(self._dice, self._dice.randint(*QUESTION))})
            answer = self._dice.randint(*ANSWER)
            wait = await ask(way, self._messages, answer)
            if wait is None:
                seen.failed += 1
                return
            seen.waits.append(wait)
            self._messages.append({"role": "assistant", "content": text(self._dice, answer * 4)})


def text(dice: random.Random, size: int) -> str:
    return " ".join(dice.choices(WORDS, k=size // 3))[:size]


async def ask(way: Way, messages: list[dict[str, str]], answer: int) -> float | None:
    """Return the seconds to the first token, once the answer has ended; None: it failed."""
    body = json.dumps({"messages": messages, "model": way.model, "max_tokens": answer, "stream": True}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {way.key}\r\n"
    head += f"content-type: application/json\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    begun, first, kept = monotonic(), None, b""
    try:
        async with asyncio.timeout(ENDS):
            reader, writer = await asyncio.open_connection("127.0.0.1", way.port)
            try:
                writer.write(head.encode() + body)
                while piece := await reader.read(65536):
                    kept = kept[-20:] + piece
                    if first is None and b'"content"' in kept:
                        first = monotonic() - begun
                    if b"data: [DONE]" in kept:
                        return first
            finally:
                writer.close()
    except (OSError, TimeoutError):
        pass
    return None


async def talk(way: Way, rate: float, seconds: float) -> Seen:
    dice = random.Random(rate)
    systems = [text(random.Random(-number - 1), dice.randint(*SYSTEM)) for number in range(SYSTEMS)]
    seen, talks, begun, at = Seen(), [], monotonic(), 0.0
    for number in itertools.count():
        at += dice.expovariate(rate)
        if at > seconds:
            break
        await asyncio.sleep(max(0.0, begun + at - monotonic()))
        talks.append(asyncio.create_task(Talk(number, systems).hold(way, seen)))
    await asyncio.gather(*talks)
    return seen


def put(way: Way, rate: float, ports: Sequence[int], seconds: float) -> Seen:
    forget(ports)
    seen = asyncio.run(talk(way, rate, seconds))
    for one in seen_by(ports):
        seen.asked += one["asked"]
        seen.read += one["read"]
    return seen


def measure(rounds: int, seconds: float) -> dict[tuple[str, str], list[Seen]]:
    """Return what was seen by load and contender."""
    found: dict[tuple[str, str], list[Seen]] = {}
    with engines() as ports, TemporaryDirectory(prefix="madoguchi-bench-") as directory:
        place = Path(directory)
        with (
            gateway(place, ports) as ours,
            router("vllm_router", place, ports) as vllm,
            router("sglang_router", place, ports) as sglang,
        ):
            ways = {**ours, "vllm-router": vllm, "sglang-router": sglang}
            for _, (load, rate), (name, way) in itertools.product(range(rounds), LOADS.items(), ways.items()):
                seen = put(way, rate, ports, seconds)
                print(load, name, line(name, [seen]), file=sys.stderr, flush=True)
                found.setdefault((load, name), []).append(seen)
    return found


def placing() -> float:
    """Return the seconds of CPU that it costs to place a request of 15 KB."""
    body = json.dumps({"messages": [{"role": "user", "content": "x" * 15_000}], "model": "m"}).encode()
    call, endpoint = requests.parse(body), ENDPOINTS["/v1/chat/completions"]
    replicas = [Replica(id=id, url="", api_key="", upstream_model="m") for id in range(1, REPLICAS + 1)]
    memory = PrefixMemory()

    def place() -> None:
        memory.place(read_prefix(call, endpoint, 1), replicas, lambda _: 1)

    return min(timeit.repeat(place, number=2000, repeat=7, timer=process_time)) / 2000


def line(name: str, seen: list[Seen]) -> list[str]:
    return [
        name,
        f"{median(len(one.waits) for one in seen):.0f}",
        f"{sum(one.failed for one in seen)}",
        f"{median(share(one) for one in seen):.1%}",
        *(f"{median(quantile(one.waits, part) for one in seen) * 1000:.0f} ms" for part in (0.5, 0.95, 0.99)),
    ]


def share(seen: Seen) -> float:
    return seen.read / seen.asked if seen.asked else 1.0


def part(rounds: int) -> Part:
    """Return some twelve minutes for each round."""
    found = measure(rounds, float(os.environ.get("PREFIXES_SECONDS", LASTS)))
    lines, fewer, later = [], [], []
    for load in LOADS:
        for (one, name), seen in found.items():
            if one == load:
                lines.append([load, *line(name, seen)])
        mine, fewest = found[load, "Madoguchi"], found[load, "fewest calls"]
        fewer.append(1 - median(map(share, mine)) / median(map(share, fewest)))
        times = [median(quantile(one.waits, 0.95) for one in seen) for seen in (mine, fewest)]
        later.append(times[0] / times[1])
    seconds = placing()
    goals = (
        Goal(
            text="several replicas: CPU for a request of 15 KB",
            wanted="≤ 8 µs",
            reached=f"{seconds * 1e6:.1f} µs",
            met=seconds <= 8e-6,
        ),
        Goal(
            text="several replicas: tokens of prompts read again, fewer than by fewest calls (least of the loads)",
            wanted="≥ 30 %",
            reached=f"{min(fewer):.0%}",
            met=min(fewer) >= 0.3,
        ),
        Goal(
            text="several replicas: p95 to the first token beside fewest calls (most of the loads)",
            wanted="≤ 100 %",
            reached=f"{max(later):.0%}",
            met=max(later) <= 1,
        ),
    )
    columns = ["load", "", "answers", "failed", "read", "first token p50", "p95", "p99"]
    return Part(name="prefixes", markdown=table(columns, lines), goals=goals)
