"""What llama-server takes of a card, beside the formulas: shapes of known models, contexts, slots and arguments.

The files are hollow (`random_gguf.write_hollow`): their weights are zeros, which take a card's memory as others do.
"""

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from modelregistry.engines.base import Spec
from modelregistry.memory.estimate import MIB
from tests import random_gguf
from tests.bench import footprint
from tests.bench.footprint import Combination, Taken
from tests.gpu.shapes import GEMMA3_4B, LLAMA_3B, LLAMA_8B, QWEN2_7B, QWEN2_EMBEDDING, QWEN3_MOE
from tests.random_gguf import Shape

# As its log has them: "load_tensors:        CUDA0 model buffer size =  4403.49 MiB"
BUFFER = re.compile(r"(CUDA\d+|CUDA_Host|CPU\w*) +(model|KV|compute|output|RS) +buffer size = +([\d.]+) MiB")


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    model: str
    shape: Shape
    context: int | None
    slots: int | None
    args: tuple[str, ...] = ()
    task: str = "chat"
    prompt: int = 8000  # tokens, as far as the context holds them


STARTS = (
    Start(model="Llama 3 8B Q4_K", shape=LLAMA_8B, context=4096, slots=1),
    Start(model="Llama 3 8B Q4_K", shape=LLAMA_8B, context=32_768, slots=1),
    Start(model="Llama 3 8B Q4_K", shape=LLAMA_8B, context=8192, slots=4),
    Start(model="Llama 3 8B Q4_K", shape=LLAMA_8B, context=32_768, slots=4),
    Start(
        model="Llama 3 8B Q4_K",
        shape=LLAMA_8B,
        context=32_768,
        slots=1,
        args=("--cache-type-k=q8_0", "--cache-type-v=q8_0"),
    ),
    Start(model="Llama 3 8B Q4_K", shape=LLAMA_8B, context=8192, slots=1, args=("--n-gpu-layers=16",)),
    # A short prompt, as the processor computes its attention.
    Start(model="Llama 3 8B Q4_K", shape=LLAMA_8B, context=8192, slots=1, args=("--no-kv-offload",), prompt=600),
    Start(model="Llama 3 8B Q4_K", shape=LLAMA_8B, context=8192, slots=1, args=("--ubatch-size=2048",)),
    Start(model="Llama 3 8B Q4_K", shape=LLAMA_8B, context=8192, slots=1, args=("--flash-attn=off",)),
    Start(model="Llama 3 8B Q4_K", shape=LLAMA_8B, context=None, slots=None),
    Start(model="Llama 3 8B Q8_0", shape=replace(LLAMA_8B, quantisation="Q8_0"), context=4096, slots=4),
    Start(model="Llama 3.2 3B F16", shape=LLAMA_3B, context=8192, slots=4),
    Start(model="Qwen2.5 7B Q4_K", shape=QWEN2_7B, context=32_768, slots=2),
    Start(model="Gemma 3 4B Q8_0", shape=GEMMA3_4B, context=4096, slots=1),
    Start(model="Gemma 3 4B Q8_0", shape=GEMMA3_4B, context=32_768, slots=2),
    Start(model="Qwen3 MoE Q4_K", shape=QWEN3_MOE, context=8192, slots=2),
    Start(model="Qwen3 MoE Q4_K", shape=QWEN3_MOE, context=8192, slots=2, args=("--n-cpu-moe=6",)),
    Start(model="Qwen2 1.5B embedding Q8_0", shape=QWEN2_EMBEDDING, context=512, slots=4, task="embedding"),
    Start(model="Qwen2 1.5B embedding Q8_0", shape=QWEN2_EMBEDDING, context=8192, slots=1, task="embedding"),
)


def measure(start: Start, launcher: str, commands: Mapping[str, str], workspace: Path) -> Taken:
    """Start it, ask it and stop it: 5 s on one H200. Takes no more disk than the file's head."""
    path = workspace / f"{start.model.replace(' ', '-')}.gguf"
    if not path.exists():
        random_gguf.write_hollow(path, start.shape)
    spec = Spec(
        engine="llama.cpp",
        launcher=launcher,
        name="m",
        path=str(path),
        task=start.task,
        context=start.context,
        slots=start.slots,
        args=start.args,
    )
    combination = Combination(model=start.model, spec=spec)
    return asyncio.run(footprint.measure(combination, workspace, prompt=start.prompt, commands=commands))


def buffers(log: str) -> dict[str, float]:
    """Return MiB of its buffers as its log has them, by place and kind, those of a place and kind summed."""
    found: dict[str, float] = {}
    for place, kind, size in BUFFER.findall(log):
        found[f"{place} {kind}"] = found.get(f"{place} {kind}", 0.0) + float(size)
    return found


def line(taken: Taken) -> str:
    """Return a row of the table in tests/bench/RESULTS.md, in MiB."""
    spec, predicted = taken.combination.spec, taken.allocation.prediction
    sizes = (predicted.weights, predicted.cache, predicted.overhead, predicted.total, taken.first, taken.worked)
    cells = [
        taken.combination.model,
        f"{spec.context or 'own'} × {spec.slots or 'own'}",
        " ".join(spec.args) or "–",
        *(f"{size / MIB:,.0f}" for size in sizes),
        f"{taken.error:+.1%}",
    ]
    return f"| {' | '.join(cells)} |"
