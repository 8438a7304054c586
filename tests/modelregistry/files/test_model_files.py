"""What is read from a model's files, and which files are refused."""

import errno
import io
import json
import os
import pickle
import struct
import time
import tracemalloc
import zipfile
from dataclasses import asdict
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType, GGUFReader, PoolingType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelregistry.engines.base import EngineEndpoint, Spec
from modelregistry.engines.registry import launched_by
from modelregistry.files import checkpoint, class_defaults, json_stream
from modelregistry.files.gguf import GGML_QUANT_SIZES
from modelregistry.files.metadata import Attention, ModelMetadata, RecurrentState
from modelregistry.files.model_files import read_model
from modelregistry.files.unreadable import UnreadableModel
from modelregistry.install import engine_environments
from modelregistry.memory import allocation, estimate, placement
from modelregistry.memory import vllm as vllm_memory
from modelregistry.process import gpus
from tests import engines
from tests.modelregistry import paper_models
from tests.modelregistry.nvml import two_a100
from tests.modelregistry.paper_models import directory, gguf, llama_config, small_llama

FULL = Attention(2, 16, 16)  # of paper_models' small Llama


def facts_of(path: Path, config: dict, tensors: dict | None = None) -> ModelMetadata:
    return read_model("vllm", str(directory(path / "m", config, tensors or {"x.weight": ("BF16", (2, 2))})))


def refusal(engine: str, path: Path, allowed: tuple[str, ...] = ()) -> UnreadableModel:
    with pytest.raises(UnreadableModel) as refused:
        read_model(engine, str(path), allowed)
    return refused.value


def reason(engine: str, path: Path, allowed: tuple[str, ...] = ()) -> tuple[str, Path]:
    """Return why a model is refused: the code, and of which file."""
    error = refusal(engine, path, allowed)
    return error.code, Path(str(error.values["path"]))


# --- Full-size models


def test_gemma_2_9b_is_known_by_its_headers(tmp_path):
    facts = read_model("vllm", str(paper_models.ezo_9b(tmp_path / "ezo")))
    assert (facts.architecture, facts.task, facts.quantisation) == ("Gemma2ForCausalLM", "chat", "BF16")
    assert facts.parameters == 9_241_705_984  # as published
    assert (facts.weight_bytes, facts.embedding_weight_bytes) == (2 * 9_241_705_984, 2 * 256_000 * 3584)
    assert (facts.layers, facts.heads, facts.hidden, facts.vocabulary) == (42, 16, 3584, 256_000)
    assert facts.attention == (Attention(8, 256, 256, 4096), Attention(8, 256, 256)) * 21
    assert (facts.context, facts.has_chat_template, facts.files, facts.bits_per_weight) == (8192, True, 4, 16.0)


def test_the_packed_weights_of_a_70b_model_are_counted_one_by_one(tmp_path):
    facts = read_model("vllm", str(paper_models.llama_70b_awq(tmp_path / "llama")))
    assert facts.parameters == 70_553_706_496  # as of the unpacked model
    assert (facts.quantisation, facts.bits_per_weight) == ("AWQ-INT4", 4.51)
    assert facts.weight_bytes == 39_767_785_472
    assert facts.attention == (Attention(8, 128, 128),) * 80
    assert (facts.context, facts.files) == (131_072, 9)


def test_xlm_roberta_large_is_known_by_its_gguf_header(tmp_path):
    facts = read_model("llama.cpp", str(paper_models.e5_large(tmp_path / "e5.gguf")))
    # Published are 559,890,432: the pooler and two positions that are never used are not converted.
    assert facts.parameters == 559_890_432 - 1024 * 1025 - 2 * 1024
    assert (facts.architecture, facts.task, facts.pooling) == ("bert", "embedding", "mean")
    assert (facts.quantisation, facts.context, facts.vocabulary) == ("F16", 512, 250_002)
    assert (facts.layers, facts.attention) == (24, ())  # an encoder keeps nothing
    assert facts.embedding_weight_bytes == 2 * 250_002 * 1024


def test_a_vocabulary_of_250000_words_does_not_take_seconds(tmp_path):
    path = paper_models.e5_large(tmp_path / "e5.gguf")
    began = time.process_time()
    read_model("llama.cpp", str(path))
    assert time.process_time() - began < 1  # 0.08 s; by way of arrays it took 14 s


def test_facts_come_back_from_json_and_stay_small(tmp_path):
    facts = read_model("vllm", str(paper_models.llama_70b_awq(tmp_path / "llama")))
    stored = json.dumps(facts.stored())
    assert ModelMetadata.of(json.loads(stored)) == facts
    assert ModelMetadata.of(json.loads(json.dumps(asdict(facts)))) == facts
    assert len(stored) < 5000
    assert ModelMetadata.of(json.loads(stored) | {"later": 1}) == facts


# --- Parameters and quantisation of directories

PACKED = {"m.qweight": ("I32", (64, 8)), "m.qzeros": ("I32", (1, 8)), "m.scales": ("F16", (1, 64))}
WEIGHTS = {"num_bits": 4, "type": "int"}


