"""What models of every kind are planned to take, from their published configurations and header-only files.

`zoo.json`: the configuration as published (what is left to the class is left out here, too), the bytes of all weights,
their types, and as `cache` what vLLM 0.32's own code (v1/core/kv_cache_utils.py, fed with its own specifications of the
layers, blocks of 16 tokens, 64 for latent attention) says that one request of 8,192 tokens needs with 2,048 computed at
a time, and the block that it sets aside. What is expected of a token and of a state is here, as plain sums.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelregistry.engines import arguments, base
from modelregistry.engines.base import Spec
from modelregistry.engines.registry import launched_by
from modelregistry.files import model_files
from modelregistry.files.metadata import ModelMetadata
from modelregistry.memory import allocation, estimate, vllm_cache
from modelregistry.memory import vllm as vllm_memory
from modelregistry.memory.estimate import Demand
from modelregistry.process import gpus
from tests.modelregistry import paper_models
from tests.modelregistry.nvml import two_a100

ZOO: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("zoo.json").read_text())
ENCODERS = frozenset(
    [*("modernbert-ja", "multilingual-e5-large", "multilingual-e5-small", "bge-m3", "bge-reranker-v2-m3")]
)
TASKS = dict.fromkeys(ENCODERS, "embedding") | {
    **{"bge-reranker-v2-m3": "rerank", "modernbert-ja": "embedding"},
    **{"whisper-large-v3": "transcription", "kotoba-whisper-v2": "transcription"},
}
KV = 2 * 2  # keys and values, in 16 bits
MLA = 2 * (512 + 64)  # DeepSeek's latent vector and rotary part

# Bytes of one token in the layers that see everything: layers × heads × numbers of a head.
TOKEN: dict[str, float] = {
    "bamba-9b": 3 * 8 * 128 * KV,
    "bloom-7b": 30 * 32 * 128 * KV,
    "calm3-22b": 48 * 48 * 128 * KV,
    "command-r7b": 8 * 8 * 128 * KV,
    "deepseek-r1-distill-qwen-14b": 48 * 8 * 128 * KV,
    "deepseek-v2-lite": 27 * MLA,
    "deepseek-v3": 61 * MLA,
    "deepseek-v32": 61 * (MLA + 128 + 4),  # and its index in 8 bits with a scale of 32
    "deepseek-v4": 21 * (584 + 128 + 4) / 4 + 20 * 584 / 128,
    "elyza-japanese-llama-2-7b": 32 * 32 * 128 * KV,
    "aya-expanse-8b": 32 * 8 * 128 * KV,
    "e5-mistral-7b": 0,  # all layers have a window
    "exaone-4-32b": 16 * 8 * 128 * KV,
    "falcon-7b": 32 * 1 * 64 * KV,
    "falcon-h1-7b": 44 * 2 * 128 * KV,
    "falcon-mamba-7b": 0,
    "gemma-2-2b-jpn-it": 13 * 4 * 256 * KV,
    "gemma-3-12b-it": 8 * 8 * 256 * KV,
    "gemma-3-1b-it": 4 * 1 * 256 * KV,
    "gemma-3-270m-it": 3 * 1 * 256 * KV,
    "gemma2-9b-bf16": 21 * 8 * 256 * KV,
    "gemma2-9b-fp8": 21 * 8 * 256 * KV,
    "gemma3-27b": 10 * 16 * 128 * KV,
    "gemma3-4b-real": 5 * 4 * 256 * KV,  # 4 heads of 256: the class says so, the file does not
    "glm-4-9b-0414": 40 * 2 * 128 * KV,
    "glm-4.5-air": 46 * 8 * 128 * KV,
    "gpt-oss-120b": 18 * 8 * 64 * KV,
    "gpt-oss-20b": 12 * 8 * 64 * KV,
    "granite-3.3-8b": 40 * 8 * 128 * KV,
    "granite-4.0-h-small": 4 * 8 * 128 * KV,
    "granite-4.0-h-tiny": 4 * 4 * 128 * KV,
    "internvl3-8b": 28 * 4 * 128 * KV,
    "jamba-mini-1.6": 4 * 8 * 128 * KV,
    "kimi-k2-fp8": 61 * MLA,
    "kimi-k2-thinking": 61 * MLA,
    "kimi-linear-48b-a3b": 7 * MLA,
    "kotoba-whisper-v2": 2 * 20 * 64 * KV,
    "lfm2-1.2b": 6 * 8 * 64 * KV,
    "llama-2-13b": 40 * 40 * 128 * KV,
    "llama-3.2-1b": 16 * 8 * 64 * KV,
    "llama-3.2-3b": 28 * 8 * 128 * KV,
    "llama-3.3-70b": 80 * 8 * 128 * KV,
    "llama-4-scout": 12 * 8 * 128 * KV,
    "llama31-70b-awq": 80 * 8 * 128 * KV,
    "llama31-70b-fp8kv": 80 * 8 * 128 * KV / 2,  # the files declare 8 bits
    "llama31-8b": 32 * 8 * 128 * KV,
    "llama31-8b-bnb4": 32 * 8 * 128 * KV,
    "llava15-7b-real": 32 * 32 * 128 * KV,  # the file says neither layers nor heads
    "llm-jp-3-1.8b": 24 * 16 * 128 * KV,
    "llm-jp-3-13b": 40 * 40 * 128 * KV,
    "minimax-m1-80k": 10 * 8 * 128 * KV,
    "mistral-7b-v0.1": 0,
    "mistral-7b-v0.3": 32 * 8 * 128 * KV,
    "mistral-small-31": 40 * 8 * 128 * KV,
    "mixtral-8x7b": 32 * 8 * 128 * KV,
    "nemotron-h-8b": 4 * 8 * 128 * KV,
    "nemotron-nano-9b-v2": 4 * 8 * 128 * KV,
    "olmo-2-7b": 32 * 32 * 128 * KV,
    "olmo-3-7b": 8 * 32 * 128 * KV,
    "phi-4": 40 * 10 * 128 * KV,
    "qwen2.5-0.5b": 24 * 2 * 64 * KV,
    "qwen2.5-32b": 64 * 8 * 128 * KV,
    "qwen2.5-vl-7b": 28 * 4 * 128 * KV,
    "qwen25-72b-gptq4": 80 * 8 * 128 * KV,
    "qwen25-7b": 28 * 4 * 128 * KV,
    "qwen25-7b-yarn": 28 * 4 * 128 * KV,
    "qwen3-235b-a22b": 94 * 4 * 128 * KV,
    "qwen3-30b-a3b": 48 * 4 * 128 * KV,
    "qwen3-30b-a3b-fp8": 48 * 4 * 128 * KV,
    "qwen3-32b": 64 * 8 * 128 * KV,
    "qwen3-4b": 36 * 8 * 128 * KV,
    "qwen3-8b": 36 * 8 * 128 * KV,
    "qwen3-embedding-0.6b": 28 * 8 * 128 * KV,
    "qwen3-next-80b": 12 * 2 * 256 * KV,
    "qwen3-reranker": 28 * 8 * 128 * KV,
    "sarashina2-7b": 32 * 32 * 128 * KV,
    "smollm3-3b": 36 * 4 * 128 * KV,
    "starcoder2-7b": 0,
    "tinyswallow-1.5b": 28 * 2 * 128 * KV,
    "whisper-large-v3": 32 * 20 * 64 * KV,
}
# Bytes of the state of one request: layers × (last inputs + what is remembered of all before).
STATE: dict[str, int] = {
    "bamba-9b": 29 * 2 * (3 * (8192 + 2 * 128) + 8192 * 128),
    "falcon-h1-7b": 44 * 2 * (3 * (3072 + 2 * 256) + 3072 * 256),
    "falcon-mamba-7b": 64 * 2 * (3 * 8192 + 8192 * 16),
    "granite-4.0-h-small": 36 * 2 * (3 * (8192 + 2 * 128) + 8192 * 128),
    "granite-4.0-h-tiny": 36 * 2 * (3 * (3072 + 2 * 128) + 3072 * 128),
    "jamba-mini-1.6": 28 * 2 * (3 * 8192 + 8192 * 16),
    "kimi-linear-48b-a3b": 20 * (2 * 3 * 3 * 32 * 128 + 4 * 32 * 128 * 128),
    "lfm2-1.2b": 10 * 2 * 2 * 2048,
    "minimax-m1-80k": 70 * 2 * 64 * 128 * 128,
    "nemotron-h-8b": 24 * (2 * 3 * (8192 + 2 * 8 * 128) + 4 * 8192 * 128),
    "nemotron-nano-9b-v2": 27 * (2 * 3 * (10240 + 2 * 8 * 128) + 4 * 10240 * 128),
    "qwen3-next-80b": 36 * 2 * (3 * (2 * 16 * 128 + 32 * 128) + 32 * 128 * 128),
}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ModelMetadata]:
    """Return the facts of a model, from files that are as large as the real ones and take no room."""
    root, read = tmp_path_factory.mktemp("zoo"), {}

    def facts(name: str) -> ModelMetadata:
        if name not in read:
            read[name] = model_files.read_model("vllm", str(made(root / name, name)), ("remote-code",))
        return read[name]

    return facts


def made(path: Path, name: str) -> Path:
    """Return a directory: the embedding as it is, and as much of each type as the model has."""
    model = ZOO[name]
    config, types = model["config"], model["dtypes"]
    text = config.get("text_config") or config.get("llm_config") or config
    hidden, words = text.get("hidden_size") or text.get("d_model"), text.get("vocab_size")
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    left = model["weights"]
    if hidden and words and name not in ENCODERS:
        tensors["model.embed_tokens.weight"] = (types[0], (words, hidden))
        left -= words * hidden * paper_models.BYTES[types[0]]
    for kind in types[1:]:
        tensors[f"model.{kind}"] = (kind, (1,))
        left -= paper_models.BYTES[kind]
    tensors["model.rest"] = (types[0], (left // paper_models.BYTES[types[0]],))
    left %= paper_models.BYTES[types[0]]
    tensors |= {f"model.byte_{number}": ("U8", (1,)) for number in range(left)}
    return paper_models.directory(path, config, tensors)


def setting(facts: ModelMetadata, name: str) -> vllm_cache.CacheSetting:
    demand = Demand(launcher="vllm", task=TASKS.get(name, "chat"), context=8192)
    return vllm_memory.cache_setting(facts, demand, 8192)


def test_the_zoo_is_large_and_nothing_in_it_is_unexpected():
    assert len(ZOO) >= 80
    assert TOKEN.keys() | ENCODERS == ZOO.keys()
    assert STATE.keys() <= TOKEN.keys()


@pytest.mark.parametrize("name", sorted(ZOO))
def test_weights_token_and_state_are_as_published(zoo, name):
    facts = zoo(name)
    assert facts.weight_bytes == ZOO[name]["weights"]
    assert facts.missing == ()
    assert vllm_cache.token_bytes(facts, setting(facts, name)) == TOKEN.get(name, 0)
    assert vllm_cache.state_bytes(facts, setting(facts, name)) == STATE.get(name, 0)


@pytest.mark.parametrize("name", sorted(name for name in ZOO if "cache" in ZOO[name]))
def test_e4_e7_one_request_takes_what_vllms_own_sums_say(zoo, name):
    facts = zoo(name)
    half = 2 if facts.cache_type == "fp8" else 1
    assert vllm_cache.plan_cache(facts, setting(facts, name)).bytes(1) == ZOO[name]["cache"] // half


def test_e4_a_state_is_kept_in_the_type_that_the_configuration_says(tmp_path):
    """Qwen3.5's in 32 bits, Qwen3-Next's as the model's own numbers."""
    config = ZOO["qwen3-next-80b"]["config"] | {"mamba_ssm_dtype": "float32"}
    path = paper_models.directory(tmp_path / "m", config, {"x": ("BF16", (8, 8))})
    facts = model_files.read_model("vllm", str(path))
    inputs, remembered = 3 * (2 * 16 * 128 + 32 * 128), 32 * 128 * 128
    assert vllm_cache.state_bytes(facts, setting(facts, "")) == 36 * (2 * inputs + 4 * remembered)


