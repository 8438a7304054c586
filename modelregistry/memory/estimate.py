"""How much memory an engine will take, and how much one takes. Bytes, everywhere. Pure but for `held`.

What a model takes on each of its devices = weights + cache + overhead:

- weights: what the files hold, split evenly over the devices of a tensor-parallel model;
- cache: keys and values of all tokens that may be remembered at a time. Engines take it whole at their start;
- overhead: what the engine itself needs: its libraries, processes, the driver's context, graphs, and the space for one
  batch. Constants of each launcher, measured (`OVERHEADS`), and corrected by what was measured on this host.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from statistics import median

from modelregistry.engines import arguments, base
from modelregistry.engines.arguments import Arguments
from modelregistry.engines.base import Spec
from modelregistry.files import bounds
from modelregistry.files.metadata import Attention, ModelMetadata
from modelregistry.memory import vllm_cache
from modelregistry.process.shim import Identity

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
# What vLLM computes at a time if nobody says: what it would choose itself on cards below 70 GiB. On larger ones it
# would take 8,192 tokens (16,384 from 160 GiB) and 1,024 requests (0.32, engine/arg_utils.py, get_batch_defaults), so
# both are always passed.
VLLM_SEQUENCES = 256
VLLM_BATCH = 2048
# Of a model of which nobody can say how much it keeps: more than any card has, and enough to begin with.
OPEN_CACHE = 1 << 50
LEAST_OPEN_CACHE = 2 * GIB
# No host has so much, so a plan does not tell larger sums apart: whatever is asked for, it fits into 63 bits.
MOST_BYTES = 1 << 56
CELLS = 256  # llama.cpp's caches are made of so many tokens

# Overheads, calibrated on other models than those of the table in tests/bench/RESULTS.md.
# The program and its libraries; of the two Pythons one brings FastAPI and NumPy.
LLAMA_CPP_PROCESS = {"llama-server": 14 * MIB, "xllamacpp": 34 * MIB, "llama-cpp-python": 84 * MIB}
LLAMA_CPP_TOKEN = 260  # bytes for each token of the vocabulary: 220 to 490
LLAMA_CPP_CONTEXT = 450 * MIB  # CUDA's context and its libraries on the card; not measured here
VLLM_CPU_PROCESSES = 1400 * MIB  # API server 450, engine 390, worker 480 MiB, libraries that they share once
VLLM_CPU_COMPILER = 60 * MIB
# On a card; vLLM's own words for an 8B model on a card of 24 GB: 0.25 GiB besides PyTorch's, 0.11 of compiled code,
# 0.25 of graphs, 0.22 at the height of a batch. CUDA's context comes on top of what it counts.
VLLM_CONTEXT = 650 * MIB
VLLM_GRAPHS = 350 * MIB
VLLM_LINKS = 400 * MIB  # NCCL's buffers between cards
# RAM of engines whose model is on GPUs, from what others published, not measured here: vLLM's API server and core, and
# a worker for each card with PyTorch's and CUDA's libraries and pinned buffers.
VLLM_HOST = GIB
VLLM_HOST_WORKER = 2 * GIB
LLAMA_CPP_HOST = 500 * MIB
UNBOUNDED_PROMPTS = 8192  # MiB; --cache-ram -1 has no bound, its default is this
# What vLLM makes of 16-bit weights while it loads them, embedding aside. "fp8" was the name of fp8_per_tensor before
# 0.32; mxfp8 has 8 bits of scale for 32 weights.
MADE_SMALLER = {
    **{"fp8": 0.5, "fp8_per_tensor": 0.5, "fp8_per_block": 0.5, "fp8_per_channel": 0.5, "mxfp8": 0.516},
    "bitsandbytes": 0.28,
}
REPACKED = ("Q4_0", "Q4_K", "Q2_K", "IQ4_NL")


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
            # What --max-num-seqs says is a limit of vLLM's, no promise that so many whole contexts fit.
            slots=spec.slots if launcher == "vllm" else base.parallel_slots(spec, launcher),
            tensor_parallel=spec.cards(launcher),
            args=spec.args,
        )

    @property
    def arguments(self) -> Arguments:
        """What the operator said, as this launcher reads it."""
        return arguments.read_arguments(self.launcher, self.args)

    def argument(self, *names: str) -> str | None:
        """Return the text of a value that the operator gave."""
        return self.arguments.text(*names)

    def number(self, *names: str) -> int | None:
        return self.arguments.number(*names)

    def says(self, *names: str) -> bool:
        """Return whether it was turned on, or given a value."""
        return self.arguments.flag(*names) is True


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Bytes on each of `devices` devices; `total` is their sum there, `rule_of_thumb` 1.5 × the weights there.

    `cache_least`: with less the engine would not do (vLLM may be given less than it wants). `context`, `sequences`: for
    how many requests of how many tokens the cache is. `batch`, `parallel`: how many tokens and requests vLLM computes
    at a time; 0: of another engine. `apart`: of the overhead, what vLLM has taken before it looks how much is free
    (CUDA's context, the buffers of links between cards). `host`: of a model on GPUs, bytes of RAM that it takes beside
    them. `read`: bytes of files that pass through RAM while it loads; the kernel takes them back. `droppable`: of the
    total, what the kernel can take back without harm (a file that was copied from). `open`: nobody can say how large
    its cache is, so it gets what is left of its cards. `basis`: "formula"; "corrected" by
    what others with this engine took; "measured": this very model took so much before.
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
    batch: int = 0
    parallel: int = 0
    apart: int = 0
    host: int = 0
    read: int = 0
    droppable: int = 0
    open: bool = False
    basis: str = "formula"


class Unpredictable(Exception):
    """Nobody can say what a model takes: its files do not tell `missing`, by names of config.json, and nor does the
    class that they name.
    """

    def __init__(self, missing: tuple[str, ...]) -> None:
        super().__init__(", ".join(missing))
        self.missing = missing


def predict(facts: ModelMetadata, demand: Demand) -> Prediction:
    """From the formulas alone. Raises Unpredictable for a model in RAM whose cache nobody can say; one on cards gets
    what is left of them, which vLLM measures itself.
    """
    if facts.missing and demand.kind == "ram":
        raise Unpredictable(facts.missing)
    context, sequences = _asked(facts, demand)
    cache, least, parallel = _cache(facts, demand, context, sequences)
    weights = _weights(facts, demand)
    moved = min(_kept_in_ram(facts, demand), weights * demand.tensor_parallel)
    weights -= moved // demand.tensor_parallel
    host = 0
    if demand.kind == "gpu":
        cached = cache if demand.launcher != "vllm" and demand.arguments.flag("--kv-offload") is False else 0
        host = _host(facts, demand, context, weights, moved + cached * demand.tensor_parallel)
        cache, least = cache - cached, least - cached
    return make_prediction(
        weights=weights,
        cache=cache,
        cache_least=least,
        overhead=_overhead(facts, demand, context, sequences),
        devices=demand.tensor_parallel,
        context=context,
        sequences=sequences,
        batch=_batch(facts, demand, context) if demand.launcher == "vllm" else 0,
        parallel=parallel,
        apart=_apart(demand),
        host=host,
        read=facts.weight_bytes,
        droppable=_copied(facts, demand) if demand.launcher != "vllm" else 0,
        open=bool(facts.missing),
    )


def make_prediction(
    *,
    weights: int,
    cache: int,
    cache_least: int,
    overhead: int,
    devices: int,
    context: int,
    sequences: int,
    batch: int = 0,
    parallel: int = 0,
    apart: int = 0,
    host: int = 0,
    read: int = 0,
    droppable: int = 0,
    open: bool = False,
    basis: str = "formula",
) -> Prediction:
    """With the sums that follow from the parts, each within MOST_BYTES."""
    weights, cache, cache_least, overhead = map(_bounded, (weights, cache, cache_least, overhead))
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
        batch=batch,
        parallel=parallel,
        apart=apart,
        host=_bounded(host),
        read=read,
        droppable=droppable,
        open=open,
        basis=basis,
    )


def _bounded(size: int) -> int:
    return min(max(size, 0), MOST_BYTES)


def _asked(facts: ModelMetadata, demand: Demand) -> tuple[int, int]:
    """Return tokens per request, and how many requests of that length are to be remembered."""
    context, sequences = _as_asked(facts, demand)
    return min(max(context, 1), bounds.CONTEXT), max(sequences, 1)


def _as_asked(facts: ModelMetadata, demand: Demand) -> tuple[int, int]:
    if demand.launcher == "vllm":
        context = demand.number("--max-model-len") or demand.context or facts.context or 4096
        return context, _told_parallel(demand) or VLLM_WHOLE_CONTEXTS
    slots = _slots(demand)
    total = demand.number("--ctx-size", "-c", "--n_ctx")
    if total is None:
        total = (demand.context or 0) * slots
    if _unified(demand):
        return total or facts.context or 4096, 1
    return math.ceil(total / slots) or facts.context or 4096, slots


def _slots(demand: Demand) -> int:
    """Of llama.cpp; -1 lets it choose."""
    return max(demand.number("--parallel") or 0, 0) or demand.slots or base.DEFAULT_SLOTS


def _unified(demand: Demand) -> bool:
    """Return one pool for all slots of llama.cpp: so we start it when nobody says how long a request may be."""
    said = demand.arguments.flag("--kv-unified")
    return said if said is not None else demand.context is None or demand.slots == 1


# --- The cache ------------------------------------------------------------------------------------------------------


def _cache(facts: ModelMetadata, demand: Demand, context: int, sequences: int) -> tuple[int, int, int]:
    """Return bytes on each device that are wanted, and the least that will do; how many requests vLLM may work on."""
    if demand.launcher != "vllm":
        size = _llama_cpp_cache(facts, demand, context, sequences)
        return size, size, 0
    if facts.missing:
        return OPEN_CACHE, LEAST_OPEN_CACHE, _parallel(facts, demand, context)
    usual = vllm_setting(facts, demand, context)
    plan = vllm_cache.plan_cache(facts, usual)
    plans = [plan]
    if not facts.states and not demand.says("--block-size"):
        # Which kernel computes depends on the card and on vLLM's version: so that it may also be one with large blocks.
        plans.append(vllm_cache.plan_cache(facts, replace(usual, block=vllm_cache.LARGE_BLOCK)))
    parallel = _parallel(facts, demand, context)
    wanted, least = (max(one.bytes(count) for one in plans) for count in (sequences, sequences if demand.slots else 1))
    if (told := demand.number("--kv-cache-memory-bytes")) and wanted:
        wanted = least = told
    elif facts.states and _told_parallel(demand):
        # Each of them needs a block for its state, or vLLM does not start ("exceeds available Mamba cache blocks").
        wanted, least = (max(size, plan.block * parallel) for size in (wanted, least))
    if facts.states and plan.block and not _told_parallel(demand):
        parallel = max(1, min(parallel, least // plan.block))
    return wanted, least, parallel


def vllm_setting(facts: ModelMetadata, demand: Demand, context: int) -> vllm_cache.CacheSetting:
    """How vLLM would keep its cache."""
    return vllm_cache.CacheSetting(
        context=context,
        batch=_batch(facts, demand, context),
        element=_vllm_element(facts, demand),
        number=4 if demand.argument("--dtype") in ("float32", "float") else 2,
        cards=demand.tensor_parallel,
        reuses=demand.arguments.flag("--enable-prefix-caching") is not False,
        block=demand.number("--block-size") or (vllm_cache.LARGE_BLOCK if demand.kind == "ram" else vllm_cache.BLOCK),
    )


def _llama_cpp_cache(facts: ModelMetadata, demand: Demand, context: int, sequences: int) -> int:
    """On the device with most layers, for so many requests of so many tokens. Cards share it layer by layer; states are
    kept in 32 bits for each slot (llama-hparams.cpp, n_embd_r and n_embd_s).
    """
    states = sum((state.inputs + state.memory) * 4 for state in facts.states) * _slots(demand)
    layers = sum(_layer(facts, layer, demand, context, sequences) for layer in facts.attention)
    count = max(facts.layers or len(facts.attention) + len(facts.states), 1)
    return math.ceil((layers + states) * min(1.0, math.ceil(count / demand.tensor_parallel) / count))


def _layer(facts: ModelMetadata, layer: Attention, demand: Demand, context: int, sequences: int) -> float:
    tokens = sequences * _remembered(facts, layer, demand, context)
    key, value = _llama_cpp_elements(demand)
    return tokens * layer.kv_heads * (layer.key_dim * key + layer.value_dim * value)


def _remembered(facts: ModelMetadata, layer: Attention, demand: Demand, context: int) -> int:
    """Return tokens of one request, in this layer: no more than its window and what is computed at a time."""
    whole = _cells(context)
    if layer.window is None or demand.says("--swa-full") or demand.launcher == "llama-cpp-python":
        return whole
    sequences = demand.slots or base.DEFAULT_SLOTS
    windows = layer.window * (sequences if _unified(demand) else 1)
    return _cells(min(whole, windows + _batch(facts, demand, context)))


def _cells(tokens: int) -> int:
    return math.ceil(tokens / CELLS) * CELLS


def _vllm_element(facts: ModelMetadata, demand: Demand) -> float:
    """Return bytes of a number of keys and values: as the operator says, else as the files declare it, else as the
    model's.
    """
    kind = demand.argument("--kv-cache-dtype") or "auto"
    if kind == "auto":
        kind = facts.cache_type or kind
    if kind == "auto":
        return 4.0 if demand.argument("--dtype") in ("float32", "float") else 2.0
    if kind.startswith("nvfp4"):
        return 9 / 16  # 4 bits, and a scale of 8 for 16 of them
    return 1.0 if kind.startswith(("fp8", "int8")) else 2.0


def _llama_cpp_elements(demand: Demand) -> tuple[float, float]:
    """Return bytes of a number of keys, and of values."""
    key = demand.argument("--cache-type-k", "-ctk") or "f16"
    value = demand.argument("--cache-type-v", "-ctv") or "f16"
    return LLAMA_CPP_TYPES.get(key, 2.0), LLAMA_CPP_TYPES.get(value, 2.0)


def _told_parallel(demand: Demand) -> int | None:
    return demand.number("--max-num-seqs") or demand.slots


def _parallel(facts: ModelMetadata, demand: Demand, context: int) -> int:
    """Return requests that vLLM works on at a time: as told, but no fewer than it spreads its largest item over."""
    return max(_told_parallel(demand) or VLLM_SEQUENCES, math.ceil(facts.whole / context))


def _batch(facts: ModelMetadata, demand: Demand, context: int) -> int:
    """Return tokens that are computed at a time."""
    if demand.launcher == "vllm":
        return demand.number("--max-num-batched-tokens") or _vllm_batch(facts, demand, context)
    given = demand.number("--ubatch-size", "-ub", "--n_ubatch")
    if given is None and demand.task != "chat":
        given = max(demand.context or 8192, 512)  # as engines.py starts it
    return given or 512


def _vllm_batch(facts: ModelMetadata, demand: Demand, context: int) -> int:
    """As vLLM would bound its own choice (engine/arg_utils.py, config/scheduler.py): no less than the requests, no more
    than all of them are long, and a whole input where it cannot be computed piece by piece.
    """
    parallel = _parallel(facts, demand, context)
    batch = max(min(VLLM_BATCH, parallel * context), parallel, facts.whole)
    in_pieces = demand.task == "chat" or (bool(facts.attention) and facts.pooling in (None, "last"))
    return batch if in_pieces and demand.task != "transcription" else max(batch, context)


# --- Weights and overhead -------------------------------------------------------------------------------------------


def _weights(facts: ModelMetadata, demand: Demand) -> int:
    """On each device."""
    size: float = facts.weight_bytes
    if demand.launcher == "vllm":
        guesses = demand.says("--speculative-config") or demand.says("--spec-method")
        unused = 0 if guesses or not facts.weight_bytes else facts.unused_weight_bytes / facts.weight_bytes
        size = _as_loaded(facts, demand) * (1 - unused)
    elif (layers := demand.number("--n-gpu-layers", "-ngl", "--gpu-layers")) is not None and demand.kind == "gpu":
        size *= min(1.0, max(layers, 0) / ((facts.layers or layers) + 1))
    return math.ceil(size / demand.tensor_parallel)


def _kept_in_ram(facts: ModelMetadata, demand: Demand) -> int:
    """Return bytes of the whole model's weights that the operator keeps off the cards."""
    if demand.kind == "ram":
        return 0
    if demand.launcher == "vllm":
        offloaded = max(demand.arguments.decimal("--cpu-offload-gb") or 0, 0)
        return int(offloaded * GIB) * demand.tensor_parallel
    experts = len(facts.experts) if demand.says("--cpu-moe") else max(demand.number("--n-cpu-moe") or 0, 0)
    return sum(facts.experts[:experts])