@pytest.mark.parametrize(
    ("said", "tensors", "name", "parameters"),
    [
        ({"quant_method": "gptq", "bits": 4}, PACKED | {"m.g_idx": ("I32", (64,))}, "GPTQ-INT4", 4096),
        ({"quant_method": "gptq", "bits": 8}, {"m.qweight": ("I32", (16, 64))}, "GPTQ-INT8", 4096),
        ({"quant_method": "fp8"}, {"m.weight": ("F8_E4M3", (8, 8)), "m.weight_scale_inv": ("F32", (1, 1))}, "FP8", 64),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": WEIGHTS}}},
            {"m.weight_packed": ("I32", (8, 2)), "m.weight_scale": ("BF16", (8, 1)), "m.weight_shape": ("I32", (2,))},
            "INT4",
            128,
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float"}}},
            },
            {"m.weight": ("F8_E4M3", (8, 8)), "m.weight_scale": ("BF16", (8, 1))},
            "FP8",
            64,
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "format": "nvfp4-pack-quantized",
                "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "float"}}},
            },
            {"m.weight_packed": ("U8", (8, 4)), "m.weight_scale": ("F8_E4M3", (8, 1))},
            "NVFP4",
            64,
        ),
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
            {
                "m.weight": ("U8", (32, 1)),
                "m.weight.absmax": ("U8", (1,)),
                "m.weight.quant_map": ("F32", (16,)),
                "m.weight.quant_state.bitsandbytes__nf4": ("U8", (90,)),
            },
            "BNB-NF4",
            64,
        ),
        (
            {"quant_method": "mxfp4"},
            {"m.down_proj_blocks": ("U8", (2, 4, 16)), "m.down_proj_scales": ("U8", (2, 4))},
            "MXFP4",
            256,
        ),
        (None, {"m.weight": ("F16", (8, 8))}, "F16", 64),
    ],
)
def test_quantised_weights_are_counted_and_named(tmp_path, said, tensors, name, parameters):
    facts = facts_of(tmp_path, llama_config(quantization_config=said), tensors)
    assert (facts.quantisation, facts.parameters) == (name, parameters)


def test_modelopt_says_it_in_a_file_of_its_own(tmp_path):
    small_llama(tmp_path)
    (tmp_path / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "FP8"}}))
    assert read_model("vllm", str(tmp_path)).quantisation == "FP8"


# --- What each layer remembers


@pytest.mark.parametrize(
    ("config", "attention"),
    [
        ({}, (FULL, FULL)),
        ({"num_key_value_heads": None}, (Attention(4, 16, 16),) * 2),
        ({"head_dim": 32}, (Attention(2, 32, 32),) * 2),
        ({"model_type": "mistral", "sliding_window": 512}, (Attention(2, 16, 16, 512),) * 2),
        ({"model_type": "qwen2", "sliding_window": 512, "use_sliding_window": False}, (FULL, FULL)),
        (
            {"model_type": "qwen2", "sliding_window": 512, "use_sliding_window": True, "max_window_layers": 1},
            (FULL, Attention(2, 16, 16, 512)),
        ),
        ({"model_type": "gemma2", "sliding_window": 512, "head_dim": 16}, (Attention(2, 16, 16, 512), FULL)),
        (
            {
                "model_type": "gpt_oss",
                "head_dim": 16,
                "sliding_window": 128,
                "layer_types": ["sliding_attention", "full_attention"],
            },
            (Attention(2, 16, 16, 128), FULL),
        ),
        (
            {"num_hidden_layers": 6, "model_type": "gemma3_text", "sliding_window": 512, "head_dim": 16},
            (*(Attention(2, 16, 16, 512),) * 5, FULL),
        ),
        ({"layer_types": ["linear_attention", "full_attention"]}, (FULL,)),
        ({"layers_block_type": ["mamba", "attention"]}, (FULL,)),
        ({"hybrid_override_pattern": "M*"}, (FULL,)),
        ({"num_hidden_layers": 8, "full_attention_interval": 4}, (FULL, FULL)),
        ({"model_type": "mamba2"}, ()),
        ({"num_kv_shared_layers": 1}, (FULL,)),
        (
            {"model_type": "deepseek_v3", "kv_lora_rank": 512, "qk_rope_head_dim": 64, "v_head_dim": 128},
            (Attention(1, 576, 0, kind="latent"),) * 2,
        ),
        ({"model_type": "falcon", "num_key_value_heads": None, "multi_query": True}, (Attention(1, 16, 16),) * 2),
        (
            {"block_configs": [{"attention": {"no_op": True}}, {"attention": {"n_heads_in_group": 4}}]},
            (Attention(1, 16, 16),),
        ),
        ({"model_type": "xlm-roberta", "architectures": ["XLMRobertaModel"]}, ()),
        ({"model_type": "modernbert-decoder"}, (FULL, FULL)),
        (
            # Its layers are those of the decoder; the other number is the encoder's.
            {
                **{"model_type": "whisper", "d_model": 64, "max_source_positions": 1500, "num_hidden_layers": 9},
                **{"decoder_layers": 1, "decoder_attention_heads": 4},
            },
            (Attention(4, 16, 16), Attention(4, 16, 16, 1500, kind="heard")),
        ),
    ],
)
def test_layers_remember_what_their_architecture_says(tmp_path, config, attention):
    assert facts_of(tmp_path, llama_config(**config)).attention == attention


@pytest.mark.parametrize(
    ("config", "layers", "attention"),
    [
        # As published: neither says how many heads it has, and llava not even its layers.
        (
            {
                "model_type": "gemma3",
                "text_config": {"model_type": "gemma3_text", "hidden_size": 2560, "num_hidden_layers": 34},
            },
            34,
            Attention(4, 256, 256, window=4096),
        ),
        (
            {"model_type": "llava", "text_config": {"model_type": "llama", "vocab_size": 32064}},
            32,
            Attention(32, 128, 128),
        ),
        ({"model_type": "llava"}, 32, Attention(32, 128, 128)),
        ({"model_type": "mistral"}, 32, Attention(8, 128, 128, window=4096)),
        ({"model_type": "mistral", "sliding_window": None}, 32, Attention(8, 128, 128)),  # null is a word, too
        ({"model_type": "qwen2", "num_hidden_layers": 2}, 2, Attention(32, 128, 128)),
    ],
)
def test_e3_what_a_configuration_leaves_to_its_class_comes_from_there(tmp_path, config, layers, attention):
    facts = facts_of(tmp_path, {"architectures": ["XForCausalLM"], **config})
    assert (facts.layers, len(facts.attention)) == (layers, layers)
    assert facts.attention[0] == attention
    assert facts.missing == ()


