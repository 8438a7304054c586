"""Model directories of random weights for vLLM: the tiny Llama's tokenizer and configuration, in another size."""

import json
import shutil
import struct
from math import prod
from pathlib import Path

import numpy as np


def write(
    directory: Path, like: Path, *, layers: int, hidden: int, feed_forward: int, heads: int, kv_heads: int
) -> Path:
    """Write a checkpoint in bfloat16. `like`: a directory with a Llama, see `tests.engines.tiny_llama`."""
    directory.mkdir()
    for file in like.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, directory)
    config = json.loads((like / "config.json").read_text())
    config |= {"num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": feed_forward}
    config |= {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": hidden // heads}
    config |= {"max_position_embeddings": 8192}
    (directory / "config.json").write_text(json.dumps(config))
    _weights(directory / "model.safetensors", _tensors(config))
    return directory


def _tensors(config: dict[str, int]) -> dict[str, tuple[int, ...]]:
    hidden, wide, words = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (wide, hidden),
        "mlp.up_proj": (wide, hidden),
        "mlp.down_proj": (hidden, wide),
    }
    ends: dict[str, tuple[int, ...]] = {"model.embed_tokens": (words, hidden), "lm_head": (words, hidden)}
    blocks = {
        f"model.layers.{number}.{name}": size
        for number in range(config["num_hidden_layers"])
        for name, size in layer.items()
    }
    return {f"{name}.weight": size for name, size in (ends | {"model.norm": (hidden,)} | blocks).items()}


def _weights(path: Path, tensors: dict[str, tuple[int, ...]]) -> None:
    head, end = {}, 0
    for name, size in tensors.items():
        head[name] = {"dtype": "BF16", "shape": list(size), "data_offsets": [end, end + 2 * prod(size)]}
        end += 2 * prod(size)
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    chance = np.random.default_rng(1)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for size in tensors.values():
            numbers = np.ones(size, np.float32) if len(size) == 1 else chance.standard_normal(size, np.float32) * 0.02
            # The upper half of a float32 is its bfloat16, cut off.
            file.write((numbers.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes())
