"""What llama.cpp takes of its devices, by its three launchers: formulas, calibrated on hosts. Bytes. Pure."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from modelregistry.engines.llama_cpp_arguments import DEFAULT_SLOTS, PROMPTS_IN_RAM
from modelregistry.files.metadata import Attention, ModelMetadata
from modelregistry.memory.estimate import MIB, Demand, Prediction, bounded_context, make_prediction


@dataclass(frozen=True, slots=True, kw_only=True)
class LauncherTraits:
    """Where launchers differ in memory.

    `process`: bytes of the program and its libraries. `windowed`: a layer with a window keeps no more than that.
    `keeps_prompts`: past conversations stay in RAM.
    """

    process: int
    windowed: bool = True
    keeps_prompts: bool = True


# Overheads, calibrated on other models than those of the table in tests/bench/RESULTS.md. Of the two Pythons one brings
# FastAPI and NumPy.
TRAITS: Mapping[str, LauncherTraits] = {
    "llama-server": LauncherTraits(process=14 * MIB),
    "xllamacpp": LauncherTraits(process=34 * MIB),
    "llama-cpp-python": LauncherTraits(process=84 * MIB, windowed=False, keeps_prompts=False),
}
PER_WORD = 260  # bytes for each token of the vocabulary: 220 to 490
CUDA_CONTEXT = 450 * MIB  # CUDA's context and its libraries on the card; not measured here
HOST = 500 * MIB  # RAM where the model is on GPUs, from what others published, not measured here
UNBOUNDED_PROMPTS = 8192  # MiB; --cache-ram -1 has no bound, its default is this
REPACKED = ("Q4_0", "Q4_K", "Q2_K", "IQ4_NL")
CELLS = 256  # its caches are made of so many tokens
# Of a quantised cache's element, as ggml's blocks of 32 hold it (f16 scales beside the values).
CACHE_TYPES: Mapping[str, float] = {
    **{"f32": 4, "f16": 2, "bf16": 2, "q8_0": 34 / 32, "q5_1": 24 / 32, "q5_0": 22 / 32},
    **{"q4_1": 20 / 32, "q4_0": 18 / 32, "iq4_nl": 18 / 32},
}


def predict(facts: ModelMetadata, demand: Demand) -> Prediction:
    """Return what it takes, by the formulas alone."""
    context, sequences = _requested_context(facts, demand)
    cache = _cache(facts, demand, context, sequences)
    weights = _weights(facts, demand)
    moved = min(_kept_in_ram(facts, demand), weights * demand.tensor_parallel)
    weights -= moved // demand.tensor_parallel
    host = 0
    if demand.kind == "gpu":
        off_cards = cache if demand.arguments.flag("--kv-offload") is False else 0
        cache -= off_cards
        host = HOST + moved + off_cards * demand.tensor_parallel
        host += _outputs(facts, demand, context) + _prompts_in_ram(demand)
    copied = _copied_bytes(facts, demand)
    return make_prediction(
        weights=weights,
        cache=cache,
        cache_least=cache,
        overhead=_overhead(facts, demand, context) + copied,
        devices=demand.tensor_parallel,
        context=context,
        sequences=sequences,
        host=host,
        read=facts.weight_bytes,
        droppable=copied,
        open=bool(facts.missing),
    )


def _requested_context(facts: ModelMetadata, demand: Demand) -> tuple[int, int]:
    """Return tokens per request, and how many requests of that length are to be remembered."""
    slots = _slots(demand)
    total = demand.number("--ctx-size", "-c", "--n_ctx")
    if total is None:
        total = (demand.context or 0) * slots
    if _shares_cache(demand):
        return bounded_context(total or facts.context or 4096), 1
    return bounded_context(math.ceil(total / slots) or facts.context or 4096), max(slots, 1)


def _slots(demand: Demand) -> int:
    """Return requests at a time; -1 lets it choose."""
    return max(demand.number("--parallel") or 0, 0) or demand.slots or DEFAULT_SLOTS


def _shares_cache(demand: Demand) -> bool:
    """Return whether all slots share one pool: so it is started when the length of a request is left open."""
    unified = demand.arguments.flag("--kv-unified")
    return unified if unified is not None else demand.context is None or demand.slots == 1


# --- The cache ------------------------------------------------------------------------------------------------------


def _cache(facts: ModelMetadata, demand: Demand, context: int, sequences: int) -> int:
    """Return bytes on the device with most layers, for so many requests of so many tokens.

    Cards share it layer by layer; states are kept in 32 bits for each slot (llama-hparams.cpp, n_embd_r and n_embd_s).
    """
    states = sum((state.inputs + state.memory) * 4 for state in facts.states) * _slots(demand)
    layers = sum(_layer(facts, layer, demand, context, sequences) for layer in facts.attention)
    count = max(facts.layers or len(facts.attention) + len(facts.states), 1)
    return math.ceil((layers + states) * min(1.0, math.ceil(count / demand.tensor_parallel) / count))


def _layer(facts: ModelMetadata, layer: Attention, demand: Demand, context: int, sequences: int) -> float:
    tokens = sequences * _remembered_tokens(facts, layer, demand, context)
    key, value = _elements(demand)
    return tokens * layer.kv_heads * (layer.key_dim * key + layer.value_dim * value)


def _remembered_tokens(facts: ModelMetadata, layer: Attention, demand: Demand, context: int) -> int:
    """Return tokens of one request, in this layer: no more than its window and what is computed at a time."""
    whole = _round_to_cells(context)
    if layer.window is None or demand.has("--swa-full") or not TRAITS[demand.launcher].windowed:
        return whole
    sequences = demand.slots or DEFAULT_SLOTS
    windows = layer.window * (sequences if _shares_cache(demand) else 1)
    return _round_to_cells(min(whole, windows + _batch(demand)))


def _round_to_cells(tokens: int) -> int:
    return math.ceil(tokens / CELLS) * CELLS


def _elements(demand: Demand) -> tuple[float, float]:
    """Return bytes of a number of keys, and of values."""
    key = demand.argument("--cache-type-k", "-ctk") or "f16"
    value = demand.argument("--cache-type-v", "-ctv") or "f16"
    return CACHE_TYPES.get(key, 2.0), CACHE_TYPES.get(value, 2.0)


def _batch(demand: Demand) -> int:
    """Return tokens that are computed at a time."""
    given = demand.number("--ubatch-size", "-ub", "--n_ubatch")
    if given is None and demand.task != "chat":
        given = max(demand.context or 8192, 512)  # as its engine starts it
    return given or 512


# --- Weights and overhead -------------------------------------------------------------------------------------------


def _weights(facts: ModelMetadata, demand: Demand) -> int:
    """Return bytes on each device."""
    size: float = facts.weight_bytes
    if (layers := demand.number("--n-gpu-layers", "-ngl", "--gpu-layers")) is not None and demand.kind == "gpu":
        size *= min(1.0, max(layers, 0) / ((facts.layers or layers) + 1))
    return math.ceil(size / demand.tensor_parallel)


def _kept_in_ram(facts: ModelMetadata, demand: Demand) -> int:
    """Return bytes of the whole model's weights that the operator keeps off the cards."""
    if demand.kind == "ram":
        return 0
    experts = len(facts.experts) if demand.has("--cpu-moe") else max(demand.number("--n-cpu-moe") or 0, 0)
    return sum(facts.experts[:experts])