def test_every_layer_of_zamba2_has_a_state_and_some_have_keys_beside_it(tmp_path):
    """Zamba2-7B as published."""
    both = [*range(6, 78, 6)]
    config = {
        **{"architectures": ["Zamba2ForCausalLM"], "model_type": "zamba2", "num_hidden_layers": 81},
        **{"hidden_size": 3584, "num_attention_heads": 32, "num_key_value_heads": 32, "attention_head_dim": 224},
        **{"mamba_d_state": 64, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_ngroups": 2, "n_mamba_heads": 112},
        **{"mamba_headdim": 64, "hybrid_layer_ids": both, "max_position_embeddings": 4096},
    }
    facts = facts_of(tmp_path, config)
    inner = 112 * 64
    assert facts.states == (RecurrentState(3 * (inner + 2 * 2 * 64), inner * 64, blocks=3),) * 81
    assert facts.attention == (Attention(32, 224, 224),) * len(both)


def test_every_second_layer_of_plamo_2_attends_and_the_others_have_a_state(tmp_path):
    """PLaMo 2 8B as published."""
    config = {
        **{"architectures": ["Plamo2ForCausalLM"], "model_type": "plamo2", "num_hidden_layers": 32},
        **{"hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 4, "hidden_size_per_head": 128},
        **{"mamba_step": 2, "mamba_d_state": 64, "mamba_d_conv": 4, "mamba_num_heads": 64},
        "max_position_embeddings": 10_485_760,
    }
    facts = facts_of(tmp_path, config)
    assert facts.missing == ()
    assert facts.attention == (Attention(4, 128, 128),) * 16
    assert facts.states == (RecurrentState(3 * 64 * 128, 64 * 128 * 64, blocks=3),) * 16


def test_e3_layers_and_keys_that_no_field_names_are_counted_in_the_tensors(tmp_path):
    """Of a model with a class of its own, of which nothing is known here."""
    config = {"architectures": ["OddForCausalLM"], "model_type": "odd", "hidden_size": 64}
    shapes = {
        **{f"model.layers.{layer}.self_attn.k_proj.weight": ("BF16", (32, 64)) for layer in range(3)},
        "vision_tower.encoder.layers.40.self_attn.k_proj.weight": ("BF16", (64, 64)),
        "model.embed_tokens.weight": ("BF16", (320, 64)),
    }
    facts = facts_of(tmp_path, config, shapes)
    assert (facts.layers, facts.attention, facts.missing) == (3, (Attention(1, 32, 32),) * 3, ())


@pytest.mark.parametrize(
    ("config", "tensors", "missing"),
    [
        ({"model_type": "odd"}, {"m.x": ("BF16", (4, 4))}, ("num_hidden_layers",)),
        ({"model_type": "odd", "num_hidden_layers": 2}, {"m.x": ("BF16", (4, 4))}, ("num_attention_heads",)),
        (
            {"model_type": "odd", "layer_types": ["mamba", "attention"]} | llama_config(model_type="odd"),
            {"m.x": ("BF16", (4, 4))},
            ("state",),
        ),
    ],
)
def test_e3_what_cannot_be_known_is_named_and_never_zero(tmp_path, config, tensors, missing):
    path = tmp_path / "model"
    facts = facts_of(path, {"architectures": ["OddForCausalLM"], **config}, tensors)
    assert facts.missing == missing
    with pytest.raises(estimate.Unpredictable) as refused:
        estimate.predict(facts, estimate.Demand(launcher="vllm", task="chat", kind="ram"))
    assert refused.value.missing == missing
    # On a card it gets what is left, with a cache that vLLM measures itself; nothing of it is planned beside another.
    spec = Spec(engine="vllm", name="m", path=str(path / "m"), context=2048)
    cards = gpus.list_devices(nvml=two_a100())
    given = allocation.allocate(spec, facts, "vllm", ["/opt/vllm"], cards)
    [card] = [device for device in cards if device.index in given.devices]
    assert given.needed == pytest.approx(card.free - placement.GPU_MARGIN, abs=estimate.MIB)
    assert given.grant.cache == 0
    assert given.fraction * card.total == pytest.approx(
        given.needed - vllm_memory.CUDA_CONTEXT, abs=card.total / 10_000
    )
    place = EngineEndpoint(address="127.0.0.1", port=1, api_key="k", grace=1)
    argv = launched_by("vllm").build_command(spec, ("vllm",), place, {}, given.grant).argv
    assert "--gpu-memory-utilization" in argv
    assert "--kv-cache-memory-bytes" not in argv


def test_e3_the_table_of_class_defaults_is_of_the_engine_that_is_installed():
    """Else run class_defaults_writer.py by the new engine's Python."""
    made_of = json.loads(class_defaults.TABLE.read_text())["of"]
    lock = (engine_environments.LOCKS / "vllm-cuda" / "vllm-cuda.lock").read_text()
    assert f"\ntransformers=={made_of['transformers']} " in lock
    assert f"\nvllm=={made_of['vllm'].partition('+')[0]} " in lock


def test_the_language_part_of_a_model_that_sees_is_what_counts(tmp_path):
    config = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "hidden_size": 9999}
    facts = facts_of(tmp_path, config | {"text_config": llama_config()})
    assert (facts.architecture, facts.task, facts.hidden) == ("Gemma3ForConditionalGeneration", "chat", 64)
    assert facts.attention == (FULL, FULL)


# --- Context, template, task


@pytest.mark.parametrize(
    ("config", "context"),
    [
        ({}, 2048),
        ({"rope_scaling": {"rope_type": "linear", "factor": 4.0}}, 8192),
        # With YaRN the configuration's length is the stretched one: 0.32 refuses a longer context.
        ({"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}}, 2048),
        (
            {
                "max_position_embeddings": 8192,
                "rope_parameters": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 2048},
            },
            8192,
        ),
        ({"model_type": "chatglm", "max_position_embeddings": None, "seq_length": 8192}, 8192),
        ({"model_max_length": 4096}, 4096),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 256}}, 2048),
        ({"model_type": "gemma3_text", "rope_scaling": {"rope_type": "linear", "factor": 8.0}}, 2048),
        ({"model_type": "xlm-roberta", "max_position_embeddings": 514}, 512),
        ({"max_position_embeddings": None, "n_positions": 1024}, 1024),
        ({"max_position_embeddings": None}, None),
    ],
)
def test_the_context_is_what_vllm_would_derive(tmp_path, config, context):
    assert facts_of(tmp_path, llama_config(**config)).context == context


