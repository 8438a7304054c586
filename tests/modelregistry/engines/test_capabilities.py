"""What a model's arguments say of its abilities."""

import pytest

from modelregistry.engines.presets import PRESETS
from modelregistry.engines.registry import engine_named


@pytest.mark.parametrize(
    ("engine", "launcher", "args", "can"),
    [
        ("vllm", "", ["--enable-auto-tool-choice", "--tool-call-parser=hermes"], True),
        ("vllm", "", ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"], True),
        ("vllm", "", ["--enable-auto-tool-choice"], False),
        ("vllm", "", ["--tool-call-parser=hermes"], False),
        ("vllm", "", [], False),
        ("llama.cpp", "", ["--jinja"], True),
        ("llama.cpp", "llama-server", ["--jinja"], True),
        ("llama.cpp", "llama-cpp-python", ["--jinja"], False),
        ("llama.cpp", "", [], False),
        ("external", "", ["--jinja", "--enable-auto-tool-choice", "--tool-call-parser=hermes"], False),
    ],
)
def test_tools_are_called_where_an_operator_turned_it_on(engine, launcher, args, can):
    assert engine_named(engine).as_run_by(launcher).calls_tools(args) is can


def test_the_preset_that_is_said_to_call_tools_does():
    able = {key for key, preset in PRESETS.items() if engine_named(preset.engine).calls_tools(preset.args)}
    assert able == {"llama-3.1-70b-japanese-awq"}


@pytest.mark.parametrize(
    ("engine", "args", "can"),
    [
        ("llama.cpp", ["--mmproj", "/m/mmproj.gguf"], True),
        ("llama.cpp", ["--mmproj=/m/mmproj.gguf"], True),
        ("llama.cpp", [], False),
        ("vllm", ['--limit-mm-per-prompt={"image": 2}'], True),
        ("vllm", [], False),
        ("external", ["--mmproj=/m/mmproj.gguf"], False),
    ],
)
def test_images_are_seen_where_an_operator_turned_it_on(engine, args, can):
    assert engine_named(engine).sees_images(args) is can
