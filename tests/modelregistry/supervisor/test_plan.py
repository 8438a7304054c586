from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelregistry.hostside.replicas import ReplicaKey
from modelregistry.models import Replica
from modelregistry.supervisor import plan
from modelregistry.supervisor.plan import (
    AskQuestion,
    CheckHealth,
    Drain,
    Fail,
    Observed,
    Remove,
    ReplicaState,
    Resume,
    Sleep,
    Start,
    Stop,
    Wake,
    Wanted,
)

KEY = ReplicaKey(1, 0)
WANT = Wanted(fingerprint="f")
NOW = 10_000.0


def observed(state, **more):
    values = {"since": NOW - 1, "checked_at": NOW, "reported_at": NOW, "active_at": NOW, "retry_at": NOW + 5}
    return Observed(key=KEY, state=ReplicaState(state), fingerprint="f", **(values | more))


def next_for(want, observed):
    wanted = {KEY: want} if want else {}
    actions = plan.plan_actions(wanted, [observed] if observed else [], NOW, start_limit=1800)
    assert len(actions) <= 1
    return actions[0] if actions else None


def test_its_states_are_those_of_the_rows():
    assert set(ReplicaState) == set(Replica.State.values)


def test_what_is_wanted_and_not_there_is_started():
    assert next_for(WANT, None) == Start(key=KEY)


def test_what_is_disabled_and_not_there_is_left():
    assert next_for(replace(WANT, enabled=False), None) is None


def test_each_replica_gets_its_own_action():
    other = replace(observed("ready"), key=ReplicaKey(2, 1))
    actions = plan.plan_actions({KEY: WANT}, [other], NOW, start_limit=1800)
    assert actions == [Start(key=KEY), Drain(key=ReplicaKey(2, 1), next_state=ReplicaState.STOPPED)]


# --- starting


def test_a_starting_engine_is_asked_again_and_again():
    assert next_for(WANT, observed("starting", checked_at=NOW - 0.5)) == AskQuestion(key=KEY)
    assert next_for(WANT, observed("starting", checked_at=NOW - 0.4)) is None


def test_a_slow_start_is_no_failure_until_its_limit():
    assert next_for(WANT, observed("starting", since=NOW - 1799)) is None
    late = next_for(WANT, observed("starting", since=NOW - 1801))
    assert isinstance(late, Fail)
    assert late.cause == "too-slow"


def test_an_engine_that_keeps_refusing_its_work_has_failed():
    assert next_for(WANT, observed("starting", refusals=9)) is None
    assert isinstance(next_for(WANT, observed("starting", refusals=10)), Fail)


@pytest.mark.parametrize("want", [None, replace(WANT, enabled=False), replace(WANT, fingerprint="other")])
def test_a_start_that_is_not_wanted_any_more_is_broken_off(want):
    assert next_for(want, observed("starting")) == Stop(key=KEY)


# --- ready


def test_a_ready_engine_is_looked_at_now_and_then():
    assert next_for(WANT, observed("ready", checked_at=NOW - 4.9)) is None
    assert next_for(WANT, observed("ready", checked_at=NOW - 5)) == CheckHealth(key=KEY)


def test_a_bad_look_is_soon_followed_by_another():
    assert next_for(WANT, observed("ready", checked_at=NOW - 1, failed_checks=1)) == CheckHealth(key=KEY)


@pytest.mark.parametrize("want", [None, replace(WANT, enabled=False), replace(WANT, fingerprint="other")])
@pytest.mark.parametrize("state", ["ready", "unhealthy"])
def test_a_running_engine_that_is_not_as_wanted_is_drained(want, state):
    assert next_for(want, observed(state)) == Drain(key=KEY, next_state=ReplicaState.STOPPED)


@pytest.mark.parametrize("state", ["starting", "ready", "unhealthy"])
def test_an_engine_that_ended_by_itself_has_failed(state):
    assert next_for(WANT, observed(state, ended=True)) == Fail(key=KEY, reason="")


def test_an_idle_engine_goes_to_sleep():
    want = replace(WANT, idle_after=60.0)
    assert next_for(want, observed("ready", active_at=NOW - 59)) is None
    assert next_for(want, observed("ready", active_at=NOW - 60)) == Drain(key=KEY, next_state=ReplicaState.ASLEEP)


def test_an_engine_of_which_nothing_was_heard_since_is_not_called_idle():
    want = replace(WANT, idle_after=3.0)
    assert next_for(want, observed("ready", active_at=NOW - 4, reported_at=NOW - 4)) is None


def test_an_engine_that_is_called_does_not_go_to_sleep():
    want = replace(WANT, idle_after=60.0, wake_requested=True)
    assert next_for(want, observed("ready", active_at=NOW - 100)) is None