def test_a_sentence_embedder_says_its_length_and_how_it_pools(tmp_path):
    small_llama(tmp_path, architectures=["BertModel"], model_type="bert")
    (tmp_path / "modules.json").write_text("[]")
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 256}')
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    facts = read_model("vllm", str(tmp_path))
    assert (facts.task, facts.context, facts.pooling) == ("embedding", 256, "mean")


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("LlamaForCausalLM", "chat"),
        ("QWenLMHeadModel", "chat"),
        ("Qwen2_5_VLForConditionalGeneration", "chat"),
        ("WhisperForConditionalGeneration", "transcription"),
        ("XLMRobertaForSequenceClassification", "rerank"),
        ("XLMRobertaModel", "embedding"),
        ("ChatGLMModel", ""),
    ],
)
def test_an_architecture_shows_what_it_was_made_for(tmp_path, architecture, task):
    kind = "xlm-roberta" if "Roberta" in architecture else "other"
    assert facts_of(tmp_path, llama_config(architectures=[architecture], model_type=kind)).task == task


@pytest.mark.parametrize("name", ["chat_template.jinja", "chat_template.json", "tekken.json"])
def test_a_chat_template_may_be_a_file_of_its_own(tmp_path, name):
    small_llama(tmp_path, template=False)
    assert not read_model("vllm", str(tmp_path)).has_chat_template
    (tmp_path / name).write_text("{}")
    assert read_model("vllm", str(tmp_path)).has_chat_template


def test_e7_layers_that_guess_ahead_are_loaded_only_where_they_are_to_guess(tmp_path):
    """Of DeepSeek V3 they are 11.5 of 688 GB."""
    config = llama_config(model_type="deepseek_v3", kv_lora_rank=512, qk_rope_head_dim=64, num_nextn_predict_layers=1)
    tensors = {f"model.layers.{layer}.mlp.up_proj.weight": ("BF16", (64, 64)) for layer in range(3)}
    facts = facts_of(tmp_path, config, tensors)
    assert (facts.weight_bytes, facts.unused_weight_bytes) == (3 * 8192, 8192)
    plain = estimate.Demand(launcher="vllm", task="chat")
    guessing = estimate.Demand(launcher="vllm", task="chat", args=('--speculative-config={"method": "mtp"}',))
    assert estimate.predict(facts, plain).weights == 2 * 8192
    assert estimate.predict(facts, guessing).weights == 3 * 8192
    assert facts_of(tmp_path / "own", llama_config(), {"mtp.x": ("BF16", (8, 8))}).unused_weight_bytes == 128


def test_e7_deepseeks_chats_are_written_out_by_vllm_itself(tmp_path):
    small_llama(tmp_path, template=False, model_type="deepseek_v32")
    assert read_model("vllm", str(tmp_path)).has_chat_template


# --- What lies there in a model's place

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 4976698672\n"
PAGE = b"\n<!DOCTYPE html><html><head><title>Sign in</title></head></html>"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize(("found", "code"), [(LFS, "git-lfs-pointer"), (PAGE, "web-page")])
def test_e12_a_pointer_or_a_page_in_a_files_place_is_called_so(tmp_path, name, found, code):
    small_llama(tmp_path)
    (tmp_path / name).write_bytes(found)
    assert reason("vllm", tmp_path) == (code, tmp_path / name)
    (tmp_path / "m.gguf").write_bytes(found)
    assert reason("llama.cpp", tmp_path / "m.gguf") == (code, tmp_path / "m.gguf")


def test_e12_an_adapter_and_a_cache_folder_are_called_so(tmp_path):
    lora = tmp_path / "lora"
    lora.mkdir()
    (lora / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "x/y"}')
    paper_models.safetensors(lora / "adapter_model.safetensors", {"lora_A": ("BF16", (8, 8))})
    assert reason("vllm", lora) == ("lora-adapter", lora)
    snapshot = small_llama(tmp_path / "models--org--name" / "snapshots" / "0123abcd")
    in_the_cache = refusal("vllm", tmp_path / "models--org--name")
    assert (in_the_cache.code, in_the_cache.values["inside"]) == ("cache", str(snapshot))
    assert reason("vllm", tmp_path) == ("no-config", tmp_path)


