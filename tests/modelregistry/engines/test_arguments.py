"""E6: one parser of engine arguments, held to what the engines' own parsers do with the same words."""

import json

import pytest

from modelregistry.engines.arguments import (
    Options,
    drop_overridden,
    read_arguments,
    render,
    shipped_options,
    unplanned_options,
)


def codes(launcher, *args, options=None):
    return [fault.code for fault in read_arguments(launcher, args, options).faults]


# --- vLLM


@pytest.mark.parametrize(
    "args",
    [
        ["--tensor-parallel-size", "2"],
        ["--tensor-parallel-size=2"],
        ["--tensor_parallel_size=2"],
        ["--tensor_parallel_size", "2"],
        ["--tensor-p", "2"],
        ["--tensor_par=2"],
        ["-tp", "2"],
        ["-tp=2"],
        ["-tp", "8", "--tensor-parallel-size", "2"],
        ["--dtype", "half", "-tp", "2", "--enforce-eager"],
    ],
)
def test_e6_every_spelling_of_vllm_is_the_same_number(args):
    found = read_arguments("vllm", args)
    assert found.number("--tensor-parallel-size") == 2
    assert found.faults == ()


@pytest.mark.parametrize(
    ("args", "name", "value"),
    [
        (["--max_model_len", "8k"], "--max-model-len", 8000),
        (["--max-model-len=8K"], "--max-model-len", 8192),
        (["--max-model-len", "25.6k"], "--max-model-len", 25_600),
        (["--max-model-len", "auto"], "--max-model-len", None),
        (["--kv-cache-memory-bytes=2G"], "--kv-cache-memory-bytes", 2 * 2**30),
        (["--max-num-batched-tokens", "16K"], "--max-num-batched-tokens", 16_384),
        (["-pp", "3"], "--pipeline-parallel-size", 3),
        (["-dp=4"], "--data-parallel-size", 4),
        (["--max-num-seqs", "64"], "--max-num-seqs", 64),
    ],
)
def test_e6_numbers_are_read_as_vllm_reads_them(args, name, value):
    found = read_arguments("vllm", args)
    assert found.number(name) == value
    assert found.faults == ()


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["--max-num-seqs", "8k"], "not-a-number"),  # a plain int there
        (["--max-model-len=8.5K"], "not-a-number"),  # no decimals of binary thousands
        (["--max-model-len"], "no-value"),
        (["--max-model-len", "--enforce-eager"], "no-value"),
        (["--enforce-eager=yes"], "needless-value"),
        (["--enforce-eager", "yes"], "stray"),
        (["half"], "stray"),
        (["--max-num", "4"], "ambiguous"),
        (["--gpu-memory-utilization", "most"], "not-a-number"),
        (["--limit-mm-per-prompt", "{image: 1}"], "not-json"),
    ],
)
def test_e6_what_vllm_would_refuse_is_a_fault(args, code):
    assert codes("vllm", *args) == [code]


def test_e6_keys_of_json_come_one_by_one_and_win_over_the_whole():
    args = ["--speculative-config.model", "/draft", "--speculative_config.num_speculative_tokens=3"]
    args += ["-sc", '{"model": "x"}', "--compilation-config.cudagraph_capture_sizes+", "1,2"]
    found = read_arguments("vllm", [*args, "--compilation-config.cudagraph_capture_sizes+=4"])
    assert found.data("--speculative-config") == {"model": "/draft", "num_speculative_tokens": 3}
    assert found.data("-cc") == {"cudagraph_capture_sizes": ["1", "2", "4"]}
    assert found.faults == ()


def test_e6_vllms_switches_are_on_off_or_not_said():
    found = read_arguments(
        "vllm", ["--no-enable-prefix-caching", "--enforce-eager", "--no-enforce_eager", "--enable-lora"]
    )
    assert found.flag("--enable-prefix-caching") is False
    assert found.flag("--enforce-eager") is False
    assert found.flag("--enable-lora") is True
    assert found.flag("--enable-sleep-mode") is None


