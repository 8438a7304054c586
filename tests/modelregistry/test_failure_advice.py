"""Causes of failures, read from what real engines wrote when they failed (`failures/`)."""

from pathlib import Path

import pytest
from django.utils import translation

from modelregistry import failure_advice
from modelregistry.engines.registry import launched_by
from tests.translations import japanese  # noqa: F401 - a fixture

RECORDED = sorted(Path(__file__).with_name("failures").glob("*.log"))
FAILED = [path for path in RECORDED if path.name != "vllm..healthy.log"]


def test_there_are_recordings_of_both_engines():
    assert {path.name.split(".")[0] for path in RECORDED} == {"vllm", "xllamacpp"}
    assert len(FAILED) > 15


@pytest.mark.parametrize("path", FAILED, ids=lambda path: path.stem)
def test_the_cause_of_a_recorded_failure_is_known(path):
    assert failure_advice.cause(path.read_text()) == path.name.split(".")[1]


@pytest.mark.parametrize("path", FAILED, ids=lambda path: path.stem)
def test_the_line_that_is_shown_first_names_the_cause(path):
    launcher, expected = path.name.split(".")[:2]
    line = launched_by(launcher).last_telling_line(path.read_text())
    # llama.cpp reports a port in use only in a line that is not called an error.
    assert failure_advice.cause(line) == expected or (launcher, expected) == ("xllamacpp", "port-in-use")


def test_an_engine_that_started_well_has_nothing_the_matter():
    assert failure_advice.cause(Path(__file__).with_name("failures").joinpath("vllm..healthy.log").read_text()) == ""
    assert failure_advice.cause("") == ""


LINES = [
    line.split("\t", 1)
    for line in Path(__file__).with_name("failures").joinpath("lines.txt").read_text().splitlines()
    if not line.startswith("#")
]


def test_e10_there_are_lines_of_every_cause_that_a_log_can_show():
    assert len(LINES) >= 120
    recognised = {code for code, _ in failure_advice.PATTERNS}
    assert {cause for cause, _ in LINES} == recognised
    assert len(recognised) >= 60


@pytest.mark.parametrize(("cause", "line"), LINES, ids=lambda text: text[:60])
def test_e10_a_line_is_known_by_its_cause(cause, line):
    assert failure_advice.cause(f"INFO starting\n{line}\nINFO ended") == cause


@pytest.mark.parametrize(
    "line",
    [
        "  Device 0: NVIDIA GeForce RTX 4060 Ti, compute capability 8.9, VMM: yes",
        "warning: failed to mlock 4096-byte buffer (after previously locking 0 bytes): Cannot allocate memory",
        "INFO Automatically detected platform cuda.",
        "INFO:     127.0.0.1:33 - GET /v1/models/none HTTP/1.1 404 Not Found",
        "WARNING Using default MoE config. Performance might be sub-optimal! Config file not found at /x/E=64.json",
        "INFO NCCL version 2.27.5+cuda13.0",
        "common_init_from_params: warming up the model with an empty run - please wait ...",
        "the moon was in the seventh house",
    ],
)
def test_e10_what_is_no_failure_or_not_known_has_no_cause(line):
    assert failure_advice.cause(f"INFO starting\n{line}\nINFO ended") == ""


def test_e10_a_missing_library_is_not_reported_as_a_missing_file_of_the_model():
    for line in (line for cause, line in LINES if cause in ("driver-library", "missing-library", "no-nvcc")):
        assert "missing-file" != failure_advice.cause(line) != ""


@pytest.mark.parametrize("first", ["gpu-memory", "gpu-crash"])
def test_e10_what_other_gpus_write_after_one_failed_is_not_the_cause(first):
    after = next(line for cause, line in LINES if cause == "nccl")
    for line in (line for cause, line in LINES if cause == first and not line.startswith("NVRM")):
        assert failure_advice.cause(f"{after}\n{line}\n{after}") == first


def test_e10_an_unknown_failure_says_so_in_both_languages():
    assert failure_advice.words("") == failure_advice.words("of-another-release") == failure_advice.UNKNOWN
    assert failure_advice.words("driver") == failure_advice.ADVICE["driver"]
    with translation.override("en"):
        english = str(failure_advice.UNKNOWN)
    with translation.override("ja"):
        assert str(failure_advice.UNKNOWN) != english


def test_every_cause_has_advice_in_both_languages():
    for code, sentence in failure_advice.ADVICE.items():
        with translation.override("en"):
            english = str(sentence)
        with translation.override("ja"):
            translated = str(sentence)
        assert english.endswith("."), code
        assert translated.endswith("。"), code
        assert len(translated) < 120, code


def test_every_cause_that_is_recognised_has_advice():
    assert {code for code, _ in failure_advice.PATTERNS} <= set(failure_advice.ADVICE)