def test_an_unhealthy_engine_is_asked_and_at_last_given_up():
    assert next_for(WANT, observed("unhealthy", checked_at=NOW - 5)) == AskQuestion(key=KEY)
    assert isinstance(next_for(WANT, observed("unhealthy", since=NOW - 121)), Fail)


# --- draining


def drained(**more):
    return observed("draining", **({"since": NOW - 6, "published_at": NOW - 5, "running": 0} | more))


def test_a_drained_engine_that_reports_nothing_is_not_waited_for():
    assert next_for(WANT, drained(running=None, failed_checks=19)) is None
    assert next_for(WANT, drained(running=None, failed_checks=20)) == Stop(key=KEY)


def test_a_drained_engine_is_stopped():
    assert next_for(WANT, drained()) == Stop(key=KEY)


def test_it_is_not_drained_while_something_runs():
    assert next_for(WANT, drained(running=1)) is None
    assert next_for(WANT, drained(running=None)) is None
    assert next_for(WANT, drained(running=1, checked_at=NOW - 0.5)) == CheckHealth(key=KEY)


def test_it_is_not_drained_before_every_gateway_can_know():
    assert next_for(WANT, drained(published_at=None)) is None
    assert next_for(WANT, drained(published_at=NOW - 2.4)) is None


def test_a_look_before_gateways_knew_proves_nothing():
    assert next_for(WANT, drained(checked_at=NOW - 4)) == CheckHealth(key=KEY)


def test_draining_has_a_limit():
    assert next_for(WANT, drained(since=NOW - 301, running=3, published_at=None)) == Stop(key=KEY)


def test_an_engine_that_ends_while_it_drains_is_simply_stopped():
    assert next_for(WANT, observed("draining", ended=True)) == Stop(key=KEY)


# --- resting


@pytest.mark.parametrize("state", ["stopped", "asleep", "backoff", "failed"])
def test_a_stopped_replica_that_is_not_wanted_is_removed(state):
    assert next_for(None, observed(state)) == Remove(key=KEY)


@pytest.mark.parametrize("state", ["asleep", "backoff", "failed"])
def test_what_rests_and_is_disabled_is_called_stopped(state):
    disabled = replace(WANT, enabled=False)
    assert next_for(disabled, observed(state)) == Stop(key=KEY)
    assert next_for(disabled, observed("stopped")) is None


def test_what_is_stopped_and_wanted_is_started():
    assert next_for(WANT, observed("stopped")) == Start(key=KEY)


@pytest.mark.parametrize("state", ["backoff", "failed"])
def test_a_failed_replica_is_tried_again_at_its_time(state):
    assert next_for(WANT, observed(state, retry_at=NOW + 0.1)) is None
    assert next_for(WANT, observed(state, retry_at=NOW)) == Start(key=KEY)


@pytest.mark.parametrize("state", ["backoff", "failed"])
def test_changed_settings_are_tried_at_once(state):
    assert next_for(replace(WANT, fingerprint="other"), observed(state)) == Start(key=KEY)


def test_a_sleeping_model_wakes_for_a_request_only():
    want = replace(WANT, idle_after=60.0)
    asleep = observed("asleep", retry_at=NOW)
    assert next_for(want, asleep) is None
    assert next_for(replace(want, wake_requested=True), asleep) == Start(key=KEY)


def test_a_sleeping_model_whose_start_failed_for_its_other_hosts_waits_until_it_is_tried_again():
    asleep = observed("asleep", retry_at=NOW + 0.1)
    assert next_for(WANT, asleep) is None
    assert next_for(replace(WANT, fingerprint="other"), asleep) == Start(key=KEY)


def test_a_model_that_may_no_longer_sleep_is_woken():
    assert next_for(WANT, observed("asleep", retry_at=NOW)) == Start(key=KEY)


# --- room


@pytest.mark.parametrize("want", [WANT, replace(WANT, idle_after=60.0, wake_requested=True)])
def test_a_model_without_room_is_not_started_before_there_is_some(want):
    assert next_for(want, observed("asleep", without_room=True)) is None
    assert next_for(replace(want, fingerprint="smaller"), observed("asleep", without_room=True)) == Start(key=KEY)


def test_an_engine_that_leaves_for_another_has_its_own_time_for_running_answers():
    leaving = drained(for_room=True, running=1, drain_limit=120.0, published_at=NOW - 100)
    assert next_for(WANT, replace(leaving, since=NOW - 119)) is None
    assert next_for(WANT, replace(leaving, since=NOW - 121)) == Stop(key=KEY)