def test_e6_vllms_short_forms():
    found = read_arguments("vllm", ["-qawq", "-O3", "--lora-modules", "a=/a", "b=/b", "--seed", "-1"])
    assert found.text("--quantization") == "awq"
    assert found.text("--optimization-level") == "3"
    assert found.last("--lora-modules").values == ("a=/a", "b=/b")
    assert found.number("--seed") == -1
    assert found.faults == ()


# --- llama.cpp


@pytest.mark.parametrize("launcher", ["llama-server", "xllamacpp"])
@pytest.mark.parametrize(
    "args",
    [["--n-gpu-layers", "20"], ["-ngl", "20"], ["--gpu_layers=20"], ["-ngl", "1", "--gpu-layers", "20"], ["-ngl=20"]],
)
def test_e6_every_spelling_of_llama_cpp_is_the_same_number(launcher, args):
    found = read_arguments(launcher, args)
    assert found.number("--n-gpu-layers") == 20
    assert found.faults == ()


def test_e6_llama_cpps_switches_and_their_opposites():
    assert read_arguments("llama-server", ["-nkvo"]).flag("--kv-offload") is False
    assert read_arguments("llama-server", ["--no-kv-offload", "-kvo"]).flag("--kv-offload") is True
    assert read_arguments("llama-server", ["--no_mmap"]).flag("--mmap") is False
    assert read_arguments("llama-server", ["-fa", "off"]).flag("--flash-attn") is False
    assert read_arguments("llama-server", ["-ncmoe", "12"]).number("--n-cpu-moe") == 12
    assert read_arguments("llama-server", ["--control-vector-layer-range", "3", "9"]).faults == ()


def test_e6_a_value_of_llama_cpp_is_whatever_comes_next():
    found = read_arguments("llama-server", ["--seed", "-1", "--reverse-prompt", "--jinja"])
    assert found.text("--seed") == "-1"
    assert not found.has("--jinja")


def test_e6_llama_cpp_reads_8k_as_8():
    found = read_arguments("llama-server", ["-c", "8k"])
    assert found.number("--ctx-size") == 8
    assert [(fault.code, fault.more) for fault in found.faults] == [("half-read", ("8",))]


def test_e6_llama_cpp_knows_no_beginnings_of_names():
    exact = Options.of([{"names": ["--ctx-size", "-c"], "kind": "int"}], exact=True)
    assert codes("llama-server", "--ctx", "512", options=exact) == ["unknown"]


@pytest.mark.parametrize("args", [["--n_ctx", "4096"], ["--n-ctx=4096"], ["--n_c", "4096"]])
def test_e6_llama_cpp_python_is_read_by_its_own_names(args):
    assert read_arguments("llama-cpp-python", args).number("--n-ctx") == 4096


# --- Unknown ones, and tables of one version


def test_e6_what_the_shipped_table_does_not_know_may_be_of_another_version():
    found = read_arguments("vllm", ["--brand-new", "x", "--also-new=3"])
    assert found.faults == ()
    assert (found.text("--brand-new"), found.number("--also-new")) == ("x", 3)


def test_e6_what_the_engine_itself_does_not_take_is_a_fault():
    exact = Options.of([{"names": ["--dtype"], "choices": ["auto", "half"]}], exact=True)
    assert codes("vllm", "--brand-new", "x", options=exact) == ["unknown"]
    assert codes("vllm", "--dtype", "halb", options=exact) == ["not-one-of"]
    assert codes("vllm", "--dty=half", options=exact) == []


@pytest.mark.parametrize("launcher", ["vllm", "llama-server", "llama-cpp-python"])
def test_every_name_of_a_shipped_table_is_there_once(launcher):
    names = [name for option in shipped_options(launcher).all for name in (*option.names, *option.off)]
    assert len(names) == len(set(names)) > 40
    assert not any("_" in name for name in names)