def test_e7_deepseek_v4_is_planned_a_little_above_what_vllm_would_take(zoo):
    own = 1_726_859_520  # its groups are dealt out by an approximate divisor
    assert own <= vllm_cache.plan_cache(zoo("deepseek-v4"), setting(zoo("deepseek-v4"), "")).bytes(1) < own * 1.05


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_encoders_have_no_cache_and_read_an_input_in_one_piece(zoo, name):
    found = estimate.predict(zoo(name), Demand(launcher="vllm", task=TASKS[name]))
    assert (found.cache, found.cache_least) == (0, 0)
    assert found.batch >= found.context


def test_whisper_remembers_all_that_it_heard_beside_what_it_said(zoo):
    facts = zoo("whisper-large-v3")
    plan = vllm_cache.plan_cache(facts, setting(facts, "whisper-large-v3"))
    # 8,192 tokens said, 2,048 heard (as many as are computed at a time, at least 1,500), one block set aside.
    assert plan.bytes(1) == 32 * 20 * 64 * KV * (8192 + 8192 + 16)


@pytest.mark.parametrize("cards", [1, 2, 8])
@pytest.mark.parametrize("name", ["llama31-70b-awq", "qwen3-next-80b", "gemma3-27b", "deepseek-v32"])
def test_cards_share_heads_and_states_but_no_latent_vectors(zoo, name, cards):
    facts = zoo(name)
    demand = Demand(launcher="vllm", task="chat", context=8192, tensor_parallel=cards)
    found = vllm_memory.cache_setting(facts, demand, 8192)
    heads = {"llama31-70b-awq": 8, "qwen3-next-80b": 2, "gemma3-27b": 16, "deepseek-v32": 1}[name]
    assert vllm_cache.token_bytes(facts, found) == TOKEN[name] / min(cards, heads)
    assert vllm_cache.state_bytes(facts, found) == STATE.get(name, 0) // cards


