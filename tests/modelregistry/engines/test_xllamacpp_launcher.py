"""E8: what llama-server takes, the default launcher passes on to the wheel; the rest is refused with words."""

import json
import subprocess
from pathlib import Path

import pytest

from modelregistry import validation
from modelregistry.engines import arguments, xllamacpp_launcher
from tests.engines import xllamacpp_python

# Executed by the engine's Python: reads each list of arguments and prints the resulting parameters.
SHOW = """
import importlib.util, json, sys
spec = importlib.util.spec_from_file_location("launcher", sys.argv[1])
launcher = importlib.util.module_from_spec(spec); sys.modules["launcher"] = launcher
spec.loader.exec_module(launcher)
import xllamacpp

def shown(value):
    if isinstance(value, (list, tuple)):
        return [shown(each) for each in value]
    if isinstance(value, xllamacpp.CommonAdapterLoraInfo):
        return [value.path, value.scale]
    return getattr(value, "name", None) or (round(value, 4) if isinstance(value, float) else value)

def at(params, path):
    for part in path.split("."):
        params = getattr(params, part)
    return shown(params)

results = []
for args, paths in json.load(sys.stdin):
    params = xllamacpp.CommonParams()
    launcher.prepare(params)
    try:
        for option, value in launcher.read(args):
            option.apply(params, value)
        launcher.finish(params)
        results.append({path: at(params, path) for path in paths})
    except ValueError as error:
        results.append(str(error))
print(json.dumps(results))
"""
DRAFT = "speculative.draft.mparams.path"
EXPERTS = r"blk\.{}\.ffn_(up|down|gate|gate_up)_(ch|)exps=CPU"
CASES = [
    (
        ["--rope-scaling", "yarn", "--rope_scale=2"],
        {"rope_scaling_type": "LLAMA_ROPE_SCALING_TYPE_YARN", "rope_freq_scale": 0.5},
    ),
    (["--yarn-orig-ctx", "4096", "--yarn-ext-factor", "1"], {"yarn_orig_ctx": 4096, "yarn_ext_factor": 1.0}),
    (["--no-jinja"], {"use_jinja": False}),
    (["--jinja", "--chat-template-kwargs", '{"a": 1}'], {"use_jinja": True, "default_template_kwargs": {"a": "1"}}),
    (["-mm", "/p.gguf", "--no-mmproj-offload"], {"mmproj.path": "/p.gguf", "mmproj_use_gpu": False}),
    (
        ["--lora", "/a.gguf,/b.gguf", "--lora-scaled", "/c.gguf:0.5"],
        {"lora_adapters": [["/a.gguf", 1.0], ["/b.gguf", 1.0], ["/c.gguf", 0.5]]},
    ),
    (
        ["-md", "/d.gguf", "--spec-draft-n-max", "8"],
        {DRAFT: "/d.gguf", "speculative.draft.n_max": 8, "speculative.types": ["COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE"]},
    ),
    (
        ["-md", "/d.gguf", "--spec-type", "draft-mtp,ngram-mod"],
        {"speculative.types": ["COMMON_SPECULATIVE_TYPE_DRAFT_MTP", "COMMON_SPECULATIVE_TYPE_NGRAM_MOD"]},
    ),
    (
        ["-nkvo", "-ncmoe", "2", "-ot", "x=CPU"],
        {"no_kv_offload": True, "tensor_buft_overrides": f"{EXPERTS.format(0)},{EXPERTS.format(1)},x=CPU"},
    ),
    (
        ["-ngl", "all", "-sm", "row", "-mg", "1"],
        {"n_gpu_layers": -2, "split_mode": "LLAMA_SPLIT_MODE_ROW", "main_gpu": 1},
    ),
    (["--no-mmap"], {"load_mode": "LLAMA_LOAD_MODE_NONE"}),
    (
        ["--temp", "0.5", "--seed", "-1"],
        {"sampling.temp": 0.5, "sampling.seed": 4294967295, "sampling.user_sampling_config": 64},
    ),
    (
        ["-fa", "on", "-ctk", "q8_0"],
        {"flash_attn_type": "LLAMA_FLASH_ATTN_TYPE_ENABLED", "cache_type_k": "GGML_TYPE_Q8_0"},
    ),
    (["--rerank"], {"embedding": True, "pooling_type": "LLAMA_POOLING_TYPE_RANK"}),
    (["-t", "3"], {"cpuparams.n_threads": 3, "cpuparams_batch.n_threads": 3}),
    (["--reasoning", "off", "--reasoning-budget", "0"], {"enable_reasoning": 0, "sampling.reasoning_budget_tokens": 0}),
    (["--rpc", "host:1"], "unrecognized arguments: --rpc"),
    (["--ctx-size", "8k"], "argument --ctx-size: invalid int value: '8k'"),
    (["--pooling"], "argument --pooling: expected one argument"),
]