def test_e12_mistrals_own_form_alone_is_a_model(tmp_path):
    """As of Pixtral and Mistral Small: params.json, consolidated.safetensors, tekken.json."""
    params = {
        **{"dim": 5120, "n_layers": 40, "head_dim": 128, "hidden_dim": 32768, "n_heads": 32, "n_kv_heads": 8},
        **{"vocab_size": 131072, "max_position_embeddings": 131072, "quantization": {"qformat_weight": "fp8_e4m3"}},
        "vision_encoder": {"hidden_size": 1024},
    }
    (tmp_path / "params.json").write_text(json.dumps(params))
    (tmp_path / "tekken.json").write_text("{}")
    tensors = {"tok_embeddings.weight": ("BF16", (131072, 5120)), "x": ("F8_E4M3", (1000, 1000))}
    paper_models.safetensors(tmp_path / "consolidated.safetensors", tensors)
    facts = read_model("vllm", str(tmp_path))
    assert (facts.architecture, facts.task, facts.context) == ("PixtralForConditionalGeneration", "chat", 131072)
    assert (facts.quantisation, facts.has_chat_template, facts.hidden) == ("FP8", True, 5120)
    assert facts.attention == (Attention(8, 128, 128),) * 40
    (tmp_path / "params.json").write_text(json.dumps(params | {"sliding_window": [4096, None]}))
    assert read_model("vllm", str(tmp_path)).attention[:2] == (Attention(8, 128, 128, 4096), Attention(8, 128, 128))


# --- What is refused of directories


def test_a_cut_off_shard_is_refused_with_both_sizes(tmp_path):
    config = llama_config()
    directory(tmp_path, config, paper_models.decoder(config, norms=paper_models.LLAMA_NORMS), shards=2)
    shard = tmp_path / "model-00002-of-00002.safetensors"
    whole = shard.stat().st_size
    with shard.open("r+b") as file:
        file.truncate(whole - 1)
    error = refusal("vllm", tmp_path)
    assert (error.code, error.values) == ("cut-off", {"path": str(shard), "actual": whole - 1, "expected": whole})
    with shard.open("r+b") as file:
        file.truncate(20)
    assert reason("vllm", tmp_path) == ("cut-off-header", shard)
    with shard.open("r+b") as file:
        file.truncate(0)
    assert reason("vllm", tmp_path) == ("cut-off-header", shard)


def test_a_file_that_is_longer_than_its_header_says_is_refused(tmp_path):
    file = small_llama(tmp_path) / "model.safetensors"
    with file.open("ab") as opened:
        opened.write(b"!")
    assert reason("vllm", tmp_path) == ("too-long", file)


@pytest.mark.parametrize("indexed", [True, False])
def test_a_missing_shard_is_refused_by_its_name(tmp_path, indexed):
    config = llama_config()
    directory(tmp_path, config, paper_models.decoder(config, norms=paper_models.LLAMA_NORMS), shards=3)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    if not indexed:
        (tmp_path / "model.safetensors.index.json").unlink()
    missing = tmp_path / "model-00002-of-00003.safetensors"
    assert reason("vllm", tmp_path) == ("missing-part", missing)


def kimi_k2(path: Path) -> Path:
    """Kimi K2 Thinking: a directory with an index as long as the real one, of tensors that are not there."""
    config = llama_config(model_type="kimi_k2", architectures=["DeepseekV3ForCausalLM"])
    parts = [f"model-{part:05}-of-00061.safetensors" for part in range(1, 62)]
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    for part in parts:
        paper_models.safetensors(path / part, {f"{part}.weight": ("F8_E4M3", (8, 8))})
    places = ",\n".join(
        f'    "model.layers.{layer}.mlp.experts.{expert}.{side}_proj.{kind}": "{parts[layer]}"'
        for layer in range(61)
        for expert in range(384)
        for side in ("down", "gate", "up")
        for kind in ("weight_packed", "weight_scale", "weight_shape")
    )
    head = '{\n  "metadata": {\n    "total_size": 1029173249888,\n    "of": {"x": [1]}\n  },\n  "weight_map": {\n'
    (path / "model.safetensors.index.json").write_text(head + places + "\n  }\n}\n")
    return path


def test_e5_an_index_of_16_mib_and_more_is_walked_through(tmp_path):
    path = kimi_k2(tmp_path / "kimi")
    index = path / "model.safetensors.index.json"
    whole = index.read_bytes()
    assert len(whole) > checkpoint.LONGEST_JSON
    began = time.process_time()
    facts = read_model("vllm", str(path))
    assert (facts.files, facts.weight_bytes) == (61, 61 * 64)
    assert time.process_time() - began < 5  # 0.7 s