# --- The arguments of a start


@pytest.mark.parametrize("name", sorted(ZOO.keys() - {"deepseek-v4"}))
@pytest.mark.parametrize("slots", [None, 4])
def test_e1_e2_a_start_is_given_all_that_was_planned(zoo, name, slots):
    """On a made-up card with room for everything: the very numbers, each once."""
    [card, _other] = gpus.list_devices(nvml=two_a100())[:2]
    card = gpus.Device(**{**_fields(card), "total": 2**42, "used": 0, "free": 2**42})
    context = min(zoo(name).context or 8192, 8192)
    spec = Spec(engine="vllm", name=name, path="/m", task=TASKS.get(name, "chat"), context=context, slots=slots)
    given = allocation.allocate(spec, zoo(name), "vllm", ["/opt/vllm"], [card])
    place = base.EngineEndpoint(address="127.0.0.1", port=1, api_key="k", grace=1)
    argv = launched_by("vllm").build_command(spec, ("vllm",), place, {}, given.grant).argv
    said = arguments.read_arguments("vllm", argv[argv.index("/m") + 1 :])
    assert not said.faults
    assert said.number("--max-model-len") == context
    parallel, batch = said.number("--max-num-seqs"), said.number("--max-num-batched-tokens")
    cache = said.number("--kv-cache-memory-bytes") or 0
    assert parallel is not None
    assert batch is not None
    assert slots in (None, parallel)
    assert parallel <= batch
    assert (cache > 0) == (name not in ENCODERS)
    if "cache" in ZOO[name] and context == 8192:
        one = ZOO[name]["cache"] // (2 if zoo(name).cache_type == "fp8" else 1)
        assert cache >= one  # with less vLLM does not start
    if name in STATE:
        block = vllm_cache.plan_cache(
            zoo(name), vllm_memory.cache_setting(zoo(name), Demand.of(spec, "vllm", "gpu"), context)
        ).block
        assert parallel <= cache // block  # with more it does not start either
    utilisation = said.decimal("--gpu-memory-utilization")
    assert utilisation is not None
    assert 0 < utilisation * card.total <= max(given.prediction.weights + cache, card.total / 10_000)


