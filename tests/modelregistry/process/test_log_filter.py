"""What of an engine's log is kept, and that the filter never blocks an engine."""

import os
import signal
import time

import pytest

from modelregistry.engines.base import EngineCommand
from modelregistry.process import log_filter, process, shim
from modelregistry.process.log_filter import LEFT_OUT
from tests.waiting import until

START = b"load_model: loading model\nanything: a template {{ x }}\nlistening on http://127.0.0.1:1\n"


def filter_all(*lines: str) -> list[str]:
    """Return what is kept of these lines after the engine answers."""
    given = [*START.splitlines(keepends=True), *(f"{line}\n".encode() for line in lines)]
    kept = list(log_filter.filter_lines(given))
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
    assert filter_all(line) == [line]


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
    assert filter_all(*lines, "srv  update_slots: all slots are idle") == [
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
    assert filter_all(line) == [kept]


def test_p4_where_lines_begin_with_the_time_a_letter_alone_is_a_callers():
    begin = [b"0.00.001.002 I load\n", b"listening on x\n"]
    said = [b"I think that my secret is 5\n", b"0.00.001.003 I slot: released\n"]
    assert list(log_filter.filter_lines([*begin, *said])) == [*begin, LEFT_OUT, said[1]]


def test_p4_no_line_takes_long_to_look_at():
    """Quadratic, one of these took 0.2 s; a caller may have hundreds of them written."""
    began = time.process_time()
    for word in (b"text", b"body", b"request", b"got exception: "):
        log_filter.redact_line(b"srv: " + word * (log_filter.LONGEST // len(word)))
    assert time.process_time() - began < 0.1


@pytest.fixture
def start(tmp_path):
    """Run `sh` as an engine whose output is filtered; returns its run."""
    runs = process.Runs(tmp_path / "engines")

    def start(script: str) -> process.Run:
        command = EngineCommand(argv=("/bin/sh", "-c", script), env={"PATH": os.defpath}, filtered=True)
        return runs.start("r1", command, label={}, grace=1)

    yield start
    for run in runs.all():
        assert process.stop(run, grace=0)


def wait_for_end(run: process.Run) -> process.ExitStatus:
    until(lambda: process.life_of(run) is process.Life.ENDED)
    ending = process.exit_of(run)
    assert ending
    return ending


def test_p4_its_last_output_is_in_the_log_when_its_exit_is_recorded(start):
    run = start("echo own pid $$; echo listening on x; echo secret; echo '/a.cpp:1: GGML_ASSERT' >&2; kill -ABRT $$")
    assert wait_for_end(run).signal == signal.SIGABRT
    assert process.log_tail(run.directory).splitlines() == [
        f"own pid {run.engine.pid}",
        "listening on x",
        LEFT_OUT.decode()[:-1],
        "/a.cpp:1: GGML_ASSERT",
    ]


def test_p4_a_filtered_engine_has_no_process_of_ours_below_its_shim(start):
    run = start("exec sleep 600")
    assert shim.descendants(run.shim.pid) == [run.engine]


def test_p4_a_line_without_end_takes_no_memory(start):
    run = start(
        "echo listening on x; echo srv: begin; yes | tr -d '\\n' | head -c 50000000; echo; echo srv: end; read x"
    )
    assert wait_for_end(run).code == 1  # no process writes to it
    log = process.log_tail(run.directory)
    assert len(log) < 1000
    assert log.endswith("srv: end")


def test_p4_a_filter_that_fails_costs_the_log_and_not_the_engine(tmp_path):
    (tmp_path / "spec.json").write_text('{"argv": ["x"], "env": {}, "grace": 1, "filtered": true}')
    holder = shim.Shim(tmp_path)

    def fail(source: int, target: int) -> None:
        os.read(source, 1)
        raise MemoryError

    holder.filter = fail
    log = os.open(holder.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    writer = holder.start_filter(log)
    for _ in range(64):
        os.write(writer, b"x" * 65536)  # would wait, or fail, without a reader
    os.close(writer)
    holder.filtering.join(20)
    assert not holder.filtering.is_alive()
    assert "shim.log" in holder.log.read_text()
