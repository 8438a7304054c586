"""How much memory an engine will take, and how much one takes. Bytes, everywhere. Pure but for `held`.

What a model takes on each of its devices = weights + cache + overhead:

- weights: what the files hold, split evenly over the devices of a tensor-parallel model;
- cache: keys and values of all tokens that may be remembered at a time. Engines take it whole at their start;
- overhead: what the engine itself needs: its libraries, processes, the driver's context, graphs, and the space for one
  batch. Constants of each launcher, measured (`OVERHEADS`), and corrected by what was measured on this host.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from modelregistry import engines
from modelregistry.engines import Spec
from modelregistry.facts import Attention, Facts
from modelregistry.shim import Identity

MIB = 2**20
GIB = 2**30
# Of a quantised cache's element, as ggml's blocks of 32 hold it (f16 scales beside the values).
LLAMA_CPP_TYPES: Mapping[str, float] = {
    **{"f32": 4, "f16": 2, "bf16": 2, "q8_0": 34 / 32, "q5_1": 24 / 32, "q5_0": 22 / 32},
    **{"q4_1": 20 / 32, "q4_0": 18 / 32, "iq4_nl": 18 / 32},
}
# vLLM without a word on slots works on up to 256 requests at a time, most of them short: room for so many whole
# contexts is wanted, for one is needed (it starts with less only to refuse long requests).
VLLM_WHOLE_CONTEXTS = 8
VLLM_SEQUENCES = 256
CELLS = 256  # llama.cpp's caches are made of so many tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What is to be started. `context` in tokens per request, None: the model's own; `slots` None: the engine's own."""

    launcher: str
    task: str
    kind: str = "gpu"  # of the devices: "gpu" or "ram"
    context: int | None = None
    slots: int | None = None
    tensor_parallel: int = 1
    args: tuple[str, ...] = ()

    @classmethod
    def of(cls, spec: Spec, launcher: str, kind: str) -> "Demand":
        return cls(
            launcher=launcher,
            task=spec.task,
            kind=kind,
            context=spec.context,
            slots=engines.slots(spec, launcher),
            tensor_parallel=spec.tensor_parallel,
            args=spec.args,
        )

    def argument(self, *names: str) -> str | None:
        """The last value that the operator gave for it, as `--name value` or `--name=value`."""
        found = None
        for place, arg in enumerate(self.args):
            name, equals, value = arg.partition("=")
            if name in names:
                found = value if equals else next(iter(self.args[place + 1 :]), "")
        return found

    def number(self, *names: str) -> int | None:
        text = self.argument(*names)
        return int(text) if text and text.lstrip("-").isdigit() else None

    def says(self, *names: str) -> bool:
        return self.argument(*names) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Bytes on each of `devices` devices; `total` is their sum there, `rule_of_thumb` 1.5 × the weights there.

    `cache_least`: with less the engine would not do (vLLM may be given less than it wants). `tokens`: how many the
    cache remembers in all. `basis`: "formula"; "corrected" by what others with this engine took; "measured": this very
    model took so much before.
    """

    weights: int
    cache: int
    cache_least: int
    overhead: int
    total: int
    rule_of_thumb: int
    devices: int
    context: int
    sequences: int
    basis: str = "formula"


def predict(facts: Facts, demand: Demand) -> Prediction:
    """From the formulas alone."""
    context, sequences = _asked(facts, demand)
    cache = cache_bytes(facts, demand, context, sequences)
    least = cache if demand.launcher != "vllm" or demand.slots else cache_bytes(facts, demand, context, 1)
    weights = math.ceil(facts.weight_bytes / demand.tensor_parallel)
    return made(
        weights=weights,
        cache=cache,
        cache_least=least,
        overhead=_overhead(facts, demand, context, sequences),
        devices=demand.tensor_parallel,
        context=context,
        sequences=sequences,
    )


def made(
    *,
    weights: int,
    cache: int,
    cache_least: int,
    overhead: int,
    devices: int,
    context: int,
    sequences: int,
    basis: str = "formula",
) -> Prediction:
    """With the sums that follow from the parts."""
    return Prediction(
        weights=weights,
        cache=cache,
        cache_least=cache_least,
        overhead=overhead,
        total=weights + cache + overhead,
        rule_of_thumb=weights * 3 // 2,
        devices=devices,
        context=context,
        sequences=sequences,
        basis=basis,
    )


def _asked(facts: Facts, demand: Demand) -> tuple[int, int]:
    """Tokens per request, and how many requests of that length are to be remembered."""
    if demand.launcher == "vllm":
        context = demand.number("--max-model-len") or demand.context or facts.context or 4096
        return context, demand.number("--max-num-seqs") or demand.slots or VLLM_WHOLE_CONTEXTS
    slots = demand.number("--parallel", "-np", "--n-parallel") or demand.slots or engines.DEFAULT_SLOTS
    total = demand.number("--ctx-size", "-c", "--n_ctx")
    if total is None:
        total = (demand.context or 0) * slots
    if _unified(demand):
        return total or facts.context or 4096, 1
    return math.ceil(total / slots) or facts.context or 4096, slots


def _unified(demand: Demand) -> bool:
    """One pool for all slots of llama.cpp: so we start it when nobody says how long a request may be."""
    return demand.context is None or demand.says("--kv-unified", "-kvu") or demand.slots == 1


# --- The cache ------------------------------------------------------------------------------------------------------


def cache_bytes(facts: Facts, demand: Demand, context: int, sequences: int) -> int:
    """On each device, for so many requests of so many tokens."""
    return math.ceil(sum(_layer(facts, layer, demand, context, sequences) for layer in facts.attention))


def _layer(facts: Facts, layer: Attention, demand: Demand, context: int, sequences: int) -> float:
    tokens = sequences * _remembered(layer, demand, context)
    # At least one head is on each device; MLA's latent vector counts as one and is on all of them.
    heads = math.ceil(layer.kv_heads / demand.tensor_parallel)
    key, value = _element_bytes(demand)
    return tokens * heads * (layer.key_dim * key + layer.value_dim * value)


def _remembered(layer: Attention, demand: Demand, context: int) -> int:
    """Tokens of one request, in this layer: no more than its window and what is computed at a time."""
    if demand.launcher == "vllm":
        # The hybrid cache manager frees blocks behind the window.
        return context if layer.window is None else min(context, layer.window + _batch(demand))
    whole = _cells(context)
    if layer.window is None or demand.says("--swa-full") or demand.launcher == "llama-cpp-python":
        return whole
    sequences = demand.slots or engines.DEFAULT_SLOTS
    windows = layer.window * (sequences if _unified(demand) else 1)
    return _cells(min(whole, windows + _batch(demand)))


def _cells(tokens: int) -> int:
    return math.ceil(tokens / CELLS) * CELLS


def _element_bytes(demand: Demand) -> tuple[float, float]:
    """Of keys and of values."""
    if demand.launcher == "vllm":
        kind = demand.argument("--kv-cache-dtype") or "auto"
        if kind == "auto":
            size = 4.0 if demand.argument("--dtype") in ("float32", "float") else 2.0
        else:
            size = 1.0 if kind.startswith(("fp8", "int8")) else 2.0
        return size, size
    key = demand.argument("--cache-type-k", "-ctk") or "f16"
    value = demand.argument("--cache-type-v", "-ctv") or "f16"
    return LLAMA_CPP_TYPES.get(key, 2.0), LLAMA_CPP_TYPES.get(value, 2.0)


def _batch(demand: Demand) -> int:
    """Tokens that are computed at a time."""
    if demand.launcher == "vllm":
        return demand.number("--max-num-batched-tokens") or 2048
    given = demand.number("--ubatch-size", "-ub", "--n_ubatch")
    if given is None and demand.task != "chat":
        given = max(demand.context or 8192, 512)  # as engines.py starts it
    return given or 512


# --- The overhead ---------------------------------------------------------------------------------------------------


def _overhead(facts: Facts, demand: Demand, context: int, sequences: int) -> int:
    if demand.launcher == "vllm":
        return _vllm_overhead(facts, demand)
    return _llama_cpp_overhead(facts, demand, context, sequences)


def _vllm_overhead(facts: Facts, demand: Demand) -> int:
    hidden, vocabulary = facts.hidden or 4096, facts.vocabulary or 128_000
    batch = _batch(demand) * hidden * 2 * 12
    logits = (demand.slots or VLLM_SEQUENCES) * vocabulary * 4 * 2
    if demand.kind == "ram":
        return 2200 * MIB
    graphs = 0 if demand.says("--enforce-eager") else 300 * MIB
    links = 400 * MIB if demand.tensor_parallel > 1 else 0
    return 600 * MIB + graphs + links + batch + (logits if demand.task == "chat" else 0)


def _llama_cpp_overhead(facts: Facts, demand: Demand, context: int, sequences: int) -> int:
    hidden = facts.hidden or 4096
    batch = min(_batch(demand), _cells(context))
    compute = batch * hidden * 4 * 12
    return compute + (60 * MIB if demand.kind == "ram" else 500 * MIB)


# --- What is taken --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """RAM of some processes. `taken`: with the buffers that they have allocated and not filled yet, and the pages of
    files that they have mapped, which several of them share, once. `fixed`: of this, what the kernel can neither drop
    nor read again (`MemAvailable` is without it).
    """

    taken: int
    fixed: int


# Smaller allocations are counted as far as they are filled: stacks, arenas of malloc.
BUFFER = 32 * MIB


def held(processes: Iterable[Identity]) -> Held:
    """What these processes take now. Those that are gone take nothing.

    Resident size alone would not do: vLLM's cache is allocated and fills as requests come, so at first 4 GB of it are
    0 GB. Blocks for some milliseconds per 10 GB: the kernel walks their page tables.
    """
    taken = fixed = 0
    files: dict[tuple[str, str, str], int] = {}
    for who in processes:
        for area in _areas(who.pid):
            own = area.size if area.buffer else area.anonymous
            taken += own
            fixed += area.anonymous
            if area.file:
                # Of a file that several have mapped each sees other pages; the most that one sees is near the union.
                files[area.file] = max(files.get(area.file, 0), area.resident - area.anonymous)
                fixed += area.shared_memory
    return Held(taken=taken + sum(files.values()), fixed=fixed)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Area:
    """One of a process's mappings. `file`: what tells it from others, None: of no file."""

    size: int
    resident: int
    anonymous: int
    shared_memory: int  # of `resident`, what has no disk behind it
    buffer: bool
    file: tuple[str, str, str] | None