def _host(facts: ModelMetadata, demand: Demand, context: int, weights: int, moved: int) -> int:
    """RAM of a model on GPUs, for good: processes, what was moved there, and what may come from the cards to stay.

    `weights`: on each card. Files are mapped and read through; only pickles are held while they load, one at a time.
    """
    cards, said = demand.tensor_parallel, demand.arguments
    if demand.launcher != "vllm":
        return LLAMA_CPP_HOST + moved + _outputs(facts, demand, context) + _prompts_in_ram(demand)
    room = int(((said.decimal("--swap-space") or 0) * cards + (said.decimal("--kv-offloading-size") or 0)) * GIB)
    # Asleep (level 1) its weights lie in RAM.
    asleep = weights * cards if demand.says("--enable-sleep-mode") else 0
    pickled = facts.weight_bytes // max(facts.files, 1) if "pickle" in facts.risks else 0
    return VLLM_HOST + VLLM_HOST_WORKER * cards + moved + room + max(asleep, pickled)


def _prompts_in_ram(demand: Demand) -> int:
    """What llama-server keeps of past conversations: as told, else as engines.py tells it."""
    told = demand.number("--cache-ram")
    if told is not None:
        return (told if told >= 0 else UNBOUNDED_PROMPTS) * MIB
    return base.PROMPTS_IN_RAM * MIB if demand.kind == "gpu" and demand.launcher != "llama-cpp-python" else 0


