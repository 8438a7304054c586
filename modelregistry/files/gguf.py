"""Reads the headers of GGUF files, as llama.cpp's docs/gguf.md has them.

The `gguf` package's GGUFReader is not used: it makes an array object of every word of the vocabulary (2.7 s for
SmolLM2's 49,000 words, where a walk that keeps only what is asked for takes 0.03 s), and believes every length that a
broken file says.
"""

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from modelregistry.files import bounds, model_card
from modelregistry.files.bounds import HEADS, SIZE, OutOfBounds
from modelregistry.files.gguf_constants import (
    GGML_QUANT_SIZES,
    GGMLQuantizationType,
    GGUFValueType,
    HeaderKeys,
    LlamaFileType,
    PoolingType,
)
from modelregistry.files.metadata import Attention, ModelMetadata, RecurrentState
from modelregistry.files.regular import open_regular_file
from modelregistry.files.text import clean_text
from modelregistry.files.unreadable import UnreadableModel

# Bytes. Headers are 2 to 20 MB, nearly all of it vocabulary; a broken length must not fill the memory.
LONGEST_HEADER = 64 * 2**20
STEP = 2**20
MOST_TENSORS = 100_000  # the largest models have some thousand
MOST_PAIRS = 4096  # all have some dozens
MOST_PARTS = 1000
KEPT_TEXT = 1000  # bytes; of longer ones (the chat template) only that they are there
KEPT_ITEMS = bounds.LAYERS  # of arrays: one number per layer
# In parts only by this name does llama.cpp find the others.
PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")

SCALARS: Mapping[int, str] = {
    GGUFValueType.UINT8: "<B",
    GGUFValueType.INT8: "<b",
    GGUFValueType.UINT16: "<H",
    GGUFValueType.INT16: "<h",
    GGUFValueType.UINT32: "<I",
    GGUFValueType.INT32: "<i",
    GGUFValueType.FLOAT32: "<f",
    GGUFValueType.BOOL: "<?",
    GGUFValueType.UINT64: "<Q",
    GGUFValueType.INT64: "<q",
    GGUFValueType.FLOAT64: "<d",
}
# Every n-th layer sees everything, the others a window: fixed in llama.cpp's code (src/llama-model.cpp,
# set_swa_pattern), for those whose files do not say it.
WINDOWED = {
    **{"gemma2": 2, "gemma3": 6, "gemma3n": 5, "gemma-embedding": 6, "cohere2": 4, "gpt-oss": 2, "exaone4": 4},
    **{"olmo2": 4, "smallthinker": 4, "afmoe": 4, "plamo3": 8, "llama4": 4},
}
# How far back those see whose files do not say it.
WINDOWS = {"llama4": 8192}
# Every layer of these has a KV cache and a state; of the others those with a state have no heads for keys.
BOTH = frozenset(["falcon-h1"])
# They read all of an input at once and keep nothing (llama.cpp gives them no memory at all).
ENCODERS = re.compile(r".*bert.*|gemma-embedding|t5encoder")
# What --cpu-moe and --n-cpu-moe keep in RAM (common/arg.cpp).
EXPERTS = re.compile(r"blk\.(\d{1,4})\.ffn_(?:up|down|gate|gate_up)_(?:ch)?exps\..*")
MARKED_AS_GUESSED = LlamaFileType.GUESSED


# llama.cpp gives new types the next number; a file that says a much higher one is damaged.
_TYPES: Mapping[int, GGMLQuantizationType] = {kind.value: kind for kind in GGMLQuantizationType}
HIGHEST_TYPE = 127


class _Broken(Exception):
    """The bytes are not what the format says."""


@dataclass(frozen=True, slots=True)
class _Tensor:
    """`number`: of its type, which may have come into the format after us."""

    name: str
    elements: int
    number: int
    offset: int
    size: int

    @property
    def type(self) -> str:
        known = _TYPES.get(self.number)
        return known.name if known else f"type {self.number}"


@dataclass(frozen=True, slots=True)
class _Header:
    """`values`: by key; of arrays that are long or of texts only how many items they have. `start`: of the data."""

    values: dict[str, Any]
    tensors: tuple[_Tensor, ...]
    start: int


def read_gguf(path: Path) -> ModelMetadata:
    """Read what a model's first (or only) file and the other parts beside it say.

    Raises UnreadableModel, OutOfBounds, OSError.
    """
    parts = _list_parts(path)
    headers = [_read_header(part) for part in parts]
    values = headers[0].values
    if len(parts) == 1 and _read_number(values, HeaderKeys.Split.LLM_KV_SPLIT_COUNT, default=1) > 1:
        raise UnreadableModel("unnamed-part", path=path)
    return _build_metadata(path, values, [tensor for header in headers for tensor in header.tensors], len(parts))