@pytest.mark.parametrize(
    ("kind", "task", "context", "slots", "said"),
    [
        ("gemma4", "chat", 8192, 4, (4, 2496)),  # a film of 32 pictures is computed in one piece
        ("gemma3", "chat", 8192, 4, (4, 2048)),
        ("whisper", "transcription", 448, 1, (4, 1792)),  # 1,500 of what is heard, spread over four of 448
        ("whisper", "transcription", 448, None, (256, 2048)),
    ],
)
def test_e2_a_batch_holds_what_is_computed_in_one_piece(tmp_path, kind, task, context, slots, said):
    """Given a smaller one, vLLM does not start: "Chunked MM input disabled but max_tokens_per_mm_item …"."""
    path = paper_models.directory(tmp_path / "m", {"model_type": kind}, {"x": ("BF16", (8, 8))})
    facts = model_files.read_model("vllm", str(path))
    found = estimate.predict(facts, Demand(launcher="vllm", task=task, context=context, slots=slots))
    assert (found.parallel, found.batch) == said
    spec = Spec(engine="vllm", name="m", path="/m", task=task, context=context, slots=slots)
    place = base.EngineEndpoint(address="127.0.0.1", port=1, api_key="k", grace=1)
    grant = base.MemoryGrant(cache=1, context=context, parallel=found.parallel, batch=found.batch)
    argv = launched_by("vllm").build_command(spec, ("vllm",), place, {}, grant).argv
    assert argv.count("--max-num-seqs") == argv.count("--max-model-len") == 1
    assert argv[argv.index("--max-num-seqs") + 1] == str(said[0])


