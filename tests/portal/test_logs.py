"""The log as processes write it: real ones, with a stderr that is read, is not, or is a full disk."""

import json
import logging
import os
import re
import subprocess
import sys
import time

import pytest
from django.db import OperationalError

from portal import logs

SCRIPT = """
import logging, os, sys, time
from portal.logs import JsonFormatter, Stderr
handler = Stderr()
handler.setFormatter(JsonFormatter())
logging.getLogger().addHandler(handler)
log = logging.getLogger("t")
"""
STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d"


def record(message: str, *args: object, **more: object) -> logging.LogRecord:
    made = logging.LogRecord("t", logging.WARNING, "", 0, message, args, None)
    made.__dict__.update(more)
    return made


def failed() -> logging.LogRecord:
    try:
        raise RuntimeError("a fault")
    except RuntimeError:
        return record("oh", exc_info=sys.exc_info())


def test_json_is_an_object_a_line_with_its_facts():
    text = logs.JsonFormatter().format(record("窓口 %s\nx", 7, facts={"request_id": "req_1", "ms": 3}))
    assert "\n" not in text
    found = json.loads(text)
    assert re.fullmatch(STAMP, found.pop("time"))
    assert found == {"level": "WARNING", "logger": "t", "message": "窓口 7\nx", "request_id": "req_1", "ms": 3}


def test_text_is_a_line_and_what_belongs_to_it_is_indented():
    text = logs.Text().format(record("one\n2026-01-01 INFO forged", facts={"request_id": "req_1", "ms": 3}))
    assert re.fullmatch(rf"{STAMP} WARNING t one\n    2026-01-01 INFO forged request_id=req_1 ms=3", text)


def test_exceptions_are_told():
    assert "RuntimeError: a fault" in json.loads(logs.JsonFormatter().format(failed()))["exception"]
    lines = logs.Text().format(failed()).splitlines()
    assert all(line.startswith("    ") for line in lines[1:])


@pytest.mark.parametrize("odd", ["\ud83d", 2**70, {1}, object()])
def test_nothing_is_too_odd_to_be_told(odd):
    assert json.loads(logs.JsonFormatter().format(record("x", facts={"odd": odd})))["logger"] == "t"
    assert "odd=" in logs.Text().format(record("x", facts={"odd": odd}))


def test_times_of_one_second_and_the_next_are_right():
    formatter = logs.Text()
    for created in (1_790_000_000.25, 1_790_000_000.999, 1_790_000_001.0, 1_790_000_000.25):
        local = time.localtime(int(created))
        expected = time.strftime("%Y-%m-%dT%H:%M:%S", local) + f".{round(created % 1 * 1000):03d}"
        assert formatter.time(created).startswith(expected)


def run(script: str, stderr: int) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", SCRIPT + script], stderr=stderr, stdout=subprocess.PIPE)


def test_every_line_is_written_when_a_process_ends():
    process = run("for number in range(5000): log.warning('line %d', number)", subprocess.PIPE)
    lines = process.communicate(timeout=30)[1].decode().splitlines()
    assert [json.loads(line)["message"] for line in lines] == [f"line {number}" for number in range(5000)]


MANY = """
begun = time.monotonic()
for number in range(50_000): log.warning('line %d', number)
print(time.monotonic() - begun, flush=True)
"""


def test_a_pipe_that_nobody_reads_holds_up_nobody():
    reader, writer = os.pipe()
    process = run(MANY + "print(handler.waiting, handler.dropped, flush=True)", writer)
    begun = time.monotonic()
    output = process.communicate(timeout=60)[0].decode().split()
    assert process.returncode == 0
    assert time.monotonic() - begun < 30
    waiting, dropped = map(int, output[1:])
    assert waiting <= logs.MAX_WAITING
    assert dropped > 0
    os.close(reader)
    os.close(writer)


def test_a_reader_that_comes_back_is_told_what_it_missed():
    reader, writer = os.pipe()
    process = run(MANY + "while handler.waiting: handler.flush()\nlog.warning('end')", writer)
    assert process.stdout.readline()
    os.close(writer)
    with os.fdopen(reader) as log:
        lines = [json.loads(line) for line in log]
    messages = [line["message"] for line in lines]
    missed = sum(int(line["message"].split()[0]) for line in lines if line["logger"] == "madoguchi.log")
    assert missed > 0
    assert missed + sum(message.startswith("line ") for message in messages) == 50_000
    assert "end" in messages
    process.communicate()


def test_a_full_disk_ends_nobody():
    with open("/dev/full", "wb") as full:
        process = run("for number in range(100): log.warning('x')\nprint('went on')", full.fileno())
        assert process.communicate(timeout=30)[0] == b"went on\n"
    assert process.returncode == 0


def test_a_forked_child_writes_its_own_lines_and_only_those():
    script = """
log.warning("parent")
pid = os.fork()
log.warning("child" if pid == 0 else "parent again")
if pid == 0:
    handler.flush()
    os._exit(0)
os.waitpid(pid, 0)
"""
    lines = run(script, subprocess.PIPE).communicate(timeout=30)[1].decode().splitlines()
    assert sorted(json.loads(line)["message"] for line in lines) == ["child", "parent", "parent again"]


@pytest.mark.parametrize("layout", [logs.Text(), logs.JsonFormatter()])
def test_p3_what_strangers_send_is_one_line_without_a_traceback(layout, client, settings):
    settings.ALLOWED_HOSTS = ["localhost"]
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(layout.format(record))
    logging.getLogger("django").addHandler(handler)
    try:
        assert client.get("/sign-in/", headers={"host": "evil.example"}).status_code == 400
    finally:
        logging.getLogger("django").removeHandler(handler)
    told = [line for line in lines if "evil.example" in line]
    assert told
    assert all("Traceback" not in line and "\n" not in line for line in told)


def test_o10_a_database_that_is_away_is_one_line_with_its_cause():
    try:
        raise OperationalError("no route to host")
    except OperationalError:
        line = logs.Text().format(record("Service Unavailable: %s", "/usage/", exc_info=sys.exc_info()))
    assert "/usage/" in line
    assert "no route to host" in line
    assert "Traceback" not in line