def _list_parts(path: Path) -> list[Path]:
    """Return all parts of a model that comes in parts."""
    matched = PART.fullmatch(path.name)
    if not matched:
        return [path]
    stem, number, count = matched[1], int(matched[2]), int(matched[3])
    if number != 1:
        raise UnreadableModel("later-part", path=path)
    if count > MOST_PARTS:
        raise _broken(path)
    parts = [path.with_name(f"{stem}-{part:05}-of-{count:05}.gguf") for part in range(1, count + 1)]
    for part in parts:
        if not part.exists():
            raise UnreadableModel("missing-part", path=part)
    return parts


def _read_header(path: Path) -> _Header:
    with open_regular_file(path) as file:
        if file.read(4) != b"GGUF":
            raise UnreadableModel("not-gguf", path=path)
        length = path.stat().st_size
        try:
            header = _parse(_Walk(file), length)
        except EOFError:
            raise UnreadableModel("cut-off-header", path=path) from None
        except (_Broken, struct.error):
            raise _broken(path) from None
    end = max((header.start + tensor.offset + tensor.size for tensor in header.tensors), default=0)
    if end <= length < sum(tensor.size for tensor in header.tensors):  # they overlap
        raise _broken(path)
    if end > length:
        raise UnreadableModel("cut-off", path=path, actual=length, expected=end)
    return header


def _broken(path: Path) -> UnreadableModel:
    return UnreadableModel("damaged-header", path=path)


class _Walk:
    """Goes forward through a header; what was passed is forgotten in steps."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._data = b""
        self._at = 0  # in _data
        self._before = file.tell()  # bytes of the file before _data

    @property
    def position(self) -> int:
        return self._before + self._at

    def _ensure(self, count: int) -> None:
        """See to it that the next `count` bytes are in _data. Raises EOFError, _Broken."""
        if self._at + count <= len(self._data):
            return
        if self.position + count > LONGEST_HEADER:
            raise _Broken
        more = self._file.read(max(count, STEP))
        self._before += self._at
        self._data, self._at = self._data[self._at :] + more, 0
        if count > len(self._data):
            raise EOFError

    def number(self, form: str) -> Any:
        size = struct.calcsize(form)
        self._ensure(size)
        (value,) = struct.unpack_from(form, self._data, self._at)
        self._at += size
        return value

    def numbers(self, form: str, count: int) -> list[Any]:
        """Read them at once: a header may hold millions."""
        size = count * struct.calcsize(form)
        self._ensure(size)
        found = struct.unpack_from(f"<{count}{form[1:]}", self._data, self._at)
        self._at += size
        return list(found)

    def text(self) -> str:
        """Read a text; of a long one the beginning only."""
        size = self.number("<Q")
        self._ensure(size)
        start, self._at = self._at, self._at + size
        return self._data[start : start + min(size, KEPT_TEXT)].decode(errors="replace")

    def skip(self, size: int) -> None:
        self._ensure(size)
        self._at += size

    def skip_texts(self, count: int) -> None:
        unpack = struct.Struct("<Q").unpack_from
        for _ in range(count):
            self._ensure(8)
            (size,) = unpack(self._data, self._at)
            self._ensure(8 + size)
            self._at += 8 + size


def _parse(walk: _Walk, length: int) -> _Header:
    """Parse a file of so many bytes."""
    if walk.number("<I") not in (2, 3):  # 1 had other lengths and was never in use; a big-endian file reads as huge
        raise _Broken
    tensors, pairs = walk.number("<Q"), walk.number("<Q")
    if tensors > MOST_TENSORS or pairs > MOST_PAIRS:
        raise _Broken
    values: dict[str, Any] = {}
    for _ in range(pairs):
        key = walk.text()
        values[key] = _read_value(walk, walk.number("<I"), with_texts=key == HeaderKeys.General.LANGUAGES)
    alignment = values.get(HeaderKeys.General.ALIGNMENT, 32)
    if type(alignment) is not int or not 1 <= alignment <= bounds.SIZE:
        raise _Broken
    found = [_read_tensor(walk) for _ in range(tensors)]
    start = -(-walk.position // alignment) * alignment
    return _Header(values, tuple(_size_tensors(found, length - start)), start)


def _size_tensors(tensors: list[_Tensor], data: int) -> Iterator[_Tensor]:
    """Yield those of types that are not known reach as far as the next one, or the end of the file's `data`."""
    starts = sorted({tensor.offset for tensor in tensors})
    ends = dict(zip(starts, [*starts[1:], data], strict=True))
    for tensor in tensors:
        yield tensor if tensor.number in _TYPES else replace(tensor, size=max(0, ends[tensor.offset] - tensor.offset))


