"""GGUF files of random weights in the shapes of known architectures, so large that their weights count.

What such a model says means nothing; what it takes is what a real one of its shape takes. Written, not converted: no
package ships small models with sliding windows, and CI may not fetch others.
"""

from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

TYPES = {"F16": gguf.GGMLQuantizationType.F16, "Q8_0": gguf.GGMLQuantizationType.Q8_0}
TYPES |= {"Q4_0": gguf.GGMLQuantizationType.Q4_0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """`architecture`: llama, qwen2, gemma2 or gemma3. `window`: of the sliding layers that this architecture has."""

    architecture: str
    quantisation: str
    layers: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int
    window: int = 0


def write(path: Path, shape: Shape) -> Path:
    """Take about 10 s for 300 MB. The same weights for every shape."""
    writer = gguf.GGUFWriter(path, shape.architecture)
    _about(writer, shape)
    _tokenizer(writer, shape.vocabulary)
    chance = np.random.default_rng(1)
    for name, size in _tensors(shape).items():
        if len(size) == 1:
            writer.add_tensor(name, np.ones(size, np.float32))
            continue
        numbers = chance.standard_normal(size, np.float32) * np.float32(0.02)
        kind = TYPES[shape.quantisation]
        writer.add_tensor(name, gguf.quants.quantize(numbers, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _about(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    if shape.architecture in ("llama", "qwen2"):
        writer.add_rope_dimension_count(shape.head_dim)
    if shape.window:
        writer.add_sliding_window(shape.window)
    if shape.architecture == "gemma2":
        writer.add_attn_logit_softcapping(50.0)
        writer.add_final_logit_softcapping(30.0)


def _tokenizer(writer: gguf.GGUFWriter, vocabulary: int) -> None:
    control, byte, normal = gguf.TokenType.CONTROL, gguf.TokenType.BYTE, gguf.TokenType.NORMAL
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{value:02X}>" for value in range(256))]
    types = [gguf.TokenType.UNKNOWN, control, control, *([byte] * 256)]
    tokens += [f"w{number}" for number in range(vocabulary - len(tokens))]
    types += [normal] * (vocabulary - len(types))
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * vocabulary)
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{% for message in messages %}{{ message['content'] }}{% endfor %}")


def _tensors(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Return names and sizes, as numpy has them: rows first."""
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    found: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (shape.vocabulary, shape.hidden),
        "output_norm.weight": (shape.hidden,),
    }
    if shape.architecture == "llama":
        found["output.weight"] = (shape.vocabulary, shape.hidden)
    for layer in range(shape.layers):
        block: dict[str, tuple[int, ...]] = {
            "attn_norm.weight": (shape.hidden,),
            "attn_q.weight": (queries, shape.hidden),
            "attn_k.weight": (keys, shape.hidden),
            "attn_v.weight": (keys, shape.hidden),
            "attn_output.weight": (shape.hidden, queries),
            "ffn_norm.weight": (shape.hidden,),
            "ffn_gate.weight": (shape.feed_forward, shape.hidden),
            "ffn_up.weight": (shape.feed_forward, shape.hidden),
            "ffn_down.weight": (shape.hidden, shape.feed_forward),
        }
        if shape.architecture == "qwen2":
            block |= {"attn_q.bias": (queries,), "attn_k.bias": (keys,), "attn_v.bias": (keys,)}
        if shape.architecture.startswith("gemma"):
            block |= {"post_attention_norm.weight": (shape.hidden,), "post_ffw_norm.weight": (shape.hidden,)}
        if shape.architecture == "gemma3":
            block |= {"attn_q_norm.weight": (shape.head_dim,), "attn_k_norm.weight": (shape.head_dim,)}
        found |= {f"blk.{layer}.{name}": size for name, size in block.items()}
    return found
