"""What llama-server says that it takes of cards, beside the formulas.

llama-server b11434, built for CUDA and compute capability 9.0, computes before it loads what it will take of each card,
and logs it ("memory breakdown"). These are its CUDA backend's own sizes, with paddings and copies that are only there.
There was no card: a CUDA runtime in its place counted what was asked for. The files were those of
`random_gguf.write_hollow`, the commands those of our launcher.
"""

from dataclasses import replace

import pytest

from modelregistry.files import model_files
from modelregistry.memory import llama_cpp
from modelregistry.memory.estimate import MIB, Demand, predict
from modelregistry.memory.llama_cpp_compute import compute_buffer
from modelregistry.memory.llama_cpp_start import requested_context
from tests import random_gguf
from tests.gpu.shapes import GEMMA3_4B, LLAMA_3B, LLAMA_8B, QWEN2_7B, QWEN2_EMBEDDING, QWEN3_MOE

SHAPES = {
    "llama 8b": LLAMA_8B,
    "llama 8b q8": replace(LLAMA_8B, quantisation="Q8_0"),
    "llama 3b": LLAMA_3B,
    "qwen2 7b": QWEN2_7B,
    "gemma3 4b": GEMMA3_4B,
    "qwen3 moe": QWEN3_MOE,
    "qwen2 embedding": QWEN2_EMBEDDING,
}
# Model, context, slots, arguments, cards; MiB of weights, cache and compute buffer on the card where each is largest.
STARTS = [
    ("llama 8b", 4096, 1, "", 1, 4026, 512, 120),
    ("llama 8b", 32768, 1, "", 1, 4026, 4096, 148),
    ("llama 8b", 8192, 4, "", 1, 4026, 4096, 124),
    ("llama 8b", 32768, 4, "", 1, 4026, 16384, 148),
    ("llama 8b", 32768, 1, "--cache-type-k=q8_0 --cache-type-v=q8_0", 1, 4026, 2176, 200),
    ("llama 8b", 8192, 1, "--n-gpu-layers=16", 1, 2037, 480, 136),
    ("llama 8b", 8192, 1, "--no-kv-offload", 1, 4026, 0, 148),
    ("llama 8b", 8192, 1, "--ubatch-size=2048", 1, 4026, 1024, 496),
    ("llama 8b", 8192, 1, "--flash-attn=off", 1, 4026, 1024, 572),
    ("llama 8b", None, None, "", 1, 4026, 16384, 244),
    ("llama 8b q8", 4096, 4, "", 1, 7605, 2048, 120),
    ("llama 3b", 8192, 4, "", 1, 6128, 3584, 80),
    ("qwen2 7b", 32768, 2, "", 1, 3794, 3584, 171),
    ("gemma3 4b", 4096, 1, "", 1, 3932, 254, 85),
    ("gemma3 4b", 32768, 2, "", 1, 3932, 1628, 113),
    ("qwen3 moe", 8192, 2, "", 1, 4178, 384, 92),
    ("qwen3 moe", 8192, 2, "--n-cpu-moe=6", 1, 2234, 384, 176),
    ("qwen2 embedding", 512, 4, "", 1, 1564, 56, 309),
    ("qwen2 embedding", 8192, 1, "", 1, 1564, 224, 5072),
    ("llama 8b", 8192, 16, "", 1, 4026, 16384, 124),
    ("llama 8b", 131072, 1, "", 1, 4026, 16384, 244),
    ("llama 8b", 32768, 4, "--cache-type-k=q8_0 --cache-type-v=q8_0", 1, 4026, 8704, 584),
    ("llama 8b", 32768, 1, "--cache-type-k=q4_0 --cache-type-v=q4_0", 1, 4026, 1152, 200),
    ("llama 8b", 32768, 1, "--flash-attn=off", 1, 4026, 4096, 2156),
    ("llama 8b", 32768, 1, "--ubatch-size=2048", 1, 4026, 4096, 592),
    ("llama 8b", 8192, 1, "--n-gpu-layers=1", 1, 281, 0, 136),
    ("qwen3 moe", 8192, 2, "--cpu-moe", 1, 290, 384, 176),
    ("qwen3 moe", 32768, 2, "--ubatch-size=2048", 1, 4178, 1536, 464),
    ("qwen2 7b", 4096, 1, "", 1, 3794, 224, 143),
    ("llama 3b", 32768, 1, "", 1, 6128, 3584, 104),
    ("gemma3 4b", 131072, 1, "", 1, 3932, 2734, 209),
    ("gemma3 4b", None, None, "", 1, 3932, 3082, 212),
    ("qwen2 embedding", 2048, 8, "", 1, 1564, 448, 1244),
    ("llama 8b", 8192, 4, "", 2, 2037, 2176, 244),
    ("llama 8b", 8192, 4, "", 3, 1452, 1408, 244),
    ("gemma3 4b", 8192, 2, "", 2, 2210, 372, 177),
]


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """Return what the files say of a model; each is written once."""
    known = {}

    def facts_of(name):
        if name not in known:
            path = random_gguf.write_hollow(tmp_path_factory.mktemp("gguf") / "m.gguf", SHAPES[name], words=False)
            known[name] = model_files.read_model("llama.cpp", str(path))
        return known[name]

    return facts_of


