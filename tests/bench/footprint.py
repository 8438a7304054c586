"""What engines take of the memory: as predicted before their start, and as measured when they have worked.

The predictions are those that the supervisor makes, without anything learned (`past` is empty). The formulas' constants
were taken from other models than those here, but for SmolLM2 and MiniLM, of which there are no others: those were
looked at in other contexts and slots.
"""

import asyncio
import os
import random
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import django
import httpx2
from django.conf import settings

from modelregistry.engines.base import Spec
from modelregistry.engines.programs import find_engines
from modelregistry.hostside import launching
from modelregistry.hostside.launching import HostConfig
from modelregistry.hostside.replicas import ReplicaKey
from modelregistry.hostside.run_metadata import RunMetadata, metadata_of
from modelregistry.hostside.surface import LaunchOrder
from modelregistry.memory import estimate
from modelregistry.memory.allocation import Allocation, MemoryUse, measure_use
from modelregistry.process import gpus, probe, process
from tests import engines, random_checkpoint, random_gguf
from tests.bench import report
from tests.bench.report import Goal, Part
from tests.random_gguf import Shape

MEDIAN, WORST = 0.05, 0.20
READY_WITHIN = 600  # seconds; vLLM compiles for its first answer
MB = 1e6
# As few threads as the machine has cores to spare; bound ones would fight for the same.
CPU = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "2"}

