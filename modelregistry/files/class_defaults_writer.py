"""Writes class_defaults.json: what a configuration class of vLLM's environment fills in where config.json is silent.

Run by that environment's Python, once for each version of vLLM that is locked:

    ~/.cache/madoguchi/engines/vllm-*/bin/python modelregistry/files/class_defaults_writer.py

Sources: the dataclass fields and constructors of transformers' configuration classes and of vLLM's own
(`vllm.transformers_utils.configs`), which vLLM prefers. Only what a plan of memory reads is kept, as it is written in
the class: a value that the class computes from others (None there) is computed by `architecture` as well.
"""

import dataclasses
import inspect
import json
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

KEPT = frozenset(
    [
        *("hidden_size", "n_embd", "n_embed", "d_model", "vocab_size"),
        *("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"),
        *("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"),
        *("num_key_value_heads", "n_head_kv", "num_kv_heads", "multi_query_group_num", "num_attention_groups"),
        *("multi_query", "multi_query_attention", "new_decoder_architecture", "attention_k_eq_v"),
        *("head_dim", "attention_head_dim", "v_head_dim", "kv_channels", "hidden_size_per_head"),
        *("kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "index_head_dim", "index_topk", "compress_ratios"),
        *("sliding_window", "use_sliding_window", "max_window_layers", "sliding_window_pattern"),
        *("layer_types", "layers_block_type", "attention_chunk_size", "no_rope_layer_interval", "num_kv_shared_layers"),
        *("global_head_dim", "num_global_key_value_heads", "swa_head_dim", "swa_num_key_value_heads", "swa_v_head_dim"),
        *(
            "full_attention_interval",
            "attn_layer_period",
            "attn_layer_offset",
            "attn_layer_indices",
            "layer_group_size",
        ),
        *("linear_num_key_heads", "linear_num_value_heads", "linear_key_head_dim", "linear_value_head_dim"),
        *("linear_conv_kernel_dim", "conv_L_cache", "conv_dim", "mamba_expand", "expand", "intermediate_size"),
        *("mamba_num_heads", "mamba_n_heads", "n_mamba_heads", "mamba_head_dim", "mamba_d_head", "mamba_headdim"),
        *("n_groups", "mamba_n_groups", "mamba_ngroups", "ssm_state_size", "mamba_d_state", "state_size"),
        *("conv_kernel", "mamba_d_conv", "mamba_d_ssm", "mamba_ssm_cache_dtype", "mamba_ssm_dtype"),
        *("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length"),
        *("max_target_positions", "max_sequence_length", "max_seq_length", "seq_len", "max_source_positions"),
    ]
)
# Of the kinds that have none of these nothing is kept: they see, hear or draw, and remember no tokens.
TELLING = frozenset(
    [*("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "ssm_state_size", "compress_ratios")]
)


def read_defaults(kind: type) -> dict[str, Any]:
    """Return the defaults of a class: from its fields, else from its constructor."""
    found: dict[str, Any] = {}
    for name, parameter in inspect.signature(kind.__init__).parameters.items():  # type: ignore[misc]
        found[name] = parameter.default
    if dataclasses.is_dataclass(kind):
        found |= {field.name: field.default for field in dataclasses.fields(kind)}
    return {name: found[name] for name in sorted(KEPT & found.keys()) if _is_plain(found[name])}


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(isinstance(each, str | int) for each in value)
    return isinstance(value, bool | int | str)


def text_kind(kind: type) -> str:
    """Return the model type of the language part of a model that sees or hears as well; "": it has none."""
    part = (getattr(kind, "sub_configs", None) or {}).get("text_config")
    named = getattr(part, "model_type", "") if part is not None else ""
    if not named and part is not None:
        try:
            named = kind().text_config.model_type
        except Exception:  # noqa: BLE001 -- any class of theirs: one that cannot be made without words has no default
            named = ""
    return str(named)


def layer_pattern(kind: type) -> list[str]:
    """Return what kinds of layers the class makes, as far as they repeat themselves; []: it does not say."""
    try:
        made = kind()
        layers = [str(each) for each in getattr(made, "layer_types", None) or []]
    except Exception:  # noqa: BLE001 -- as above
        return []
    periods = (
        length
        for length in range(1, len(layers) // 2 + 1)
        if all(layer == layers[place % length] for place, layer in enumerate(layers))
    )
    return layers[: next(periods, 0)]


def list_kinds() -> Iterator[tuple[str, type]]:
    """Yield every model type and its class; vLLM's come first, as it takes them before those of transformers."""
    own = import_module("vllm.transformers_utils.config")._CONFIG_REGISTRY
    yield from ((name, own[name]) for name in own)
    theirs = import_module("transformers.models.auto.configuration_auto").CONFIG_MAPPING
    yield from ((name, theirs[name]) for name in theirs if name not in own)


def main() -> None:
    found: dict[str, dict[str, Any]] = {}
    for name, kind in list_kinds():
        values = read_defaults(kind)
        text = text_kind(kind)
        if text and text != name:
            found[name] = {"text": text}
        elif values.keys() & TELLING:
            pattern = layer_pattern(kind)
            found[name] = values | ({"pattern": pattern} if pattern else {})
    made_of = {"vllm": version("vllm"), "transformers": version("transformers")}
    lines = [f'"{name}": {json.dumps(found[name])}' for name in sorted(found)]
    text = f'{{"of": {json.dumps(made_of)},\n"kinds": {{\n' + ",\n".join(lines) + "\n}}\n"
    json.loads(text)
    Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).with_name("class_defaults.json")).write_text(text)


if __name__ == "__main__":
    main()
