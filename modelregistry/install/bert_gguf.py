"""Makes a GGUF file, as llama.cpp reads it, from a BERT sentence-embedding model in Hugging Face's form.

Bytes in, bytes out; standard library only, so neither torch nor numpy has to be fetched for one small model. It knows
uncased BERT with mean pooling (all-MiniLM and its family), nothing else. Formats: ggml's docs/gguf.md (version 3) and
the README of safetensors; key and tensor names are those that llama.cpp expects of the architecture "bert".
"""

import json
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

# GGUF's numbers for types of values and of tensors, and for what we have to say with them
UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
F32, F16 = 0, 1
MOSTLY_F16 = 1
MEAN_POOLING = 1
NORMAL_TOKEN, CONTROL_TOKEN = 1, 3
ALIGNMENT = 32  # bytes; GGUF's default

NAMES = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "token_embd_norm",
}
LAYER = re.compile(r"encoder\.layer\.(\d+)\.(.+)")
NAMES_IN_LAYER = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}
# llama.cpp adds these two to other rows, which it does in 32 bits
ALWAYS_F32 = ("position_embd.weight", "token_types.weight")


class NotThisKind(ValueError):
    """The model is of a kind that this converter does not know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """`shape` outermost first; `data` little-endian 32-bit floats."""

    name: str
    shape: tuple[int, ...]
    data: memoryview

    @property
    def type(self) -> int:
        return F16 if len(self.shape) == 2 and self.name not in ALWAYS_F32 else F32

    @property
    def size(self) -> int:
        """Bytes in the GGUF file."""
        return len(self.data) // 2 if self.type == F16 else len(self.data)


def convert(*, config: bytes, vocabulary: bytes, safetensors: bytes, name: str, to: BinaryIO) -> None:
    """Write the GGUF file of config.json, vocab.txt and model.safetensors. Raises NotThisKind."""
    metadata = _metadata(json.loads(config), vocabulary.decode().splitlines(), name)
    write_gguf(metadata, list(read_tensors(safetensors)), to)


def read_tensors(safetensors: bytes) -> Iterator[Tensor]:
    """Yield the tensors that llama.cpp uses, under its names. Raises NotThisKind for one that is not BERT's."""
    (length,) = struct.unpack_from("<Q", safetensors)
    start = 8 + length
    index = json.loads(safetensors[8:start])
    index.pop("__metadata__", None)
    for source, about in index.items():
        name = _name(source)
        if name:
            if about["dtype"] != "F32":
                raise NotThisKind(f"{source} is {about['dtype']}; only F32 is known")
            begin, end = (start + offset for offset in about["data_offsets"])
            yield Tensor(name=name, shape=tuple(about["shape"]), data=memoryview(safetensors)[begin:end])


def write_gguf(metadata: Mapping[str, tuple[int, Any]], tensors: list[Tensor], to: BinaryIO) -> None:
    """Write a GGUF file of `metadata` (key -> (type, value); an array's value is (item type, items)) and tensors."""
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(metadata))
    head += b"".join(
        _string(key) + struct.pack("<I", kind) + _value(kind, value) for key, (kind, value) in metadata.items()
    )
    offset = 0
    for tensor in tensors:
        shape = tuple(reversed(tensor.shape))  # GGUF names the innermost dimension first
        head += _string(tensor.name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, tensor.type, offset)
        offset += _align(tensor.size)
    to.write(head.ljust(_align(len(head)), b"\0"))
    for tensor in tensors:
        for piece in to_float16(tensor.data) if tensor.type == F16 else [tensor.data]:
            to.write(piece)
        to.write(bytes(_align(tensor.size) - tensor.size))


def to_float16(floats: memoryview) -> Iterator[bytes]:
    """Yield the same numbers in 16 bits, rounded to the nearest."""
    step = 4 * 65536
    for begin in range(0, len(floats), step):
        piece = floats[begin : begin + step]
        count = len(piece) // 4
        yield struct.pack(f"<{count}e", *struct.unpack(f"<{count}f", piece))


def _name(source: str) -> str:
    """Return llama.cpp's name of a tensor; empty for one that it does without."""
    if source == "embeddings.position_ids" or source.startswith("pooler."):
        return ""
    stem, _, kind = source.rpartition(".")
    layer = LAYER.fullmatch(stem)
    known = NAMES_IN_LAYER.get(layer[2]) if layer else NAMES.get(stem)
    if not known:
        raise NotThisKind(f"{source} is no tensor of BERT")
    return f"blk.{layer[1]}.{known}.{kind}" if layer else f"{known}.{kind}"


def _metadata(config: dict[str, Any], vocabulary: list[str], name: str) -> dict[str, tuple[int, Any]]:
    if config["model_type"] != "bert":
        raise NotThisKind(f"model_type is {config['model_type']}, not bert")
    # The words in brackets that mean something to the model; "[unused7]" and "[" are words like others.
    control = {f"[{word}]": vocabulary.index(f"[{word}]") for word in ("PAD", "UNK", "CLS", "SEP", "MASK")}
    return {
        "general.architecture": (STRING, "bert"),
        "general.name": (STRING, name),
        "general.file_type": (UINT32, MOSTLY_F16),
        "bert.context_length": (UINT32, config["max_position_embeddings"]),
        "bert.embedding_length": (UINT32, config["hidden_size"]),
        "bert.feed_forward_length": (UINT32, config["intermediate_size"]),
        "bert.block_count": (UINT32, config["num_hidden_layers"]),
        "bert.attention.head_count": (UINT32, config["num_attention_heads"]),
        "bert.attention.layer_norm_epsilon": (FLOAT32, config["layer_norm_eps"]),
        "bert.attention.causal": (BOOL, False),
        "bert.pooling_type": (UINT32, MEAN_POOLING),
        "tokenizer.ggml.model": (STRING, "bert"),
        "tokenizer.ggml.pre": (STRING, "default"),
        "tokenizer.ggml.tokens": (ARRAY, (STRING, [_token(word, control) for word in vocabulary])),
        "tokenizer.ggml.token_type": (
            ARRAY,
            (INT32, [CONTROL_TOKEN if word in control else NORMAL_TOKEN for word in vocabulary]),
        ),
        "tokenizer.ggml.token_type_count": (UINT32, config["type_vocab_size"]),
        "tokenizer.ggml.padding_token_id": (UINT32, control["[PAD]"]),
        "tokenizer.ggml.unknown_token_id": (UINT32, control["[UNK]"]),
        # llama.cpp puts its "beginning" token before a text, which is where BERT wants [CLS]
        "tokenizer.ggml.bos_token_id": (UINT32, control["[CLS]"]),
        "tokenizer.ggml.cls_token_id": (UINT32, control["[CLS]"]),
        "tokenizer.ggml.seperator_token_id": (UINT32, control["[SEP]"]),  # (sic)
        "tokenizer.ggml.mask_token_id": (UINT32, control["[MASK]"]),
    }


def _token(word: str, control: Mapping[str, int]) -> str:
    """Mark where a word begins (▁), as llama.cpp does, rather than where it goes on (##)."""
    if word in control:
        return word
    return word[2:] if word.startswith("##") else f"\u2581{word}"


def _value(kind: int, value: Any) -> bytes:
    if kind == STRING:
        return _string(value)
    if kind == ARRAY:
        of, items = value
        return struct.pack("<IQ", of, len(items)) + b"".join(_value(of, item) for item in items)
    return struct.pack({UINT32: "<I", INT32: "<i", FLOAT32: "<f", BOOL: "<?"}[kind], value)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _align(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