def _as_loaded(facts: ModelMetadata, demand: Demand) -> float:
    """vLLM keeps weights in 16 bits unless told otherwise, and can make them smaller while it loads them."""
    halved = {"F32": 0.5}.get(facts.quantisation, 1.0)
    kind = demand.argument("--dtype")
    if kind in ("float32", "float"):
        halved = {"F16": 2.0, "BF16": 2.0}.get(facts.quantisation, 1.0)
    size = facts.weight_bytes * halved
    smaller = MADE_SMALLER.get(demand.argument("--quantization", "-q") or "", 1.0)
    if smaller == 1.0 or facts.quantisation not in ("F32", "F16", "BF16"):
        return size
    embedding = facts.embedding_weight_bytes * halved
    return embedding + (size - embedding) * smaller


def _overhead(facts: ModelMetadata, demand: Demand, context: int, sequences: int) -> int:
    if demand.launcher == "vllm":
        return _vllm_overhead(facts, demand, context)
    return _llama_cpp_overhead(facts, demand, context, sequences) + _copied(facts, demand)


def _apart(demand: Demand) -> int:
    if demand.launcher != "vllm" or demand.kind == "ram":
        return 0
    return VLLM_CONTEXT + (VLLM_LINKS if demand.tensor_parallel > 1 else 0)


