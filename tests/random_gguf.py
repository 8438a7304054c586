"""GGUF files of random weights in the shapes of known architectures, so large that their weights count.

What such a model says means nothing; what it takes is what a real one of its shape takes. Written, not converted: no
package ships small models with sliding windows, and CI may not fetch others.
"""

import math
import os
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

TYPES = {"F16": gguf.GGMLQuantizationType.F16, "Q8_0": gguf.GGMLQuantizationType.Q8_0}
TYPES |= {"Q4_0": gguf.GGMLQuantizationType.Q4_0, "Q4_K": gguf.GGMLQuantizationType.Q4_K}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """`architecture`: llama, qwen2, qwen3moe, gemma2 or gemma3. `window`: of the sliding layers that it has.

    `tied`: the output is computed with the embedding. `experts` have `feed_forward` each; `chosen` of them work on a
    token. `pooled`: a text becomes one vector, by its last token.
    """

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
    tied: bool = True
    experts: int = 0
    chosen: int = 0
    pooled: bool = False


def write(path: Path, shape: Shape) -> Path:
    """Take about 10 s for 300 MB. The same weights for every shape; not in Q4_K, which `gguf` only reads."""
    writer = _describe(path, shape)
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


def write_hollow(path: Path, shape: Shape, *, words: bool = True) -> Path:
    """Write a file of the same size whose weights are zeros, which take neither time nor disk.

    Without `words` it says only how many there are: no engine reads that, and it takes 10 ms instead of 2 s.
    """
    writer = _describe(path, shape, words=words)
    size = 0
    for name, numbers in _tensors(shape).items():
        kind = gguf.GGMLQuantizationType.F32 if len(numbers) == 1 else TYPES[shape.quantisation]
        block, taken = gguf.GGML_QUANT_SIZES[kind]
        held = math.prod(numbers) // block * taken
        writer.add_tensor_info(name, numbers, np.dtype(np.float32), held, raw_dtype=kind)
        size += gguf.GGUFWriter.ggml_pad(held, writer.data_alignment)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as file:
        head = file.seek(0, os.SEEK_END)
        file.truncate(gguf.GGUFWriter.ggml_pad(head, writer.data_alignment) + size)
    return path


def _describe(path: Path, shape: Shape, *, words: bool = True) -> gguf.GGUFWriter:
    writer = gguf.GGUFWriter(path, shape.architecture)
    _about(writer, shape)
    if words:
        _tokenizer(writer, shape.vocabulary)
    else:
        writer.add_vocab_size(shape.vocabulary)
    return writer


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
    if not shape.architecture.startswith("gemma"):
        writer.add_rope_dimension_count(shape.head_dim)
    if shape.window:
        writer.add_sliding_window(shape.window)
    if shape.experts:
        writer.add_expert_count(shape.experts)
        writer.add_expert_used_count(shape.chosen)
        writer.add_expert_feed_forward_length(shape.feed_forward)
    if shape.pooled:
        writer.add_pooling_type(gguf.PoolingType.LAST)
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
    if not shape.tied:
        found["output.weight"] = (shape.vocabulary, shape.hidden)
    for layer in range(shape.layers):
        block: dict[str, tuple[int, ...]] = {
            "attn_norm.weight": (shape.hidden,),
            "attn_q.weight": (queries, shape.hidden),
            "attn_k.weight": (keys, shape.hidden),
            "attn_v.weight": (keys, shape.hidden),
            "attn_output.weight": (shape.hidden, queries),
            "ffn_norm.weight": (shape.hidden,),
        }
        if shape.experts:
            block |= {
                "ffn_gate_inp.weight": (shape.experts, shape.hidden),
                "ffn_gate_exps.weight": (shape.experts, shape.feed_forward, shape.hidden),
                "ffn_up_exps.weight": (shape.experts, shape.feed_forward, shape.hidden),
                "ffn_down_exps.weight": (shape.experts, shape.hidden, shape.feed_forward),
            }
        else:
            block |= {
                "ffn_gate.weight": (shape.feed_forward, shape.hidden),
                "ffn_up.weight": (shape.feed_forward, shape.hidden),
                "ffn_down.weight": (shape.hidden, shape.feed_forward),
            }
        if shape.architecture == "qwen2":
            block |= {"attn_q.bias": (queries,), "attn_k.bias": (keys,), "attn_v.bias": (keys,)}
        if shape.architecture.startswith("gemma"):
            block |= {"post_attention_norm.weight": (shape.hidden,), "post_ffw_norm.weight": (shape.hidden,)}
        if shape.architecture in ("gemma3", "qwen3moe"):
            block |= {"attn_q_norm.weight": (shape.head_dim,), "attn_k_norm.weight": (shape.head_dim,)}
        found |= {f"blk.{layer}.{name}": size for name, size in block.items()}
    return found
