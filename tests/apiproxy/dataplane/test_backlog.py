"""When usage that waits on a disk is reported."""

import pytest

from apiproxy.dataplane.backlog import AGAIN, LONG, MUCH, BacklogReport, BacklogWatch


class FakeClock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def watch(clock) -> BacklogWatch:
    return BacklogWatch(clock)


def test_much_that_waits_for_long_is_reported_and_again_while_it_lasts(watch, clock):
    assert watch.look(MUCH) is None
    clock.now += LONG - 1
    assert watch.look(MUCH) is None
    clock.now += 1
    assert watch.look(MUCH + 7) == BacklogReport(bytes=MUCH + 7, seconds=LONG)
    clock.now += AGAIN - 1
    assert watch.look(2 * MUCH) is None
    clock.now += 1
    assert watch.look(2 * MUCH) == BacklogReport(bytes=2 * MUCH, seconds=LONG + AGAIN)


def test_little_is_never_reported(watch, clock):
    for _ in range(5):
        clock.now += LONG
        assert watch.look(MUCH - 1) is None


def test_what_was_recorded_meanwhile_begins_again(watch, clock):
    watch.look(MUCH)
    watch.look(0)
    clock.now += LONG
    assert watch.look(MUCH) is None


def test_its_end_is_reported_once(watch, clock):
    watch.look(MUCH)
    clock.now += LONG
    watch.look(MUCH)
    assert watch.look(0) == BacklogReport(bytes=0, seconds=0.0)
    assert watch.look(0) is None
