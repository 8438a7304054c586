"""Reads model directories in Hugging Face's form: config.json, safetensors headers, and what is beside them.

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

from modelregistry.files import architecture, bounds, model_card
from modelregistry.files.architecture import Config
from modelregistry.files.json_stream import BrokenJson, JsonWalker
from modelregistry.files.metadata import ModelMetadata
from modelregistry.files.regular import open_regular_file
from modelregistry.files.text import clean_text
from modelregistry.files.unreadable import UnreadableModel

# Bytes. A configuration with a long chat template has 0.1 MB. JSON takes up to 30 times its size when it is read whole,
# so this much is 500 MB at the worst (measured).
LONGEST_JSON = 16 * 2**20
# These are walked through: a header as long as safetensors itself takes, and an index of ten times Kimi K2's.
LONGEST_HEADER = 100_000_000
LONGEST_INDEX = 256 * 2**20
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
# Types in which a tensor's shape is that of what it stands for.
PLAIN = frozenset(["F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"])
LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d+)\.")
SENSES = re.compile(r"vision|visual|audio|encoder")
KEYS = re.compile(r"layers\.\d+\.(?:self_attn|attention)\.(?:k_proj|wk)\.weight$")
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
ENCODERS = re.compile(r"bert|roberta|camembert|electra|mpnet|deberta|nomic|gte|^new$|modernbert|embedding_?gemma|t5$")
# Kinds that transformers and vLLM have the code for, although their repositories still carry a copy of it (auto_map).
# The copy is used only with --trust-remote-code, which these models do without.
KNOWN_TO_ENGINES = frozenset(
    [
        *("phi", "phi3", "phimoe", "falcon", "mpt", "starcoder2", "stablelm", "deepseek_v2", "deepseek_v3", "cohere"),
        *("qwen2", "qwen2_moe", "qwen3", "llama", "mistral", "mixtral", "gemma", "gemma2", "glm", "glm4", "olmo"),
        *("granite", "nemotron", "exaone4", "internvl", "smollm3", "xlm-roberta", "bert", "roberta", "nomic_bert"),
    ]
)
# Where configurations say how long an input may be. The smallest counts, as in vLLM's model_arch_config_convertor.py.
LENGTHS = (
    *("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_target_positions"),
    *("max_sequence_length", "max_seq_length", "seq_len"),
)
# Whose chats vLLM writes out by a program of its own (config/model.py); their directories have no template.
WRITTEN_OUT = frozenset(["deepseek_v32", "deepseek_v4", "deepseek_v41"])
CONFIGURATIONS = ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json")
ROBERTAS = frozenset(["roberta", "xlm-roberta", "camembert"])


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """As a header of safetensors has it; `size` in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int

    @property
    def elements(self) -> int:
        return prod(self.shape)


def find_risks(directory: Path) -> dict[str, str]:
    """Find what could run a program of another author: by risk the file that shows it. Raises Unreadable, OSError."""
    found = {}
    if pickle := _pickle_that_would_be_read(directory):
        found["pickle"] = pickle
    if code := _code_that_would_be_run(directory):
        found["remote-code"] = code
    return found


def _code_that_would_be_run(directory: Path) -> str:
    raw = {name: _read_json(directory / name) for name in CONFIGURATIONS if (directory / name).is_file()}
    if clean_text(raw.get("config.json", {}).get("model_type")) in KNOWN_TO_ENGINES:
        return ""
    return next((name for name, values in raw.items() if values.get("auto_map")), "")


def _pickle_that_would_be_read(directory: Path) -> str:
    """Return the pickle that vLLM would read. Beside *.safetensors it reads none, and is started to take no other.

    The one exception is a sentence embedder's last layer, which is read from a directory of its own whatever the
    load format (model_executor/models/adapters.py).
    """
    if not _list_safetensors(directory):
        return next((file.name for file in _list_pickles(directory)), "")
    for part in sorted(directory.glob("*_Dense")):
        if (part / "pytorch_model.bin").exists() and not (part / "model.safetensors").exists():
            return f"{part.name}/pytorch_model.bin"
    return ""


