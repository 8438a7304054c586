"""What one start of llama.cpp is asked for: tokens, requests, batches, layers on cards. Pure."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from modelregistry.engines.llama_cpp_arguments import DEFAULT_SLOTS
from modelregistry.files.metadata import Attention, ModelMetadata
from modelregistry.memory.estimate import MIB, Demand, bounded_context


@dataclass(frozen=True, slots=True, kw_only=True)
class LauncherTraits:
    """Where launchers differ in memory.

    `process`: bytes of the program and its libraries. `windowed`: a layer with a window keeps no more than that.
    `keeps_prompts`: past conversations stay in RAM. `bounds_outputs`: it takes room for one answer of each slot, not of
    each token of a batch. `flash_attention`: it computes attention in one step unless an argument turns that off.
    """

    process: int
    windowed: bool = True
    keeps_prompts: bool = True
    bounds_outputs: bool = True
    flash_attention: bool = True


# Overheads, calibrated on other models than those of the table in tests/bench/RESULTS.md. Of the two Pythons one brings
# FastAPI and NumPy.
TRAITS: Mapping[str, LauncherTraits] = {
    "llama-server": LauncherTraits(process=14 * MIB),
    "xllamacpp": LauncherTraits(process=34 * MIB),
    "llama-cpp-python": LauncherTraits(
        process=84 * MIB, windowed=False, keeps_prompts=False, bounds_outputs=False, flash_attention=False
    ),
}
CELLS = 256  # its caches are made of so many tokens
# Of a cache's element, as ggml's blocks of 32 hold the quantised ones (f16 scales beside the values).
CACHE_TYPES: Mapping[str, float] = {
    **{"f32": 4, "f16": 2, "bf16": 2, "q8_0": 34 / 32, "q5_1": 24 / 32, "q5_0": 22 / 32},
    **{"q4_1": 20 / 32, "q4_0": 18 / 32, "iq4_nl": 18 / 32},
}


def requested_context(facts: ModelMetadata, demand: Demand) -> tuple[int, int]:
    """Return tokens per request, and how many requests of that length are to be remembered."""
    slots = count_slots(demand)
    total = demand.number("--ctx-size", "-c", "--n_ctx")
    if total is None:
        total = (demand.context or 0) * slots
    if shares_cache(demand):
        return bounded_context(total or facts.context or 4096), 1
    return bounded_context(math.ceil(total / slots) or facts.context or 4096), max(slots, 1)


def count_slots(demand: Demand) -> int:
    """Return requests at a time; -1 lets it choose."""
    return max(demand.number("--parallel") or 0, 0) or demand.slots or DEFAULT_SLOTS


def shares_cache(demand: Demand) -> bool:
    """Return whether all slots share one pool: so it is started when the length of a request is left open."""
    unified = demand.arguments.flag("--kv-unified")
    return unified if unified is not None else demand.context is None or demand.slots == 1


def remembered_tokens(layer: Attention, demand: Demand, context: int) -> int:
    """Return tokens of one request, in this layer: no more than its window and what is computed at a time."""
    whole = round_to_cells(context)
    if layer.window is None or demand.has("--swa-full") or not TRAITS[demand.launcher].windowed:
        return whole
    sequences = demand.slots or DEFAULT_SLOTS
    windows = layer.window * (sequences if shares_cache(demand) else 1)
    return round_to_cells(min(whole, windows + batch_size(demand)))


def round_to_cells(tokens: int) -> int:
    return math.ceil(tokens / CELLS) * CELLS


def cache_types(demand: Demand) -> tuple[str, str]:
    """Return the types of keys and of values."""
    return demand.argument("--cache-type-k", "-ctk") or "f16", demand.argument("--cache-type-v", "-ctv") or "f16"


def batch_size(demand: Demand) -> int:
    """Return tokens that are computed at a time."""
    given = demand.number("--ubatch-size", "-ub", "--n_ubatch")
    if given is None and demand.task != "chat":
        given = max(demand.context or 8192, 512)  # as its engine starts it
    return given or 512


def uses_flash_attention(demand: Demand) -> bool:
    """Return whether attention is computed in one step; left to itself llama.cpp does so nearly everywhere."""
    said = demand.arguments.flag("--flash-attn", "-fa")
    return said if said is not None else TRAITS[demand.launcher].flash_attention


def units_on_cards(layers: int, demand: Demand) -> int:
    """Return how many of a model's layers are on cards, of which the output counts as the last one."""
    asked = demand.number("--n-gpu-layers", "-ngl", "--gpu-layers")
    return layers + 1 if asked is None or asked < 0 else min(asked, layers + 1)
