"""What vLLM takes of its devices: formulas of 0.32, corrected by what was measured on hosts. Bytes. Pure."""

import math
from dataclasses import replace

from modelregistry.files.metadata import ModelMetadata
from modelregistry.memory import vllm_cache
from modelregistry.memory.estimate import GIB, MIB, Demand, Prediction, bounded_context, make_prediction, with_cache

# vLLM without a word on slots works on up to 256 requests at a time, most of them short: room for so many whole
# contexts is wanted, for one is needed (it starts with less only to refuse long requests).
WHOLE_CONTEXTS = 8
# What vLLM computes at a time if no argument says it: what it would choose itself on cards below 70 GiB. On larger ones
# it would take 8,192 tokens (16,384 from 160 GiB) and 1,024 requests (0.32, engine/arg_utils.py, get_batch_defaults),
# so both are always passed.
SEQUENCES = 256
BATCH = 2048
# Of a model of which it is unknown how much it keeps: more than any card has, and enough to begin with.
OPEN_CACHE = 1 << 50
LEAST_OPEN_CACHE = 2 * GIB
# Overheads, calibrated on other models than those of the table in tests/bench/RESULTS.md.
CPU_PROCESSES = 1400 * MIB  # API server 450, engine 390, worker 480 MiB, libraries that they share once
CPU_COMPILER = 60 * MIB
# On a card; vLLM's own words for an 8B model on a card of 24 GB: 0.25 GiB besides PyTorch's, 0.11 of compiled code,
# 0.25 of graphs, 0.22 at the height of a batch. CUDA's context comes on top of what it counts.
CUDA_CONTEXT = 650 * MIB
GRAPHS = 350 * MIB
LINKS = 400 * MIB  # NCCL's buffers between cards
# RAM where the model is on GPUs, from what others published, not measured here: vLLM's API server and core, and a
# worker for each card with PyTorch's and CUDA's libraries and pinned buffers.
HOST = GIB
HOST_WORKER = 2 * GIB
# What vLLM makes of 16-bit weights while it loads them, embedding aside. "fp8" was the name of fp8_per_tensor before
# 0.32; mxfp8 has 8 bits of scale for 32 weights.
MADE_SMALLER = {
    **{"fp8": 0.5, "fp8_per_tensor": 0.5, "fp8_per_block": 0.5, "fp8_per_channel": 0.5, "mxfp8": 0.516},
    "bitsandbytes": 0.28,
}


def predict(facts: ModelMetadata, demand: Demand) -> Prediction:
    """Return what it takes, by the formulas alone. A cache of unknown size is `open`: vLLM measures what is left."""
    context = bounded_context(demand.number("--max-model-len") or demand.context or facts.context or 4096)
    sequences = max(_asked_parallel(demand) or WHOLE_CONTEXTS, 1)
    cache, least, parallel = _cache(_largest_stage(facts, demand), demand, context, sequences)
    weights = _weights(facts, demand)
    moved = min(_kept_in_ram(demand), weights * demand.devices_here)
    weights -= moved // demand.devices_here
    return make_prediction(
        weights=weights,
        cache=cache,
        cache_least=least,
        overhead=_overhead(facts, demand, context),
        devices=demand.devices_here,
        context=context,
        sequences=sequences,
        batch=_batch(facts, demand, context),
        parallel=parallel,
        apart=_outside_fraction(demand),
        host=_host(facts, demand, weights, moved) if demand.kind == "gpu" else 0,
        read=facts.weight_bytes,
        open=bool(facts.missing),
    )


def predict_asleep(prediction: Prediction) -> Prediction:
    """Return what stays on each card while it sleeps: CUDA's context, the buffers between cards, and captured graphs.

    Weights and cache are given back, and what PyTorch holds in reserve (v1/worker/gpu_worker.py, `sleep`). Others saw
    1.14 GB on each of four cards (vLLM's issue 32714); not measured here.
    """
    left = min(prediction.apart + GRAPHS, prediction.total)
    emptied = replace(prediction, weights=0, cache=0, cache_least=0, droppable=0, rule_of_thumb=0, open=False)
    return replace(emptied, overhead=left, total=left)


