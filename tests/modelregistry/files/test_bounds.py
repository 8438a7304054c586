"""Any numbers and texts in a model's files: their metadata is sane, or the files are refused."""

import json
import struct
import time
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any
from unicodedata import category

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelregistry import placement_messages
from modelregistry.engines.base import Spec
from modelregistry.files import bounds, class_defaults, model_files
from modelregistry.files.metadata import ModelMetadata
from modelregistry.files.unreadable import UnreadableModel
from modelregistry.memory import allocation
from modelregistry.memory.estimate import Demand, Unpredictable, predict
from tests.modelregistry import paper_models
from tests.modelregistry.planning import card, ram

WITHIN = 1.0  # seconds of CPU for a file and all that is asked of it
LAUNCHERS = {"vllm": "vllm", "llama.cpp": "llama-server"}
MOST = 2**63 - 1


HOSTS = (
    [card(0, total=24), card(1, total=24), ram(64, used=0)],
    [ram(16, used=0)],
)


def numbers_in(value: Any) -> Iterator[int | float]:
    if isinstance(value, dict | list | tuple):
        for each in value.values() if isinstance(value, dict) else value:
            yield from numbers_in(each)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def ask_everything(engine: str, path: Path) -> ModelMetadata | None:
    """Read it and plan it in every way. None: it was refused with a sentence. Anything else that is raised is a bug."""
    started = time.process_time()
    try:
        facts = model_files.read_model(engine, str(path), ["pickle", "remote-code"])
    except UnreadableModel as refusal:
        see_that_it_can_be_printed(str(refusal))
        return None
    bounds.check_metadata(facts)
    json.dumps(facts.stored(), ensure_ascii=False, allow_nan=False).encode()
    assert all(0 <= number <= MOST for number in numbers_in(facts.stored()))
    for said in (facts.architecture, facts.quantisation, facts.pooling or "", facts.cache_type, *facts.missing):
        see_that_it_can_be_printed(said)
    launcher = LAUNCHERS[engine]
    for context, slots in ((None, None), (MOST, 1024)):
        for kind in ("gpu", "ram"):
            try:
                need = predict(facts, Demand(launcher=launcher, task="chat", kind=kind, context=context, slots=slots))
                assert all(0 <= number <= MOST for number in numbers_in(asdict(need)))
            except Unpredictable:
                pass
        for devices in HOSTS:
            spec = Spec(engine=engine, name="m", path="/m", context=context, slots=slots)
            found = allocation.check_fit(spec, facts, launcher, [f"/opt/{launcher}"], devices)
            assert found.fits != bool(placement_messages.explain_refusal(found))
            if found.need:
                assert all(0 <= number <= MOST for number in numbers_in(asdict(found.need)))
    assert time.process_time() - started < WITHIN
    return facts


def see_that_it_can_be_printed(sentence: str) -> None:
    sentence.encode()
    assert not {category(letter) for letter in sentence} & {"Cc", "Cf", "Cs", "Zl", "Zp"}


# --- Everything that config.json may say

odd_number = st.one_of(
    st.integers(-3, 200),
    st.sampled_from([-1, 0, 1, 2**31, 2**39, 2**62, 2**63, 2**64, 10**30, 10**400, 2.5, 2048.0, 1e30]),
    st.floats(),
    st.integers(),
)
odd_text = st.one_of(
    st.text(max_size=20), st.sampled_from(["\x1b[31mred\n", "\ud800", "full_attention", "mamba", "auto", "M-M*"])
)
odd_value = st.recursive(
    st.one_of(st.none(), st.booleans(), odd_number, odd_text),
    lambda inner: st.one_of(st.lists(inner, max_size=6), st.dictionaries(odd_text, inner, max_size=3)),
    max_leaves=10,
)
NAMES = sorted(
    {"architectures", "model_type", "text_config", "quantization_config", "rope_scaling", "hybrid_override_pattern"}
    | {"attn_config", "linear_attn_config", "block_configs", "attn_type_list", "hybrid_layer_ids", "mamba_step"}
    | {"num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings"}
    | {"full_attn_idxs", "no_rope_layers", "compress_ratios", "kv_cache_scheme", "thinker_config", "is_causal"}
)


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    """Draw the configuration of a known architecture, with some of its values changed."""
    kind = draw(st.sampled_from([*sorted(class_defaults.load_table()), "plamo2"]))
    names = st.sampled_from([*NAMES, *class_defaults.defaults_of(kind)])
    odd = draw(st.dictionaries(names, st.one_of(odd_number, odd_value), max_size=5))
    return {**paper_models.llama_config(), "model_type": kind, **odd}


anything = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.fixture
def llama(tmp_path) -> Path:
    return paper_models.small_llama(tmp_path / "llama")


