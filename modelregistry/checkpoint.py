"""Reads model directories in Hugging Face's form: config.json, safetensors headers, and what stands beside them.

Formats: the README of safetensors, and the configuration classes of transformers; what is loaded of a directory is
taken from vLLM 0.32 (model_executor/model_loader/default_loader.py).
"""

import json
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from modelregistry.facts import Attention, Facts, Unreadable, gettext_noop
from modelregistry.regular import open_file

# Bytes. A shard of a 70B model has 0.1 MB of header, a configuration with a long chat template 0.1 MB. JSON takes up
# to 30 times its size when it is read, so this much is 500 MB at the worst (measured).
LONGEST_JSON = 16 * 2**20
MOST_LAYERS = 4096
INDEX = "model.safetensors.index.json"
PICKLE_INDEX = "pytorch_model.bin.index.json"
# Mistral's own form, which vLLM prefers where it is.
CONSOLIDATED = "consolidated*.safetensors"
CONSOLIDATED_INDEX = "consolidated.safetensors.index.json"
PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")
# What a training leaves behind; vLLM does not load these either (filter_files_not_needed_for_inference).
NOT_WEIGHTS = frozenset(["training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.pt", "scaler.pt"])
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")

BITS: Mapping[str, int] = {
    **{"F64": 64, "I64": 64, "U64": 64, "C64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16},
    **{"U16": 16, "I8": 8, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4},
    **{"F6_E2M3": 6, "F6_E3M2": 6, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8},
}
# Last parts of tensors' names that describe other tensors: scales, zero points, orders.
DESCRIPTIONS = frozenset(
    [
        *("qzeros", "scales", "g_idx", "perm", "weight_scale", "weight_scale_inv", "weight_scale_2", "input_scale"),
        *("output_scale", "weight_zero_point", "input_zero_point", "weight_shape", "weight_g_idx"),
        *("weight_global_scale", "input_global_scale", "k_scale", "v_scale", "q_scale", "absmax", "quant_map"),
        *("nested_absmax", "nested_quant_map", "SCB", "weight_format", "inv_freq", "position_ids"),
    ]
)
EMBEDDING = re.compile(
    r"(.*\.)?(embed_tokens|wte|word_embeddings|tok_embeddings|embed_in|shared|tok_embed\w*)\.(weight|qweight)"
)
# Kinds of layers that have a KV cache, by the names that configurations use.
ATTENDING = frozenset(
    ["full_attention", "sliding_attention", "chunked_attention", "attention", "hybrid", "global_attention", "moe"]
)
ENCODERS = re.compile(r"bert|roberta|camembert|electra|mpnet|deberta|nomic|gte|^new$|modernbert|embedding_?gemma|t5$")
# Every n-th layer sees everything where the configuration is silent: what transformers fills in.
PATTERNS = {"gemma2": 2, "gemma3": 6, "gemma3_text": 6, "gemma3n_text": 5, "cohere2": 4, "gpt_oss": 2}
# Kinds that transformers and vLLM have the code for, although their repositories still carry a copy of it (auto_map).
# The copy is used only with --trust-remote-code, which these models do without.
KNOWN_TO_ENGINES = frozenset(
    [
        *("phi", "phi3", "phimoe", "falcon", "mpt", "starcoder2", "stablelm", "deepseek_v2", "deepseek_v3", "cohere"),
        *("qwen2", "qwen2_moe", "qwen3", "llama", "mistral", "mixtral", "gemma", "gemma2", "glm", "glm4", "olmo"),
        *("granite", "nemotron", "exaone4", "internvl", "smollm3", "xlm-roberta", "bert", "roberta", "nomic_bert"),
    ]
)
CONFIGURATIONS = ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json")
ROBERTAS = frozenset(["roberta", "xlm-roberta", "camembert"])


@dataclass(frozen=True, slots=True)
class Tensor:
    """As a header of safetensors has it; `size` in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int

    @property
    def elements(self) -> int:
        return prod(self.shape)


def risks(directory: Path) -> dict[str, str]:
    """What could run a program of somebody else's: by risk the file that shows it. Raises Unreadable, OSError."""
    found = {}
    if pickle := _pickle_that_would_be_read(directory):
        found["pickle"] = pickle
    if code := _code_that_would_be_run(directory):
        found["remote-code"] = code
    return found


def _code_that_would_be_run(directory: Path) -> str:
    said = {name: _json(directory / name) for name in CONFIGURATIONS if (directory / name).is_file()}
    if str(said.get("config.json", {}).get("model_type")) in KNOWN_TO_ENGINES:
        return ""
    return next((name for name, values in said.items() if values.get("auto_map")), "")


def _pickle_that_would_be_read(directory: Path) -> str:
    """Pickles beside safetensors are no risk: vLLM takes *.safetensors if there is one, and is told to take no other.

    The one exception is a sentence embedder's last layer, which is read from a directory of its own whatever the
    load format (model_executor/models/adapters.py).
    """
    if not _safetensors(directory):
        return next((file.name for file in _pickles(directory)), "")
    for part in sorted(directory.glob("*_Dense")):
        if (part / "pytorch_model.bin").exists() and not (part / "model.safetensors").exists():
            return f"{part.name}/pytorch_model.bin"
    return ""


def read(directory: Path) -> Facts:
    """What the directory tells. Raises Unreadable, OSError."""
    if not (directory / "config.json").is_file():
        raise Unreadable(
            gettext_noop("%(path)s has no config.json; it does not hold a model for vLLM."), path=directory
        )
    config = _Config(directory / "config.json")
    files = _weight_files(directory)
    tensors = [tensor for file in files for tensor in header(file)]
    pickles = [] if files else _pickles(directory)
    _see_that_pickles_are_whole(directory, pickles)
    parameters = _parameters(config, tensors)
    size = sum(tensor.size for tensor in tensors) + sum(file.stat().st_size for file in pickles)
    layers = config.layers()
    return Facts(
        architecture=config.architecture,
        task=_task(directory, config),
        parameters=parameters,
        quantisation=_quantisation(directory, config, tensors),
        bits_per_weight=round(size * 8 / parameters, 2) if parameters else None,
        context=_context(directory, config),
        has_chat_template=_has_chat_template(directory),
        weight_bytes=size,
        embedding_weight_bytes=_embedding_bytes(tensors),
        layers=layers or None,
        attention=tuple(_attention(config, layers)),
        heads=config.heads() or None,
        hidden=config.number("hidden_size", "n_embd", "d_model") or None,
        vocabulary=config.number("vocab_size") or None,
        pooling=_pooling(directory),
        risks=tuple(risks(directory)),
        files=len(files) or len(pickles),
    )


# --- JSON


def _json(path: Path) -> dict[str, Any]:
    """The object in a file. Raises Unreadable, OSError."""
    with open_file(path) as file:
        data = file.read(LONGEST_JSON + 1)
    if len(data) > LONGEST_JSON:
        raise _damaged(path)
    return _object(data, path)


def _object(data: bytes, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise _damaged(path) from None
    if not isinstance(value, dict):
        raise _damaged(path)
    return value


def _damaged(path: Path) -> Unreadable:
    return Unreadable(gettext_noop("%(path)s is damaged: its header makes no sense."), path=path)


class _Config:
    """config.json. Where a model sees or hears as well, what its language part says comes first."""

    def __init__(self, path: Path) -> None:
        said = _json(path)
        text: Any = {}
        for name in ("text_config", "llm_config", "language_config"):
            text = text or said.get(name)
        thinker = said.get("thinker_config")
        if isinstance(thinker, dict):
            text = text or thinker.get("text_config")
        self.values: dict[str, Any] = said | (text if isinstance(text, dict) else {})
        self.whole = said
        names = said.get("architectures")
        name = names[0] if isinstance(names, list) and names else said.get("model_type", "")
        self.architecture = str(name)[:100]
        self.kind = str(self.values.get("model_type", ""))

    def get(self, name: str) -> Any:
        return self.values.get(name)

    def number(self, *names: str, default: int = 0) -> int:
        """The first of these that is a number. `default`: none is."""
        for name in names:
            value = self.values.get(name)
            if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**40:
                return value
        return default

    def layers(self) -> int:
        count = self.number("num_hidden_layers", "n_layer", "num_layers", "n_layers", "decoder_layers")
        return count if count <= MOST_LAYERS else 0

    def heads(self) -> int:
        return self.number("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads")

    def quantisation(self) -> dict[str, Any]:
        said = self.whole.get("quantization_config") or self.values.get("quantization_config")
        if not said:
            said = self.whole.get("compression_config")  # what llm-compressor wrote before 2024-09
        return said if isinstance(said, dict) else {}


# --- Weights


def _safetensors(directory: Path) -> list[Path]:
    return sorted(file for file in directory.glob("*.safetensors") if not file.name.startswith("."))


def _pickles(directory: Path) -> list[Path]:
    return sorted(file for form in PICKLES for file in directory.glob(form) if file.name not in NOT_WEIGHTS)


def _weight_files(directory: Path) -> list[Path]:
    """The files that vLLM loads. Raises Unreadable if one is missing."""
    consolidated = sorted(directory.glob(CONSOLIDATED))
    index = directory / (CONSOLIDATED_INDEX if consolidated else INDEX)
    if index.is_file():
        mapping = _json(index).get("weight_map")
        if not isinstance(mapping, dict) or not all(isinstance(name, str) for name in mapping.values()):
            raise _damaged(index)
        files = [directory / Path(name).name for name in sorted(set(mapping.values()))]
    else:
        files = _all_parts(consolidated or _safetensors(directory))
    for file in files:
        if not file.is_file():
            raise Unreadable(gettext_noop("A part of the model is missing: %(path)s."), path=file)
    if not files and not _pickles(directory):
        raise Unreadable(gettext_noop("%(path)s holds no weights."), path=directory)
    return files


def _all_parts(files: Iterable[Path]) -> list[Path]:
    """These files, and the parts that their names say there should be (…-00001-of-00003)."""
    wanted = set()
    for file in files:
        part = PART.fullmatch(file.name)
        count = int(part[3]) if part else 0
        if part and count <= 10_000:
            wanted |= {file.with_name(f"{part[1]}-{n:05}-of-{part[3]}.safetensors") for n in range(1, count + 1)}
        wanted.add(file)
    return sorted(wanted)


def header(path: Path) -> Iterator[Tensor]:
    """The tensors of a safetensors file that is as long as it says. Raises Unreadable, OSError."""
    actual = path.stat().st_size
    with open_file(path) as file:
        length = int.from_bytes(file.read(8), "little")
        if actual < 8 or (length <= LONGEST_JSON and 8 + length > actual):
            raise Unreadable(gettext_noop("%(path)s is cut off: it ends within its header."), path=path)
        if length > LONGEST_JSON:
            raise _damaged(path)
        entries = _object(file.read(length), path)
    entries.pop("__metadata__", None)
    end = 0
    for name, entry in entries.items():
        tensor, ends = _tensor(name, entry, path)
        end = max(end, ends)
        yield tensor
    expected = 8 + length + end
    if actual < expected:
        raise Unreadable(
            gettext_noop("%(path)s is cut off: it has %(actual)d bytes of %(expected)d."),
            path=path,
            actual=actual,
            expected=expected,
        )
    if actual > expected:  # safetensors' own reader refuses these as well
        raise Unreadable(
            gettext_noop("%(path)s is too long: it has %(actual)d bytes, and its header says %(expected)d."),
            path=path,
            actual=actual,
            expected=expected,
        )


def _tensor(name: str, entry: Any, path: Path) -> tuple[Tensor, int]:
    """A tensor, and where in the data it ends."""
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        tensor = Tensor(name, str(dtype), tuple(shape), end - begin)
        sound = all(type(number) is int and 0 <= number < 2**48 for number in (begin, end, *tensor.shape))
    except (TypeError, ValueError, KeyError):
        raise _damaged(path) from None
    if not sound or len(tensor.shape) > 16:
        raise _damaged(path)
    bits = BITS.get(tensor.dtype)
    if bits and tensor.size * 8 != tensor.elements * bits:
        raise _damaged(path)
    return tensor, end


def _see_that_pickles_are_whole(directory: Path, pickles: Sequence[Path]) -> None:
    """PyTorch's files are ZIP archives, whose table of contents stands at their end. Raises Unreadable, OSError."""
    index = directory / PICKLE_INDEX
    if pickles and index.is_file():
        mapping = _json(index).get("weight_map")
        names = mapping.values() if isinstance(mapping, dict) else []
        for name in sorted({Path(str(name)).name for name in names}):
            if not (directory / name).is_file():
                raise Unreadable(gettext_noop("A part of the model is missing: %(path)s."), path=directory / name)
    for file in pickles:
        with open_file(file) as opened:
            is_archive = opened.read(4) == b"PK\x03\x04"
        if is_archive and not zipfile.is_zipfile(file):
            raise Unreadable(gettext_noop("%(path)s is cut off: its end is missing."), path=file)


def _parameters(config: _Config, tensors: Sequence[Tensor]) -> int | None:
    """How many weights, counted one by one where several are packed into a number."""
    if not tensors:
        return None
    names = {tensor.name for tensor in tensors}
    in_four_bits = {name.partition(".quant_state.")[0] for name in names if ".quant_state." in name}
    bits = _bits(config)
    count = 0
    for tensor in tensors:
        stem, _, last = tensor.name.rpartition(".")
        if last in DESCRIPTIONS or last.endswith("_scales") or ".quant_state." in tensor.name:
            continue
        width = BITS.get(tensor.dtype, 8)
        packed = last in ("qweight", "weight_packed") or last.endswith("_packed")
        if packed and width >= 8:  # AWQ, GPTQ: 8 in 32 bits; compressed-tensors: 8 in 32, NVFP4 2 in 8
            count += tensor.elements * width // bits
        elif tensor.dtype == "U8" and (
            tensor.name in in_four_bits  # bitsandbytes
            or last.endswith("_blocks")  # MXFP4
            or (stem + ".weight_scale_2") in names  # NVFP4 by ModelOpt
        ):
            count += tensor.elements * 2
        else:
            count += tensor.elements
    return count


def _bits(config: _Config) -> int:
    """Bits of a weight in packed tensors."""
    said = config.quantisation()
    for value in (said.get("bits"), said.get("w_bit"), *(group.get("num_bits") for group in _weight_groups(said))):
        if isinstance(value, int) and value in (1, 2, 3, 4, 5, 6, 8):
            return value
    return 4


def _weight_groups(said: Mapping[str, Any]) -> list[dict[str, Any]]:
    """How compressed-tensors treats weights, by group of layers."""
    groups = said.get("config_groups")
    values = list(groups.values()) if isinstance(groups, dict) else []
    weights = [group.get("weights") for group in values if isinstance(group, dict)]
    return [each for each in weights if isinstance(each, dict)]


def _embedding_bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.size for tensor in tensors if EMBEDDING.fullmatch(tensor.name))


# --- What it says of itself


def _quantisation(directory: Path, config: _Config, tensors: Sequence[Tensor]) -> str:
    said = config.quantisation()
    method = str(said.get("quant_method", "")).lower().replace("_", "-")
    if not said and (directory / "hf_quant_config.json").is_file():  # ModelOpt
        said = _json(directory / "hf_quant_config.json").get("quantization") or {}
        method = "modelopt" if isinstance(said, dict) else ""
    if not method and not said:
        return _most_used(tensors)
    if method in ("awq", "gptq", "autoround", "auto-round"):
        return f"{method.upper()}-INT{_bits(config)}"
    if method == "bitsandbytes":
        return "BNB-INT8" if said.get("load_in_8bit") else f"BNB-{str(said.get('bnb_4bit_quant_type', 'nf4')).upper()}"
    if method in ("compressed-tensors", "sparseml"):
        return _compressed(said)
    if method == "modelopt":
        return str(said.get("quant_algo") or "modelopt").upper()[:20]
    return "FP8" if "fp8" in method else method.upper()[:20]


def _compressed(said: Mapping[str, Any]) -> str:
    """ "INT4", "FP8" …: of the first group of layers."""
    if "nvfp4" in str(said.get("format", "")):
        return "NVFP4"
    for weights in _weight_groups(said):
        kind = "FP" if weights.get("type") == "float" else "INT"
        return f"{kind}{weights.get('num_bits', '')}"[:20]
    return "COMPRESSED"


def _most_used(tensors: Sequence[Tensor]) -> str:
    elements: dict[str, int] = {}
    for tensor in tensors:
        elements[tensor.dtype] = elements.get(tensor.dtype, 0) + tensor.elements
    most = max(elements, key=lambda dtype: elements[dtype], default="")
    return "FP8" if most.startswith("F8_") else most


def _task(directory: Path, config: _Config) -> str:
    name = config.architecture
    if "Whisper" in name:
        return "transcription"
    if name.endswith("ForSequenceClassification"):
        return "rerank"
    encodes = bool(ENCODERS.search(config.kind)) and name.endswith(("Model", "ForMaskedLM"))
    if encodes or (directory / "modules.json").is_file():  # of sentence-transformers
        return "embedding"
    return "chat" if re.search(r"ForCausalLM|LMHead|ForConditionalGeneration", name) else ""


def _pooling(directory: Path) -> str | None:
    path = directory / "1_Pooling" / "config.json"
    if not path.is_file():
        return None
    said = _json(path)
    modes = {"mean_tokens": "mean", "cls_token": "cls", "lasttoken": "last", "max_tokens": "max"}
    for mode, name in modes.items():
        if said.get(f"pooling_mode_{mode}"):
            return name
    other = said.get("pooling_mode")
    return other if isinstance(other, str) and len(other) < 20 else None


def _has_chat_template(directory: Path) -> bool:
    # Mistral's tokenizer (tekken.json) has the template in its program, which vLLM has.
    if any((directory / name).is_file() for name in ("chat_template.jinja", "chat_template.json", "tekken.json")):
        return True
    path = directory / "tokenizer_config.json"
    return path.is_file() and bool(_json(path).get("chat_template"))


def _context(directory: Path, config: _Config) -> int | None:
    """In tokens, as vLLM derives it (config/model.py, _get_and_verify_max_len)."""
    sentences = directory / "sentence_bert_config.json"
    if sentences.is_file():
        said = _json(sentences).get("max_seq_length")
        if isinstance(said, int) and said > 0:
            return said
    names = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_target_positions")
    length = config.number(*names, "max_sequence_length", "model_max_length")
    if config.kind in ROBERTAS:
        length -= 2  # its first two positions are never used
    return _scaled(config, length) or length or None


def _scaled(config: _Config, length: int) -> int:
    """The length with rotary scaling; 0: none that changes it. Of yarn the length before it is told beside it, and what
    comes of it counts, as in vLLM, even if the configuration says more.
    """
    scaling = config.get("rope_scaling") or config.get("rope_parameters")
    if not isinstance(scaling, dict) or config.kind.startswith("gemma3"):
        return 0
    factor, kind = scaling.get("factor"), scaling.get("rope_type", scaling.get("type"))
    if not isinstance(factor, int | float) or not 1 <= factor <= 1024:
        return 0
    original = scaling.get("original_max_position_embeddings")
    if kind in ("yarn", "deepseek_yarn") and isinstance(original, int) and 0 < original < 2**32:
        return int(original * factor)
    return int(length * factor) if kind in ("linear", "dynamic") else 0


# --- What each layer remembers


def _attention(config: _Config, layers: int) -> Iterator[Attention]:
    if config.kind == "whisper":
        yield from _whisper(config, layers)
        return
    if (ENCODERS.search(config.kind) and "decoder" not in config.kind) or config.get("is_causal") is False:
        return
    kinds, windows = _kinds(config, layers), _windows(config, layers)
    keeping = layers - config.number("num_kv_shared_layers")  # the last ones read what an earlier one keeps
    for layer in range(max(keeping, 0)):
        if kinds[layer] in ATTENDING and (shape := _shape(config, layer, narrow=windows[layer] is not None)):
            key_heads, key, value = shape
            yield Attention(key_heads, key, value, windows[layer])


def _whisper(config: _Config, layers: int) -> Iterator[Attention]:
    """A decoder's layer remembers what was said and, apart from it, all that was heard."""
    heads = config.heads()
    size = config.number("d_model") // max(heads, 1)
    heard = config.number("max_source_positions", default=1500)
    for _ in range(layers):
        yield Attention(heads, size, size)
        yield Attention(heads, size, size, heard)


def _shape(config: _Config, layer: int, *, narrow: bool) -> tuple[int, int, int] | None:
    """Heads, and numbers per key and per value. None: this layer has none."""
    latent = config.number("kv_lora_rank")
    if latent and config.kind != "minicpm3":  # which vLLM runs with the keys and values written out
        return 1, latent + config.number("qk_rope_head_dim"), 0
    heads = config.heads()
    size = config.number("head_dim", "attention_head_dim") or (
        config.number("hidden_size", "n_embd", "d_model") // max(heads, 1)
    )
    kv_heads = config.number("num_key_value_heads", "n_head_kv", "num_kv_heads", "multi_query_group_num")
    attention = config.get("attn_config")  # MPT, DBRX
    if not kv_heads and isinstance(attention, dict) and isinstance(attention.get("kv_n_heads"), int):
        kv_heads = attention["kv_n_heads"]
    if not kv_heads:
        kv_heads = 1 if config.get("multi_query") is True else heads
    if not narrow and config.get("layer_types"):  # Gemma 4: its layers that see everything have heads of their own
        size = config.number("global_head_dim") or size
        kv_heads = config.number("num_global_key_value_heads") or kv_heads
    blocks = config.get("block_configs")  # pruned models (Nemotron), layer by layer
    if isinstance(blocks, list) and layer < len(blocks) and isinstance(blocks[layer], dict):
        kv_heads = _pruned(blocks[layer].get("attention"), heads, kv_heads)
    value = config.number("v_head_dim") or size
    return (kv_heads, size, value) if kv_heads and size else None


def _pruned(attention: Any, heads: int, kv_heads: int) -> int:
    if not isinstance(attention, dict):
        return kv_heads
    group = attention.get("n_heads_in_group")
    if attention.get("no_op") or attention.get("replace_with_linear") or not isinstance(group, int) or group < 1:
        return 0
    return heads // group


def _kinds(config: _Config, layers: int) -> list[str]:
    """What each layer is, by transformers' words."""
    for name in ("layer_types", "layers_block_type"):
        said = config.get(name)
        if isinstance(said, list) and len(said) >= layers:
            return [str(kind) for kind in said[:layers]]
    pattern = config.get("hybrid_override_pattern")  # Nemotron-H: "M-M*-"
    if isinstance(pattern, str) and len(pattern) >= layers:
        return ["attention" if letter == "*" else letter for letter in pattern[:layers]]
    if "mamba" in config.kind or "rwkv" in config.kind:
        return ["mamba"] * layers
    every = config.number("full_attention_interval", "attn_layer_period", default=1) or 1  # Qwen3-Next; Jamba
    offset = config.number("attn_layer_offset", default=every - 1)
    return ["attention" if layer % every == offset % every else "other" for layer in range(layers)]


def _windows(config: _Config, layers: int) -> list[int | None]:
    """How many tokens back each layer sees; None: all."""
    window = config.number("sliding_window", "window_size") or None
    kinds = config.get("layer_types")
    if isinstance(kinds, list) and len(kinds) >= layers:
        narrow = {"sliding_attention": window, "chunked_attention": config.number("attention_chunk_size") or None}
        return [narrow.get(str(kind)) for kind in kinds[:layers]]
    if not window or config.get("use_sliding_window") is False:
        return [None] * layers
    if config.get("use_sliding_window"):  # Qwen: the first layers see everything
        first = config.number("max_window_layers")
        return [window if layer >= first else None for layer in range(layers)]
    every = config.number("sliding_window_pattern", "_sliding_window_pattern") or PATTERNS.get(config.kind, 0)
    # Without a pattern (Mistral 7B 0.1, Phi-3) all layers have it.
    return [window if not every or (layer + 1) % every else None for layer in range(layers)]
