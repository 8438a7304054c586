"""What llama.cpp takes of its devices, by its three launchers: formulas, calibrated on hosts. Bytes. Pure."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from modelregistry.engines.llama_cpp_arguments import PROMPTS_IN_RAM
from modelregistry.files.metadata import Attention, ModelMetadata
from modelregistry.memory.estimate import MIB, Demand, Prediction, make_prediction
from modelregistry.memory.llama_cpp_compute import compute_buffer
from modelregistry.memory.llama_cpp_start import (
    CACHE_TYPES,
    TRAITS,
    batch_size,
    cache_types,
    count_slots,
    remembered_tokens,
    requested_context,
    round_to_cells,
    units_on_cards,
)

PER_WORD = 260  # bytes for each token of the vocabulary: 220 to 490
CUDA_CONTEXT = 450 * MIB  # CUDA's context and its libraries on the card; not measured here
HOST = 500 * MIB  # RAM where the model is on GPUs, from what others published, not measured here
UNBOUNDED_PROMPTS = 8192  # MiB; --cache-ram -1 has no bound, its default is this
REPACKED = ("Q4_0", "Q4_K", "Q2_K", "IQ4_NL")


def predict(facts: ModelMetadata, demand: Demand) -> Prediction:
    """Return what it takes, by the formulas alone."""
    context, sequences = requested_context(facts, demand)
    on_cards = demand.kind == "gpu"
    held = _on_cards(facts, demand, context, sequences) if on_cards else _in_ram(facts, demand, context, sequences)
    copied = _copied_bytes(facts, demand)
    return make_prediction(
        weights=held.weights,
        cache=held.cache,
        cache_least=held.cache,
        overhead=_overhead(facts, demand, context, sequences) + copied,
        devices=demand.tensor_parallel,
        context=context,
        sequences=sequences,
        host=HOST + held.host + _outputs(facts, demand, context) + _prompts_in_ram(demand) if on_cards else 0,
        read=facts.weight_bytes,
        droppable=copied,
        open=bool(facts.missing),
    )


# --- Weights and cache ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    """Weights and cache: on the fullest card, each for itself, or in RAM. `host`: of both, in RAM beside cards."""

    weights: int
    cache: int
    host: int = 0


def _in_ram(facts: ModelMetadata, demand: Demand, context: int, sequences: int) -> _Held:
    cache = sum(_cache_by_layer(facts, demand, context, sequences))
    return _Held(weights=math.ceil(facts.weight_bytes / demand.tensor_parallel), cache=_whole(cache))


def _on_cards(facts: ModelMetadata, demand: Demand, context: int, sequences: int) -> _Held:
    """Share layers out to cards as llama.cpp does (llama-model.cpp, load_tensors).

    The last ones go on cards, and the output after them, which counts as one more; each card gets equally many. Words
    are looked up in RAM: of the embedding nothing is on a card, but for the output of models that have none of their
    own.
    """
    layers = _count_layers(facts)
    units = units_on_cards(layers, demand)
    output = facts.output_weight_bytes or facts.embedding_weight_bytes
    repeating = facts.weight_bytes - facts.embedding_weight_bytes - facts.output_weight_bytes
    moved = min(_kept_in_ram(facts, demand), repeating)
    per_layer = (repeating - moved) / layers
    cache = _cache_by_layer(facts, demand, context, sequences)
    cards = [range(layers)[part] for part in _parts(layers, units, demand.tensor_parallel)]
    weights = [per_layer * len(card) for card in cards]
    weights[-1] += output if units else 0
    taken = [sum(cache[layer] for layer in card) for card in cards]
    away = repeating - moved - per_layer * sum(len(card) for card in cards) + moved
    if demand.arguments.flag("--kv-offload") is False:
        taken = [0.0]
    host = away + (0 if units else facts.output_weight_bytes) + sum(cache) - sum(taken)
    return _Held(weights=_whole(max(weights)), cache=_whole(max(taken)), host=_whole(host))


def _whole(size: float) -> int:
    """Round up, but not what only the sum of many fractions has over."""
    return math.ceil(round(size, 3))


def _parts(layers: int, units: int, cards: int) -> Iterator[slice]:
    """Yield the layers of each card; the output is the unit after the last layer."""
    first = layers + 1 - units
    for card in range(cards):
        begin, end = (first + math.ceil(units * number / cards) for number in (card, card + 1))
        yield slice(min(begin, layers), min(end, layers))


def _count_layers(facts: ModelMetadata) -> int:
    return max(facts.layers or len(facts.attention) + len(facts.states), 1)


def _cache_by_layer(facts: ModelMetadata, demand: Demand, context: int, sequences: int) -> list[float]:
    """Return bytes of each layer's keys and values, for so many requests of so many tokens.

    States are kept in 32 bits for each slot (llama-hparams.cpp, n_embd_r and n_embd_s). Where layers have one or the
    other, each counts as their mean.
    """
    layers = _count_layers(facts)
    kept = [_layer_cache(layer, demand, context, sequences) for layer in facts.attention]
    if len(kept) == layers and not facts.states:
        return kept
    states = sum((state.inputs + state.memory) * 4 for state in facts.states) * count_slots(demand)
    return [(sum(kept) + states) / layers] * layers


def _layer_cache(layer: Attention, demand: Demand, context: int, sequences: int) -> float:
    tokens = sequences * remembered_tokens(layer, demand, context)
    key, value = (CACHE_TYPES.get(kind, 2.0) for kind in cache_types(demand))
    return tokens * layer.kv_heads * (layer.key_dim * key + layer.value_dim * value)


def _kept_in_ram(facts: ModelMetadata, demand: Demand) -> int:
    """Return bytes of the whole model's experts that the operator keeps off the cards."""
    experts = len(facts.experts) if demand.has("--cpu-moe") else max(demand.number("--n-cpu-moe") or 0, 0)
    return sum(facts.experts[:experts])


