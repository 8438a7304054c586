"""What llama.cpp computes a micro-batch in: its compute buffer, taken whole at the start on cards. Bytes. Pure.

The formulas are those of its graphs (b11434), fitted to what llama-server says that it takes (its "memory breakdown")
in 37 starts of seven shapes; tests/modelregistry/memory/test_llama_cpp_cards.py has them.
"""

from modelregistry.files.metadata import ModelMetadata
from modelregistry.memory.estimate import Demand
from modelregistry.memory.llama_cpp_start import (
    TRAITS,
    batch_size,
    cache_types,
    count_slots,
    remembered_tokens,
    round_to_cells,
    uses_flash_attention,
)

FLOAT = 4  # bytes of a number in it
# Vectors of the hidden size that live beside the widest step, and beside attention.
BESIDE_FEED_FORWARD = 4
BESIDE_ATTENTION = 5.5
# A model on several cards is computed in a pipeline: so many copies of what a card is given (ggml-backend.cpp).
PIPELINE = 4
BESIDE_PIPELINE = 12
WIDTH = 11 / 3  # of a feed-forward part whose width is unknown, in hidden sizes


def compute_buffer(facts: ModelMetadata, demand: Demand, context: int, sequences: int) -> int:
    """Return bytes on each device, for so many requests of so many tokens.

    The largest of what is alive at a time: within the feed-forward part, within attention, and at the output.
    """
    batch = min(batch_size(demand), round_to_cells(context))
    hidden = facts.hidden or 4096
    split = demand.tensor_parallel > 1
    feed_forward = 3 * (facts.feed_forward or hidden * WIDTH) + facts.experts_per_token * hidden
    widest = max(
        batch * FLOAT * (feed_forward + BESIDE_FEED_FORWARD * hidden),
        batch * FLOAT * BESIDE_ATTENTION * hidden + _attention(facts, demand, batch, context, sequences),
        batch * FLOAT * BESIDE_FEED_FORWARD * hidden + _logits(facts, demand, batch),
    )
    pipeline = batch * FLOAT * BESIDE_PIPELINE * hidden if split else 0
    masks = batch * _masked_tokens(facts, demand, context) * (2 if uses_flash_attention(demand) else FLOAT)
    return round(widest + pipeline + masks * (PIPELINE if split else 1))


def _masked_tokens(facts: ModelMetadata, demand: Demand, context: int) -> int:
    """Return tokens that masks are over: one for all layers, and one for those with a window."""
    if not facts.attention:
        return round_to_cells(context)
    return sum({layer.window: remembered_tokens(layer, demand, context) for layer in facts.attention}.values())


def _attention(facts: ModelMetadata, demand: Demand, batch: int, context: int, sequences: int) -> float:
    """Return what attention takes beside its vectors.

    In one step: keys and values of one layer in 16 bits, where they are kept in others. Else a number for each head,
    token and remembered token. In RAM this comes only with long prompts, and is not counted.
    """
    cells = round_to_cells(context)
    if demand.kind == "ram":
        return 0
    if not uses_flash_attention(demand):
        return (facts.heads or 32) * cells * batch * FLOAT
    keys, values = (kind != "f16" for kind in cache_types(demand))
    return max(
        (
            2 * sequences * cells * layer.kv_heads * (layer.key_dim * keys + layer.value_dim * values)
            for layer in facts.attention
        ),
        default=0,
    )


def _logits(facts: ModelMetadata, demand: Demand, batch: int) -> int:
    """Return what the output takes: a number for each word, of a chat for each slot.

    Of a decoder that embeds or ranks for each token, although only vectors are asked for; of an encoder none. What no
    answer fills does not show in RAM.
    """
    bounded = demand.kind == "ram" or TRAITS[demand.launcher].bounds_outputs
    rows = min(count_slots(demand), batch) if bounded else batch
    if demand.task != "chat":
        rows = batch if facts.attention or facts.states else 0
    return rows * (facts.vocabulary or 128_000) * FLOAT
