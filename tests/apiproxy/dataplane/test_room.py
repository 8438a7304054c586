"""The room of an engine is found, kept and given up."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apiproxy.dataplane.catalogue import Replica
from apiproxy.dataplane.room import LEAST, LOOK_AHEAD, STALE_AFTER, START, EngineLoad, Rooms

UNKNOWN = Replica(id=1, url="http://127.0.0.1:1", api_key="", upstream_model="m")


class Engine:
    """One that works on `capacity` calls at a time. The gateway always has `calls`."""

    def __init__(self, capacity: int, *, calls: int = 1000) -> None:
        self.capacity = capacity
        self.calls = calls
        self.rooms = Rooms()
        self.cache_used: float | None = 0.5
        self.reports = 0

    @property
    def sent(self) -> int:
        return math.ceil(min(self.rooms.calls(UNKNOWN), self.calls))

    @property
    def waiting(self) -> int:
        return max(0, self.sent - self.capacity)

    def report(self, times: int = 1) -> None:
        for _ in range(times):
            self.reports += 1
            load = EngineLoad(str(self.reports), self.waiting, self.cache_used)
            self.rooms.note({UNKNOWN.id: load}, lambda _: self.sent, 5.0 * self.reports)


def test_known_slots_are_the_room():
    assert Rooms().calls(replace(UNKNOWN, slots=3)) == 3


def test_an_engine_that_reports_nothing_is_sent_everything():
    assert Rooms().calls(UNKNOWN) == math.inf


@given(st.integers(int(LEAST), 800))
def test_the_engine_is_never_idle_and_few_calls_wait_in_it_once_its_room_is_found(capacity):
    engine = Engine(capacity)
    engine.report(times=60)
    for _ in range(50):
        engine.report()
        assert engine.sent >= engine.capacity
        assert engine.waiting <= LOOK_AHEAD + 2


@pytest.mark.parametrize("capacity", [8, 300])
@pytest.mark.parametrize("before", [1, 400])
def test_the_room_is_found_within_two_minutes(capacity, before):
    """Whether the engine was sent few calls or too many before it reported for the first time."""
    engine = Engine(capacity, calls=before)
    engine.report()
    engine.calls = 1000
    engine.report(times=24)
    assert capacity <= engine.rooms.calls(UNKNOWN) <= 1.25 * capacity + LOOK_AHEAD


def test_an_engine_that_has_less_room_than_before_is_sent_less():
    engine = Engine(200)
    engine.report(times=20)
    engine.capacity = 50
    engine.report(times=20)
    assert 50 <= engine.rooms.calls(UNKNOWN) <= 60


def test_it_grows_no_further_while_the_memory_for_contexts_is_nearly_full_or_the_room_is_not_used():
    engine = Engine(1000, calls=64)
    engine.cache_used = 0.95
    engine.report(times=5)
    assert engine.rooms.calls(UNKNOWN) == START
    for number in range(5):
        engine.rooms.note({UNKNOWN.id: EngineLoad(f"idle {number}", 0, 0.1)}, lambda _: 3, 100.0)
    assert engine.rooms.calls(UNKNOWN) == START


def test_it_is_never_less_than_a_few_calls():
    rooms = Rooms()
    for number in range(50):
        rooms.note({UNKNOWN.id: EngineLoad(str(number), 100, 1.0)}, lambda _: 1, float(number))
    assert rooms.calls(UNKNOWN) == LEAST


def test_one_report_is_learned_from_once():
    rooms = Rooms()
    for _ in range(50):
        rooms.note({UNKNOWN.id: EngineLoad("at", 100, 1.0)}, lambda _: 64, 0.0)
    assert rooms.calls(UNKNOWN) == pytest.approx(0.8 * START)


def test_a_replica_that_is_gone_is_forgotten():
    rooms = Rooms()
    rooms.note({UNKNOWN.id: EngineLoad("at", 100, 1.0)}, lambda _: 64, 0.0)
    rooms.note({}, lambda _: 64, 1.0)
    assert rooms.calls(UNKNOWN) == math.inf


def test_what_no_report_follows_bounds_nothing_until_there_is_a_new_one():
    rooms = Rooms()
    old = {UNKNOWN.id: EngineLoad("at", 100, 1.0)}
    rooms.note(old, lambda _: 64, 0.0)
    rooms.forget(STALE_AFTER)
    assert rooms.calls(UNKNOWN) < math.inf
    rooms.forget(STALE_AFTER + 1)
    rooms.note(old, lambda _: 64, STALE_AFTER + 1)
    assert rooms.calls(UNKNOWN) == math.inf
    rooms.note({UNKNOWN.id: EngineLoad("later", 0, 0.1)}, lambda _: 1, STALE_AFTER + 2)
    assert rooms.calls(UNKNOWN) == START


def test_an_estimate_of_another_worker_holds_until_the_next_report():
    rooms = Rooms()
    rooms.adopt(UNKNOWN.id, 7)
    assert rooms.calls(UNKNOWN) == math.inf
    rooms.note({UNKNOWN.id: EngineLoad("at", 100, 1.0)}, lambda _: 64, 0.0)
    rooms.adopt(UNKNOWN.id, 7)
    assert (rooms.calls(UNKNOWN), rooms.report_of(UNKNOWN.id)) == (7, "at")
    rooms.note({UNKNOWN.id: EngineLoad("later", 0, 0.1)}, lambda _: 7, 5.0)
    assert rooms.calls(UNKNOWN) == 9
