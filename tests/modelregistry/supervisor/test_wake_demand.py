"""For how long callers have waited for a model, by the supervisor's own clock."""

from datetime import UTC, datetime, timedelta

from modelregistry.supervisor.wake_demand import ALIVE, WakeDemand, WakeDemands

BEGAN = datetime(2026, 11, 30, tzinfo=UTC)


def demand(after: float, interactive: float | None = None) -> WakeDemand:
    """Make what a gateway wrote so many seconds after the first call; `interactive`: after which others waited."""
    at, seen = BEGAN + timedelta(seconds=after), None if interactive is None else BEGAN + timedelta(seconds=interactive)
    return WakeDemand(at=at, since=BEGAN, interactive_at=seen)


def test_calls_that_are_not_of_a_batch_have_waited_since_they_came():
    demands = WakeDemands()
    demands.update({1: demand(100)}, 1000.0)
    assert (demands.since(1, 1000.0), demands.interactive_since(1, 1000.0)) == (900.0, None)
    demands.update({1: demand(105, 105)}, 1005.0)
    demands.update({1: demand(110, 110)}, 1010.0)
    demands.update({1: demand(112, 110)}, 1012.0)  # by a gateway where only a batch waits
    assert (demands.since(1, 1012.0), demands.interactive_since(1, 1012.0)) == (900.0, 1005.0)


def test_they_wait_no_more_when_only_a_batch_is_heard_of():
    demands = WakeDemands()
    demands.update({1: demand(0, 0)}, 1000.0)
    demands.update({1: demand(ALIVE, 0)}, 1000.0 + ALIVE)
    now = 1000.0 + ALIVE
    assert (demands.since(1, now), demands.interactive_since(1, now)) == (1000.0, None)
    demands.update({1: demand(ALIVE + 1, ALIVE + 1)}, now + 1)
    assert demands.interactive_since(1, now + 1) == now + 1


def test_a_supervisor_that_is_started_again_knows_how_long_callers_have_waited():
    demands = WakeDemands()
    demands.update({1: demand(50, 50)}, 1000.0)
    assert demands.interactive_since(1, 1000.0) == 950.0