_HEAD = re.compile(r"[0-9a-f]+-[0-9a-f]+ (\S{4}) ([0-9a-f]+) (\S+) (\d+) *(.*)")


def _areas(pid: int) -> Iterator[_Area]:
    try:
        lines = Path(f"/proc/{pid}/smaps").read_text(errors="replace").splitlines()
    except OSError:
        return
    head: re.Match[str] | None = None
    values: dict[str, str] = {}
    for line in [*lines, "0-0 ---- 0 0 0"]:
        if (next_head := _HEAD.match(line)) is None:
            name, _, value = line.partition(":")
            values[name] = value
            continue
        if head:
            yield _area(head, values)
        head, values = next_head, {}


def _area(head: re.Match[str], values: Mapping[str, str]) -> _Area:
    def size(name: str) -> int:
        return int(values.get(name, "0").split()[0]) * 1024

    permissions, offset, device, inode, path = head.groups()
    # "ac": the kernel has promised memory for all of it; address space that is only set aside has no such mark.
    promised = "ac" in values.get("VmFlags", "").split() and "w" in permissions
    in_memory = path.startswith(("/dev/shm/", "/memfd:", "/dev/zero", "/SYSV"))  # noqa: S108 -- only compared
    return _Area(
        size=size("Size"),
        resident=size("Rss"),
        anonymous=size("Anonymous"),
        shared_memory=size("Rss") - size("Anonymous") if in_memory else 0,
        buffer=inode == "0" and promised and size("Size") >= BUFFER,
        file=(device, inode, offset) if inode != "0" else None,
    )
