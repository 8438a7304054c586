"""Models of full size that take no room: real headers and configurations in front of a hole in the file.

Everything that is read from a model's files without loading it is as of the real one: shapes, types, sizes, parts.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, PoolingType
from gguf.constants import GGML_QUANT_SIZES

Shapes = Mapping[str, tuple[str, Sequence[int]]]  # name -> (type, dimensions)
BYTES = {"F32": 4, "I32": 4, "BF16": 2, "F16": 2, "I16": 2, "F8_E4M3": 1, "I8": 1, "U8": 1}
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


# --- Hugging Face


def safetensors(path: Path, tensors: Shapes) -> int:
    """Write the file; the bytes of its data."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape) in tensors.items():
        end = offset + prod(shape) * BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    data = json.dumps(header).encode()
    data += b" " * (-len(data) % 8)
    path.write_bytes(len(data).to_bytes(8, "little") + data)
    with path.open("r+b") as file:
        file.truncate(8 + len(data) + offset)
    return offset


def directory(
    path: Path, config: Mapping[str, Any], tensors: Shapes, *, shards: int = 1, template: bool = True
) -> Path:
    """Return a model directory; its tensors dealt out in order over so many files."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE} if template else {}))
    if shards == 1:
        safetensors(path / "model.safetensors", tensors)
        return path
    names, per_shard = list(tensors), -(-len(tensors) // shards)
    where: dict[str, str] = {}
    total = 0
    for number in range(shards):
        part = names[number * per_shard : (number + 1) * per_shard]
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        total += safetensors(path / file, {name: tensors[name] for name in part})
        where |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


def llama_config(**changes: Any) -> dict[str, Any]:
    """Return a small Llama's configuration."""
    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    rest = {"num_key_value_heads": 2, "max_position_embeddings": 2048, "vocab_size": 320}
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **small, **rest, **changes}