def read_checkpoint(directory: Path) -> ModelMetadata:
    """Read what the directory says. Raises UnreadableModel, OutOfBounds, OSError."""
    config = Config(_read_configuration(directory))
    files = _weight_files(directory)
    tensors = [tensor for file in files for tensor in read_header(file)]
    pickles = [] if files else _list_pickles(directory)
    _see_that_pickles_are_whole(directory, pickles)
    parameters = _count_parameters(config, tensors)
    size = sum(tensor.size for tensor in tensors) + sum(file.stat().st_size for file in pickles)
    config = _count_layers(config, tensors)
    kept = _memory(config, tensors)
    card = model_card.read_model_card(directory)
    return ModelMetadata(
        architecture=config.architecture,
        task=_task(directory, config),
        parameters=parameters,
        quantisation=_quantisation(directory, config, tensors),
        bits_per_weight=round(size * 8 / parameters, 2) if parameters else None,
        context=_context(directory, config),
        has_chat_template=config.kind in WRITTEN_OUT or _has_chat_template(directory),
        weight_bytes=size,
        embedding_weight_bytes=_embedding_bytes(tensors),
        layers=config.layers() or None,
        attention=kept.attention,
        states=kept.states,
        cache_type=_cache_type(directory, config),
        missing=kept.missing,
        whole=architecture.whole_items(config),
        unused_weight_bytes=_guessing_bytes(config, tensors),
        heads=config.heads() or None,
        hidden=config.hidden() or None,
        vocabulary=config.number("vocab_size") or None,
        pooling=_pooling(directory),
        risks=tuple(find_risks(directory)),
        files=len(files) or len(pickles),
        licence=card.licence,
        languages=card.languages,
    )


def _read_configuration(directory: Path) -> dict[str, Any]:
    """Read config.json, or Mistral's params.json where there is no other.

    Raises UnreadableModel, OutOfBounds, OSError.
    """
    if (directory / "config.json").is_file():
        return _read_json(directory / "config.json")
    if (directory / "params.json").is_file() and any(directory.glob(CONSOLIDATED)):
        return architecture.from_mistral(_read_json(directory / "params.json"))
    raise UnreadableModel("no-config", path=directory)


# --- JSON


def _read_json(path: Path) -> dict[str, Any]:
    """Return the object in a file. Raises Unreadable, OSError."""
    with open_regular_file(path) as file:
        data = file.read(LONGEST_JSON + 1)
    if len(data) > LONGEST_JSON:
        raise _damaged(path)
    return _parse_object(data, path)