GEMMA2 = Shape(
    architecture="gemma2",
    quantisation="F16",
    layers=16,
    hidden=896,
    feed_forward=3584,
    heads=8,
    kv_heads=4,
    head_dim=96,
    vocabulary=40_000,
    context=8192,
    window=2048,
)
GEMMA3 = Shape(
    architecture="gemma3",
    quantisation="Q8_0",
    layers=18,
    hidden=1024,
    feed_forward=4096,
    heads=4,
    kv_heads=2,
    head_dim=256,
    vocabulary=96_000,
    context=32_768,
    window=1024,
)
QWEN2 = Shape(
    architecture="qwen2",
    quantisation="Q8_0",
    layers=24,
    hidden=896,
    feed_forward=4864,
    heads=14,
    kv_heads=2,
    head_dim=64,
    vocabulary=60_000,
    context=32_768,
)
LLAMA = Shape(
    architecture="llama",
    quantisation="Q4_0",
    layers=20,
    hidden=1280,
    feed_forward=3456,
    heads=20,
    kv_heads=20,
    head_dim=64,
    vocabulary=32_000,
    context=8192,
    tied=False,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Combination:
    model: str
    spec: Spec


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """Bytes, on cards or in RAM: after the first answer, and after a prompt that fills a batch.

    `ram`: of RAM, also beside a card, what the kernel cannot take back. `run`: its directory, with its log.
    """

    combination: Combination
    allocation: Allocation
    first: int
    worked: int
    ram: int
    run: Path

    @property
    def error(self) -> float:
        return self.allocation.prediction.total / self.worked - 1

    def line(self) -> list[str]:
        spec, predicted = self.combination.spec, self.allocation.prediction
        asked = f"{spec.context or 'own'} × {spec.slots or 'own'}"
        sizes = (predicted.weights, predicted.cache, predicted.overhead, predicted.total, predicted.rule_of_thumb)
        return [
            self.combination.model,
            f"{spec.launcher or spec.engine}, {spec.task}",
            asked,
            " ".join(spec.args) or "–",
            *(f"{size / MB:,.0f}" for size in (*sizes, self.first, self.worked)),
            f"{self.error:+.1%}",
        ]


def combinations(workspace: Path) -> Iterator[Combination]:
    """Return those that a machine without a GPU can run, and write their models.

    13 with llama.cpp, 6 with vLLM, and 5 with llama.cpp's other two launchers where they are there
    (`make test-engines` compiles them).
    """

    def gguf(
        name: str,
        path: Path,
        context: int | None,
        slots: int | None,
        *args: str,
        task: str = "chat",
        launcher: str = "xllamacpp",
    ) -> Combination:
        spec = Spec(engine="llama.cpp", launcher=launcher, name="m", path=str(path), task=task, context=context)
        return Combination(model=name, spec=_with(spec, slots, args))

    def vllm(
        name: str, path: Path, context: int | None, slots: int | None, *args: str, task: str = "chat"
    ) -> Combination:
        spec = Spec(engine="vllm", name="m", path=str(path), task=task, context=context)
        return Combination(model=name, spec=_with(spec, slots, args))

    smol = engines.chat_model()
    yield gguf("SmolLM2 135M Q4_1", smol, 1024, 2)
    yield gguf("SmolLM2 135M Q4_1", smol, 4096, 2)
    yield gguf("SmolLM2 135M Q4_1", smol, 8192, 4)
    yield gguf("SmolLM2 135M Q4_1", smol, 4096, 4, "--cache-type-k=q8_0", "--cache-type-v=q8_0")
    yield gguf("SmolLM2 135M Q4_1", smol, None, None)
    yield gguf("MiniLM F16", engines.embedding_model(), 256, 2, task="embedding")
    yield gguf("MiniLM F16", engines.embedding_model(), 512, 4, task="embedding")
    shapes = {"gemma2": GEMMA2, "gemma3": GEMMA3, "qwen2": QWEN2, "llama": LLAMA}
    files = {name: random_gguf.write(workspace / f"{name}.gguf", shape) for name, shape in shapes.items()}
    yield gguf("Gemma-2-shaped F16", files["gemma2"], 8192, 2)
    yield gguf("Gemma-2-shaped F16", files["gemma2"], 2048, 4)
    yield gguf("Gemma-3-shaped Q8_0", files["gemma3"], 16384, 2)
    yield gguf("Qwen2-shaped Q8_0", files["qwen2"], 8192, 4)
    yield gguf("Qwen2-shaped Q8_0", files["qwen2"], 16384, 1, "--cache-type-k=q4_0", "--cache-type-v=q4_0")
    yield gguf("Llama-shaped Q4_0", files["llama"], 2048, 2)
    there = find_engines({}, settings.CACHE, os.environ.get("PATH", os.defpath))
    if "llama-server" in there:
        yield gguf("SmolLM2 135M Q4_1", smol, 4096, 2, launcher="llama-server")
        yield gguf("Gemma-3-shaped Q8_0", files["gemma3"], 16384, 2, launcher="llama-server")
        yield gguf("MiniLM F16", engines.embedding_model(), 512, 2, task="embedding", launcher="llama-server")
    if "llama-cpp-python" in there:
        yield gguf("SmolLM2 135M Q4_1", smol, 4096, 1, launcher="llama-cpp-python")
        yield gguf("Qwen2-shaped Q8_0", files["qwen2"], 8192, 1, launcher="llama-cpp-python")
    tiny = engines.tiny_llama()
    size = {"layers": 12, "hidden": 1280, "feed_forward": 5120, "heads": 20, "kv_heads": 10}
    large = random_checkpoint.write(workspace / "llama", tiny, **size)
    yield vllm("tiny Llama BF16", tiny, 4096, 2, "--enforce-eager")
    yield vllm("tiny Llama BF16", tiny, 4096, 32)
    yield vllm("tiny Llama BF16", tiny, 1000, None, "--enforce-eager")
    yield vllm("Llama-shaped 300M BF16", large, 4096, None, "--enforce-eager")
    yield vllm("Llama-shaped 300M BF16", large, 8192, 8, "--enforce-eager", "--dtype=float32")
    yield vllm("MiniLM F32", engines.sentence_model(), None, None, "--enforce-eager", task="embedding")


def _with(spec: Spec, slots: int | None, args: tuple[str, ...]) -> Spec:
    return Spec(**{**{name: getattr(spec, name) for name in Spec.__dataclass_fields__}, "slots": slots, "args": args})


def part(rounds: int) -> Part:
    """Return one start of each: what an engine takes differs by a percent from start to start. 15 minutes."""
    os.environ |= CPU | {"DJANGO_SETTINGS_MODULE": "portal.settings"}
    django.setup()
    with tempfile.TemporaryDirectory(prefix="madoguchi-bench-") as directory:
        taken = []
        for combination in combinations(Path(directory)):
            taken.append(asyncio.run(measure(combination, Path(directory))))
            print(" | ".join(taken[-1].line()), file=sys.stderr, flush=True)
    errors = [abs(one.error) for one in taken]
    columns = ["model", "engine", "context × slots", "arguments", "weights", "cache", "engine’s own", "**predicted**"]
    columns += ["1.5 × weights", "first answer", "**measured**", "error"]
    return Part(
        name="memory",
        markdown=report.table(columns, [one.line() for one in taken]),
        goals=(
            Goal(
                text=f"memory predicted for {len(taken)} starts of engines: median error",
                wanted=f"≤ {MEDIAN:.0%}",
                reached=f"{median(errors):.1%}",
                met=median(errors) <= MEDIAN,
            ),
            Goal(
                text="the same: worst error",
                wanted=f"≤ {WORST:.0%}",
                reached=f"{max(errors):.1%}",
                met=max(errors) <= WORST,
            ),
        ),
    )


async def measure(
    combination: Combination, workspace: Path, *, prompt: int = 600, commands: Mapping[str, str] | None = None
) -> Taken:
    """Start it as the supervisor does, ask it, and measure it where its model is: in RAM or on a card.

    `prompt`: tokens, as far as the context holds them. `commands`: programs that are not in the cache, by launcher.
    """
    config = HostConfig(
        runs=workspace / "runs", cache=settings.CACHE, commands=commands or {}, ports=range(39_400, 39_500)
    )
    spec, runs = combination.spec, process.Runs(config.runs)
    engine = launching.choose_engine(config, spec)
    granted = launching.allocate(spec, engine, before=[], reserved={}, hosted=[], measurements=[], versions={})
    assert granted, "all of these can be read"
    before = _used(granted)
    port = launching.free_port("127.0.0.1", config.ports, [], random.Random())
    order = LaunchOrder(
        run_id=secrets.token_hex(8),
        key=ReplicaKey(1, 0),
        spec=spec,
        engine=engine,
        address="127.0.0.1",
        grace=3,
        granted=granted,
    )
    run = launching.launch(config, runs, order, port=port)
    label = metadata_of(run)
    try:
        await _answers(run, label)
        first = _use(run, granted, before)
        await _works(label, spec, prompt)
        worked = _use(run, granted, before)
    finally:
        process.stop(run, grace=order.grace)
    return Taken(
        combination=combination,
        allocation=granted,
        first=first.total,
        worked=worked.total,
        ram=worked.fixed,
        run=run.directory,
    )


def _use(run: process.Run, granted: Allocation, before: int) -> MemoryUse:
    """Return what it holds; where the driver does not report whose memory it is, what came since `before`."""
    if use := measure_use(run, granted.devices):
        return use
    in_ram = estimate.measure_held(process.process_tree(run)).fixed
    return MemoryUse(total=_used(granted) - before, by_device={}, fixed=in_ram)


def _used(granted: Allocation) -> int:
    """Return what all processes hold of its cards."""
    return sum(device.used for device in gpus.list_devices() if device.index in granted.devices)


def _target(label: RunMetadata) -> probe.Target:
    return probe.Target(
        launcher=label.launcher, url=label.url, api_key=label.api_key, model=label.name, task=label.task
    )


async def _answers(run: process.Run, label: RunMetadata) -> None:
    begun = time.monotonic()
    async with httpx2.AsyncClient(trust_env=False) as client:
        while process.life_of(run) is process.Life.RUNNING and time.monotonic() - begun < READY_WITHIN:
            try:
                return await probe.ask_question(client, _target(label))
            except probe.ProbeFailed:
                await asyncio.sleep(0.2)
    raise AssertionError(f"{label.name} did not answer:\n{process.log_tail(run.directory)}")


async def _works(label: RunMetadata, spec: Spec, prompt_length: int) -> None:
    """Send a prompt of that many tokens, if its context holds so many; one batch of llama.cpp's are 512."""
    length = min((spec.context or 256) - 32, prompt_length)
    prompt: list[int] | str = [65] * length
    if label.launcher == "llama-cpp-python":
        prompt = " a" * length  # it takes no tokens by number
    path = "/v1/completions"
    body: dict[str, Any] = {"prompt": prompt, "max_tokens": 16}
    if spec.task == "embedding":
        # As many at a time as it takes: together they fill a batch.
        path, body = "/v1/embeddings", {"input": [prompt] * (spec.slots or 1)}
    async with httpx2.AsyncClient(trust_env=False, timeout=300) as client:
        headers = {"authorization": f"Bearer {label.api_key}"}
        answer = await client.post(label.url + path, json=body | {"model": label.name}, headers=headers)
        answer.raise_for_status()
