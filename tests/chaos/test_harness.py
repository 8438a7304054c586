"""The storm's own eyes: what it must not overlook."""

import json
import random
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from modelregistry.engines.base import EngineCommand
from modelregistry.process import process, shim
from modelregistry.process.process import Life
from tests import ports
from tests.chaos import leftovers, storm, troubles
from tests.chaos.books import disagreements, unmetered
from tests.chaos.census import PROGRAMS, Census, name_part, unaccounted
from tests.chaos.field import TREE
from tests.chaos.load import Call, Heard
from tests.waiting import until

LABEL = {
    **{"model": 1, "replica": 0, "name": "m", "task": "chat", "fingerprint": "", "launcher": "llama-server"},
    **{"slots": 1, "port": 0, "url": "", "api_key": ""},
}


# --- Processes


@pytest.fixture
def census(tmp_path):
    made = Census(tmp_path)
    yield made
    process.kill(found.who for found in made.take())
    until(lambda: not made.take())


def start(census, run_id="run"):
    """Return a tree that mimics vLLM's under a real shim; returns when it is complete."""
    command = EngineCommand(
        argv=(sys.executable, str(TREE), f"--port={ports.in_a_row(1, random.Random())}", "--host=127.0.0.1"),
        env={"LLAMA_API_KEY": "k"},
    )
    run = census.runs.start(run_id, command, label=LABEL, grace=1)
    until(lambda: len(process.process_tree(run)) == 3)
    return run


def row(run, **more):
    return {"model": "m", "state": "ready", "run_id": run.run_id, "pid": run.engine.pid, **more}


def of_engines(census, *rows):
    """Return what is wrong with engines, as codes and texts; there is no `up` here."""
    found = unaccounted(census.take(), census.living_runs(), rows)
    return {one.code: one.text for one in found if not one.code.startswith("not-one-")}


def test_a_periodic_task_has_a_reason_to_be_and_another_command_has_none():
    assert name_part("python /srv/madoguchi/manage.py sendnotices") == "task"
    assert name_part("python /srv/madoguchi/manage.py shell") == "other"


def test_each_process_is_known_by_what_it_does(census):
    run = start(census)
    assert sorted(found.part for found in census.take()) == ["front", "shim", "worker", "worker"]
    assert of_engines(census, row(run)) == {}
    wrong = unaccounted(census.take(), census.living_runs(), [row(run)])
    assert {one.code for one in wrong} == {f"not-one-{part}" for part in PROGRAMS}


def test_what_a_killed_shim_leaves_behind_are_orphans(census):
    run = start(census)
    shim.send_signal(run.shim, signal.SIGKILL)
    until(lambda: process.life_of(run) is Life.LOST)
    wrong = unaccounted(census.take(), census.living_runs(), [row(run)])
    assert sum(one.code == "orphan" for one in wrong) == 3
    assert "run" in of_engines(census, row(run))["no-engine"]


def test_a_dead_front_leaves_nobody_when_its_shim_lives(census):
    run = start(census)
    shim.send_signal(run.engine, signal.SIGKILL)
    until(lambda: process.life_of(run) is Life.ENDED)
    assert census.take() == []


def test_the_front_ends_after_its_worker(census):
    run = start(census)
    worker = next(found.who for found in census.take() if found.part == "worker")
    shim.send_signal(worker, signal.SIGKILL)
    until(lambda: process.life_of(run) is Life.ENDED)
    assert process.exit_of(run).code == 0


def test_an_engine_without_a_row_and_two_of_one_replica_are_seen(census):
    one, other = start(census, "one"), start(census, "other")
    found = of_engines(census, row(one))
    assert found.keys() == {"no-row", "twice"}
    assert "other" in found["no-row"]
    assert of_engines(census, row(one), row(other, pid=1)).keys() == {"another-process", "twice"}


def test_a_process_of_this_installation_that_nobody_knows_is_seen(census):
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    with subprocess.Popen(command, env={"MADOGUCHI_VAR": str(census.var)}) as stranger:
        # Until it has executed, its environment is still ours.
        until(lambda: [found.who.pid for found in census.take()] == [stranger.pid])
        assert of_engines(census).keys() == {"unknown-process"}
        stranger.kill()


def test_what_nobody_had_expected_is_found_in_any_log(tmp_path):
    (tmp_path / "up.log").write_text("well\n")
    assert storm.tracebacks(tmp_path) == []
    (tmp_path / "up-1.log").write_text('well\nTraceback (most recent call last):\n  File "x"\nKeyError: 1\n')
    assert [text.partition("\n")[0] for text in storm.tracebacks(tmp_path)] == ['File "x"']


# --- Usage


def finished(**more):
    facts = {"number": 1, "model": "m", "kind": "stream", "began": 0.0, "request_id": "req_1", "outcome": "finished"}
    return Call(**{**facts, "usage": {"prompt_tokens": 3, "completion_tokens": 4}, **more})


def record(**more):
    facts = {"request_id": "req_1", "model": "m", "end_user": "call-1", "status": "finished", "estimated": 0}
    return {**facts, "prompt_tokens": 3, "completion_tokens": 4, **more}


def test_one_row_with_the_tokens_that_were_told_is_right():
    assert disagreements([finished()], [record()]) == []
    assert unmetered([finished()], [record()]) == set()