def decoder(config: Mapping[str, Any], *, norms: Sequence[str], dtype: str = "BF16", tied: bool = False) -> Shapes:
    """Return the tensors of a Llama or of one of its relatives."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head = config.get("head_dim") or hidden // config["num_attention_heads"]
    wide, narrow = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    parts: dict[str, tuple[int, ...]] = {
        **{"self_attn.q_proj": (wide, hidden), "self_attn.k_proj": (narrow, hidden)},
        **{"self_attn.v_proj": (narrow, hidden), "self_attn.o_proj": (hidden, wide)},
        **{"mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner)},
        **{norm: (hidden,) for norm in norms},
    }
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {
        "model.embed_tokens.weight": (dtype, (config["vocab_size"], hidden))
    }
    for layer in range(config["num_hidden_layers"]):
        tensors |= {f"model.layers.{layer}.{name}.weight": (dtype, shape) for name, shape in parts.items()}
    tensors["model.norm.weight"] = (dtype, (hidden,))
    return tensors if tied else tensors | {"lm_head.weight": (dtype, (config["vocab_size"], hidden))}


LLAMA_NORMS = ("input_layernorm", "post_attention_layernorm")
GEMMA_NORMS = (*LLAMA_NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm")


def small_llama(path: Path, *, template: bool = True, **config: Any) -> Path:
    said = llama_config(**config)
    return directory(path, said, decoder(said, norms=LLAMA_NORMS), template=template)


def ezo_9b(path: Path) -> Path:
    """Return EZO-Common-9B-gemma-2-it: Gemma 2 9B in BF16, 9.24 billion parameters, 18.5 GB in four files."""
    config = {
        **{"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "torch_dtype": "bfloat16"},
        **{"hidden_size": 3584, "intermediate_size": 14336, "num_hidden_layers": 42, "num_attention_heads": 16},
        **{"num_key_value_heads": 8, "head_dim": 256, "query_pre_attn_scalar": 256, "vocab_size": 256000},
        **{"max_position_embeddings": 8192, "sliding_window": 4096, "sliding_window_size": 4096},
        **{"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "cache_implementation": "hybrid"},
    }
    return directory(path, config, decoder(config, norms=GEMMA_NORMS, tied=True), shards=4)


def llama_70b_config() -> dict[str, Any]:
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_type": "llama3"}
    return {
        **{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "float16"},
        **{"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64},
        **{"num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072, "rope_theta": 500000.0},
        "rope_scaling": {**scaling, "original_max_position_embeddings": 8192},
    }


def llama_70b_awq(path: Path) -> Path:
    """Return Llama-3.1-70B-Japanese-Instruct-2407 in AWQ INT4: 70.6 billion parameters, 39.8 GB in nine files."""
    awq = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True}
    config = {**llama_70b_config(), "quantization_config": {**awq, "modules_to_not_convert": None}}
    tensors: dict[str, tuple[str, Sequence[int]]] = {}
    for name, (dtype, shape) in decoder(config, norms=LLAMA_NORMS, dtype="F16").items():
        if "_proj." not in name:
            tensors[name] = (dtype, shape)
            continue
        stem, (outputs, inputs) = name.removesuffix("weight"), shape
        tensors[f"{stem}qweight"] = ("I32", (inputs, outputs // 8))
        tensors[f"{stem}qzeros"] = ("I32", (inputs // 128, outputs // 8))
        tensors[f"{stem}scales"] = ("F16", (inputs // 128, outputs))
    return directory(path, config, tensors, shards=9)


# --- GGUF


def gguf(
    path: Path, architecture: str = "llama", values: Mapping[str, Any] | None = None, tensors: Shapes | None = None
) -> Path:
    """Return a GGUF file, written by the format's own package.

    `values`: by key, the architecture before it left out.
    """
    made = {"context_length": 8192, "embedding_length": 64, "block_count": 2, "attention.head_count": 4}
    writer = GGUFWriter(None, architecture)
    for key, value in {**made, **(values or {})}.items():
        whole = key if key.startswith(("general.", "tokenizer.", "split.")) else f"{architecture}.{key}"
        _add(writer, whole, value)
    size = 0
    for name, (dtype, shape) in (tensors or {"token_embd.weight": ("F16", (320, 64))}).items():
        kind = GGMLQuantizationType[dtype]
        block, per_block = GGML_QUANT_SIZES[kind]
        count = prod(shape) // block * per_block
        writer.add_tensor_info(name, shape, np.dtype(np.float32), count, raw_dtype=kind)  # raw_dtype is what counts
        size += GGUFWriter.ggml_pad(count, writer.data_alignment)
    path.parent.mkdir(parents=True, exist_ok=True)
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as file:
        head = file.seek(0, 2)
        file.truncate(GGUFWriter.ggml_pad(head, writer.data_alignment) + size)
    return path


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    add: dict[type, Callable[[str, Any], None]] = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    add[type(value)](key, value)


def e5_large(path: Path, dtype: str = "F16") -> Path:
    """Return multilingual-e5-large-instruct as llama.cpp converts it: XLM-RoBERTa large, 560 M parameters, 1.1 GB."""
    layers, hidden, inner, words = 24, 1024, 4096, 250002
    values = {
        **{"general.name": "multilingual-e5-large-instruct", "general.file_type": int(LlamaFileType.MOSTLY_F16)},
        **{"context_length": 512, "embedding_length": hidden, "feed_forward_length": inner, "block_count": layers},
        **{"attention.head_count": 16, "attention.causal": False, "pooling_type": int(PoolingType.MEAN)},
        **{"tokenizer.ggml.model": "t5", "tokenizer.ggml.tokens": [f"word {n}" for n in range(words)]},
    }
    tensors: dict[str, tuple[str, Sequence[int]]] = {
        "token_embd.weight": (dtype, (words, hidden)),
        "position_embd.weight": ("F32", (512, hidden)),
        "token_types.weight": ("F32", (1, hidden)),
        **{f"token_embd_norm.{kind}": ("F32", (hidden,)) for kind in ("weight", "bias")},
    }
    shapes = {
        **{f"attn_{name}": (hidden, hidden) for name in ("q", "k", "v", "output")},
        **{"ffn_up": (inner, hidden), "ffn_down": (hidden, inner)},
        **{"attn_output_norm": (hidden,), "layer_output_norm": (hidden,)},
    }
    for layer in range(layers):
        for name, shape in shapes.items():
            tensors[f"blk.{layer}.{name}.weight"] = (dtype if len(shape) == 2 else "F32", shape)
            tensors[f"blk.{layer}.{name}.bias"] = ("F32", shape[:1])
    return gguf(path, "bert", values, tensors)