def _read_value(walk: _Walk, kind: int, *, with_texts: bool) -> Any:
    if kind in SCALARS:
        return walk.number(SCALARS[kind])
    if kind == GGUFValueType.STRING:
        return walk.text()
    if kind != GGUFValueType.ARRAY:
        raise _Broken
    kind, count = walk.number("<I"), walk.number("<Q")
    if kind == GGUFValueType.STRING:
        if with_texts and count <= model_card.MOST_LANGUAGES:
            return [walk.text() for _ in range(count)]
        walk.skip_texts(count)
        return count
    if kind not in SCALARS:  # arrays of arrays: in the format, in no model
        raise _Broken
    if count <= KEPT_ITEMS:
        return walk.numbers(SCALARS[kind], count)
    walk.skip(count * struct.calcsize(SCALARS[kind]))
    return count


def _read_tensor(walk: _Walk) -> _Tensor:
    name, dimensions = walk.text(), walk.number("<I")
    if dimensions > 8:
        raise _Broken
    elements = prod(walk.number("<Q") for _ in range(dimensions))
    kind, offset = walk.number("<I"), walk.number("<Q")
    if kind > HIGHEST_TYPE or elements > bounds.ELEMENTS or offset > bounds.BYTES:
        raise _Broken
    block, bytes_per_block = GGML_QUANT_SIZES[_TYPES[kind]] if kind in _TYPES else (1, 0)
    return _Tensor(name, elements, kind, offset, elements // block * bytes_per_block)


# --- What it means


def _read_number(values: Mapping[str, Any], key: str, *, default: int = 0, most: int = SIZE) -> int:
    """Return a whole number; one that is given once for each layer counts as missing. Raises OutOfBounds.

    llama.cpp refuses a number of another type than it expects as well (get_key).
    """
    value = values.get(key, default)
    if isinstance(value, list):
        return default
    name = key.removeprefix("{arch}.")
    if isinstance(value, str | bool | float):
        raise OutOfBounds(name, value)
    return bounds.bound_number(name, value, most)


def _read_required(values: Mapping[str, Any], key: str, most: int = SIZE) -> int:
    """Check what llama.cpp reads of every model (load_hparams). Raises OutOfBounds."""
    number = _read_number(values, key, most=most)
    if number < 1:
        raise OutOfBounds(key.removeprefix("{arch}."), 0 if key in values else "")
    return number


def _read_optional(values: Mapping[str, Any], key: str, most: int = SIZE) -> int | None:
    return _read_number(values, key, most=most) or None


def _build_metadata(path: Path, values: Mapping[str, Any], tensors: list[_Tensor], files: int) -> ModelMetadata:
    architecture = values.get(HeaderKeys.General.ARCHITECTURE)
    if not isinstance(architecture, str) or not architecture:
        raise _broken(path)
    kind = clean_text(values.get(HeaderKeys.General.TYPE, "model"))
    if kind != "model" or architecture == "clip":
        raise UnreadableModel("component", path=path, kind=kind)
    if not tensors:
        raise UnreadableModel("no-weights", path=path)
    own = {key.replace(architecture + ".", "{arch}.", 1): value for key, value in values.items()}
    parameters = sum(tensor.elements for tensor in tensors)
    size = sum(tensor.size for tensor in tensors)
    pooling = _pooling(own)
    layers = _read_required(own, HeaderKeys.LLM.BLOCK_COUNT, bounds.LAYERS)
    return ModelMetadata(
        architecture=clean_text(architecture),
        task=_task(architecture, pooling),
        parameters=parameters,
        quantisation=_quantisation(values, tensors),
        bits_per_weight=round(size * 8 / parameters, 2) if parameters else None,
        context=_read_optional(own, HeaderKeys.LLM.CONTEXT_LENGTH, bounds.CONTEXT),
        has_chat_template=bool(values.get(HeaderKeys.Tokenizer.CHAT_TEMPLATE)),
        weight_bytes=size,
        embedding_weight_bytes=_size_of(tensors, "token_embd.weight"),
        output_weight_bytes=_size_of(tensors, "output.weight"),
        layers=layers or None,
        attention=() if ENCODERS.fullmatch(architecture) else tuple(_attention(architecture, own, layers)),
        states=tuple(_states(architecture, own, layers)),
        experts=_experts(tensors, layers),
        heads=max(_read_each_layer(own, HeaderKeys.Attention.HEAD_COUNT, layers, HEADS)) or None,
        hidden=_read_required(own, HeaderKeys.LLM.EMBEDDING_LENGTH),
        feed_forward=_feed_forward(own, layers) or None,
        experts_per_token=_read_number(own, HeaderKeys.LLM.EXPERT_USED_COUNT, most=HEADS),
        vocabulary=_vocabulary(values, own),
        pooling=pooling,
        files=files,
        licence=clean_text(values.get(HeaderKeys.General.LICENSE)),
        languages=model_card.clean_languages(values.get(HeaderKeys.General.LANGUAGES)),
    )


def _size_of(tensors: list[_Tensor], name: str) -> int:
    return sum(tensor.size for tensor in tensors if tensor.name == name)


def _feed_forward(own: Mapping[str, Any], layers: int) -> int:
    """Return the numbers of a token within the widest layer; of experts those that work on a token, and shared ones."""
    dense = max(_read_each_layer(own, HeaderKeys.LLM.FEED_FORWARD_LENGTH, layers))
    chosen = _read_number(own, HeaderKeys.LLM.EXPERT_USED_COUNT, most=HEADS)
    expert = _read_number(own, HeaderKeys.LLM.EXPERT_FEED_FORWARD_LENGTH, default=dense)
    shared = _read_number(own, HeaderKeys.LLM.EXPERT_SHARED_FEED_FORWARD_LENGTH) or (
        expert * _read_number(own, HeaderKeys.LLM.EXPERT_SHARED_COUNT, most=HEADS)
    )
    return max(dense, chosen * expert + shared)


def _experts(tensors: list[_Tensor], layers: int) -> tuple[int, ...]:
    sizes = [0] * layers
    for tensor in tensors:
        found = EXPERTS.fullmatch(tensor.name)
        if found and int(found[1]) < layers:
            sizes[int(found[1])] += tensor.size
    return tuple(sizes) if any(sizes) else ()


def _vocabulary(values: Mapping[str, Any], own: Mapping[str, Any]) -> int | None:
    return _read_optional(values, HeaderKeys.Tokenizer.LIST) or _read_optional(own, HeaderKeys.LLM.VOCAB_SIZE)


def _pooling(own: Mapping[str, Any]) -> str | None:
    number = _read_number(own, HeaderKeys.LLM.POOLING_TYPE)
    names = {kind.value: kind.name.lower() for kind in PoolingType if kind != PoolingType.NONE}
    return names.get(number)


def _task(architecture: str, pooling: str | None) -> str:
    if pooling == "rank":
        return "rerank"
    return "embedding" if pooling or ENCODERS.fullmatch(architecture) else "chat"


def _quantisation(values: Mapping[str, Any], tensors: list[_Tensor]) -> str:
    """Return what the file calls itself ("Q4_K_M"), else the type of most of its weights."""
    raw = _read_number(values, HeaderKeys.General.FILE_TYPE) & ~MARKED_AS_GUESSED
    names = {kind.value: kind.name.removeprefix("MOSTLY_").removeprefix("ALL_") for kind in LlamaFileType}
    if raw in names and HeaderKeys.General.FILE_TYPE in values:
        return names[raw]
    elements: dict[str, int] = {}
    for tensor in tensors:
        elements[tensor.type] = elements.get(tensor.type, 0) + tensor.elements
    return max(elements, key=lambda name: elements[name])


def _read_each_layer(own: Mapping[str, Any], key: str, layers: int, most: int = SIZE) -> list[int]:
    """Return a number for each layer, be it said once or one by one; 0: it is missing. Raises OutOfBounds."""
    raw = own.get(key)
    if isinstance(raw, list):
        numbers = [bounds.bound_number(key.removeprefix("{arch}."), number, most) for number in raw]
        return (numbers + [0] * layers)[:layers]
    return [_read_number(own, key, most=most)] * layers


def _attention(architecture: str, own: Mapping[str, Any], layers: int) -> Iterator[Attention]:
    heads = _read_each_layer(own, HeaderKeys.Attention.HEAD_COUNT, layers, HEADS)
    kv_heads = _read_each_layer(own, HeaderKeys.Attention.HEAD_COUNT_KV, layers, HEADS)
    if HeaderKeys.Attention.HEAD_COUNT_KV not in own:
        kv_heads = heads
    head = _read_required(own, HeaderKeys.LLM.EMBEDDING_LENGTH) // max(*heads, 1)
    key = _read_number(own, HeaderKeys.Attention.KEY_LENGTH, default=head)
    value = _read_number(own, HeaderKeys.Attention.VALUE_LENGTH, default=head)
    latent = HeaderKeys.Attention.KEY_LENGTH_MLA in own and HeaderKeys.Attention.KV_LORA_RANK in own
    windows = _windows(architecture, own, layers)
    interval = _read_number(own, HeaderKeys.LLM.FULL_ATTENTION_INTERVAL, default=1)
    # The last ones read what an earlier layer keeps.
    keeping = layers - _read_number(own, HeaderKeys.Attention.SHARED_KV_LAYERS)
    for layer in range(layers):
        # No heads: a layer with a state instead of a cache (hybrids with Mamba, short convolutions).
        if not kv_heads[layer] or layer >= keeping or (interval > 1 and (layer + 1) % interval):
            continue
        if latent:
            yield Attention(1, key, 0)
        elif windows[layer]:
            narrow = _read_number(own, HeaderKeys.Attention.KEY_LENGTH_SWA, default=key)
            narrow_value = _read_number(own, HeaderKeys.Attention.VALUE_LENGTH_SWA, default=value)
            yield Attention(kv_heads[layer], narrow, narrow_value, windows[layer])
        else:
            yield Attention(kv_heads[layer], key, value)


def _states(architecture: str, own: Mapping[str, Any], layers: int) -> Iterator[RecurrentState]:
    """Return what layers without a KV cache keep of each slot (src/llama-hparams.cpp, n_embd_r and n_embd_s)."""
    state = _state(own)
    if state is None:
        return
    heads = _read_each_layer(own, HeaderKeys.Attention.HEAD_COUNT_KV, layers, HEADS)
    widths = _read_each_layer(own, HeaderKeys.LLM.FEED_FORWARD_LENGTH, layers)
    interval = _read_number(own, HeaderKeys.LLM.FULL_ATTENTION_INTERVAL, default=1)
    for layer in range(layers):
        if interval > 1:
            keeps = bool((layer + 1) % interval)
        else:
            # Of Nemotron-H's layers without heads, those with a feed-forward part have nothing else.
            keeps = not heads[layer] and not (architecture.startswith("nemotron_h") and widths[layer])
        if keeps or architecture in BOTH:
            yield state


def _state(own: Mapping[str, Any]) -> RecurrentState | None:
    hidden = _read_number(own, HeaderKeys.LLM.EMBEDDING_LENGTH)
    if size := _read_number(own, HeaderKeys.WKV.HEAD_SIZE):
        return RecurrentState(2 * hidden, hidden * size)
    if cached := _read_number(own, HeaderKeys.ShortConv.L_CACHE):
        return RecurrentState(hidden * (cached - 1), 0)
    kernel = _read_number(own, HeaderKeys.SSM.CONV_KERNEL)
    if size := _read_number(own, HeaderKeys.KDA.HEAD_DIM):
        heads = max(_read_each_layer(own, HeaderKeys.Attention.HEAD_COUNT, 1, HEADS))
        return RecurrentState(3 * (kernel - 1) * heads * size, heads * size * size)
    inner, size = (_read_number(own, key) for key in (HeaderKeys.SSM.INNER_SIZE, HeaderKeys.SSM.STATE_SIZE))
    if not kernel or not inner:
        return None
    groups = _read_number(own, HeaderKeys.SSM.GROUP_COUNT)
    return RecurrentState((kernel - 1) * (inner + 2 * groups * size), size * inner)


def _windows(architecture: str, own: Mapping[str, Any], layers: int) -> list[int | None]:
    """Return how far each layer sees; None: everything."""
    window = _read_optional(own, HeaderKeys.Attention.SLIDING_WINDOW, bounds.CONTEXT) or WINDOWS.get(architecture)
    pattern = own.get(HeaderKeys.Attention.SLIDING_WINDOW_PATTERN, WINDOWED.get(architecture))
    if not window or not pattern:
        return [None] * layers  # files of other architectures may say a window too, but llama.cpp does not use it
    if isinstance(pattern, list):
        return ([window if narrow else None for narrow in pattern] + [None] * layers)[:layers]
    every = _read_number(own, HeaderKeys.Attention.SLIDING_WINDOW_PATTERN, default=pattern) or 1
    return [window if (layer + 1) % every else None for layer in range(layers)]