@anything
@given(configs())
def test_whatever_config_json_says_it_is_planned_or_refused(llama, config):
    (llama / "config.json").write_text(json.dumps(config))
    ask_everything("vllm", llama)


PARAMS = ("dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "sliding_window", "max_seq_len", "vocab_size", "moe")


@anything
@given(st.dictionaries(st.sampled_from(PARAMS), odd_value))
def test_whatever_params_json_says_it_is_planned_or_refused(llama, odd):
    said = {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "sliding_window": [4096, None]}
    (llama / "config.json").unlink(missing_ok=True)
    weights = llama / "model.safetensors"
    if weights.exists():
        weights.rename(llama / "consolidated.safetensors")
    (llama / "params.json").write_text(json.dumps(said | odd))
    ask_everything("vllm", llama)


@anything
@given(st.dictionaries(odd_text, odd_value, max_size=4), odd_value, odd_value)
def test_whatever_a_header_of_safetensors_says_it_is_planned_or_refused(llama, odd, shape, offsets):
    header = {"model.embed_tokens.weight": {"dtype": "BF16", "shape": shape, "data_offsets": offsets}, **odd}
    data = json.dumps(header).encode()
    (llama / "model.safetensors").write_bytes(struct.pack("<Q", len(data)) + data + b"\0" * 64)
    ask_everything("vllm", llama)


# --- Everything that a GGUF file may say

ARCHITECTURES = (
    "llama",
    "gemma3",
    "jamba",
    "falcon-h1",
    "qwen3next",
    "deepseek2",
    "bert",
    "rwkv6",
    "lfm2",
    "kimi-linear",
)
KEYS = (
    *("block_count", "context_length", "embedding_length", "vocab_size", "pooling_type", "feed_forward_length"),
    *("attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length"),
    *("attention.sliding_window", "attention.sliding_window_pattern", "attention.shared_kv_layers"),
    *("attention.kv_lora_rank", "attention.key_length_mla", "attention.key_length_swa", "full_attention_interval"),
    *("ssm.conv_kernel", "ssm.inner_size", "ssm.state_size", "ssm.group_count", "wkv.head_size"),
    *("shortconv.l_cache", "kda.head_dim", "general.file_type", "tokenizer.ggml.tokens", "split.count"),
)
# As the format numbers its types.
SCALARS = {0: "B", 1: "b", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
RANGES = {0: (0, 2**8), 1: (-(2**7), 2**7), 4: (0, 2**32), 5: (-(2**31), 2**31), 10: (0, 2**64), 11: (-(2**63), 2**63)}


def text(value: str) -> bytes:
    data = value.encode(errors="surrogatepass")
    return struct.pack("<Q", len(data)) + data


@st.composite
def scalars(draw: st.DrawFn, kind: int) -> bytes:
    if kind not in RANGES:
        value: Any = draw(st.booleans() if kind == 7 else st.floats(width=32 if kind == 6 else 64))
    else:
        least, end = RANGES[kind]
        usual = st.integers(max(least, -3), min(200, end - 1))
        value = draw(st.one_of(usual, st.sampled_from([least, end - 1]), st.integers(least, end - 1)))
    return struct.pack("<" + SCALARS[kind], value)


@st.composite
def values(draw: st.DrawFn) -> bytes:
    """Return a value with its type before it."""
    kind = draw(st.sampled_from([*SCALARS, 8, 9]))
    if kind == 8:
        return struct.pack("<I", 8) + text(draw(odd_text))
    if kind == 9:
        inner = draw(st.sampled_from(sorted(SCALARS)))
        items = draw(st.lists(scalars(inner), max_size=8))
        return struct.pack("<IIQ", 9, inner, len(items)) + b"".join(items)
    return struct.pack("<I", kind) + draw(scalars(kind))


def as_gguf(architecture: str, pairs: dict[str, bytes], shape: list[int]) -> bytes:
    named = {"general.architecture": struct.pack("<I", 8) + text(architecture)}
    for key, value in pairs.items():
        named[key if key.startswith(("general.", "tokenizer.", "split.")) else f"{architecture}.{key}"] = value
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, len(named))
    head += b"".join(text(key) + value for key, value in named.items())
    head += text("token_embd.weight") + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape)
    return head + struct.pack("<IQ", 1, 0) + b"\0" * 65_536


USUAL = {
    key: struct.pack("<II", 4, value)
    for key, value in {
        **{"block_count": 2, "context_length": 2048, "embedding_length": 64},
        **{"attention.head_count": 4, "attention.head_count_kv": 2},
    }.items()
}


@anything
@given(
    st.one_of(st.sampled_from(ARCHITECTURES), odd_text),
    st.dictionaries(st.sampled_from(KEYS), values(), max_size=4),
    st.one_of(st.just([64, 64]), st.lists(st.integers(0, 2**64 - 1), max_size=4)),
)
def test_whatever_a_gguf_file_says_it_is_planned_or_refused(tmp_path, architecture, odd, shape):
    path = tmp_path / "m.gguf"
    path.write_bytes(as_gguf(architecture, USUAL | odd, shape))
    ask_everything("llama.cpp", path)


