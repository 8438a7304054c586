"""The offline check of real answers, and what is made of it. The measuring itself is `make bench`."""

import json

import pytest

from tests.bench import real_loops, texts
from tests.bench.answers import Answer, split
from tests.bench.real_loops import Run

LEAD = "The keeper opened the bottle, read the letter and went out!\n"
PERIOD = "He looked at the sea and then he looked at the sky again. "


def answer(text: str, reason: str = "length", each: int = 1) -> Answer:
    """Return one whose events have a token each, which counts as so many."""
    pieces = texts.tokens(text)
    chunks = [
        {"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}], "id": "a"} for piece in pieces
    ]
    chunks += [
        {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}], "id": "a"},
        {"choices": [], "id": "a", "usage": {"completion_tokens": each * len(pieces)}},
    ]
    stream = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)
    return Answer("?", 0.0, split(f"{stream}data: [DONE]\n\n".encode()))


def test_a_loop_is_found_where_its_first_copy_begins():
    text = (LEAD + PERIOD * 7).encode()
    assert real_loops.find_last(text) == Run(len(LEAD), len(PERIOD), len(text))


def test_a_loop_is_found_though_the_text_ends_within_a_copy():
    text = (LEAD + PERIOD * 7).encode()[:-20]
    assert real_loops.find_last(text) == Run(len(LEAD), len(PERIOD), len(text))


def test_a_loop_that_the_text_leaves_is_found_and_does_not_last():
    text = (LEAD + PERIOD * 7 + "Then she slept").encode()
    assert Run(len(LEAD), len(PERIOD), len(text) - len("Then she slept")) in real_loops.find_runs(text)
    assert real_loops.find_last(text) is None


def test_loops_that_overlap_are_one_which_begins_with_the_first():
    shorter = PERIOD.replace(" again", "")
    text = (LEAD + PERIOD * 7 + shorter * 9).encode()
    assert len({run.start for run in real_loops.find_runs(text)}) > 1
    assert real_loops.find_last(text) == Run(len(LEAD), len(shorter), len(text))


def test_a_loop_that_was_left_before_another_began_is_not_part_of_it():
    other = "It was the longest night of the year, and the lamp went out. "
    text = (LEAD + PERIOD * 7 + LEAD + other * 9).encode()
    assert real_loops.find_last(text) == Run(len(LEAD + PERIOD * 7 + LEAD), len(other), len(text))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a" * 319, False),
        ("a" * 320, True),
        ("".join(map(chr, range(256))) * 2, False),
        ("".join(map(chr, range(256))) * 3, True),
    ],
)
def test_a_loop_has_three_copies_and_320_bytes(text, found):
    assert (real_loops.find_last(text.encode("latin-1")) is not None) == found


def test_an_answer_that_the_model_ended_itself_is_in_no_lasting_loop():
    cut, ended = (real_loops.judge(answer(LEAD + PERIOD * 7, reason), None) for reason in ("length", "stop"))
    assert (cut.begun, ended.begun) == (len(texts.tokens(LEAD)), None)


def test_where_the_guard_stops_is_counted_from_the_beginning_of_the_answer():
    outcome = real_loops.judge(answer(LEAD + PERIOD * 40, each=3), litellm=100)
    assert outcome.begun == 3 * len(texts.tokens(LEAD))
    assert outcome.guard is not None
    assert outcome.begun < outcome.guard < outcome.generated
    assert outcome.litellm == 300
    assert outcome.confirmed


def test_a_right_answer_is_not_stopped():
    outcome = real_loops.judge(answer(LEAD), None)
    assert (outcome.begun, outcome.guard, outcome.confirmed) == (None, None, False)


def test_a_stop_outside_of_every_loop_is_not_confirmed(monkeypatch):
    monkeypatch.setattr(real_loops, "stop", lambda events: 5)
    outcome = real_loops.judge(answer(LEAD + PERIOD * 40), None)
    assert (outcome.guard, outcome.confirmed) == (5, False)