def _vllm_overhead(facts: ModelMetadata, demand: Demand, context: int) -> int:
    """CPU: measured with two models, see tests/bench/RESULTS.md. GPU: from what others published, not measured here.

    A forward pass of a batch holds about 12 vectors of the hidden size per token (16 bits), sampling two copies of the
    logits (32 bits) of each sequence.
    """
    hidden, vocabulary = facts.hidden or 4096, facts.vocabulary or 128_000
    batch = _batch(facts, demand, context) * hidden * 2 * 12
    logits = _parallel(facts, demand, context) * vocabulary * 4 * 2 if demand.task == "chat" else 0
    compiled = not demand.says("--enforce-eager")
    if demand.kind == "ram":
        return VLLM_CPU_PROCESSES + (VLLM_CPU_COMPILER if compiled else 0)
    return _apart(demand) + (VLLM_GRAPHS if compiled else 0) + batch + logits


def _llama_cpp_overhead(facts: ModelMetadata, demand: Demand, context: int, sequences: int) -> int:
    """What llama.cpp's log calls compute buffer, and what else was seen: the libraries, and a little of each token.

    The compute buffer of a micro-batch: 13 (feed-forward of 2.7 × hidden) to 17 (4 ×) vectors of the hidden size in 32
    bits, and its mask over the context in 16 bits. Measured with 384 to 1,536 numbers; see tests/bench/RESULTS.md.
    """
    hidden, vocabulary = facts.hidden or 4096, facts.vocabulary or 128_000
    batch = min(_batch(facts, demand, context), _cells(context))
    compute = batch * (hidden * 4 * 15 + _cells(context) * 2)
    if demand.kind == "gpu":
        # There all of it is taken at the start, and the same place holds the logits of a whole micro-batch (published
        # logs say 258 MiB for Llama 3 8B; 512 × 128,256 numbers are 250).
        logits = batch * vocabulary * 4 if demand.task == "chat" else 0
        return LLAMA_CPP_CONTEXT + max(compute, logits)
    process = LLAMA_CPP_PROCESS[demand.launcher] + vocabulary * LLAMA_CPP_TOKEN
    return process + compute + _outputs(facts, demand, context) + _prompts_in_ram(demand)