def test_odd_arguments_raise_nothing():
    odd_table = Options.of([{"names": ["--a"], "values": "+"}, {"names": ["--b"], "values": "?"}], exact=True)
    assert read_arguments("llama-server", ["--a", "1", "--b"], odd_table).text("--a") == "1"
    odd = ["", "-", "--", "---", "=", "--=", "--a.", "-.5", "--a.b", "-O", "-O=", "--x.+", "\0", "9" * 10_000, "-c"]
    for launcher in ("vllm", "llama-server", "xllamacpp", "llama-cpp-python", "", "nonsense"):
        for arg in odd:
            read_arguments(launcher, [arg])
            read_arguments(launcher, [arg, arg])
            read_arguments(launcher, ["--max-model-len", arg])
        read_arguments(launcher, odd)


# --- For the launcher


def test_what_the_operator_gave_is_left_out_of_ours():
    ours = ["--max-model-len", "4096", "--allowed-media-domains", "a", "b", "--enforce-eager", "--seed", "-1"]
    assert drop_overridden("vllm", ours, read_arguments("vllm", ["--max_model_len=8k"])) == ours[2:]
    assert drop_overridden("vllm", ours, read_arguments("vllm", ["--allowed-media", "c"])) == [*ours[:2], *ours[5:]]
    assert drop_overridden("vllm", ours, read_arguments("vllm", ["--no-enforce-eager"])) == [*ours[:5], *ours[6:]]
    assert drop_overridden("vllm", ours, read_arguments("vllm", ["--dtype=half"])) == ours


@pytest.mark.parametrize(
    ("launcher", "args", "rendered"),
    [
        ("llama-server", ["--threads=1", "-x=1", "--no_mmap"], ("--threads", "1", "-x=1", "--no-mmap")),
        ("llama-server", ["--new=1", "stray"], ("--new", "1", "stray")),
        ("xllamacpp", ["-c=512"], ("-c", "512")),
        ("llama-cpp-python", ["--n-ctx=512"], ("--n_ctx", "512")),
        ("vllm", ["--max_model_len=8k", "-tp", "2"], ("--max_model_len=8k", "-tp", "2")),
    ],
)
def test_arguments_are_given_in_a_form_that_the_engine_takes(launcher, args, rendered):
    assert render(launcher, read_arguments(launcher, args), args) == rendered


# --- For the planner


@pytest.mark.parametrize(
    ("launcher", "args", "named"),
    [
        ("llama-server", ["-mm", "/p.gguf", "-c", "512"], ("--mmproj",)),
        ("xllamacpp", ["--model_draft=/d.gguf", "--lora", "/l.gguf"], ("--spec-draft-model", "--lora")),
        ("llama-server", ["--no-op-offload"], ("--no-op-offload",)),
        ("llama-server", ["-nkvo", "--n-cpu-moe", "4", "--op-offload"], ()),
        ("vllm", ["--cpu-offload-gb=4", "--kv-offloading-size", "2"], ()),
        ("vllm", ["--speculative-config.model=/d"], ("--speculative-config",)),
        ("vllm", ["-dp", "1", "--swap-space", "0"], ()),
        ("vllm", ["-dp", "2", "--enable_lora"], ("--data-parallel-size", "--enable-lora")),
        ("vllm", ["--no-enable-lora", "--dtype=half"], ()),
        ("llama-cpp-python", ["--clip_model_path", "/p"], ("--clip-model-path",)),
    ],
)
def test_e6_what_the_planner_cannot_count_is_named(launcher, args, named):
    assert unplanned_options(read_arguments(launcher, args)) == named


def test_json_of_an_option_that_has_none_is_nothing():
    assert read_arguments("vllm", []).data("--speculative-config") is None
    assert json.dumps(read_arguments("vllm", ["-sc", "{"]).data("--speculative-config")) == "null"