def fill_share(formula: Prediction, demand: Demand, card: int) -> Prediction:
    """Return the prediction with all of the part of each card (of `card` bytes) that an argument gives vLLM."""
    part = demand.arguments.decimal("--gpu-memory-utilization") or 0.0
    # Of that part vLLM takes what it needs after its context, which it does not count.
    spare = int(part * card) - formula.weights - (formula.overhead - formula.apart)
    if spare <= 0 or not formula.cache:
        return formula
    spare = spare // MIB * MIB
    return with_cache(replace(formula, cache_least=spare), spare)


def _largest_stage(facts: ModelMetadata, demand: Demand) -> ModelMetadata:
    """Return the facts with the layers of one stage only, whose contexts it keeps: of the largest."""
    if demand.stages == 1:
        return facts
    attention, states = (math.ceil(len(layers) / demand.stages) for layers in (facts.attention, facts.states))
    return replace(facts, attention=facts.attention[:attention], states=facts.states[:states])


# --- The cache ------------------------------------------------------------------------------------------------------


def _cache(facts: ModelMetadata, demand: Demand, context: int, sequences: int) -> tuple[int, int, int]:
    """Return bytes on each device that are wanted, and the least that will do; how many requests vLLM may work on."""
    if facts.missing:
        return OPEN_CACHE, LEAST_OPEN_CACHE, _parallel(facts, demand, context)
    usual = cache_setting(facts, demand, context)
    plan = vllm_cache.plan_cache(facts, usual)
    plans = [plan]
    if not facts.states and not demand.has("--block-size"):
        # Which kernel computes depends on the card and on vLLM's version: so that it may also be one with large blocks.
        plans.append(vllm_cache.plan_cache(facts, replace(usual, block=vllm_cache.LARGE_BLOCK)))
    parallel = _parallel(facts, demand, context)
    wanted, least = (max(one.bytes(count) for one in plans) for count in (sequences, sequences if demand.slots else 1))
    if (given := demand.number("--kv-cache-memory-bytes")) and wanted:
        wanted = least = given
    elif facts.states and _asked_parallel(demand):
        # Each of them needs a block for its state, or vLLM does not start ("exceeds available Mamba cache blocks").
        wanted, least = (max(size, plan.block * parallel) for size in (wanted, least))
    if facts.states and plan.block and not _asked_parallel(demand):
        parallel = max(1, min(parallel, least // plan.block))
    return wanted, least, parallel


def cache_setting(facts: ModelMetadata, demand: Demand, context: int) -> vllm_cache.CacheSetting:
    """Return how vLLM would keep its cache."""
    return vllm_cache.CacheSetting(
        context=context,
        batch=_batch(facts, demand, context),
        element=_element(facts, demand),
        number=4 if demand.argument("--dtype") in ("float32", "float") else 2,
        cards=demand.tensor_parallel,
        reuses=demand.arguments.flag("--enable-prefix-caching") is not False,
        block=demand.number("--block-size") or (vllm_cache.LARGE_BLOCK if demand.kind == "ram" else vllm_cache.BLOCK),
    )


def _element(facts: ModelMetadata, demand: Demand) -> float:
    """Return bytes of a number of keys and values: as the operator says, else the files, else as the model's."""
    kind = demand.argument("--kv-cache-dtype") or "auto"
    if kind == "auto":
        kind = facts.cache_type or kind
    if kind == "auto":
        return 4.0 if demand.argument("--dtype") in ("float32", "float") else 2.0
    if kind.startswith("nvfp4"):
        return 9 / 16  # 4 bits, and a scale of 8 for 16 of them
    return 1.0 if kind.startswith(("fp8", "int8")) else 2.0


def _asked_parallel(demand: Demand) -> int | None:
    return demand.number("--max-num-seqs") or demand.slots


def _parallel(facts: ModelMetadata, demand: Demand, context: int) -> int:
    """Return requests that vLLM works on at a time: as asked, but no fewer than it spreads its largest item over."""
    return max(_asked_parallel(demand) or SEQUENCES, math.ceil(facts.whole / context))


def _batch(facts: ModelMetadata, demand: Demand, context: int) -> int:
    """Return tokens that are computed at a time: by the argument, else as vLLM would bound its own choice.

    That is (engine/arg_utils.py, config/scheduler.py) no less than the requests, no more than all of them are long, and
    a whole input where it cannot be computed piece by piece.
    """
    if given := demand.number("--max-num-batched-tokens"):
        return given
    parallel = _parallel(facts, demand, context)
    batch = max(min(BATCH, parallel * context), parallel, facts.whole)
    in_pieces = demand.task == "chat" or (bool(facts.attention) and facts.pooling in (None, "last"))
    return batch if in_pieces and demand.task != "transcription" else max(batch, context)


# --- Weights and overhead -------------------------------------------------------------------------------------------


def _weights(facts: ModelMetadata, demand: Demand) -> int:
    """Return bytes on each device."""
    guesses = demand.has("--speculative-config") or demand.has("--spec-method")
    unused = 0 if guesses or not facts.weight_bytes else facts.unused_weight_bytes / facts.weight_bytes
    return math.ceil(_of_stage(_loaded_weights(facts, demand) * (1 - unused), facts, demand) / demand.tensor_parallel)


def _of_stage(weights: float, facts: ModelMetadata, demand: Demand) -> float:
    """Return the weights of the largest stage: its layers, and beside them the embedding or the output.

    vLLM gives stages that are even but for one layer (distributed/utils.py, get_pp_indices); the first has the
    embedding and the last the output, which are of one size.
    """
    if demand.stages == 1:
        return weights
    halved = {"F32": 0.5}.get(facts.quantisation, 1.0)
    embedding = min(facts.embedding_weight_bytes * halved, weights)
    layers = facts.layers or demand.stages
    return embedding + (weights - embedding) * math.ceil(layers / demand.stages) / layers


def _kept_in_ram(demand: Demand) -> int:
    """Return bytes of the whole model's weights that the operator keeps off the cards."""
    if demand.kind == "ram":
        return 0
    offloaded = max(demand.arguments.decimal("--cpu-offload-gb") or 0, 0)
    return int(offloaded * GIB) * demand.devices_here


def _host(facts: ModelMetadata, demand: Demand, weights: int, moved: int) -> int:
    """Return RAM of a model on GPUs, for good: processes, what was moved there, and what may come from the cards.

    `weights`: on each card. Files are mapped and read through; only pickles are held while they load, one at a time.
    """
    cards, parsed = demand.devices_here, demand.arguments
    room = int(((parsed.decimal("--swap-space") or 0) * cards + (parsed.decimal("--kv-offloading-size") or 0)) * GIB)
    # Asleep (level 1) its weights lie in RAM.
    asleep = weights * cards if demand.has("--enable-sleep-mode") else 0
    pickled = facts.weight_bytes // max(facts.files, 1) if "pickle" in facts.risks else 0
    return HOST + HOST_WORKER * cards + moved + room + max(asleep, pickled)


def _loaded_weights(facts: ModelMetadata, demand: Demand) -> float:
    """Return bytes of the weights once loaded: in 16 bits unless arguments say otherwise, or made smaller meanwhile."""
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


def _outside_fraction(demand: Demand) -> int:
    if demand.kind == "ram":
        return 0
    return CUDA_CONTEXT + (LINKS if demand.devices > 1 else 0)


def _overhead(facts: ModelMetadata, demand: Demand, context: int) -> int:
    """Return the bytes that the engine itself takes. CPU: measured with two models, see tests/bench/RESULTS.md.

    GPU: from what others published, not measured here.

    A forward pass of a batch holds about 12 vectors of the hidden size per token (16 bits), sampling two copies of the
    logits (32 bits) of each sequence.
    """
    hidden, vocabulary = facts.hidden or 4096, facts.vocabulary or 128_000
    batch = _batch(facts, demand, context) * hidden * 2 * 12
    logits = _parallel(facts, demand, context) * vocabulary * 4 * 2 if demand.task == "chat" else 0
    compiled = not demand.has("--enforce-eager")
    if demand.kind == "ram":
        return CPU_PROCESSES + (CPU_COMPILER if compiled else 0)
    return _outside_fraction(demand) + (GRAPHS if compiled else 0) + batch + logits