def _outputs(facts: ModelMetadata, demand: Demand, context: int) -> int:
    """In RAM: a number for each word of the vocabulary and each answer that is made at a time, for an encoder for each
    token that it reads at a time, although it has no use for them (seen: 122 kB a token for MiniLM's 30,522 words).
    """
    slots, batch = _slots(demand), _batch(facts, demand, context)
    rows = slots if demand.task == "chat" else min(batch, context * slots)
    if demand.says("--logits_all"):  # of llama-cpp-python: those of a batch, and its own copy of the whole context's
        rows = batch + context
    return rows * (facts.vocabulary or 128_000) * 4


def _copied(facts: ModelMetadata, demand: Demand) -> int:
    """On CPUs llama.cpp lays weights of some quantisations out anew, beside the mapped file."""
    if demand.kind == "gpu" or not facts.quantisation.startswith(REPACKED):
        return 0
    return max(0, facts.weight_bytes - facts.embedding_weight_bytes)


# --- What is taken --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldMemory:
    """RAM of some processes. `taken`: with the pages of files that they have mapped (weights above all), those that
    several of them share counted once. `fixed`: of this, what the kernel can neither drop nor read again.
    """

    taken: int
    fixed: int


def measure_held(processes: Iterable[Identity]) -> HeldMemory:
    """What these processes hold now. Those that are gone hold nothing.

    What they share with others of the host is theirs all the same (unlike in Pss): so a second replica of the same file
    does not make the first one smaller. Both engines fill their cache at their start, so it is resident from then on.
    Blocks for some milliseconds per 10 GB: the kernel walks their page tables.
    """
    fixed = 0
    files: dict[tuple[str, ...], _Area] = {}
    for who in processes:
        for area in _areas(who.pid):
            fixed += area.anonymous
            # Of a file that several have mapped each has its own pages in use; the most of one is near all of them.
            if area.file and (area.file not in files or area.of_file > files[area.file].of_file):
                files[area.file] = area
    fixed += sum(area.of_file for area in files.values() if area.in_memory)
    return HeldMemory(taken=fixed + sum(area.of_file for area in files.values() if not area.in_memory), fixed=fixed)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Area:
    """One of a process's mappings: resident bytes of its own, and of the file behind it.

    `file`: what tells it from others, None: of no file. `in_memory`: a file without a disk (shared memory).
    """

    anonymous: int
    of_file: int
    file: tuple[str, ...] | None
    in_memory: bool