def _prompts_in_ram(demand: Demand) -> int:
    """Return bytes that its server keeps of past conversations: by the argument, else as it is started."""
    given = demand.number("--cache-ram")
    if given is not None:
        return (given if given >= 0 else UNBOUNDED_PROMPTS) * MIB
    return PROMPTS_IN_RAM * MIB if demand.kind == "gpu" and TRAITS[demand.launcher].keeps_prompts else 0


def _overhead(facts: ModelMetadata, demand: Demand, context: int) -> int:
    """Return what its log calls compute buffer, and what else was seen: libraries, and a little of each token.

    The compute buffer of a micro-batch: 13 (feed-forward of 2.7 × hidden) to 17 (4 ×) vectors of the hidden size in 32
    bits, and its mask over the context in 16 bits. Measured with 384 to 1,536 numbers; see tests/bench/RESULTS.md.
    """
    hidden, vocabulary = facts.hidden or 4096, facts.vocabulary or 128_000
    batch = min(_batch(demand), _round_to_cells(context))
    compute = batch * (hidden * 4 * 15 + _round_to_cells(context) * 2)
    if demand.kind == "gpu":
        # There all of it is taken at the start, and the same place holds the logits of a whole micro-batch (published
        # logs say 258 MiB for Llama 3 8B; 512 × 128,256 numbers are 250).
        logits = batch * vocabulary * 4 if demand.task == "chat" else 0
        return CUDA_CONTEXT + max(compute, logits)
    process = TRAITS[demand.launcher].process + vocabulary * PER_WORD
    return process + compute + _outputs(facts, demand, context) + _prompts_in_ram(demand)


def _outputs(facts: ModelMetadata, demand: Demand, context: int) -> int:
    """Return bytes of RAM for the outputs: a number for each word of the vocabulary and each answer made at a time.

    For an encoder for each token that it reads at a time, although it has no use for them (seen: 122 kB a token for
    MiniLM's 30,522 words).
    """
    slots, batch = _slots(demand), _batch(demand)
    rows = slots if demand.task == "chat" else min(batch, context * slots)
    if demand.has("--logits_all"):  # of llama-cpp-python: those of a batch, and its own copy of the whole context's
        rows = batch + context
    return rows * (facts.vocabulary or 128_000) * 4


def _copied_bytes(facts: ModelMetadata, demand: Demand) -> int:
    """Return bytes of weights that llama.cpp copies on CPUs: some quantisations get another layout there."""
    if demand.kind == "gpu" or not facts.quantisation.startswith(REPACKED):
        return 0
    return max(0, facts.weight_bytes - facts.embedding_weight_bytes)