def passed(*cases):
    """Return what the wheel itself makes of these arguments."""
    asked = [[args, list(paths) if isinstance(paths, dict) else []] for args, paths in cases]
    argv = [xllamacpp_python(), "-I", "-c", SHOW, xllamacpp_launcher.__file__]
    done = subprocess.run(argv, input=json.dumps(asked), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def results():
    return passed(*CASES)


@pytest.mark.parametrize("case", range(len(CASES)), ids=lambda case: " ".join(CASES[case][0]))
def test_e8_what_is_asked_for_reaches_the_engine(results, case):
    assert results[case] == CASES[case][1]


def test_e8_every_option_has_a_parameter_in_the_pinned_wheel(tmp_path):
    """With a value of its kind each of them is taken: a new wheel that renames a parameter is found here."""
    (tmp_path / "template.jinja").write_text("{{ messages }}")
    samples = {"int": "1", "float": "0.5", "json": "{}"}
    special = {"--tensor-split": "1,2", "--gpu-layers": "3", "--spec-draft-ngl": "3", "--lora-scaled": "/l:1"}
    special |= {"--override-tensor": "x=CPU", "--spec-type": "draft-simple"}
    special |= {"--chat-template-file": str(tmp_path / "template.jinja")}
    cases = []
    for option in xllamacpp_launcher.OPTIONS:
        name = option.names[0]
        if name != "--grace":
            value = special.get(name) or (option.choices[0] if option.choices else samples.get(option.kind, "x"))
            cases.append(([name] if option.kind == "flag" else [name, value], {}))
            cases += [([other], {}) for other in option.off]
    assert [said for said in passed(*cases) if said] == []


def test_e8_our_table_has_llama_servers_names_and_meaning_of_values():
    theirs = arguments.shipped_options("llama-server")
    for option in arguments.shipped_options("xllamacpp").all:
        same = theirs.by_name[option.name]
        assert set(option.names) <= set(same.names), option
        assert set(option.off) <= set(same.off), option
        assert option.values == same.values, option


def test_e8_a_model_that_the_launcher_could_not_start_is_not_registered():
    def fault(launcher, *args):
        found = validation.find_argument_fault(
            "llama.cpp", validation.read_arguments("llama.cpp", launcher, args), ["outside-access"]
        )
        return found and found.code

    assert fault("xllamacpp", "--rpc", "host:1") == "elsewhere"
    assert fault("xllamacpp", "--rope-scling", "yarn") == "unknown"
    assert fault("xllamacpp", "--rope-scaling", "yearn") == "not-one-of"
    assert fault("xllamacpp", "--rope-scaling", "yarn", "--mmproj=/p", "--lora", "/l", "-md=/d", "--jinja") is None
    assert fault("llama-server", "--rpc", "host:1") is None


def test_the_launcher_imports_nothing_but_the_standard_library():
    """It runs in an environment of its own."""
    lines = Path(xllamacpp_launcher.__file__).read_text().splitlines()
    found = {line.split()[1].partition(".")[0] for line in lines if line.lstrip().startswith(("import ", "from "))}
    assert found <= {
        "json",
        "os",
        "signal",
        "sys",
        "threading",
        "time",
        "collections",
        "dataclasses",
        "typing",
        "xllamacpp",
    }