# --- Overhead -------------------------------------------------------------------------------------------------------


def _prompts_in_ram(demand: Demand) -> int:
    """Return bytes that its server keeps of past conversations: by the argument, else as it is started."""
    given = demand.number("--cache-ram")
    if given is not None:
        return (given if given >= 0 else UNBOUNDED_PROMPTS) * MIB
    return PROMPTS_IN_RAM * MIB if demand.kind == "gpu" and TRAITS[demand.launcher].keeps_prompts else 0


def _overhead(facts: ModelMetadata, demand: Demand, context: int, sequences: int) -> int:
    """Return what its log calls compute buffer, and what else was seen: libraries, and a little of each token."""
    compute = compute_buffer(facts, demand, context, sequences)
    if demand.kind == "gpu":
        return CUDA_CONTEXT + compute + _fetched_weights(facts, demand, context) + _pool(facts, demand, context)
    process = TRAITS[demand.launcher].process + (facts.vocabulary or 128_000) * PER_WORD
    return process + compute + _outputs(facts, demand, context) + _prompts_in_ram(demand)


def _fetched_weights(facts: ModelMetadata, demand: Demand, context: int) -> int:
    """Return room for what is kept in RAM and computed on a card: a matrix, or a layer's keys and values, at a time."""
    layers = _count_layers(facts)
    fetched = 0
    if _kept_in_ram(facts, demand):
        fetched = max(facts.experts) // 3
    elif units_on_cards(layers, demand) <= layers:
        fetched = (facts.weight_bytes - facts.embedding_weight_bytes - facts.output_weight_bytes) // layers // 3
    if demand.arguments.flag("--kv-offload") is False:
        fetched += math.ceil(max((_layer_cache(layer, demand, context, 1) for layer in facts.attention), default=0))
    return fetched


def _pool(facts: ModelMetadata, demand: Demand, context: int) -> int:
    """Return what its kernels take while they work: the input of a matrix in the type that they compute in."""
    batch = min(batch_size(demand), round_to_cells(context))
    return batch * max(facts.feed_forward or 0, facts.hidden or 4096) * 4


def _outputs(facts: ModelMetadata, demand: Demand, context: int) -> int:
    """Return bytes of RAM for the outputs: a number for each word of the vocabulary and each answer made at a time.

    For an encoder for each token that it reads at a time, although it has no use for them (seen: 122 kB a token for
    MiniLM's 30,522 words).
    """
    slots, batch = count_slots(demand), batch_size(demand)
    rows = slots if demand.task == "chat" else min(batch, context * slots)
    if demand.has("--logits_all"):  # of llama-cpp-python: those of a batch, and its own copy of the whole context's
        rows = batch + context
    return rows * (facts.vocabulary or 128_000) * 4


def _copied_bytes(facts: ModelMetadata, demand: Demand) -> int:
    """Return bytes of weights that llama.cpp copies on CPUs: some quantisations get another layout there."""
    if demand.kind == "gpu" or not facts.quantisation.startswith(REPACKED):
        return 0
    return max(0, facts.weight_bytes - facts.embedding_weight_bytes)