def _fields(card: gpus.Device) -> dict[str, Any]:
    return {name: getattr(card, name) for name in card.__slots__}


# --- llama.cpp: the same models as GGUF


GGUF = {
    # name: architecture, values, bytes of a token, bytes of a slot's state (in 32 bits)
    "llama-3.1-8b": (
        "llama",
        {"block_count": 32, "embedding_length": 4096, "attention.head_count": 32, "attention.head_count_kv": 8},
        32 * 8 * 128 * KV,
        0,
    ),
    "qwen3-30b-a3b": (
        "qwen3moe",
        {
            **{"block_count": 48, "embedding_length": 2048, "attention.head_count": 32, "attention.head_count_kv": 4},
            **{"attention.key_length": 128, "attention.value_length": 128},
        },
        48 * 4 * 128 * KV,
        0,
    ),
    "deepseek-v3": (
        "deepseek2",
        {
            **{"block_count": 61, "embedding_length": 7168, "attention.head_count": 128, "attention.head_count_kv": 1},
            **{"attention.key_length": 576, "attention.value_length": 512, "attention.key_length_mla": 192},
            "attention.kv_lora_rank": 512,
        },
        61 * MLA,
        0,
    ),
    "qwen3-next-80b": (
        "qwen3next",
        {
            **{"block_count": 48, "embedding_length": 2048, "attention.head_count": 16, "attention.head_count_kv": 2},
            **{"attention.key_length": 256, "attention.value_length": 256, "full_attention_interval": 4},
            **{"ssm.conv_kernel": 4, "ssm.inner_size": 4096, "ssm.state_size": 128, "ssm.group_count": 16},
        },
        12 * 2 * 256 * KV,
        36 * 4 * (3 * (4096 + 2 * 16 * 128) + 4096 * 128),
    ),
    "granite-4.0-h-small": (
        "granitehybrid",
        {
            **{"block_count": 40, "embedding_length": 4096, "attention.head_count": 32},
            "attention.head_count_kv": [8 if layer % 10 == 5 else 0 for layer in range(40)],
            **{"ssm.conv_kernel": 4, "ssm.inner_size": 8192, "ssm.state_size": 128, "ssm.group_count": 1},
        },
        4 * 8 * 128 * KV,
        36 * 4 * (3 * (8192 + 2 * 128) + 8192 * 128),
    ),
    "nemotron-h": (
        "nemotron_h",
        {
            **{"block_count": 4, "embedding_length": 4096, "attention.head_count": 32},
            "attention.head_count_kv": [0, 0, 8, 0],
            "feed_forward_length": [0, 21504, 0, 0],
            **{"ssm.conv_kernel": 4, "ssm.inner_size": 8192, "ssm.state_size": 128, "ssm.group_count": 8},
        },
        1 * 8 * 128 * KV,
        2 * 4 * (3 * (8192 + 2 * 8 * 128) + 8192 * 128),
    ),
    "falcon-h1-7b": (
        "falcon-h1",
        {
            **{"block_count": 44, "embedding_length": 3072, "attention.head_count": 12, "attention.head_count_kv": 2},
            **{"attention.key_length": 128, "attention.value_length": 128},
            **{"ssm.conv_kernel": 4, "ssm.inner_size": 3072, "ssm.state_size": 256, "ssm.group_count": 1},
        },
        44 * 2 * 128 * KV,
        44 * 4 * (3 * (3072 + 2 * 256) + 3072 * 256),
    ),
    "lfm2-1.2b": (
        "lfm2",
        {
            **{"block_count": 16, "embedding_length": 2048, "attention.head_count": 32, "shortconv.l_cache": 3},
            "attention.head_count_kv": [8 if layer in (2, 5, 8, 10, 12, 14) else 0 for layer in range(16)],
        },
        6 * 8 * 64 * KV,
        10 * 4 * 2 * 2048,
    ),
    "mamba-2.8b": (
        "mamba",
        {
            **{"block_count": 64, "embedding_length": 2560, "attention.head_count": 0},
            **{"ssm.conv_kernel": 4, "ssm.inner_size": 5120, "ssm.state_size": 16},
        },
        0,
        64 * 4 * (3 * 5120 + 5120 * 16),
    ),
    "rwkv6-7b": (
        "rwkv6",
        {"block_count": 32, "embedding_length": 4096, "attention.head_count": 0, "wkv.head_size": 64},
        0,
        32 * 4 * (2 * 4096 + 4096 * 64),
    ),
    "kimi-linear-48b": (
        "kimi-linear",
        {
            **{"block_count": 27, "embedding_length": 2304, "attention.head_count": 32, "kda.head_dim": 128},
            **{"ssm.conv_kernel": 4, "attention.kv_lora_rank": 512, "attention.key_length_mla": 192},
            **{"attention.key_length": 576, "attention.value_length": 512},
            "attention.head_count_kv": [1 if layer % 4 == 3 or layer == 26 else 0 for layer in range(27)],
        },
        7 * MLA,
        20 * 4 * (3 * 3 * 32 * 128 + 32 * 128 * 128),
    ),
}


