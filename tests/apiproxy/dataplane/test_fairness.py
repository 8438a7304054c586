"""What callers are served while calls wait is noted by minutes, bounded, and kept until it is written."""

from apiproxy.dataplane import fairness
from apiproxy.dataplane.fair_queue import CallFlow
from apiproxy.dataplane.fairness import MAX_MINUTES, FairnessLog, FlowMinute
from tests.clock import Clock

ANN, BEN = CallFlow("user", 1), CallFlow("user", 2, weight=2.0)


def test_what_is_served_while_calls_wait_at_other_workers_is_kept():
    clock = Clock()
    log = FairnessLog(clock)
    log.note_served("m", "interactive", ANN, 100.0)
    clock.now += 60
    (minute,) = log.finished()
    assert (minute.contended, minute.flows) == (0, (FlowMinute("user:1:", 0, 100.0),))
    clock.now += 60
    assert log.finished() == [minute]  # in the next one nothing was


def test_a_minute_shows_how_long_each_caller_waited_and_what_it_was_served_by_its_weight():
    clock = Clock()
    log = FairnessLog(clock)
    for second in range(3):
        log.note_waiting("m", "interactive", [ANN, BEN] if second else [BEN])
        log.note_served("m", "interactive", ANN, 10.0)
        log.note_served("m", "interactive", BEN, 10.0)
    assert log.finished() == []  # it is not over
    clock.now += 60
    (minute,) = log.finished()
    assert (minute.model, minute.call_class, minute.contended) == ("m", "interactive", 3)
    assert sorted(minute.flows) == [FlowMinute("user:1:", 2, 30.0), FlowMinute("user:2:", 3, 15.0)]


def test_minutes_are_kept_until_they_are_written_but_not_for_ever():
    clock = Clock()
    log = FairnessLog(clock)
    for _ in range(MAX_MINUTES + 5):
        log.note_waiting("m", "interactive", [ANN])
        clock.now += 60
    kept = log.finished()
    assert len(kept) == MAX_MINUTES == len(log.finished())
    log.forget(kept[:10])
    assert log.finished() == kept[10:]


def test_callers_that_a_key_makes_up_are_bounded(monkeypatch):
    monkeypatch.setattr(fairness, "MAX_COUNTED", 50)
    monkeypatch.setattr(fairness, "MAX_FLOWS", 20)
    clock = Clock()
    log = FairnessLog(clock)
    for number in range(100):
        flow = CallFlow("key", 1, f"made up {number}")
        log.note_waiting("m", "interactive", [ANN, flow])
        log.note_served("m", "interactive", flow, 1.0)
    clock.now += 60
    (minute,) = log.finished()
    assert len(minute.flows) == 20
    assert minute.flows[0] == FlowMinute("user:1:", 100, 0.0)  # those that waited longest
