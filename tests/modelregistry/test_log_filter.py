"""What of an engine's log is kept, and that the filter is in nobody's way."""

import os
import signal
import subprocess
import sys

import pytest

from modelregistry import log_filter
from modelregistry.log_filter import LEFT_OUT

START = b"load_model: loading model\nanything: a template {{ x }}\nlistening on http://127.0.0.1:1\n"


def filtered(*lines: str) -> list[str]:
    """What is kept of these after the engine answers."""
    given = [*START.splitlines(keepends=True), *(f"{line}\n".encode() for line in lines)]
    kept = list(log_filter.kept(given))
    assert kept[:3] == given[:3]
    return [line.decode().rstrip("\n") for line in kept[3:]]


@pytest.mark.parametrize(
    "line",
    [
        "0.03.190.724 I slot launch_slot_: id  0 | task 0 | processing task, is_child = 0",
        "0.04.784.596 E failed to parse grammar",
        "srv  update_slots: all slots are idle",
        "slot      release: id  0 | task 0 | stop processing: n_tokens = 37, truncated = 0",
        "/src/ggml/src/ggml-cuda/ggml-cuda.cu:88: CUDA error",
        "CUDA error: out of memory",
        "GGML_ASSERT(n_tokens > 0) failed",
        "terminate called after throwing an instance of 'std::bad_alloc'",
        "Fatal Python error: Aborted",
        "Traceback (most recent call last):",
    ],
)
def test_p4_lines_of_its_own_are_kept(line):
    assert filtered(line) == [line]


@pytest.mark.parametrize(
    "lines",
    [
        ["parse: error parsing grammar: unexpected end of input", "", 'root ::= "secret" ['],
        ["WARNING: JSON schema conversion was incomplete: pattern secret( is not supported"],
        ["  what():  secret"],
        ["secret"],
        ["    raise ValueError(secret)"],
    ],
)
def test_p4_others_are_left_out_with_one_note(lines):
    assert filtered(*lines, "srv  update_slots: all slots are idle") == [
        LEFT_OUT.decode().rstrip("\n"),
        "srv  update_slots: all slots are idle",
    ]


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        (
            '0.05.526.932 W srv    operator(): got exception: {"error":{"code":400,"message":"type secret"}}',
            '0.05.526.932 W srv    operator(): got exception: "code":400 …',
        ),
        ("srv  operator(): got exception: secret", "srv  operator(): got exception:  …"),
        ("srv  log_server_r: request: {secret}", "srv  log_server_r: request:  …"),
        ("jinja2.exceptions.TemplateError: secret", "jinja2.exceptions.TemplateError:  …"),
    ],
)
def test_p4_what_a_line_quotes_is_cut_off(line, kept):
    assert filtered(line) == [kept]


def start(script: str) -> "subprocess.Popen[bytes]":
    argv = [sys.executable, "-I", log_filter.__file__, "sh", "-c", script]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def test_p4_the_engine_takes_the_place_of_the_process_and_its_last_words_are_written():
    engine = start("echo own pid $$; echo listening on x; echo secret; echo '/a.cpp:1: GGML_ASSERT' >&2; kill -ABRT $$")
    text = engine.communicate(timeout=20)[0].decode()
    assert engine.returncode == -signal.SIGABRT
    assert text.splitlines() == [
        f"own pid {engine.pid}",
        "listening on x",
        LEFT_OUT.decode()[:-1],
        "/a.cpp:1: GGML_ASSERT",
    ]


def test_p4_a_line_without_end_takes_no_memory_and_a_missing_program_is_named():
    engine = start("echo listening on x; echo srv: begin; yes | tr -d '\\n' | head -c 50000000; echo; echo srv: end")
    text = engine.communicate(timeout=60)[0]
    assert (engine.returncode, len(text) < 1000) == (0, True)
    assert text.endswith(b"srv: end\n")
    missing = subprocess.run(
        [sys.executable, "-I", log_filter.__file__, "/no/such/engine"], capture_output=True, env=os.environ, check=False
    )
    assert missing.returncode == 127
    assert missing.stdout.startswith(b"/no/such/engine: ")