def test_an_engine_serves_on_if_no_gateway_can_see_that_it_was_to_leave_for_another():
    unseen = drained(for_room=True, running=1, published_at=None)
    assert next_for(WANT, replace(unseen, since=NOW - 9)) is None
    assert next_for(WANT, replace(unseen, since=NOW - 11)) == Resume(key=KEY)
    assert next_for(WANT, replace(unseen, since=NOW - 11, for_room=False)) is None
    assert next_for(replace(WANT, enabled=False), replace(unseen, since=NOW - 11)) is None


# --- external

OUTSIDE = replace(WANT, external=True)


def test_an_external_engine_is_only_looked_at():
    for state in ("starting", "ready", "unhealthy"):
        assert next_for(OUTSIDE, observed(state, external=True, checked_at=NOW - 10)) == CheckHealth(key=KEY)
        assert next_for(OUTSIDE, observed(state, external=True, checked_at=NOW - 9, since=NOW - 9999)) is None


def test_an_external_engine_that_is_not_wanted_is_removed():
    assert next_for(None, observed("ready", external=True)) == Remove(key=KEY)
    assert next_for(replace(OUTSIDE, enabled=False), observed("ready", external=True)) == Stop(key=KEY)


def test_an_external_engine_that_moved_begins_again():
    assert next_for(replace(OUTSIDE, fingerprint="other"), observed("ready", external=True)) == Start(key=KEY)


def test_an_engine_of_ours_that_becomes_external_is_drained_first():
    assert next_for(OUTSIDE, observed("ready")) == Drain(key=KEY, next_state=ReplicaState.STOPPED)


# --- always


def test_backing_off_doubles_up_to_a_minute():
    assert [plan.backoff(crashes) for crashes in (1, 2, 3, 6, 7, 8, 1000)] == [1, 2, 4, 32, 60, 60, 60]


times = st.floats(NOW - 4000, NOW + 100)
wants = st.none() | st.builds(
    Wanted,
    fingerprint=st.sampled_from(["f", "g"]),
    external=st.booleans(),
    enabled=st.booleans(),
    idle_after=st.none() | st.floats(1, 100),
    wake_requested=st.booleans(),
)
replicas = st.builds(
    Observed,
    key=st.just(KEY),
    state=st.sampled_from(ReplicaState),
    fingerprint=st.sampled_from(["f", "g"]),
    since=times,
    external=st.booleans(),
    ended=st.booleans(),
    published_at=st.none() | times,
    checked_at=times,
    reported_at=times,
    failed_checks=st.integers(0, 5),
    refusals=st.integers(0, 20),
    running=st.none() | st.integers(0, 5),
    active_at=times,
    retry_at=times,
    for_room=st.booleans(),
    without_room=st.booleans(),
)
RUNNING = {ReplicaState.STARTING, ReplicaState.READY, ReplicaState.UNHEALTHY, ReplicaState.DRAINING}


@given(wants, replicas)
def test_whatever_is_seen_no_running_engine_is_started_twice_or_forgotten(want, replica):
    action = next_for(want, replica)
    if replica.state in RUNNING and not replica.external:
        assert not isinstance(action, Start | Remove)


@given(wants, replicas)
def test_whatever_is_seen_nothing_runs_that_is_not_wanted(want, replica):
    """Long enough after, each replica that is not wanted has an action that brings it nearer to its removal."""
    later = replace(replica, since=NOW - 5000)
    if want is None:
        assert isinstance(next_for(None, later), Drain | Stop | Remove | Fail)


# --- crash loops


def test_starts_that_never_answer_end_in_failed_soon():
    states = [plan.after_crash(number, number) for number in range(1, 6)]
    assert states[:4] == [
        (ReplicaState.BACKOFF, 1),
        (ReplicaState.BACKOFF, 2),
        (ReplicaState.BACKOFF, 4),
        (ReplicaState.BACKOFF, 8),
    ]
    assert states[4] == (ReplicaState.FAILED, plan.FAILED_PAUSE)


def test_an_engine_that_answers_before_it_dies_gets_more_patience():
    states = [plan.after_crash(number, 0)[0] for number in range(1, 11)]
    assert states == [ReplicaState.BACKOFF] * 9 + [ReplicaState.FAILED]


def test_a_failed_one_waits_for_its_time_or_an_operator():
    assert next_for(WANT, observed("failed", retry_at=NOW + 1)) is None
    assert next_for(WANT, observed("failed", retry_at=NOW)) == Start(key=KEY)
    assert next_for(replace(WANT, fingerprint="other"), observed("failed", retry_at=NOW + 1)) == Start(key=KEY)


# --- where it listens


@pytest.mark.parametrize("state", ["ready", "unhealthy"])
def test_e9_an_engine_at_another_address_than_its_hosts_is_drained(state):
    want = replace(WANT, address="10.0.0.2")
    assert next_for(want, observed(state, address="10.0.0.1")) == Drain(key=KEY, next_state=ReplicaState.STOPPED)
    assert next_for(want, observed(state, address="10.0.0.2")) is None