def demand(name, context, slots, args, cards, **more):
    task = "embedding" if "embedding" in name else "chat"
    asked = {"context": context, "slots": slots or 4, "args": tuple(args.split()), "tensor_parallel": cards}
    return Demand(**{"launcher": "llama-server", "task": task, **asked, **more})


@pytest.mark.parametrize(("name", "context", "slots", "args", "cards", "weights", "cache", "compute"), STARTS)
def test_it_takes_of_a_card_what_it_says(read, name, context, slots, args, cards, weights, cache, compute):
    facts, asked = read(name), demand(name, context, slots, args, cards)
    found = predict(facts, asked)
    assert found.weights / MIB == pytest.approx(weights, abs=1)
    assert found.cache / MIB == pytest.approx(cache, abs=1)
    buffer = compute_buffer(facts, asked, *requested_context(facts, asked))
    fetched = llama_cpp._fetched_weights(facts, asked, context or 0)
    assert (buffer + fetched) / MIB == pytest.approx(compute, abs=30 if fetched else 0, rel=0.021)
    # The rest is CUDA's context and what kernels take while they work.
    assert found.overhead - llama_cpp.CUDA_CONTEXT - buffer - fetched == llama_cpp._pool(
        facts, asked, context or 131_072
    )


def test_what_is_not_on_cards_is_planned_in_ram(read):
    plain = predict(read("llama 8b"), demand("", 8192, 1, "", 1))
    half = predict(read("llama 8b"), demand("", 8192, 1, "--n-gpu-layers=16", 1))
    assert (half.host - plain.host) / MIB == pytest.approx(2271 - 281 + 544, abs=1)
    experts = predict(read("qwen3 moe"), demand("", 8192, 2, "--n-cpu-moe=6", 1))
    assert (experts.host - predict(read("qwen3 moe"), demand("", 8192, 2, "", 1)).host) / MIB == pytest.approx(
        1944, abs=1
    )


def test_llama_cpp_python_takes_room_for_all_outputs_and_the_whole_attention(read):
    """Its server sets neither bound (llama_cpp/llama.py of 0.3.36: n_outputs_max stays 0, flash_attn is off)."""
    facts = read("llama 8b")
    asked = demand("", 8192, 1, "", 1, launcher="llama-cpp-python")
    attention = 32 * 8192 * 512 * 4 / MIB  # as of llama-server with --flash-attn=off, above
    assert compute_buffer(facts, asked, 8192, 1) / MIB == pytest.approx(attention + 60, abs=1)
    said = replace(asked, args=("--flash_attn", "true"))
    logits = 512 * 128_256 * 4 / MIB
    assert compute_buffer(facts, said, 8192, 1) / MIB == pytest.approx(logits + 32 + 8, abs=1)


@pytest.mark.parametrize(
    ("launcher", "context", "measured"),
    # MiB of a real run in RAM: an embedding model of two such layers, after an input that filled its context.
    [("llama-server", 512, 948), ("xllamacpp", 512, 970), ("llama-server", 1024, 1565), ("xllamacpp", 1024, 1586)],
)
def test_a_decoder_that_embeds_computes_a_number_for_each_word_and_token(tmp_path, launcher, context, measured):
    shape = replace(QWEN2_EMBEDDING, layers=2)
    path = random_gguf.write_hollow(tmp_path / "m.gguf", shape, words=False)
    facts = model_files.read_model("llama.cpp", str(path))
    asked = Demand(launcher=launcher, task="embedding", kind="ram", context=context, slots=1)
    assert predict(facts, asked).total / MIB == pytest.approx(measured, rel=0.1)