@pytest.mark.parametrize("name", sorted(GGUF))
def test_e4_llama_cpp_keeps_a_state_for_each_slot_beside_its_cache(tmp_path, name):
    architecture, values, token, state = GGUF[name]
    path = paper_models.gguf(tmp_path / "m.gguf", architecture, {"context_length": 8192, **values})
    facts = model_files.read_model("llama.cpp", str(path))
    for slots in (1, 4):
        demand = Demand(launcher="llama-server", task="chat", context=8192, slots=slots)
        assert estimate.predict(facts, demand).cache == slots * (8192 * token + state)
    halves = Demand(launcher="llama-server", task="chat", context=8192, slots=1, tensor_parallel=2)
    # The output counts as one more layer, so of 32 layers the first card gets 17.
    most = math.ceil((values["block_count"] + 1) / 2) / values["block_count"]
    assert estimate.predict(facts, halves).cache <= (8192 * token + state) * most + 1


def test_e7_llama_4_sees_chunks_of_8192_tokens_in_three_of_four_layers(tmp_path):
    values = {"block_count": 48, "embedding_length": 5120, "attention.head_count": 40, "attention.head_count_kv": 8}
    path = paper_models.gguf(tmp_path / "m.gguf", "llama4", {"context_length": 262144, **values})
    facts = model_files.read_model("llama.cpp", str(path))
    demand = Demand(launcher="llama-server", task="chat", context=65536, slots=1)
    assert estimate.predict(facts, demand).cache == 8 * 128 * KV * (12 * 65536 + 36 * (8192 + 512))