def test_e9_a_start_at_an_address_that_was_changed_meanwhile_is_broken_off():
    want = replace(WANT, address="10.0.0.2")
    assert next_for(want, observed("starting", address="10.0.0.1")) == Stop(key=KEY)


@pytest.mark.parametrize("state", ["backoff", "failed"])
def test_e9_what_failed_at_an_address_is_tried_at_once_at_another_one(state):
    want = replace(WANT, address="10.0.0.2")
    assert next_for(want, observed(state, address="10.0.0.1")) == Start(key=KEY)
    assert next_for(want, observed(state, address="10.0.0.2")) is None
    assert next_for(want, observed(state)) is None  # where it was tried is not known


def test_e9_an_engine_stays_where_it_is_while_no_address_will_do():
    assert next_for(WANT, observed("ready", address="10.0.0.1")) is None


# --- sleeping with the engine alive

DRAINED = {"since": NOW - 10, "published_at": NOW - 9, "checked_at": NOW, "running": 0}


def test_an_engine_that_can_sleep_does_so_when_it_has_nothing_to_do():
    assert next_for(WANT, observed("draining", **DRAINED, may_sleep=True)) == Sleep(key=KEY)
    assert next_for(WANT, observed("draining", **DRAINED)) == Stop(key=KEY)
    busy = DRAINED | {"running": 1}
    assert next_for(WANT, observed("draining", **busy, may_sleep=True)) is None


def test_an_engine_that_died_or_does_not_answer_is_stopped_and_not_put_to_sleep():
    assert next_for(WANT, observed("draining", **DRAINED, may_sleep=True, ended=True)) == Stop(key=KEY)
    silent = observed("draining", **DRAINED, may_sleep=True, failed_checks=plan.DRAIN_FAILED_CHECKS)
    assert next_for(WANT, silent) == Stop(key=KEY)


SLEEPY = replace(WANT, idle_after=60.0)
CALLED = replace(SLEEPY, wake_requested=True)


@pytest.mark.parametrize("state", ["asleep", "failed"])
def test_a_sleeping_engine_is_woken_when_it_is_called_or_is_not_to_sleep(state):
    asleep = observed(state, sleeping=True, retry_at=NOW - 1)
    assert next_for(SLEEPY, asleep) is None
    assert next_for(CALLED, asleep) == Wake(key=KEY)
    assert next_for(WANT, asleep) == Wake(key=KEY)
    assert next_for(CALLED, replace(asleep, retry_at=NOW + 1)) is None
    assert next_for(CALLED, replace(asleep, without_room=True)) is None


@pytest.mark.parametrize("want", [None, replace(CALLED, enabled=False), replace(CALLED, fingerprint="other")])
def test_a_sleeping_engine_that_is_not_wanted_as_it_is_is_stopped(want):
    assert next_for(want, observed("asleep", sleeping=True, retry_at=0.0)) == Stop(key=KEY)


def test_an_engine_that_died_asleep_is_cleaned_up_and_counts_as_no_crash():
    assert next_for(SLEEPY, observed("asleep", sleeping=True, ended=True)) == Stop(key=KEY)
    assert next_for(CALLED, observed("asleep", sleeping=True, ended=True)) == Stop(key=KEY)


def test_a_sleeping_engine_is_neither_asked_nor_checked():
    assert next_for(SLEEPY, observed("asleep", sleeping=True, checked_at=0.0, retry_at=0.0)) is None


# --- silent hosts


@given(
    st.none() | st.sampled_from([WANT, replace(WANT, enabled=False), replace(WANT, fingerprint="other")]),
    st.sampled_from(list(ReplicaState)),
    st.booleans(),
    st.booleans(),
    st.sampled_from([NOW, NOW - 10_000]),
    st.integers(0, 100),
)
def test_nothing_is_started_or_stopped_on_a_silent_host(want, state, ended, sleeping, since, failed):
    seen = observed(
        state, unreachable=True, ended=ended, sleeping=sleeping, since=since, failed_checks=failed, retry_at=0
    )
    action = next_for(want, seen)
    assert action is None or isinstance(action, AskQuestion | CheckHealth | Drain)
    if isinstance(action, Drain):
        assert want is None or want != WANT


def test_an_engine_on_a_silent_host_is_asked_itself():
    assert next_for(WANT, observed("ready", unreachable=True, checked_at=0)) == CheckHealth(key=KEY)
    assert next_for(WANT, observed("unhealthy", unreachable=True, checked_at=0, since=0)) == AskQuestion(key=KEY)
    assert next_for(WANT, observed("starting", unreachable=True, checked_at=0, since=0)) == AskQuestion(key=KEY)