def _parse_object(data: bytes, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise _damaged(path) from None
    if not isinstance(value, dict):
        raise _damaged(path)
    return value


def _damaged(path: Path) -> UnreadableModel:
    return UnreadableModel("damaged-header", path=path)


# --- Weights


def _list_safetensors(directory: Path) -> list[Path]:
    return sorted(file for file in directory.glob("*.safetensors") if not file.name.startswith("."))


def _list_pickles(directory: Path) -> list[Path]:
    return sorted(file for form in PICKLES for file in directory.glob(form) if file.name not in NOT_WEIGHTS)


def _weight_files(directory: Path) -> list[Path]:
    """Return the files that vLLM loads. Raises Unreadable if one is missing."""
    consolidated = sorted(directory.glob(CONSOLIDATED))
    index = directory / (CONSOLIDATED_INDEX if consolidated else INDEX)
    if index.is_file():
        files = [directory / name for name in _named_by(index)]
    else:
        files = _all_parts(consolidated or _list_safetensors(directory))
    for file in files:
        if not file.is_file():
            raise UnreadableModel("missing-part", path=file)
    if not files and not _list_pickles(directory):
        raise UnreadableModel("no-weights", path=directory)
    return files


def _named_by(index: Path) -> list[str]:
    """Return the files of weights that an index names, each once. Raises Unreadable, OSError."""
    length = index.stat().st_size
    found: set[str] | None = None
    try:
        with open_regular_file(index) as file:
            walk = JsonWalker(file, length if length <= LONGEST_INDEX else 0)
            for name in walk.names():
                if name == "weight_map":
                    found = {str(file_name) for _tensor_name, file_name in walk.members()}
                else:
                    walk.skip()
            if found is None or walk.read_rest():
                raise BrokenJson
    except BrokenJson:
        raise _damaged(index) from None
    names = sorted({Path(name).name for name in found})
    # Nor is a name with control characters or lone surrogates one of a file that anybody published.
    if not all(name and name == clean_text(name, len(name)) for name in names):
        raise _damaged(index)
    return names


def _all_parts(files: Iterable[Path]) -> list[Path]:
    """Return these files, and the parts that their names say there should be (…-00001-of-00003)."""
    wanted = set()
    for file in files:
        part = PART.fullmatch(file.name)
        count = int(part[3]) if part else 0
        if part and count <= 10_000:
            wanted |= {file.with_name(f"{part[1]}-{n:05}-of-{part[3]}.safetensors") for n in range(1, count + 1)}
        wanted.add(file)
    return sorted(wanted)


def read_header(path: Path) -> Iterator[TensorHeader]:
    """Yield the tensors of a safetensors file that is as long as it says. Raises Unreadable, OSError."""
    actual = path.stat().st_size
    with open_regular_file(path) as file:
        length = int.from_bytes(file.read(8), "little")
        if actual < 8 or (length <= LONGEST_HEADER and 8 + length > actual):
            raise UnreadableModel("cut-off-header", path=path)
        if length > LONGEST_HEADER:
            raise _damaged(path)
        end = total = 0
        try:
            walk = JsonWalker(file, length)
            for name, entry in walk.members():
                if name != "__metadata__":
                    tensor, ends = _read_tensor(name, entry, path)
                    end, total = max(end, ends), total + tensor.size
                    yield tensor
            if walk.read_rest() or total > end:  # tensors that overlap, which safetensors' own reader refuses as well
                raise BrokenJson
        except BrokenJson:
            raise _damaged(path) from None
    _check_length(path, actual=actual, expected=8 + length + end)


def _check_length(path: Path, *, actual: int, expected: int) -> None:
    """Raise UnreadableModel for a file that is shorter or longer than its header says."""
    if actual < expected:
        raise UnreadableModel("cut-off", path=path, actual=actual, expected=expected)
    if actual > expected:  # safetensors' own reader refuses these as well
        raise UnreadableModel("too-long", path=path, actual=actual, expected=expected)


def _read_tensor(name: str, entry: Any, path: Path) -> tuple[TensorHeader, int]:
    """Return a tensor, and where in the data it ends."""
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        tensor = TensorHeader(name, clean_text(dtype, 20), tuple(shape), end - begin)
        sound = all(type(number) is int and 0 <= number < 2**48 for number in (begin, end, *tensor.shape))
    except (TypeError, ValueError, KeyError):
        raise _damaged(path) from None
    if not sound or len(tensor.shape) > 16 or tensor.elements > bounds.ELEMENTS:
        raise _damaged(path)
    bits = BITS.get(tensor.dtype)
    if bits and tensor.size * 8 != tensor.elements * bits:
        raise _damaged(path)
    return tensor, end


def _see_that_pickles_are_whole(directory: Path, pickles: Sequence[Path]) -> None:
    """Check PyTorch's files: ZIP archives with their table of contents at the end. Raises Unreadable, OSError."""
    index = directory / PICKLE_INDEX
    if pickles and index.is_file():
        for name in _named_by(index):
            if not (directory / name).is_file():
                raise UnreadableModel("missing-part", path=directory / name)
    for file in pickles:
        with open_regular_file(file) as opened:
            is_archive = opened.read(4) == b"PK\x03\x04"
        if is_archive and not zipfile.is_zipfile(file):
            raise UnreadableModel("cut-off-end", path=file)


def _count_parameters(config: Config, tensors: Sequence[TensorHeader]) -> int | None:
    """Return how many weights, counted one by one where several are packed into a number."""
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


def _bits(config: Config) -> int:
    """Return bits of a weight in packed tensors."""
    raw = config.quantisation()
    for value in (raw.get("bits"), raw.get("w_bit"), *(group.get("num_bits") for group in _weight_groups(raw))):
        if isinstance(value, int) and value in (1, 2, 3, 4, 5, 6, 8):
            return value
    return 4


def _weight_groups(raw: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return how compressed-tensors treats weights, by group of layers."""
    groups = raw.get("config_groups")
    values = list(groups.values()) if isinstance(groups, dict) else []
    weights = [group.get("weights") for group in values if isinstance(group, dict)]
    return [each for each in weights if isinstance(each, dict)]


def _memory(config: Config, tensors: Sequence[TensorHeader]) -> architecture.LayerMemory:
    """Return what its layers keep; nothing for encoders. What neither file nor class says is counted in the tensors."""
    if (ENCODERS.search(config.kind) and "decoder" not in config.kind) or config.get("is_causal") is False:
        return architecture.LayerMemory()
    keys = [tensor for tensor in tensors if KEYS.search(tensor.name) and not SENSES.search(tensor.name)]
    widths = {tensor.shape[0] for tensor in keys if tensor.dtype in PLAIN}
    return architecture.layer_memory(config, kv_width=max(widths, default=0))


def _count_layers(config: Config, tensors: Sequence[TensorHeader]) -> Config:
    """Return it with the layers counted in the files, where neither configuration nor class says how many."""
    if config.layers():
        return config
    numbers = [
        int(found[1])
        for tensor in tensors
        if not SENSES.search(tensor.name) and (found := LAYER.search(tensor.name)) and len(found[1]) < 5
    ]
    return config.with_layers(max(numbers) + 1) if numbers else config


def _guessing_bytes(config: Config, tensors: Sequence[TensorHeader]) -> int:
    """Return bytes of layers behind the last one, or of their own name, which vLLM's files of these models skip."""
    layers = config.layers()
    behind = config.number("num_nextn_predict_layers") and layers
    return sum(
        tensor.size
        for tensor in tensors
        if tensor.name.startswith(("mtp.", "model.mtp."))
        or (behind and (found := LAYER.search(tensor.name)) and layers <= int(found[1]) < layers + 8)
    )


def _cache_type(directory: Path, config: Config) -> str:
    """Return the type of keys and values, as the files declare and vLLM obeys (utils/torch_utils.py)."""
    raw = config.quantisation()
    if not raw and (directory / "hf_quant_config.json").is_file():
        inner = _read_json(directory / "hf_quant_config.json").get("quantization")
        raw = inner if isinstance(inner, dict) else {}
    scheme = raw.get("kv_cache_scheme") or raw.get("kv_cache_quant_algo")
    inner = raw.get("quantization")
    if not scheme and isinstance(inner, dict):
        scheme = inner.get("kv_cache_quant_algo")
    if isinstance(scheme, dict):
        return "fp8" if scheme.get("num_bits") == 8 and scheme.get("type") == "float" else ""
    return "fp8" if isinstance(scheme, str) and scheme.lower() == "fp8" else ""


def _embedding_bytes(tensors: Sequence[TensorHeader]) -> int:
    return sum(tensor.size for tensor in tensors if EMBEDDING.fullmatch(tensor.name))


# --- What it says of itself


def _quantisation(directory: Path, config: Config, tensors: Sequence[TensorHeader]) -> str:
    raw = config.quantisation()
    method = clean_text(raw.get("quant_method")).lower().replace("_", "-")
    if not raw and (directory / "hf_quant_config.json").is_file():  # ModelOpt
        raw = _read_json(directory / "hf_quant_config.json").get("quantization") or {}
        method = "modelopt" if isinstance(raw, dict) else ""
    if not method and not raw:
        return _most_used(tensors)
    if method in ("awq", "gptq", "autoround", "auto-round"):
        return f"{method.upper()}-INT{_bits(config)}"
    if method == "bitsandbytes":
        kind = clean_text(raw.get("bnb_4bit_quant_type"), 10) or "nf4"
        return "BNB-INT8" if raw.get("load_in_8bit") else f"BNB-{kind.upper()}"
    if method in ("compressed-tensors", "sparseml"):
        return _name_compression(raw)
    if method == "modelopt":
        return (clean_text(raw.get("quant_algo"), 20) or "modelopt").upper()
    return "FP8" if "fp8" in method else method.upper()[:20]


def _name_compression(raw: Mapping[str, Any]) -> str:
    """Name the quantisation of the first group of layers: "INT4", "FP8" …."""
    if "nvfp4" in clean_text(raw.get("format")):
        return "NVFP4"
    for weights in _weight_groups(raw):
        kind = "FP" if weights.get("type") == "float" else "INT"
        return f"{kind}{bounds.read_number('num_bits', weights.get('num_bits')) or ''}"
    return "COMPRESSED"


def _most_used(tensors: Sequence[TensorHeader]) -> str:
    elements: dict[str, int] = {}
    for tensor in tensors:
        elements[tensor.dtype] = elements.get(tensor.dtype, 0) + tensor.elements
    most = max(elements, key=lambda dtype: elements[dtype], default="")
    return "FP8" if most.startswith("F8_") else most


def _task(directory: Path, config: Config) -> str:
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
    raw = _read_json(path)
    modes = {"mean_tokens": "mean", "cls_token": "cls", "lasttoken": "last", "max_tokens": "max"}
    for mode, name in modes.items():
        if raw.get(f"pooling_mode_{mode}"):
            return name
    other = raw.get("pooling_mode")
    return clean_text(other, 20) or None


def _has_chat_template(directory: Path) -> bool:
    # Mistral's tokenizer (tekken.json) has the template in its program, which vLLM has.
    if any((directory / name).is_file() for name in ("chat_template.jinja", "chat_template.json", "tekken.json")):
        return True
    path = directory / "tokenizer_config.json"
    return path.is_file() and bool(_read_json(path).get("chat_template"))


def _context(directory: Path, config: Config) -> int | None:
    """Return it in tokens, as vLLM derives it (config/model.py, _get_and_verify_max_len)."""
    sentences = directory / "sentence_bert_config.json"
    if sentences.is_file() and (
        length := bounds.read_number("max_seq_length", _read_json(sentences).get("max_seq_length"))
    ):
        return length
    lengths = [length for name in LENGTHS if (length := config.number(name))]
    length = config.number("model_max_length") or min(lengths, default=0)
    if config.kind in ROBERTAS:
        length = max(0, length - 2)  # its first two positions are never used
    return round(length * _rotary_factor(config)) or None


def _rotary_factor(config: Config) -> float:
    """Return by what rotary scaling makes it longer.

    YaRN's, Llama 3's and LongRoPE's are given beside a length that counts as stretched already (vLLM 0.32; before, it
    multiplied YaRN's original length itself).
    """
    scaling = config.get("rope_scaling") or config.get("rope_parameters")
    if not isinstance(scaling, dict) or config.kind.startswith("gemma3"):
        return 1.0
    factor, kind = scaling.get("factor"), scaling.get("rope_type", scaling.get("type"))
    if not isinstance(factor, int | float) or not 1 <= factor <= 1024:
        return 1.0
    return float(factor) if kind in ("linear", "dynamic") else 1.0
