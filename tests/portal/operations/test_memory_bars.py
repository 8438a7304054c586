"""The bars of memory: what is measured, what is predicted, what is not ours, all within the bar."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portal.operations.memory_bars import Part, memory_bar, share_of

GPU = {"index": 0, "name": "card", "kind": "gpu", "total": 1000, "used": 600, "free": 400, "fault": ""}


def predicted(weights: int, cache: int, overhead: int) -> dict[str, int]:
    return {"weights": weights, "cache": cache, "overhead": overhead, "total": weights + cache + overhead}


def of(name: str = "qwen", *, measured: int | None = None, plan: dict[str, int] | None = None):
    return share_of(model=name, replica=name, predicted=plan, measured=measured)


def test_what_is_held_beyond_weights_and_cache_is_the_engine_s():
    one = of(measured=500, plan=predicted(300, 100, 50))
    assert (one.weights, one.cache, one.overhead, one.unsorted) == (300, 100, 100, 0)


def test_what_is_half_loaded_is_divided_as_predicted():
    one = of(measured=200, plan=predicted(300, 100, 50))
    assert (one.weights, one.cache, one.overhead) == (150, 50, 0)


def test_without_a_prediction_nothing_is_told_apart():
    one = of(measured=200)
    assert (one.unsorted, one.total, one.predicted) == (200, 200, None)


def test_parts_add_up_to_what_is_used():
    drawn = memory_bar(GPU, [of(measured=500, plan=predicted(300, 100, 50))])
    assert drawn.others == 100
    assert drawn.parts == (
        Part("weights", 0.0, 30.0),
        Part("cache", 30.0, 10.0),
        Part("overhead", 40.0, 10.0),
        Part("others", 50.0, 10.0),
    )


def test_the_place_of_what_only_starts_is_kept_behind_all_that_is_held():
    drawn = memory_bar(
        GPU, [of("new", plan=predicted(200, 50, 0)), of("old", measured=400, plan=predicted(300, 100, 0))]
    )
    assert [(one.number, one.replica) for one in drawn.shares] == [(1, "old"), (2, "new")]
    assert [(one.x, one.width) for one in drawn.outlines] == [(0.0, 40.0), (60.0, 25.0)]


@pytest.mark.parametrize("measured", [None, 900, 5000])
def test_nothing_is_drawn_beyond_the_bar(measured):
    plan = predicted(4000, 1000, 0)
    drawn = memory_bar(GPU, [of(measured=measured, plan=plan), of(measured=700, plan=plan)])
    for part in (*drawn.parts, *drawn.outlines):
        assert 0 <= part.x <= part.x + part.width <= 100.01
    assert all(label.width / 2 <= label.x <= 100 - label.width / 2 for label in drawn.labels)


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300), st.booleans()), max_size=40))
def test_no_number_is_written_over_another(sizes):
    shares = [of(measured=held if there else None, plan=predicted(planned, 0, 0)) for held, planned, there in sizes]
    labels = memory_bar(GPU, shares).labels
    assert [number for one in labels for number in range(one.first, one.last + 1)] == list(range(1, len(sizes) + 1))
    for one, other in pairwise(labels):
        assert one.x + one.width / 2 < other.x - other.width / 2


def test_neighbours_too_narrow_for_their_numbers_share_a_label():
    shares = [of(measured=5), of(measured=5), of(measured=5), of(measured=300)]
    assert [str(label) for label in memory_bar(GPU, shares).labels] == ["1–3", "4"]
    assert [str(label) for label in memory_bar(GPU, [of(measured=300), of(measured=200)]).labels] == ["1", "2"]


def test_a_card_that_cannot_be_read_has_no_bar_but_its_name():
    drawn = memory_bar({**GPU, "total": 0, "used": 0, "free": 0, "fault": "fell off the bus"}, [])
    assert (drawn.parts, drawn.percent, drawn.fault) == ((), 0, "fell off the bus")
