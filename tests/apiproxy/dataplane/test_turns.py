"""The people behind one key share its turns: of each one call goes, then of each the next."""

import random

import pytest

from apiproxy.dataplane.fair_queue import CallFlow, FairQueue
from apiproxy.dataplane.turns import Turns

KEY = CallFlow("key", 1)


def serve_all(turns: Turns[str]) -> list[str]:
    served = []
    while turns:
        call = next(iter(turns))
        turns.pass_turn(call)
        turns.remove(call)
        served.append(call)
    return served


def filled(*calls: tuple[str, str]) -> Turns[str]:
    turns: Turns[str] = Turns()
    for call, share in calls:
        turns.add(call, share)
    return turns


def test_calls_of_one_go_in_the_order_in_which_they_came():
    assert serve_all(filled(("a1", ""), ("a2", ""), ("a3", ""))) == ["a1", "a2", "a3"]


def test_one_with_many_calls_lets_each_other_go_in_between():
    turns = filled(*((f"a{n}", "a") for n in range(4)), ("b0", "b"), ("c0", "c"), ("b1", "b"))
    assert serve_all(turns) == ["a0", "b0", "c0", "a1", "b1", "a2", "a3"]


def test_who_was_just_served_does_not_go_first_again():
    turns = filled(("a0", "a"), ("a1", "a"))
    turns.pass_turn("a0")
    turns.remove("a0")
    turns.add("b0", "b")
    turns.pass_turn("a1")
    turns.remove("a1")
    turns.add("a2", "a")
    assert serve_all(turns) == ["b0", "a2"]


def test_who_leaves_takes_no_one_s_turn():
    turns = filled(("a0", "a"), ("b0", "b"), ("a1", "a"))
    turns.remove("a0")
    assert serve_all(turns) == ["a1", "b0"]


@pytest.mark.parametrize("seed", range(20))
def test_the_order_that_is_shown_is_the_one_in_which_they_go(seed):
    dice = random.Random(seed)
    turns = filled(*((f"{n}", dice.choice("abcd")) for n in range(30)))
    for call in dice.sample(list(turns), 8):
        turns.remove(call)
    shown = list(turns)
    assert len(shown) == len(turns) == 22
    assert serve_all(turns) == shown
    assert not turns


def test_in_the_queue_they_share_the_part_of_their_key():
    queue: FairQueue[str] = FairQueue(aged_after=60)
    for n in range(3):
        queue.add(f"a{n}", KEY, 0.0, share="a")
    queue.add("b0", KEY, 0.0, share="b")
    queue.add("other", CallFlow("user", 1), 0.0)
    served = []
    while (call := queue.first(1.0)) is not None:
        queue.serve(call, 1.0)
        queue.charge(CallFlow("user", 1) if call == "other" else KEY, 100.0)
        served.append(call)
    assert served == ["a0", "other", "b0", "a1", "a2"]