def test_e5_an_index_that_is_not_whole_is_damaged(tmp_path):
    config = llama_config()
    directory(tmp_path, config, paper_models.decoder(config, norms=paper_models.LLAMA_NORMS), shards=3)
    index = tmp_path / "model.safetensors.index.json"
    whole = index.read_bytes()
    for broken in (
        *(whole[:-1], whole[:-2], whole[: len(whole) // 2], whole + b"x", whole.replace(b":", b";", 9), b"{}"),
        *(b'{"weight_map": []}', b'{"weight_map": {"a": ""}}', b'{"weight_map": {"a": {"b": {}}}}'),
    ):
        index.write_bytes(broken)
        assert reason("vllm", tmp_path) == ("damaged-header", index)


@pytest.mark.parametrize(
    ("text", "members"),
    [
        ("{}", []),
        (' { "a" : "b" } ', [("a", "b")]),
        ('{"a":1,"b":[1, 2],"c":{"d":"}{"},"e":-1.5e3,"f":true}', 5),
        ('{"a\\"\\u3042":"b\\\\"}', [('a"あ', "b\\")]),
        ('{"a":"b",}', None),
        ('{"a":"b" "c":"d"}', None),
        ('{"a":{"b":{}}}', None),
        ('{"a":', None),
        ('{"a":"b"', None),
        ("[]", None),
        ("", None),
        ('{"' + "a" * (json_stream.LONGEST + 2 * json_stream.STEP) + '":1}', None),
    ],
)
def test_e5_members_are_read_one_by_one_or_the_text_is_called_broken(text, members):
    walk = json_stream.JsonWalker(io.BytesIO(text.encode()), len(text.encode()))
    if members is None:
        with pytest.raises(json_stream.BrokenJson):
            list(walk.members())
        return
    found = list(walk.members())
    assert walk.read_rest() == b""
    assert dict(found) == json.loads(text)
    assert members in (found, len(found))


def test_e5_a_few_steps_are_held_at_a_time_however_long_the_text_is():
    """As Python's objects an index of 20 MB takes 80."""

    class Read(io.BytesIO):
        largest = 0

        def read(self, size=-1):
            found = super().read(size)
            self.largest = max(self.largest, len(found))
            return found

    data = ("{" + ",".join(f'"{number}":"{"x" * 800}"' for number in range(20_000)) + "}").encode()
    walk = json_stream.JsonWalker(file := Read(data), len(data))
    tracemalloc.start()
    try:
        for _name in walk.members():
            pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert file.largest <= json_stream.STEP + json_stream.LONGEST
    # Two steps, a member, and copies of them while they are put together: 9 MB, also of a text of 4 MB.
    assert peak < 10 * json_stream.STEP < len(data)


@given(st.dictionaries(st.text(), st.text() | st.integers() | st.dictionaries(st.text(), st.text())))
def test_e5_a_walk_reads_what_json_reads(value):
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False), json.dumps(value, indent=1)):
        data = text.encode()
        assert list(json_stream.JsonWalker(io.BytesIO(data), len(data)).members()) == list(value.items())
        walk = json_stream.JsonWalker(io.BytesIO(data), len(data))
        for _name in walk.names():
            walk.skip()
        assert walk.read_rest() == b""


def test_only_what_the_index_names_is_counted(tmp_path):
    config = llama_config()
    directory(tmp_path, config, paper_models.decoder(config, norms=paper_models.LLAMA_NORMS), shards=2)
    before = read_model("vllm", str(tmp_path))
    paper_models.safetensors(tmp_path / "copy.safetensors", {"x": ("F32", (1000,))})
    assert read_model("vllm", str(tmp_path)) == before


def test_mistrals_own_form_is_read_where_it_is(tmp_path):
    small_llama(tmp_path)
    paper_models.safetensors(tmp_path / "consolidated.safetensors", {"tok_embeddings.weight": ("BF16", (10, 10))})
    facts = read_model("vllm", str(tmp_path))
    assert (facts.parameters, facts.embedding_weight_bytes) == (100, 200)


def test_links_as_in_a_hugging_face_cache_are_followed(tmp_path):
    blobs = small_llama(tmp_path / "blobs")
    (tmp_path / "snapshot").mkdir()
    for file in blobs.iterdir():
        (tmp_path / "snapshot" / file.name).symlink_to(file)
    assert read_model("vllm", str(tmp_path / "snapshot")) == read_model("vllm", str(blobs))


def test_a_directory_without_weights_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert reason("vllm", tmp_path) == ("no-weights", tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a":' * 100_000, "\0", '"' + "x" * (checkpoint.LONGEST_JSON + 1)])
def test_a_broken_configuration_is_refused(tmp_path, text):
    (small_llama(tmp_path) / "config.json").write_text(text)
    assert reason("vllm", tmp_path) == ("damaged-header", tmp_path / "config.json")


def test_a_relative_path_is_refused():
    assert reason("vllm", Path("models")) == ("relative-path", Path("models"))


def test_a_directory_that_may_not_be_read_is_refused_with_the_reason(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").mkdir()
    assert reason("vllm", tmp_path / "m") == ("no-config", tmp_path / "m")
    too_long = tmp_path / ("x" * 300)
    error = refusal("vllm", too_long)
    assert error.code == "unreadable"
    assert error.values == {"path": str(too_long), "reason": os.strerror(errno.ENAMETOOLONG)}


# --- Risks


class Evil:
    def __reduce__(self):
        return exec, ("raise SystemExit('ran')",)


def pickled(path: Path) -> Path:
    small_llama(path)
    (path / "model.safetensors").unlink()
    with zipfile.ZipFile(path / "pytorch_model.bin", "w") as archive:
        archive.writestr("data.pkl", pickle.dumps(Evil()))
    return path


def test_pickled_weights_are_refused_unless_allowed_and_never_opened(tmp_path):
    error = refusal("vllm", pickled(tmp_path))
    assert error.risk == "pickle"
    assert error.values["file"] == "pytorch_model.bin"
    facts = read_model("vllm", str(tmp_path), ["pickle"])
    assert facts.risks == ("pickle",)
    assert (facts.weight_bytes, facts.parameters) == ((tmp_path / "pytorch_model.bin").stat().st_size, None)


def test_a_cut_off_pickle_is_refused_even_if_pickles_are_allowed(tmp_path):
    file = pickled(tmp_path) / "pytorch_model.bin"
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size - 30)
    assert reason("vllm", tmp_path, ("pickle",)) == ("cut-off-end", file)


def test_a_missing_part_of_a_pickled_model_is_refused(tmp_path):
    index = {"weight_map": {"a": "pytorch_model.bin", "b": "pytorch_model-2.bin"}}
    (pickled(tmp_path) / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert reason("vllm", tmp_path, ("pickle",)) == ("missing-part", tmp_path / "pytorch_model-2.bin")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "training_args.bin", "optimizer.pt", "original.pth"])
