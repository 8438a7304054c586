"""The one door for numbers out of a model's files: typed and bounded here, so that no code behind it fears one.

The bounds are far above what any published model says, and so far below what a machine counts that what follows from
them can be computed, stored (63 bits) and shown. A file that breaks one is damaged, whatever else it says.
"""

from collections.abc import Iterable
from typing import Any

from modelregistry.files.metadata import Attention, ModelMetadata, RecurrentState
from modelregistry.files.text import clean_text

CONTEXT = 2**27  # tokens; Llama 4 Scout reads 10,485,760, the longest experiments 100 million
LAYERS = 1024  # Llama 3.1 405B has 126, the deepest of the pruned ones 162
HEADS = 2**14  # DeepSeek V3 and Llama 3.1 405B have 128
SIZE = 2**24  # of anything else: vocabularies have 262,208 words, feed-forward layers 200,000 numbers
# Numbers that a layer keeps of a token: heads × (key + value); 65,536 at most where each head has keys of its own.
ENTRY = 2**22
# Numbers of a layer's state: Falcon-H1 34B has a million.
STATE = 2**32
ELEMENTS = 2**50  # weights of a model: a thousand times the largest
BYTES = 2**52  # of a model's files
FILES = 100_000
SHOWN = 40  # characters of a value that is shown in a refusal

# What a configuration's names of contexts and windows mean by -1 (flash attention's word for "all"), and by Hugging
# Face's VERY_LARGE_INTEGER (10^30): nothing is said.
UNLIMITED = frozenset(
    ["sliding_window", "window_size", "attention_chunk_size", "model_max_length", "max_seq_len", "max_seq_length"]
)
VERY_LARGE_INTEGER = 10**30
_LAYER_NAMES = ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "decoder_layers", "num_nextn_predict_layers")
_HEAD_NAMES = (
    *("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads", "num_key_value_heads"),
    *("n_head_kv", "num_kv_heads", "multi_query_group_num", "num_attention_groups", "num_global_key_value_heads"),
    *("swa_num_key_value_heads", "linear_num_key_heads", "linear_num_value_heads", "mamba_num_heads", "mamba_n_heads"),
    *("n_mamba_heads", "kv_n_heads", "n_heads_in_group", "n_groups", "mamba_n_groups", "mamba_ngroups"),
)
_CONTEXT_NAMES = (
    *("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_target_positions", "seq_len"),
    *("max_sequence_length", "max_seq_length", "model_max_length", "sliding_window", "window_size"),
    *("attention_chunk_size", "max_source_positions", "original_max_position_embeddings"),
)
# By names of config.json; SIZE for those that are not here.
_MOST = {
    **dict.fromkeys(_LAYER_NAMES, LAYERS),
    **dict.fromkeys(_HEAD_NAMES, HEADS),
    **dict.fromkeys(_CONTEXT_NAMES, CONTEXT),
}


class OutOfBounds(Exception):
    """A file says a number that no model has.

    `name`: as the file calls it, `value`: as it is there; "": it is missing.
    """

    def __init__(self, name: str, value: object = "") -> None:
        self.name = clean_text(name, SHOWN)
        self.value = clean_text(value if isinstance(value, str) else _written(value), SHOWN)
        super().__init__(f"{self.name}: {self.value}")


def read_number(name: str, value: Any) -> int | None:
    """Return a number of a configuration. None: it holds none (null, true, a list, "auto"). Raises OutOfBounds.

    2048.0 is a whole number in JSON; 2.5 and NaN are none.
    """
    if isinstance(value, str):
        if value == "auto":
            return None
        raise OutOfBounds(name, value)
    if value is None or isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if name in UNLIMITED and (value == -1 or value >= VERY_LARGE_INTEGER):
        return None
    return bound_number(name, value, _MOST.get(name, SIZE))


def bound_number(name: str, value: int | float, most: int) -> int:
    """Return a whole number from 0 to `most`. Raises OutOfBounds."""
    if not 0 <= value <= most or value != int(value):  # NaN compares as false
        raise OutOfBounds(name, value)
    return int(value)


def _written(value: object) -> str:
    if isinstance(value, int) and abs(value) >= 2**64:  # Python writes no number of more than 4,300 digits
        return f"{'-' if value < 0 else ''}2^{abs(value).bit_length() - 1}"
    return str(value)


def check_metadata(facts: ModelMetadata) -> ModelMetadata:
    """Check what the readers made of the numbers: sums and products of bounded ones. Raises OutOfBounds."""
    sizes = {
        **{"context": (facts.context, CONTEXT), "layers": (facts.layers, LAYERS), "heads": (facts.heads, HEADS)},
        **{"hidden size": (facts.hidden, SIZE), "vocabulary": (facts.vocabulary, SIZE), "files": (facts.files, FILES)},
        **{"parameters": (facts.parameters, ELEMENTS), "largest item": (facts.whole, CONTEXT)},
        **{"bytes of weights": (facts.weight_bytes, BYTES), "bytes of experts": (sum(facts.experts), BYTES)},
        "bytes of the embedding": (facts.embedding_weight_bytes, BYTES),
        "bytes of the output": (facts.output_weight_bytes, BYTES),
        "feed-forward size": (facts.feed_forward, SIZE),
        "experts of a token": (facts.experts_per_token, HEADS),
        "bytes that guess ahead": (facts.unused_weight_bytes, BYTES),
    }
    for name, (value, most) in sizes.items():
        bound_number(name, value or 0, most)
    for size in facts.experts:
        bound_number("bytes of experts", size, BYTES)
    for layer in dict.fromkeys(facts.attention):
        _check_attention(layer)
    for state in dict.fromkeys(facts.states):
        _check_state(state)
    return facts


def _check_attention(layer: Attention) -> None:
    _bound_all("numbers of a token", (layer.kv_heads, layer.key_dim, layer.value_dim), SIZE)
    bound_number("numbers of a token", layer.kv_heads * (layer.key_dim + layer.value_dim), ENTRY)
    bound_number("window", layer.window or 0, CONTEXT)
    bound_number("tokens of an entry", layer.ratio, SIZE)
    bound_number("bytes of an entry", layer.fixed, ENTRY)


def _check_state(state: RecurrentState) -> None:
    _bound_all("numbers of a state", (state.inputs, state.memory), STATE)


def _bound_all(name: str, values: Iterable[int], most: int) -> None:
    for value in values:
        bound_number(name, value, most)