_HEAD = re.compile(r"[0-9a-f]+-[0-9a-f]+ \S{4} ([0-9a-f]+) (\S+) (\d+) *(.*)")
_NO_DISK = ("/dev/shm/", "/memfd:", "/dev/zero", "/SYSV")  # noqa: S108 -- only compared


def _areas(pid: int) -> Iterator[_Area]:
    try:
        lines = Path(f"/proc/{pid}/smaps").read_text(errors="replace").splitlines()
    except OSError:
        return
    head: re.Match[str] | None = None
    sizes: dict[str, int] = {}
    for line in lines:
        if next_head := _HEAD.match(line):
            if head:
                yield _area(head, sizes)
            head, sizes = next_head, {}
        elif line.endswith(" kB"):
            name, _, value = line.partition(":")
            sizes[name] = int(value.split()[0]) * 1024
    if head:
        yield _area(head, sizes)


def _area(head: re.Match[str], sizes: Mapping[str, int]) -> _Area:
    offset, device, inode, path = head.groups()
    anonymous = sizes.get("Anonymous", 0)
    return _Area(
        anonymous=anonymous,
        of_file=sizes.get("Rss", 0) - anonymous,
        file=(device, inode, offset) if inode != "0" else None,
        in_memory=path.startswith(_NO_DISK),
    )