def test_pickles_beside_safetensors_are_no_risk_as_the_engine_reads_none(tmp_path, name):
    (small_llama(tmp_path) / name).write_bytes(b"")
    assert read_model("vllm", str(tmp_path)).risks == ()


def test_the_last_layer_of_a_sentence_embedder_may_be_the_pickle(tmp_path):
    (small_llama(tmp_path) / "2_Dense").mkdir()
    (tmp_path / "2_Dense" / "pytorch_model.bin").touch()
    assert refusal("vllm", tmp_path).risk == "pickle"
    (tmp_path / "2_Dense" / "model.safetensors").touch()
    assert read_model("vllm", str(tmp_path)).risks == ()


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "processor_config.json"])
def test_a_model_with_code_of_its_own_is_refused_unless_allowed(tmp_path, name):
    file = small_llama(tmp_path, model_type="homemade") / name
    said = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(said | {"auto_map": {"AutoModel": "modeling_homemade.Homemade"}}))
    error = refusal("vllm", tmp_path)
    assert (error.risk, error.values["file"]) == ("remote-code", name)
    assert read_model("vllm", str(tmp_path), ["remote-code"]).risks == ("remote-code",)


def test_code_that_the_engine_has_itself_is_not_needed(tmp_path):
    small_llama(tmp_path, model_type="phi3", auto_map={"AutoModel": "modeling_phi3.Phi3"})
    assert read_model("vllm", str(tmp_path)).risks == ()


def test_each_risk_is_allowed_on_its_own(tmp_path):
    said = json.loads((pickled(tmp_path) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(said | {"model_type": "homemade", "auto_map": {"a": "b"}}))
    assert refusal("vllm", tmp_path, ("pickle",)).risk == "remote-code"
    assert refusal("vllm", tmp_path, ("remote-code",)).risk == "pickle"
    assert read_model("vllm", str(tmp_path), ("pickle", "remote-code")).risks == ("pickle", "remote-code")


# --- GGUF


def gguf_facts(path: Path, architecture: str = "llama", **values: object) -> ModelMetadata:
    spelled = {name.replace("__", "."): value for name, value in values.items()}
    return read_model("llama.cpp", str(gguf(path / "m.gguf", architecture, spelled)))


ROW = Attention(4, 16, 16)  # of paper_models' smallest GGUF


@pytest.mark.parametrize(
    ("architecture", "values", "attention"),
    [
        ("llama", {}, (ROW, ROW)),
        ("llama", {"attention__head_count_kv": 2}, (Attention(2, 16, 16),) * 2),
        ("llama", {"attention__key_length": 32, "attention__value_length": 8}, (Attention(4, 32, 8),) * 2),
        ("llama", {"attention__sliding_window": 64}, (ROW, ROW)),  # llama.cpp takes no notice
        ("gemma2", {"attention__sliding_window": 64}, (Attention(4, 16, 16, 64), ROW)),
        (
            "gemma3n",
            {"attention__sliding_window": 64, "attention__sliding_window_pattern": [False, True]},
            (ROW, Attention(4, 16, 16, 64)),
        ),
        ("granitehybrid", {"attention__head_count_kv": [0, 2]}, (Attention(2, 16, 16),)),
        ("qwen3next", {"full_attention_interval": 2}, (ROW,)),
        ("mamba2", {"attention__head_count": 0}, ()),
        ("gemma3n", {"attention__shared_kv_layers": 1}, (ROW,)),
        (
            "deepseek2",
            {
                "attention__head_count_kv": 1,
                "attention__kv_lora_rank": 512,
                "attention__key_length": 576,
                "attention__value_length": 512,
                "attention__key_length_mla": 192,
            },
            (Attention(1, 576, 0),) * 2,
        ),
        ("nomic-bert", {}, ()),
    ],
)
def test_layers_of_a_gguf_remember_what_llama_cpp_keeps(tmp_path, architecture, values, attention):
    assert gguf_facts(tmp_path, architecture, **values).attention == attention


def test_the_demo_models_are_known():
    chat, sentences = (read_model("llama.cpp", str(path)) for path in (engines.chat_model(), engines.embedding_model()))
    assert (chat.architecture, chat.parameters, chat.quantisation) == ("llama", 134_515_008, "Q4_1")
    assert (chat.context, chat.has_chat_template, chat.vocabulary) == (8192, True, 49_152)
    assert chat.attention == (Attention(3, 64, 64),) * 30
    assert (sentences.architecture, sentences.pooling, sentences.context) == ("bert", "mean", 512)


def test_it_counts_what_the_formats_own_reader_counts():
    path = engines.embedding_model()
    theirs = GGUFReader(path).tensors
    facts = read_model("llama.cpp", str(path))
    assert facts.parameters == sum(int(tensor.n_elements) for tensor in theirs)
    assert facts.weight_bytes == sum(int(tensor.n_bytes) for tensor in theirs)


def test_a_chat_template_is_noticed_and_not_kept(tmp_path):
    assert not gguf_facts(tmp_path).has_chat_template
    assert gguf_facts(tmp_path, tokenizer__chat_template="{{ x }}" * 5000).has_chat_template


def test_a_type_is_read_from_the_weights_if_the_file_does_not_say_it(tmp_path):
    tensors = {"a.weight": ("Q4_K", (256, 256)), "b.weight": ("F32", (256,))}
    path = gguf(tmp_path / "m.gguf", tensors=tensors)
    facts = read_model("llama.cpp", str(path))
    assert (facts.quantisation, facts.weight_bytes, facts.parameters) == ("Q4_K", 256 * 144 + 1024, 256 * 257)


def test_a_reranker_is_recognised_by_its_pooling(tmp_path):
    assert gguf_facts(tmp_path, "bert", pooling_type=int(PoolingType.RANK)).task == "rerank"


def split(path: Path, count: int = 3) -> Path:
    """Return the first of a model's parts."""
    for part in range(count):
        values = {"split.no": part, "split.count": count}
        gguf(path / f"m-{part + 1:05}-of-{count:05}.gguf", "llama", values, {f"blk.{part}.x": ("F32", (10,))})
    return path / f"m-00001-of-{count:05}.gguf"


def test_all_parts_of_a_split_gguf_count(tmp_path):
    facts = read_model("llama.cpp", str(split(tmp_path)))
    assert (facts.files, facts.parameters, facts.weight_bytes) == (3, 30, 120)


def test_parts_are_given_by_the_first_and_are_all_there(tmp_path):
    first = split(tmp_path)
    later = tmp_path / "m-00002-of-00003.gguf"
    assert reason("llama.cpp", later) == ("later-part", later)
    last = tmp_path / "m-00003-of-00003.gguf"
    with last.open("r+b") as file:
        file.truncate(last.stat().st_size - 40)
    assert reason("llama.cpp", first) == ("cut-off", last)
    last.unlink()
    assert reason("llama.cpp", first) == ("missing-part", last)
    renamed = first.rename(tmp_path / "renamed.gguf")
    assert reason("llama.cpp", renamed) == ("unnamed-part", renamed)


def test_a_cut_off_gguf_is_refused_with_both_sizes(tmp_path):
    path = gguf(tmp_path / "m.gguf")
    whole = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(whole - 64)
    error = refusal("llama.cpp", path)
    assert (error.code, error.values) == ("cut-off", {"path": str(path), "actual": whole - 64, "expected": whole})
    with path.open("r+b") as file:
        file.truncate(100)
    assert reason("llama.cpp", path) == ("cut-off-header", path)


def test_a_part_for_another_model_is_no_model(tmp_path):
    path = gguf(tmp_path / "m.gguf", "clip", {"general.type": "mmproj"})
    assert reason("llama.cpp", path) == ("component", path)


@pytest.mark.parametrize(
    "header",
    [
        struct.pack("<IQQ", 1, 0, 0),
        struct.pack("<IQQ", 3, 2**60, 0),
        struct.pack("<IQQ", 3, 0, 2**60),
        struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**62),  # a key of 4 EB
        struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 8, 2**62),  # so many texts
        struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 0, 2**62),  # so many bytes
        struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 9, 1),  # a list of lists
        struct.pack("<IQQQ1sI", 3, 0, 1, 1, b"k", 99),
        struct.pack("<IQQQ1sIIQ", 3, 1, 0, 1, b"t", 1, 1, 2**63) + struct.pack("<IQ", 0, 0),
        struct.pack(">IQQ", 3, 0, 0),
    ],
)
def test_lengths_that_cannot_be_are_refused_without_reading_so_far(tmp_path, header):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + header + bytes(64))
    assert refusal("llama.cpp", path).risk == ""