# --- What broke


def refusal(engine: str, path: Path) -> UnreadableModel:
    with pytest.raises(UnreadableModel) as refused:
        model_files.read_model(engine, str(path))
    return refused.value


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("context_length", struct.pack("<IQ", 10, 2**63)),
        ("context_length", struct.pack("<Iq", 11, -(10**18))),
        ("context_length", struct.pack("<If", 6, float("nan"))),
        ("attention.key_length", struct.pack("<IQ", 10, 2**63)),
        ("attention.key_length", struct.pack("<Iq", 11, -(10**12))),
        ("attention.head_count_kv", struct.pack("<Iq", 11, -(10**12))),
        ("embedding_length", struct.pack("<Iq", 11, -(10**12))),
        ("block_count", struct.pack("<Ii", 5, -5)),
        ("block_count", struct.pack("<II", 4, 65_536)),
    ],
)
def test_a_gguf_file_with_a_number_that_no_model_has_is_damaged(tmp_path, key, value):
    (tmp_path / "m.gguf").write_bytes(as_gguf("llama", USUAL | {key: value}, [64, 64]))
    refused = refusal("llama.cpp", tmp_path / "m.gguf")
    assert (refused.code, refused.values["name"]) == ("impossible-value", key)


@pytest.mark.parametrize("key", ["block_count", "embedding_length"])
def test_a_gguf_file_without_what_llama_cpp_needs_is_damaged(tmp_path, key):
    pairs = {name: value for name, value in USUAL.items() if name != key}
    (tmp_path / "m.gguf").write_bytes(as_gguf("llama", pairs, [64, 64]))
    refused = refusal("llama.cpp", tmp_path / "m.gguf")
    assert (refused.code, refused.values["name"]) == ("missing-value", key)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_position_embeddings", 2**39),
        ("num_hidden_layers", 10**30),
        ("num_hidden_layers", "abc"),
        ("num_hidden_layers", 2.5),
        ("num_key_value_heads", -1),
        ("num_attention_heads", float("nan")),
        ("head_dim", 2**39),
    ],
)
def test_a_configuration_with_a_number_that_no_model_has_is_damaged(llama, name, value):
    (llama / "config.json").write_text(json.dumps({**paper_models.llama_config(), name: value}))
    refused = refusal("vllm", llama)
    assert (refused.code, refused.values["name"]) == ("impossible-value", name)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sliding_window", -1),  # flash attention's word for all
        ("model_max_length", 10**30),  # Hugging Face's VERY_LARGE_INTEGER
        ("model_max_length", 1000000000000000019884624838656),  # the same by way of a float
        ("num_key_value_heads", None),
        ("head_dim", None),
        ("max_position_embeddings", 8192.0),
    ],
)
def test_a_configuration_that_says_nothing_in_a_way_of_its_own_is_whole(llama, name, value):
    config = paper_models.llama_config()
    (llama / "config.json").write_text(json.dumps({**config, name: value}))
    assert model_files.read_model("vllm", str(llama)).attention


def test_a_whisper_with_a_billion_layers_is_refused_at_once(llama):
    config = {"model_type": "whisper", "d_model": 64, "decoder_attention_heads": 4, "decoder_layers": 10**9}
    (llama / "config.json").write_text(json.dumps(config))
    assert ask_everything("vllm", llama) is None


def test_texts_lose_what_would_write_on_a_terminal(llama):
    odd = {"architectures": ["\x1b[31mRed\x07ForCausalLM\n\ud800"], "torch_dtype": "x"}
    (llama / "config.json").write_text(json.dumps({**paper_models.llama_config(), **odd}))
    facts = ask_everything("vllm", llama)
    assert facts
    assert facts.architecture == "\ufffd[31mRed\ufffdForCausalLM\ufffd\ufffd"


def test_a_sentence_about_a_file_with_an_odd_name_can_be_printed(tmp_path):
    path = tmp_path / "m\x1b[2J\n日本　語"
    path.mkdir()
    refused = refusal("vllm", path)
    assert refused.values["path"] == f"{tmp_path}/m\ufffd[2J\ufffd日本　語"
    see_that_it_can_be_printed(str(refused))


def test_every_number_of_metadata_is_bounded():
    """A field that comes later needs a bound as well."""
    for field in fields(ModelMetadata):
        if str(field.type) in ("int", "int | None", "tuple[int, ...]", str(int), str(int | None), str(tuple[int, ...])):
            value: Any = (MOST,) if "tuple" in str(field.type) else MOST
            with pytest.raises(bounds.OutOfBounds):
                bounds.check_metadata(ModelMetadata(**{"architecture": "x", field.name: value}))