@pytest.mark.parametrize(
    ("calls", "rows", "code"),
    [
        ([finished()], [], "no-row"),
        ([finished()], [record(), record(request_id="req_2")], "several-rows"),
        ([finished()], [record(completion_tokens=5)], "other-usage"),
        ([finished()], [record(status="interrupted")], "other-usage"),
        ([finished()], [record(estimated=1)], "other-usage"),
        ([finished()], [record(model="other")], "another-model"),
        ([], [record()], "no-call"),
        ([finished(outcome="refused")], [record()], "refused"),
        ([finished(outcome="broken", request_id="req_9")], [record()], "another-id"),
    ],
)
def test_what_is_wrong_in_the_books_is_told(calls, rows, code):
    assert code in {one.code for one in disagreements(calls, rows)}


def test_a_call_that_broke_may_have_a_row_or_none():
    broken = finished(outcome="broken", request_id="", usage={})
    assert disagreements([broken], []) == []
    assert disagreements([broken], [record(status="interrupted", estimated=1)]) == []


# --- Answers


def event(text="", finish=None, **more):
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    return f"data: {json.dumps({'id': 'c', 'model': 'm', 'choices': [choice], **more})}\n\n".encode()


USAGE = event(choices=[], usage={"prompt_tokens": 3, "completion_tokens": 2})
DONE = b"data: [DONE]\n\n"


def heard(*pieces):
    """Return the call after these pieces and the end of the answer."""
    call = finished(outcome="", usage={})
    listener = Heard(call, "12 7")
    for piece in pieces:
        listener.feed(piece)
    listener.judge()
    listener.close()
    return call


def test_a_whole_stream_is_finished_however_it_is_cut_in_pieces():
    stream = b": heartbeat\n\n" + event("12") + event(" 7", "stop") + USAGE + DONE
    for size in (1, 7, len(stream)):
        call = heard(*(stream[at : at + size] for at in range(0, len(stream), size)))
        assert (call.outcome, call.wrong) == ("finished", [])
        assert call.usage["completion_tokens"] == 2


def test_an_error_event_is_an_end_but_no_answer():
    call = heard(event("12"), b'data: {"error": {"code": "engine_error"}}\n\n')
    assert (call.outcome, call.why, call.wrong) == ("broken", "event engine_error", [])
    assert heard(event("12"), b'data: {"error": {"code": "internal_error"}}\n\n').wrong


@pytest.mark.parametrize(
    "stream",
    [
        event("12") + event(" 7") + USAGE + DONE,  # as vLLM ends a stream whose engine died
        event("12", "stop") + USAGE + DONE,
        event("12") + event(" 7", "stop") + USAGE,
        event("12") + event(" 7", "stop") + DONE,
        event("12") + event(" 8", "stop") + USAGE + DONE,
        event("12") + event(" 7", "stop", model="other") + USAGE + DONE,
        event("12") + event(" 7", "stop", id="d") + USAGE + DONE,
        event("12") + event(" 7", "stop") + USAGE + DONE + event("12"),
    ],
    ids=["no finish", "half", "no end", "no usage", "other words", "other model", "other answer", "more after the end"],
)
def test_what_only_looks_finished_is_wrong(stream):
    assert heard(stream).wrong


# --- Troubles


def test_the_pause_doubles_with_each_death_until_a_long_life():
    backoff = troubles.of_engine()
    backoff.well_since = 0.0
    assert [backoff.died(at) for at in (1.0, 2.0, 3.0)] == [1.0, 2.0, 4.0]
    backoff.well(4.0)
    backoff.well(50.0)
    assert not backoff.tired(50.0)
    assert backoff.died(63.9) == 8.0
    assert backoff.tired(64.0)
    backoff.well(70.0)
    assert backoff.tired(100.0)
    assert backoff.died(130.0) == 1.0


def test_each_kind_comes_once_before_any_comes_again():
    kinds = [("front", "a"), ("front", "b"), ("shim", "a")]
    deck = troubles.Deck(kinds, random.Random(1))
    drawn = []
    while not deck.played:
        drawn.append(deck.order()[0])
        deck.play(drawn[-1])
    assert sorted(drawn) == kinds


def test_what_is_allowed_grows_with_the_machines_work_only():
    facts = {"kind": "", "model": "", "victim": "", "hurts": frozenset(), "restarts": frozenset(), "wall": 0.0}
    trouble = troubles.Trouble(**facts, pauses=8.0, work=5.0, began=time.monotonic())
    assert trouble.bound == 8.0 + troubles.SPARE * 5.0
    trouble.slowness = 3.0
    assert trouble.bound == 8.0 + troubles.SPARE * 15.0


# --- What calls leave behind


@pytest.mark.parametrize(
    ("left", "in_flight", "resident", "codes"),
    [
        (leftovers.PLENTY - 12, 0.0, 100.0, []),
        (leftovers.PLENTY - 13, 0.0, 100.0, ["reserved"]),
        (leftovers.PLENTY - 11, 0.0, 100.0, ["reserved"]),  # what was used is forgiven
        (leftovers.PLENTY - 12, 1.0, 100.0, ["in-flight"]),
        (leftovers.PLENTY - 12, 0.0, 300.0, ["memory"]),
    ],
)
def test_what_ended_calls_leave_in_the_gateway_is_found(monkeypatch, left, in_flight, resident, codes):
    monkeypatch.setattr(leftovers, "remaining_tokens", lambda url, key, model: left)
    monkeypatch.setattr(leftovers, "calls_in_flight", lambda url: in_flight)
    monkeypatch.setattr(leftovers, "resident_megabytes", lambda installation: resident)
    rows = [{"prompt_tokens": 5, "completion_tokens": 7}]
    found = leftovers.find_leftovers(SimpleNamespace(url=""), ["key"], rows, "m", 90.0)
    assert [each.code for each in found] == codes