# --- Anything at all

WILD = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
KEYS = [
    *("architectures", "model_type", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("hidden_size", "sliding_window", "layer_types", "layers_block_type", "text_config", "quantization_config"),
    *("rope_scaling", "max_position_embeddings", "kv_lora_rank", "block_configs", "attn_config", "auto_map"),
    *("num_kv_shared_layers", "hybrid_override_pattern", "full_attention_interval", "vocab_size"),
]


def facts_or_refusal(engine: str, path: Path) -> None:
    try:
        facts = read_model(engine, str(path))
    except UnreadableModel:
        return
    json.dumps(asdict(facts), allow_nan=False)


@WILD
@given(config=st.dictionaries(st.sampled_from(KEYS), JSON, max_size=6))
def test_any_configuration_is_read_or_refused(tmp_path, config):
    small_llama(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(llama_config() | config))
    facts_or_refusal("vllm", tmp_path)


ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "I32", "U8", "??"]) | JSON,
        "shape": st.lists(st.integers(-1, 2**70), max_size=3) | JSON,
        "data_offsets": st.lists(st.integers(-1, 2**70), min_size=2, max_size=2) | JSON,
    },
)


@WILD
@given(
    header=st.dictionaries(st.text(max_size=8), ENTRY | JSON, max_size=3) | JSON,
    length=st.none() | st.integers(0, 2**64 - 1),
)
def test_any_header_of_safetensors_is_read_or_refused(tmp_path, header, length):
    small_llama(tmp_path)
    data = json.dumps(header).encode()
    said = len(data) if length is None else length
    (tmp_path / "model.safetensors").write_bytes(said.to_bytes(8, "little") + data)
    facts_or_refusal("vllm", tmp_path)


@WILD
@given(data=st.data())
def test_a_gguf_with_any_bytes_changed_is_read_or_refused(tmp_path, data):
    values = {"tokenizer.ggml.tokens": ["a", "b"], "attention.head_count_kv": [2, 2], "general.file_type": 2}
    whole = bytearray(gguf(tmp_path / "m.gguf", "llama", values).read_bytes())
    places = st.integers(4, len(whole) - 1)
    for place, byte in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=8)):
        whole[place] = byte
    (tmp_path / "m.gguf").write_bytes(whole[: data.draw(st.integers(0, len(whole)))])
    facts_or_refusal("llama.cpp", tmp_path / "m.gguf")


def test_every_type_of_the_package_has_a_size():
    sizes = {kind: GGML_QUANT_SIZES[kind] for kind in GGMLQuantizationType}
    assert all(block > 0 and size > 0 for block, size in sizes.values())
