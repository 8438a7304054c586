"""The guard as it is fed by the relay: with events of one shape, of several, one at a time and many."""

import json

import pytest

from apiproxy.dataplane.loops import LoopPolicy
from apiproxy.dataplane.stream import loop_guard
from apiproxy.dataplane.stream.content import unescape
from apiproxy.dataplane.stream.loop_guard import LOOKED, MAX_PARTS, LoopGuard

LOOP = ["the ", "same ", "words ", "again "] * 100


def chunk(text: str, member: str = "content", index: int = 0) -> bytes:
    choice = {"index": index, "delta": {member: text}, "finish_reason": None}
    return b"data: " + json.dumps({"id": "c1", "choices": [choice]}).encode() + b"\n\n"


def stops_at(events: list[bytes]) -> int | None:
    guard = LoopGuard(LoopPolicy("stop"))
    return next((number for number, event in enumerate(events) if guard.feed(event)), None)


def test_a_loop_is_ended_however_its_events_come():
    one_by_one = stops_at([chunk(word) for word in LOOP])
    assert one_by_one is not None
    for size in (2, 7, 40):
        pieces = [b"".join(chunk(word) for word in LOOP[at : at + size]) for at in range(0, len(LOOP), size)]
        found = stops_at(pieces)
        assert found is not None
        assert found * size <= one_by_one + 2 * size


@pytest.mark.parametrize("other", [b": ping\n\n", chunk("x", "reasoning"), chunk("x", index=1), b"data: {}\n\n"])
def test_events_of_another_shape_in_between_hide_no_loop(other):
    events = [event for word in LOOP for event in (chunk(word), other)]
    assert stops_at(events) is not None


def test_texts_of_one_part_are_joined_in_the_order_in_which_they_came():
    # Half of the words come in envelopes of their own, as with log probabilities.
    events = [chunk(word) for word in LOOP]
    events[::2] = [event[:-3] + b', "x": %d}\n\n' % number for number, event in enumerate(events[::2])]
    assert stops_at(events) is not None


def test_an_answer_that_ended_by_itself_was_not_stopped():
    for length in range(1, len(LOOP)):
        guard = LoopGuard(LoopPolicy("stop"))
        if any(guard.feed(chunk(word)) for word in LOOP[:length]):
            break
        guard.looped_tokens(length)
        assert guard.stopped == set()
    assert length > 100


@pytest.mark.parametrize("sign", ["猫", '"', "\\", "a"])
def test_of_megabytes_in_an_event_the_end_is_looked_at_and_all_is_counted(monkeypatch, sign):
    looked_at: list[int] = []

    def note(text: bytes) -> bytes:
        looked_at.append(len(text))
        return unescape(text)

    monkeypatch.setattr(loop_guard, "unescape", note)
    guard = LoopGuard(LoopPolicy("count"))
    for number in range(200):
        guard.feed(chunk(f"word{number} "))
    for more in range(4):  # so that the cut is at each place of an escape
        guard.feed(chunk("b" * more + sign * 1_000_000))
    assert max(looked_at) <= LOOKED
    assert guard.looped_tokens(1000) > 500


def test_of_many_parts_the_last_are_kept():
    guard = LoopGuard(LoopPolicy("count"))
    for index in range(3 * MAX_PARTS):
        for word in ("x", "y"):
            guard.feed(chunk(word, index=index))
    assert len(guard.parts) == MAX_PARTS  # each with its texts and its detector
    assert stops_at([chunk("x", index=index) for index in range(3 * MAX_PARTS)] + [chunk(word) for word in LOOP])
