"""The presets against stand-ins of the very files that they are for."""

import re

import pytest

from modelregistry import validation
from modelregistry.engines.base import EngineEndpoint, Spec
from modelregistry.engines.presets import E5_LARGE, EZO, LLAMA_70B, PRESETS
from modelregistry.engines.registry import launched_by
from modelregistry.files.model_files import read_model
from modelregistry.memory.estimate import Demand, predict
from tests.modelregistry import paper_models

FILES = {
    EZO.key: paper_models.ezo_9b,
    LLAMA_70B.key: paper_models.llama_70b_awq,
    E5_LARGE.key: paper_models.e5_large,
}
PLACE = EngineEndpoint(address="127.0.0.1", port=18100, api_key="k", grace=10)


@pytest.fixture(params=PRESETS)
def preset(request):
    return PRESETS[request.param]


@pytest.fixture
def path(preset, tmp_path):
    return str(FILES[preset.key](tmp_path / "model.gguf"))


def test_a_preset_fits_its_files_and_no_others(preset, path, tmp_path):
    assert preset.is_of(read_model(preset.engine, path))
    for other in FILES.keys() - {preset.key}:
        made = FILES[other](tmp_path / "other.gguf")
        assert not preset.is_of(read_model(PRESETS[other].engine, str(made)))
        made.rename(tmp_path / other)


def test_what_it_asks_for_can_be_had_of_its_files(preset, path):
    facts = read_model(preset.engine, path)
    parsed = validation.read_arguments(preset.engine, "", preset.args)
    assert validation.find_argument_fault(preset.engine, parsed, ()) is None
    assert (
        validation.find_unsuitable_settings(
            facts, preset.engine, task=preset.task, context=preset.context, parsed=parsed
        )
        == {}
    )


def test_its_descriptions_fit_and_are_in_both_languages(preset):
    assert 0 < len(preset.description_ja) <= 300
    assert 0 < len(preset.description_en) <= 300
    assert all([preset.place, preset.memory, preset.usage])


def test_its_memory_note_holds_the_weights_of_the_files(tmp_path):
    """The notes say rounded GB; the files say bytes."""
    ezo = read_model("vllm", str(paper_models.ezo_9b(tmp_path / "ezo")))
    in_fp8 = ezo.parameters - ezo.embedding_weight_bytes // 2 + ezo.embedding_weight_bytes
    seen = sum(min(layer.window or 8192, 8192) * layer.kv_heads * 512 * 2 for layer in ezo.attention)
    assert gigabytes(EZO.place) == [rounded(ezo.weight_bytes)]
    assert gigabytes(EZO.memory)[:2] == [rounded(in_fp8), rounded(seen)]
    llama = read_model("vllm", str(paper_models.llama_70b_awq(tmp_path / "llama")))
    kept = sum(8192 * layer.kv_heads * 256 * 2 for layer in llama.attention)
    assert gigabytes(LLAMA_70B.memory)[:2] == [rounded(llama.weight_bytes), rounded(kept)]


def gigabytes(note):
    return re.findall(r"([0-9.]+) GB", note)


def rounded(size):
    return f"{size / 1e9:.1f}"


def test_the_prediction_knows_that_vllm_makes_fp8_of_it(tmp_path):
    facts = read_model("vllm", str(paper_models.ezo_9b(tmp_path / "ezo")))
    asked = {"launcher": "vllm", "task": "chat", "context": EZO.context, "slots": EZO.slots}
    predicted = predict(facts, Demand(args=EZO.args, **asked))
    assert predicted.weights == pytest.approx(10.16e9, rel=0.001)
    assert predict(facts, Demand(**asked)).weights == facts.weight_bytes


def test_the_query_prefix_is_shown_to_callers():
    assert "Instruct: " in E5_LARGE.description_ja
    assert "Query: " in E5_LARGE.description_ja
    assert "Instruct: " in E5_LARGE.description_en


def test_an_input_of_the_embedder_fits_one_micro_batch():
    values = {name: value for name, value in E5_LARGE.fields().items() if not name.startswith("description")}
    spec = Spec(name="e5", path="/m/e5.gguf", **values | {"args": E5_LARGE.args})
    argv = launched_by("llama-server").build_command(spec, ("llama-server",), PLACE, {}).argv
    assert argv[-6:] == ("--pooling", "mean", "-b", "512", "-ub", "512")
    assert "--embeddings" in argv
    assert argv[argv.index("--ctx-size") + 1] == "2048"  # 512 for each of the four


def test_nothing_is_registered_that_runs_foreign_code(preset, path):
    assert read_model(preset.engine, path).risks == ()