# --- Learning from what was measured --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What one start took, beside what the formulas alone had said of it. `device`: a GPU's name, or "RAM"."""

    fingerprint: str
    launcher: str
    version: str
    device: str
    weights: int
    cache: int
    overhead: int
    measured: int

    @property
    def difference(self) -> int:
        return self.measured - (self.weights + self.cache + self.overhead)

    @property
    def sensible(self) -> bool:
        """Not of a start that was looked at too early, or of a device that counts something else."""
        predicted = self.weights + self.cache + self.overhead
        return predicted * 0.4 <= self.measured <= predicted * 2.5


def fingerprint(facts: ModelMetadata, demand: Demand, prediction: Prediction) -> str:
    """Return the same for whatever takes the same memory: of the files' facts, what was asked for.

    And the cache given.
    """
    parts = [asdict(facts), asdict(demand), prediction.cache]
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def apply_measurements(
    prediction: Prediction, past: Iterable[Measured], *, mark: str, launcher: str, version: str, device: str
) -> Prediction:
    """By what this very start took before, else by the median of what the formulas were wrong by for this engine.

    `mark`: its `fingerprint`. `version` "": not known yet, so any. Measurements that make no sense are left out, and
    what others took changes the overhead by no more than half of it, or half a GiB.
    """
    alike = [
        one
        for one in past
        if (one.launcher, one.device) == (launcher, device) and version in ("", one.version) and one.sensible
    ]
    own = [one for one in alike if one.fingerprint == mark]
    if own:
        total = own[-1].measured
        known = prediction.weights + prediction.cache
        # An engine that takes less than its files and its cache: then these were overrated.
        weights = prediction.weights if total >= known else max(0, total - prediction.cache)
        return replace(prediction, weights=weights, overhead=max(0, total - known), total=total, basis="measured")
    if not alike:
        return prediction
    bound = max(prediction.overhead // 2, GIB // 2)
    by = round(min(max(median(one.difference for one in alike), -bound), bound))
    overhead = max(prediction.overhead // 4, prediction.overhead + by)
    total = prediction.weights + prediction.cache + overhead
    return replace(prediction, overhead=overhead, total=total, basis="corrected")
