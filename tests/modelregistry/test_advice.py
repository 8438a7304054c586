"""Causes of failures, read from what real engines wrote when they failed (`failures/`)."""

from pathlib import Path

import pytest
from django.utils import translation

from modelregistry import advice, engines
from tests.translations import japanese  # noqa: F401 - a fixture

RECORDED = sorted(Path(__file__).with_name("failures").glob("*.log"))
FAILED = [path for path in RECORDED if path.name != "vllm..healthy.log"]


def test_there_are_recordings_of_both_engines():
    assert {path.name.split(".")[0] for path in RECORDED} == {"vllm", "xllamacpp"}
    assert len(FAILED) > 15


@pytest.mark.parametrize("path", FAILED, ids=lambda path: path.stem)
def test_the_cause_of_a_recorded_failure_is_known(path):
    assert advice.cause(path.read_text()) == path.name.split(".")[1]


@pytest.mark.parametrize("path", FAILED, ids=lambda path: path.stem)
def test_the_line_that_is_shown_first_names_the_cause(path):
    launcher, expected = path.name.split(".")[:2]
    line = engines.telling_line(launcher, path.read_text())
    # llama.cpp tells of a port in use only in a line that is not called an error.
    assert advice.cause(line) == expected or (launcher, expected) == ("xllamacpp", "port-in-use")


def test_an_engine_that_started_well_has_nothing_the_matter():
    assert advice.cause(Path(__file__).with_name("failures").joinpath("vllm..healthy.log").read_text()) == ""
    assert advice.cause("") == ""


# What needs a GPU, in the words of the engines' sources and of those who met it.
@pytest.mark.parametrize(
    ("line", "cause"),
    [
        (
            "ValueError: max_num_seqs (256) exceeds available Mamba cache blocks (97). Each decode sequence",
            "state-memory",
        ),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has", "gpu-memory"),
        (
            "cuda_buffer_type_alloc_buffer: allocating 1448.04 MiB on device 0: cudaMalloc failed: out of memory",
            "gpu-memory",
        ),
        (
            "ValueError: Free memory on device cuda:0 (5.1/23.6 GiB) is less than desired GPU memory utilization",
            "gpu-memory",
        ),
        ("ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`", "gpu-memory"),
        (
            "ValueError: The quantization method awq is not supported for the current GPU. Minimum capability: 75.",
            "old-gpu",
        ),
        (
            "RuntimeError: ('Quantization scheme is not supported for ', 'the current GPU. Min capability: 80. '",
            "old-gpu",
        ),
        ("RuntimeError: CUDA error: no kernel image is available for execution on the device", "old-gpu"),
        ("CUDA driver version is insufficient for CUDA runtime version", "driver"),
        ("The NVIDIA driver on your system is too old (found version 11040)", "driver"),
        ("RuntimeError: Failed to infer device type", "no-gpu"),
        ("RuntimeError: No CUDA GPUs are available", "no-gpu"),
        ("OSError: [Errno 28] No space left on device: '/models/x'", "disk-full"),
        ("RuntimeError: unable to write to file </torch_12_34_0>: No space left on device (28)", "shared-memory"),
        ("PermissionError: [Errno 13] Permission denied: '/models/x/config.json'", "no-permission"),
        ("OSError: You are trying to access a gated repo.", "not-local"),
        (
            "huggingface_hub.errors.LocalEntryNotFoundError: Cannot find an appropriate cached snapshot folder",
            "not-local",
        ),
        ("std::bad_alloc", "host-memory"),
        ("  Device 0: NVIDIA GeForce RTX 4060 Ti, compute capability 8.9, VMM: yes", ""),
    ],
)
def test_what_needs_a_gpu_is_known_by_its_words(line, cause):
    assert advice.cause(f"INFO starting\n{line}\nINFO ended") == cause


def test_every_cause_has_advice_in_both_languages():
    for code, sentence in advice.ADVICE.items():
        with translation.override("en"):
            english = str(sentence)
        with translation.override("ja"):
            translated = str(sentence)
        assert english.endswith("."), code
        assert translated.endswith("。"), code
        assert len(translated) < 120, code


def test_every_cause_that_is_recognised_has_advice():
    assert {code for code, _ in advice._PATTERNS} <= set(advice.ADVICE)
