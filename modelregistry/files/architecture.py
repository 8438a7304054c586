"""What each layer of a model in Hugging Face's form remembers, out of its configuration. Pure.

Shapes are those of vLLM 0.32: of keys and values `v1/kv_cache_interface.py`, of states
`model_executor/layers/mamba/mamba_utils.py`, and each architecture's own file in `model_executor/models` and `models`.
What config.json leaves to its class comes from `class_defaults`. What cannot be known is named, and never zero.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modelregistry.files import bounds, class_defaults
from modelregistry.files.metadata import Attention, RecurrentState
from modelregistry.files.text import clean_text

# By transformers' words, which differ: what a layer keeps.
FULL = frozenset(["full_attention", "attention", "global_attention", "indexed_attention", "moe_attention"])
STATES = frozenset(["linear_attention", "mamba", "mamba2", "conv", "recurrent", "linear", "M"])
BOTH = frozenset(["hybrid"])
# Kinds by the form of their state.
MAMBA1 = frozenset(["mamba", "falcon_mamba", "jamba"])
MAMBA2 = frozenset(
    ["mamba2", "bamba", "granitemoehybrid", "nemotron_h", "nemotron_h_puzzle", "falcon_h1", "zamba2", "plamo2"]
)
LINEAR = frozenset(["minimax", "minimax_m1", "minimax_text_01", "bailing_moe_linear", "bailing_hybrid"])
# By the whole model's type (is_mm_prefix_lm): Gemma 4's films of 32 pictures of 70 + 8 tokens; of the others no more
# than this is known.
WHOLE = {"gemma4": 2496, "gemma4_unified": 2496, "molmo2": 4096, "bagel": 4096, "moondream3": 4096, "paligemma": 1024}
# Layers of MLA whose keys are found by an index of their own (DeepSeek's sparse attention).
INDEX_SCALES = 128  # numbers of the index that share one scale of 4 bytes
# DeepSeek V4 (models/deepseek_v4): a token in FlashMLA's form, 448 bytes and 64 rotary numbers in 16 bits, 8 of scales.
V4_TOKEN = 584


class Config:
    """config.json. Where a model sees or hears as well, what its language part says comes first.

    `raw`: what is there, null included; what is absent comes from the class.
    """

    def __init__(self, raw: Mapping[str, Any]) -> None:
        text: Any = {}
        for name in ("text_config", "llm_config", "language_config"):
            text = text or raw.get(name)
        thinker = raw.get("thinker_config")
        if isinstance(thinker, dict):
            text = text or thinker.get("text_config")
        text = text if isinstance(text, dict) else {}
        self.whole = raw
        self.raw: dict[str, Any] = {**raw, **text}
        whole_kind = clean_text(raw.get("model_type", ""))
        kind = text.get("model_type") or class_defaults.text_kind(whole_kind) or whole_kind
        self.kind = clean_text(kind)
        self.defaults = class_defaults.defaults_of(self.kind)
        names = raw.get("architectures")
        name = names[0] if isinstance(names, list) and names else raw.get("model_type", "")
        self.architecture = clean_text(name)

    def get(self, name: str) -> Any:
        return self.raw[name] if name in self.raw else self.defaults.get(name)

    def number(self, *names: str, default: int = 0) -> int:
        """Return the first of these that is a number, in the file or else in the class. `default`: none is.

        Raises OutOfBounds.
        """
        for values in (self.raw, self.defaults):
            for name in names:
                if values is self.defaults and name in self.raw:
                    continue  # null: the class's own value does not count
                value = bounds.read_number(name, values.get(name))
                if value is not None:
                    return value
        return default

    def with_layers(self, count: int) -> "Config":
        """Return the same with the number of layers."""
        return Config({**self.whole, **self.raw, "num_hidden_layers": count, "model_type": self.kind})

    def layers(self) -> int:
        count = self.number("num_hidden_layers", "n_layer", "num_layers", "n_layers", "decoder_layers")
        for name in ("layers_block_type", "hybrid_override_pattern"):
            value = self.raw.get(name)
            if not count and isinstance(value, list | str):
                count = bounds.bound_number(name, len(value), bounds.LAYERS)
        return count

    def heads(self) -> int:
        return self.number("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads")

    def hidden(self) -> int:
        return self.number("hidden_size", "n_embd", "n_embed", "d_model")

    def quantisation(self) -> dict[str, Any]:
        raw = self.whole.get("quantization_config") or self.raw.get("quantization_config")
        if not raw:
            raw = self.whole.get("compression_config")  # what llm-compressor wrote before 2024-09
        return raw if isinstance(raw, dict) else {}


def from_mistral(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Translate Mistral's params.json into Hugging Face's words, as vLLM does (transformers_utils/configs/mistral.py).

    Raises OutOfBounds.
    """
    names = {"dim": "hidden_size", "n_layers": "num_hidden_layers", "n_heads": "num_attention_heads"}
    names |= {"n_kv_heads": "num_key_value_heads", "hidden_dim": "intermediate_size"}
    found = {names.get(name, name): value for name, value in raw.items() if name not in ("multimodal", "model_type")}
    found["max_position_embeddings"] = raw.get("max_position_embeddings") or raw.get("max_seq_len") or 128_000
    window = raw.get("sliding_window")
    if isinstance(window, list) and window:  # one for each layer of a pattern; null: that one sees everything
        layers = bounds.read_number("n_layers", found.get("num_hidden_layers")) or 0
        repeated = window * (layers // len(window))
        found["layer_types"] = ["full_attention" if each is None else "sliding_attention" for each in repeated]
        found["sliding_window"] = next((each for each in window if each), None)
    else:
        found["sliding_window"] = window
    weights = raw.get("quantization")
    if isinstance(weights, dict):
        in_eight_bits = weights.get("qformat_weight") == "fp8_e4m3"
        found["quantization_config"] = {"quant_method": "fp8"} if in_eight_bits else weights
    latent, experts = bool(raw.get("qk_nope_head_dim")), bool(raw.get("moe"))
    found["model_type"] = "deepseek_v3" if latent else "mistral"
    found["architectures"] = ["MixtralForCausalLM" if experts else "MistralForCausalLM"]
    if latent:
        found["architectures"] = ["MistralLarge3ForCausalLM"]
    if raw.get("vision_encoder") or raw.get("multimodal"):
        found["architectures"] = ["PixtralForConditionalGeneration"]
    return found


@dataclass(frozen=True, slots=True)
class LayerMemory:
    """What the layers of a model keep. `missing`: names of what is not said and would have to be known for that."""

    attention: tuple[Attention, ...] = ()
    states: tuple[RecurrentState, ...] = ()
    missing: tuple[str, ...] = ()


def layer_memory(config: Config, *, kv_width: int = 0) -> LayerMemory:
    """Return what the layers of a decoder keep.

    `kv_width`: numbers per key of all heads together, counted in the files; 0: not known.

    Raises OutOfBounds.
    """
    if config.kind == "whisper":
        heard = tuple(_whisper_attention(config))
        return LayerMemory(attention=heard, missing=() if heard else ("d_model",))
    layers = config.layers()
    if not layers:
        return LayerMemory(missing=("num_hidden_layers",))
    if config.get("compress_ratios"):
        return _compressed_memory(config, layers)
    kinds = layer_kinds(config, layers)
    keeping = layers - config.number("num_kv_shared_layers")  # the last ones read what an earlier one keeps
    attention: list[Attention] = []
    states: list[RecurrentState] = []
    missing: list[str] = []
    for layer, kind in enumerate(kinds):
        if kind.state:
            states.append(state) if (state := _state(config)) else missing.append("state")
        if kind.attends and layer < keeping:
            found = list(_attention(config, layer, kind, kv_width))
            attention += found
            if not found and not config.get("block_configs"):
                missing.append("num_attention_heads" if not config.heads() else "head_dim")
    return LayerMemory(tuple(attention), tuple(states), tuple(dict.fromkeys(missing)))


def whole_items(config: Config) -> int:
    """Return tokens of the largest picture, film or recording if each is computed in one piece; 0: piece by piece.

    vLLM raises its own choice of a batch to that, but refuses to start if it is given a smaller one
    (v1/core/encoder_cache_manager.py).
    """
    if config.kind == "whisper":
        return config.number("max_source_positions", default=1500)
    return WHOLE.get(clean_text(config.whole.get("model_type")), 0)


def _whisper_attention(config: Config) -> Iterator[Attention]:
    """Yield a decoder's layer remembers what was said and, apart from it, all that was heard."""
    heads = config.number("decoder_attention_heads") or config.heads()
    size = config.number("d_model") // max(heads, 1)
    if not heads or not size:
        return
    heard = config.number("max_source_positions", default=1500)
    for _ in range(config.number("decoder_layers", "num_hidden_layers")):
        yield Attention(heads, size, size)
        yield Attention(heads, size, size, heard, kind="heard")


# --- Kinds of layers


@dataclass(frozen=True, slots=True)
class LayerKind:
    """Of a layer: whether it has a KV cache, how far back that goes (None: all), and whether it keeps a state."""

    attends: bool = True
    window: int | None = None
    chunked: bool = False
    state: bool = False


def layer_kinds(config: Config, layers: int) -> list[LayerKind]:
    """Return what each layer is, by config.json, else by the rule of its architecture."""
    words = _layer_words(config, layers)
    window = config.number("sliding_window", "window_size") or None
    chunk = config.number("attention_chunk_size") or None
    if words is None:
        return _kinds_by_windows(config, layers, window)
    return [_kind(config, word, window, chunk) for word in words]


def _kind(config: Config, word: str, window: int | None, chunk: int | None) -> LayerKind:
    if word in FULL or (word == "moe" and config.kind != "nemotron_h"):
        return LayerKind()
    if word in ("sliding_attention", "hybrid_sliding"):
        return LayerKind(window=window)
    if word == "chunked_attention":
        return LayerKind(window=chunk, chunked=True)
    if word in BOTH:
        return LayerKind(state=True)
    return LayerKind(attends=False, state=word in STATES)


def _layer_words(config: Config, layers: int) -> list[str] | None:
    """Return transformers' words, one for each layer; None: all attend, and windows decide."""
    listed = _listed_words(config, layers)
    return _implied_words(config, layers) if listed is None else listed


def _listed_words(config: Config, layers: int) -> list[str] | None:
    """Return the words that config.json lists layer by layer; None: it does not."""
    for name in ("layer_types", "layers_block_type"):
        value = config.raw.get(name)
        if isinstance(value, list) and len(value) >= layers:
            return [word if isinstance(word, str) else "" for word in value[:layers]]
    pattern = config.raw.get("hybrid_override_pattern")  # Nemotron-H: "M-M*-"
    if isinstance(pattern, str) and len(pattern) >= layers:
        return ["attention" if letter == "*" else letter for letter in pattern[:layers]]
    hybrid = config.raw.get("hybrid_layer_ids")  # Zamba2: every layer has a state, these have keys beside it
    if isinstance(hybrid, list):
        both = {number for number in hybrid if isinstance(number, int)}
        return ["hybrid" if layer in both else "mamba" for layer in range(layers)]
    return None


def _implied_words(config: Config, layers: int) -> list[str] | None:
    """Return the words that follow from a rule of the architecture; None: all attend, and windows decide."""
    attending = _attending_layers(config, layers)
    if attending is not None:
        return ["attention" if layer in attending else "linear_attention" for layer in range(layers)]
    if config.raw.get("use_sliding_window"):
        return None
    value = config.raw.get("sliding_window_pattern", config.raw.get("_sliding_window_pattern"))
    if every := bounds.read_number("sliding_window_pattern", value if not isinstance(value, str) else None):
        return ["full_attention" if (layer + 1) % every == 0 else "sliding_attention" for layer in range(layers)]
    repeated = config.defaults.get("pattern")
    if config.kind in MAMBA1 | MAMBA2 and not repeated:
        return ["mamba"] * layers
    return [str(repeated[layer % len(repeated)]) for layer in range(layers)] if repeated else None


def _attending_layers(config: Config, layers: int) -> set[int] | None:
    """Return the layers of a hybrid that have a KV cache, as each architecture says it; None: it is none."""
    listed = _listed_attending(config, layers)
    if listed is not None:
        return listed
    without = config.raw.get("no_rope_layers")
    if config.kind.startswith("llama4") and isinstance(without, list) and len(without) >= layers:
        return None  # its layers differ in what they see, see `_kinds_by_windows`
    return _attending_at_intervals(config, layers)


def _listed_attending(config: Config, layers: int) -> set[int] | None:
    """Return the layers that config.json lists one by one; None: it does not."""
    for name in ("attn_layer_indices", "full_attn_idxs"):  # Bamba, LFM2
        value = config.raw.get(name)
        if isinstance(value, list):
            return {layer for layer in value if isinstance(layer, int)}
    kinds = config.raw.get("attn_type_list")  # MiniMax: 0 linear, 1 not
    if isinstance(kinds, list) and len(kinds) >= layers:
        return {layer for layer, kind in enumerate(kinds[:layers]) if kind == 1}
    linear = config.raw.get("linear_attn_config")  # Kimi Linear counts from one
    if isinstance(linear, dict) and isinstance(linear.get("kda_layers"), list):
        with_state = {number for number in linear["kda_layers"] if isinstance(number, int)}
        return {layer for layer in range(layers) if layer + 1 not in with_state}
    return None


def _attending_at_intervals(config: Config, layers: int) -> set[int] | None:
    """Return every so many layers; None: there is no interval."""
    if step := config.number("mamba_step"):  # PLaMo 2 (models/plamo2.py of vLLM before 0.26, is_mamba)
        middle = step // 2
        return {layers - 1} if layers <= middle else {layer for layer in range(layers) if layer % step == middle}
    for every_name, offset_name in (("full_attention_interval", ""), ("attn_layer_period", "attn_layer_offset")):
        every = config.number(every_name)  # Qwen3-Next; Jamba
        if every > 1 and (every_name in config.raw or not config.defaults.get("pattern")):
            offset = config.number(offset_name, default=every - 1) if offset_name else every - 1
            return {layer for layer in range(layers) if layer % every == offset % every}
    return None


def _kinds_by_windows(config: Config, layers: int, window: int | None) -> list[LayerKind]:
    without = config.raw.get("no_rope_layers")
    if config.kind.startswith("llama4") and isinstance(without, list) and len(without) >= layers:
        chunk = config.number("attention_chunk_size") or None
        return [LayerKind(window=chunk, chunked=True) if rope else LayerKind() for rope in without[:layers]]
    if not window or config.get("use_sliding_window") is False:
        return [LayerKind()] * layers
    if config.raw.get("use_sliding_window"):  # Qwen: the first layers see everything
        first = config.number("max_window_layers")
        return [LayerKind(window=window if layer >= first else None) for layer in range(layers)]
    return [LayerKind(window=window)] * layers  # Mistral 7B 0.1, Phi-3


# --- Keys and values


def _attention(config: Config, layer: int, kind: LayerKind, kv_width: int) -> Iterator[Attention]:
    latent = config.number("kv_lora_rank")
    if latent and config.kind != "minicpm3":  # which vLLM runs with the keys and values written out
        yield Attention(1, latent + config.number("qk_rope_head_dim"), 0, kind="latent")
        if index := config.number("index_head_dim"):
            yield Attention(1, 0, 0, kind="latent", fixed=_index_bytes(index))
        return
    shape = _shape(config, layer, narrow=kind.window is not None)
    if shape is None and kv_width:
        shape = (1, kv_width, kv_width)
    if shape:
        heads, key, value = shape
        yield Attention(heads, key, value, kind.window, kind="chunked" if kind.chunked else "")


def _index_bytes(index: int) -> int:
    """Return bytes of a token in an index: 8 bits a number, and a scale of 4 bytes for each 128 (deepseek_v2.py)."""
    return index + index // INDEX_SCALES * 4


def _shape(config: Config, layer: int, *, narrow: bool) -> tuple[int, int, int] | None:
    """Return heads, and numbers per key and per value. None: this layer has none, or they are not said."""
    heads = config.heads()
    size = config.number("head_dim", "attention_head_dim", "hidden_size_per_head", "kv_channels") or (
        config.hidden() // heads if heads else 0
    )
    kv_heads = config.number(
        "num_key_value_heads", "n_head_kv", "num_kv_heads", "multi_query_group_num", "num_attention_groups"
    )
    attention = config.get("attn_config")  # MPT, DBRX
    if isinstance(attention, dict):
        kv_heads = bounds.read_number("kv_n_heads", attention.get("kv_n_heads")) or kv_heads
    if config.kind in ("falcon", "RefinedWeb", "RefinedWebModel") and not config.get("new_decoder_architecture"):
        kv_heads = 1 if config.get("multi_query") is not False else heads
    kv_heads = kv_heads or (1 if config.get("multi_query") is True else heads)
    value = config.number("v_head_dim") or size
    if not narrow and _sees_differently(config):  # Gemma 4: layers that see everything have heads of their own
        size = value = config.number("global_head_dim") or size
        kv_heads = config.number("num_global_key_value_heads") or kv_heads
    elif narrow and config.number("swa_num_key_value_heads"):  # MiMo: those with a window
        kv_heads = config.number("swa_num_key_value_heads")
        size = config.number("swa_head_dim") or size
        value = config.number("swa_v_head_dim") or value
    blocks = config.get("block_configs")  # pruned models (Nemotron), layer by layer
    if isinstance(blocks, list) and layer < len(blocks) and isinstance(blocks[layer], dict):
        kv_heads = _pruned_kv_heads(blocks[layer].get("attention"), heads, kv_heads)
    return (kv_heads, size, value) if kv_heads and size else None


def _sees_differently(config: Config) -> bool:
    return bool(config.get("layer_types") or config.defaults.get("pattern"))


def _pruned_kv_heads(attention: Any, heads: int, kv_heads: int) -> int:
    if not isinstance(attention, dict):
        return kv_heads
    group = bounds.read_number("n_heads_in_group", attention.get("n_heads_in_group"))
    if attention.get("no_op") or attention.get("replace_with_linear") or not group:
        return 0
    return heads // group


# --- States


def _state(config: Config) -> RecurrentState | None:
    """Return what a layer without a KV cache keeps of a request; None: its form is not known here."""
    if config.number("linear_num_value_heads"):
        return _gated_delta(config)
    if isinstance(config.get("linear_attn_config"), dict):
        return _delta_state(config.get("linear_attn_config"))
    if cached := config.number("conv_L_cache"):
        return RecurrentState((cached - 1) * (config.number("conv_dim") or config.hidden()), 0)
    if config.kind in LINEAR:
        heads = config.heads()
        size = config.number("head_dim") or config.hidden() // max(heads, 1)
        return RecurrentState(0, heads * size * size)
    if config.kind in MAMBA1:
        inner = config.number("mamba_expand") * config.hidden() or config.number("intermediate_size")
        return _mamba_state(config, inner or config.number("expand") * config.hidden(), groups=0)
    return _mamba2_state(config) if config.kind in MAMBA2 else None


def _gated_delta(config: Config) -> RecurrentState:
    """Return the state of a gated delta rule (Qwen3-Next, Qwen3.5)."""
    keys, values = config.number("linear_num_key_heads"), config.number("linear_num_value_heads")
    key, value = config.number("linear_key_head_dim"), config.number("linear_value_head_dim")
    seen = config.number("linear_conv_kernel_dim", default=4) - 1
    return RecurrentState(seen * (2 * keys * key + values * value), values * value * key, _state_number_bytes(config))


def _delta_state(raw: Mapping[str, Any]) -> RecurrentState | None:
    """Kimi Linear: its state in 32 bits."""
    names = ("num_heads", "head_dim", "short_conv_kernel_size")
    heads, size, kernel = (bounds.read_number(name, raw.get(name)) or 0 for name in names)
    if not (heads and size and kernel):
        return None
    return RecurrentState((kernel - 1) * 3 * heads * size, heads * size * size, 4, blocks=3)


def _mamba_state(config: Config, inner: int, *, groups: int, blocks: int = 2) -> RecurrentState | None:
    size = config.number("mamba_d_state", "ssm_state_size", "state_size")
    seen = config.number("mamba_d_conv", "conv_kernel") - 1
    if not inner or not size or seen < 0:
        return None
    return RecurrentState(seen * (inner + 2 * groups * size), inner * size, _state_number_bytes(config), blocks=blocks)


def _mamba2_state(config: Config) -> RecurrentState | None:
    heads = config.number("mamba_num_heads", "mamba_n_heads", "n_mamba_heads", "num_heads")
    wide = config.number("mamba_expand", "expand") * config.hidden()
    also = {"mamba2": "head_dim", "plamo2": "hidden_size_per_head"}.get(config.kind, "")
    size = config.number("mamba_head_dim", "mamba_d_head", "mamba_headdim", also)
    inner = heads * size or config.number("mamba_d_ssm") or wide
    # PLaMo 2's have none (vLLM's mamba2_state_shape with n_groups=0).
    groups = config.number("mamba_n_groups", "n_groups", "mamba_ngroups", default=0 if config.kind == "plamo2" else 1)
    return _mamba_state(config, inner, groups=groups, blocks=3)


def _state_number_bytes(config: Config) -> int:
    """Return bytes of a number of the state proper; 0: as the model's own (vLLM's mamba_ssm_cache_dtype "auto")."""
    value = config.get("mamba_ssm_cache_dtype") or config.get("mamba_ssm_dtype")
    if config.kind == "nemotron_h" and not value:
        value = "float32"
    return {"float32": 4, "float16": 2, "bfloat16": 2}.get(clean_text(value), 0)


# --- DeepSeek V4


def _compressed_memory(config: Config, layers: int) -> LayerMemory:
    """Return each layer sees the last tokens whole and, by its ratio, groups of tokens pressed into one entry.

    Beside the entries it keeps the group that is not full yet in 32 bits (models/deepseek_v4/compressor.py), twice
    where groups overlap (ratio 4), whose layers also find their entries by an index.
    """
    ratios, size = config.get("compress_ratios"), config.number("head_dim", default=512)
    window = config.number("sliding_window", default=128)
    index = config.number("index_head_dim", default=128)
    if not isinstance(ratios, Sequence) or len(ratios) < layers:
        return LayerMemory(missing=("compress_ratios",))
    found: list[Attention] = []
    for value in ratios[:layers]:
        found.append(Attention(1, 0, 0, window, kind="latent", fixed=V4_TOKEN))
        ratio = bounds.read_number("compress_ratios", value) or 0
        if ratio <= 1:
            continue
        found.append(Attention(1, 0, 0, kind="latent", fixed=V4_TOKEN, ratio=ratio))
        found.append(_partial_attention(ratio, size))
        if ratio == 4:
            found.append(Attention(1, 0, 0, kind="latent", fixed=_index_bytes(index), ratio=ratio))
            found.append(_partial_attention(ratio, index))
    return LayerMemory(attention=tuple(found))


def _partial_attention(ratio: int, size: int) -> Attention:
    overlapping = 2 if ratio == 4 else 1
    return Attention(1, 0, 0, overlapping * ratio, kind="partial", fixed=2 * overlapping * size * 4)
