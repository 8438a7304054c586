"""What is done next for the ranks of a replica that is split over hosts, and what a start of them waits for."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field, replace

import pytest

from modelregistry.engines.base import Spec
from modelregistry.failure_advice import GANG_WAITS, NO_ROOM, SILENT_HOST
from modelregistry.hostside.replicas import ReplicaKey
from modelregistry.hostside.run_metadata import RunMetadata
from modelregistry.hostside.surface import HostedRun, HostSilent
from modelregistry.memory.allocation import Occupant
from modelregistry.process.probe import HealthCheck
from modelregistry.process.process import Life
from modelregistry.supervisor import gangs as ranks
from modelregistry.supervisor import plan
from modelregistry.supervisor.eviction import Standing
from modelregistry.supervisor.gangs import GangIncomplete, Gangs, Likeness, OthersFirst
from modelregistry.supervisor.launching import CannotLaunch, DoesNotFit
from modelregistry.supervisor.managed_replica import ManagedReplica
from modelregistry.supervisor.plan import (
    AskQuestion,
    CheckHealth,
    Drain,
    Fail,
    Lead,
    Observed,
    Remove,
    ReplicaState,
    Start,
    Stop,
    Wanted,
)
from modelregistry.supervisor.repository import DesiredModel, ReplicaFacts
from tests.clock import Clock

SECOND = ReplicaKey(1, 1)
WANT = Wanted(fingerprint="f", rank=1)
NOW = 10_000.0


def observed(state="joined", lead=Lead.SERVES, **more):
    values = {"since": NOW - 1, "checked_at": NOW, "engine": True, "rank": 1, "lead": lead}
    return Observed(key=SECOND, state=ReplicaState(state), fingerprint="f", **(values | more))


def next_for(want, seen):
    key = seen.key if seen else SECOND
    actions = plan.plan_actions({key: want} if want else {}, [seen] if seen else [], NOW, start_limit=1800)
    return actions[0] if actions else None


# --- Ranks other than 0


def test_it_starts_when_rank_0_calls_it_up():
    assert next_for(WANT, None) is None
    assert next_for(replace(WANT, called_up=True), None) == Start(key=SECOND)
    without = observed("backoff", engine=False)
    assert next_for(WANT, without) is None
    assert next_for(replace(WANT, called_up=True), without) == Start(key=SECOND)


def test_it_is_asked_nothing():
    for state in ("starting", "joined", "unhealthy", "draining"):
        assert next_for(WANT, observed(state, since=NOW - 9999, checked_at=0)) is None


@pytest.mark.parametrize("want", [None, replace(WANT, enabled=False), replace(WANT, fingerprint="other")])
def test_it_stays_until_rank_0_has_stopped(want):
    assert next_for(want, observed(lead=Lead.SERVES)) is None
    assert next_for(want, observed(lead=Lead.LEAVES)) is None
    assert next_for(want, observed(lead=Lead.GONE)) == Stop(key=SECOND)


@pytest.mark.parametrize("lead", [Lead.GONE, Lead.FAILED])
def test_it_stops_with_rank_0(lead):
    assert next_for(WANT, observed(lead=lead)) == Stop(key=SECOND)


def test_of_an_unknown_rank_0_nothing_is_concluded():
    assert next_for(WANT, observed(lead=Lead.UNKNOWN)) is None
    assert next_for(None, observed(lead=Lead.UNKNOWN)) == Stop(key=SECOND)


@pytest.mark.parametrize("lead", [Lead.SERVES, Lead.FAILED, Lead.UNKNOWN])
def test_its_own_end_is_a_failure(lead):
    assert next_for(WANT, observed(ended=True, lead=lead)) == Fail(key=SECOND, reason="")


@pytest.mark.parametrize("lead", [Lead.LEAVES, Lead.GONE])
def test_its_end_beside_one_that_stops_is_none(lead):
    assert next_for(WANT, observed(ended=True, lead=lead)) == Stop(key=SECOND)


def test_without_an_engine_it_goes_when_it_is_not_wanted():
    assert next_for(None, observed("stopped", engine=False)) == Remove(key=SECOND)
    assert next_for(replace(WANT, enabled=False), observed("failed", engine=False)) == Stop(key=SECOND)
    assert next_for(replace(WANT, enabled=False), observed("stopped", engine=False)) is None


def test_on_a_silent_host_nothing_is_done():
    assert next_for(None, observed(lead=Lead.GONE, unreachable=True)) is None


@pytest.mark.parametrize("state", ["failed", "backoff", "asleep", "stopped"])
def test_a_rank_that_is_to_be_a_replica_of_its_own_starts_as_one(state):
    alone = observed(state, lead=Lead.GONE, engine=False, without_room=state == "asleep")
    assert next_for(replace(WANT, rank=0, fingerprint="other"), alone) == Start(key=SECOND)


def test_a_replica_that_is_to_be_a_rank_waits_until_it_is_called_up():
    alone = observed("stopped", engine=False, rank=0)
    assert next_for(WANT, alone) is None
    assert next_for(replace(WANT, called_up=True), alone) == Start(key=SECOND)


# --- Rank 0


def first(state, **more):
    return replace(observed(state, **more), key=ReplicaKey(1, 0), rank=0)


@pytest.mark.parametrize("state", ["starting", "ready", "unhealthy"])
def test_without_one_of_the_others_rank_0_has_failed(state):
    action = next_for(replace(WANT, rank=0), first(state, broken="rank 1 of 2 on gpu-2 has ended"))
    assert action == Fail(key=ReplicaKey(1, 0), reason="rank 1 of 2 on gpu-2 has ended", cause="gang-broken")


def test_a_drain_without_the_others_is_over():
    assert next_for(replace(WANT, rank=0), first("draining", broken="x")) == Stop(key=ReplicaKey(1, 0))


def test_without_one_of_the_others_rank_0_is_not_drained_if_it_does_not_answer():
    elsewhere = replace(WANT, rank=0, enabled=False)
    assert next_for(elsewhere, first("unhealthy", doubtful=True)) == Stop(key=ReplicaKey(1, 0))
    for drained in (first("unhealthy"), first("ready", doubtful=True)):
        assert next_for(elsewhere, drained) == Drain(key=ReplicaKey(1, 0), next_state=ReplicaState.STOPPED)


def test_while_a_host_is_silent_rank_0_is_looked_at_each_second():
    ready = first("ready", checked_at=NOW - 1, reported_at=NOW, active_at=NOW)
    assert next_for(replace(WANT, rank=0), ready) is None
    assert next_for(replace(WANT, rank=0), replace(ready, doubtful=True)) == CheckHealth(key=ReplicaKey(1, 0))


def test_rank_0_is_drained_as_any_replica():
    drained = next_for(replace(WANT, rank=0, enabled=False), first("ready"))
    assert drained == Drain(key=ReplicaKey(1, 0), next_state=ReplicaState.STOPPED)


# --- What the supervisors of its hosts know of one another

HOSTS = ("gpu-1", "gpu-2")
SPEC = Spec(engine="vllm", name="m", path="/m", tensor_parallel=2, nodes=2, hosts=HOSTS)
ALIKE = Likeness(launcher="vllm", version="0.32.0", on_cards=True, context=1, batch=1, parallel=1)


@dataclass
class PaperHost:
    """The supervisor of one host."""

    supervises: bool = True
    silence: float = 0.0
    maintenance: bool = False
    address: str = "10.0.0.1"
    replicas: dict[ReplicaKey, ManagedReplica] = field(default_factory=dict)
    lives: dict[str, Life] = field(default_factory=dict)
    rows: dict[ReplicaKey, ReplicaFacts] | None = None
    looks: int = 0
    leaving: list[ReplicaKey] = field(default_factory=list)

    def give_place(self, key):
        self.leaving.append(key)

    def silent_for(self) -> float:
        return self.silence

    def life_of(self, replica):
        return self.lives.get(replica.run_id, Life.RUNNING)

    def look_again(self):
        self.looks += 1


def rank_of(number, state, gang="a"):
    """Return a rank of the start whose rank 0 has the run `gang`."""
    desired = DesiredModel(
        **{"spec": replace(SPEC, rank=number), "enabled": True, "numbers": frozenset({number})},
        **{"idle_after": None, "hours": None, "url": "", "upstream_key": "", "upstream_model": ""},
    )
    run_id = gang if number == 0 else f"{gang}-{number}"
    run = HostedRun(run_id=run_id, label=metadata(gang=gang), pid=1, of_this_boot=True, life=Life.RUNNING)
    return ManagedReplica(
        **{"key": ReplicaKey(1, number), "desired": desired, "fingerprint": "", "state": ReplicaState(state)},
        **{"since": 0.0, "run": run, "run_id": run_id, "rank": number, "hosts": HOSTS, "gang": gang},
    )


@pytest.fixture
def known():
    """Provide two hosts on which a gang serves, and which have been heard for a while."""
    lead, follower = PaperHost(), PaperHost()
    lead.replicas[ReplicaKey(1, 0)] = rank_of(0, "ready")
    follower.replicas[ReplicaKey(1, 1)] = rank_of(1, "joined")
    gangs = Gangs(dict(zip(HOSTS, (lead, follower), strict=True)), Clock())
    gangs.look()
    gangs.clock.now += 5 * ranks.LOST_AFTER
    return gangs


def lead_of(known):
    return known.hosts["gpu-1"].replicas[ReplicaKey(1, 0)]


def follower_of(known):
    return known.hosts["gpu-2"].replicas[ReplicaKey(1, 1)]


def test_a_gang_of_which_all_ranks_run_is_whole(known):
    assert known.find_break(lead_of(known)) == ""
    assert known.find_lead(follower_of(known)) is Lead.SERVES


@pytest.mark.parametrize("life", [Life.ENDING, Life.ENDED, Life.LOST])
def test_a_rank_that_ended_breaks_it(known, life):
    known.hosts["gpu-2"].lives["a-1"] = life
    assert "rank 1 of 2 on gpu-2" in known.find_break(lead_of(known))


def test_a_rank_of_another_start_is_none_of_it(known):
    known.hosts["gpu-2"].replicas[ReplicaKey(1, 1)] = rank_of(1, "joined", gang="earlier")
    assert known.find_break(lead_of(known))
    assert known.find_lead(follower_of(known)) is Lead.GONE


@pytest.mark.parametrize("state", ["starting", "ready"])
def test_a_host_that_was_not_looked_at_yet_breaks_nothing(known, state):
    known.hosts["gpu-2"].supervises = False
    known.hosts["gpu-2"].replicas.clear()
    lead_of(known).state = ReplicaState(state)
    assert known.find_break(lead_of(known)) == ""
    known.hosts["gpu-1"].supervises = False
    assert known.find_lead(rank_of(1, "joined")) is Lead.UNKNOWN


def test_a_silent_host_breaks_it_when_rank_0_does_not_answer_either(known):
    known.hosts["gpu-2"].silence = ranks.LOST_AFTER
    assert known.has_silent_rank(lead_of(known))
    assert known.find_break(lead_of(known)) == ""
    lead_of(known).state = ReplicaState.UNHEALTHY
    assert known.find_break(lead_of(known))
    known.hosts["gpu-2"].silence = ranks.LOST_AFTER - 1
    assert known.find_break(lead_of(known)) == ""


def test_rank_0_on_a_silent_host_is_gone_when_it_does_not_answer_either(known):
    known.hosts["gpu-1"].silence = ranks.LOST_AFTER
    assert known.find_lead(follower_of(known)) is Lead.UNKNOWN
    lead_of(known).state = ReplicaState.UNHEALTHY
    assert known.find_lead(follower_of(known)) is Lead.GONE


@pytest.mark.parametrize("state", ["starting", "unhealthy"])
def test_after_an_outage_of_all_hosts_the_last_one_to_answer_breaks_nothing(known, state):
    lead_of(known).state = ReplicaState(state)
    for host in known.hosts.values():
        host.silence = 100.0
    known.look()
    known.hosts["gpu-1"].silence = 0.0
    known.look()
    known.clock.now += ranks.LOST_AFTER - 1
    assert known.find_break(lead_of(known)) == ""
    known.hosts["gpu-1"].silence, known.hosts["gpu-2"].silence = 100.0, 0.0
    known.look()
    known.clock.now += ranks.LOST_AFTER - 1
    known.look()
    assert known.find_lead(follower_of(known)) is Lead.UNKNOWN
    known.clock.now += ranks.LOAD_LOST_AFTER
    assert known.find_lead(follower_of(known)) is Lead.GONE


def test_a_load_outlives_a_silence_of_some_seconds(known):
    lead_of(known).state = ReplicaState.STARTING
    known.hosts["gpu-2"].silence = ranks.LOST_AFTER
    assert known.find_break(lead_of(known)) == ""
    known.clock.now += ranks.LOAD_LOST_AFTER
    known.hosts["gpu-2"].silence += ranks.LOAD_LOST_AFTER
    assert known.find_break(lead_of(known))
    known.hosts["gpu-2"].silence, known.hosts["gpu-2"].lives = 1.0, {"a-1": Life.ENDED}
    assert "has ended" in known.find_break(lead_of(known))


def test_a_drain_is_not_cut_short_while_rank_0_reports_health(known):
    lead_of(known).state = ReplicaState.DRAINING
    for host in known.hosts.values():
        host.silence = ranks.LOST_AFTER
    assert known.find_break(lead_of(known)) == ""
    assert known.find_lead(follower_of(known)) is Lead.UNKNOWN
    lead_of(known).failed_checks = plan.FAILED_CHECKS_LIMIT
    assert known.find_break(lead_of(known))
    assert known.find_lead(follower_of(known)) is Lead.GONE


# --- In a new term, while a host is down


def down(gangs, name, *, supervised):
    """Have nothing be known of what runs on a host, which is supervised or was the machine of a former controller."""
    gangs.hosts[name].supervises = False
    if not supervised:
        del gangs.hosts[name]


@pytest.mark.parametrize("supervised", [True, False])
@pytest.mark.parametrize(("state", "over"), [("ready", False), ("unhealthy", True), ("starting", False)])
def test_rank_0_has_to_prove_itself_while_a_host_was_not_found_yet(known, supervised, state, over):
    down(known, "gpu-2", supervised=supervised)
    gangs = Gangs(known.hosts, known.clock)
    gangs.look()
    lead_of(gangs).state = ReplicaState(state)
    assert gangs.has_silent_rank(lead_of(gangs))
    gangs.clock.now += ranks.LOST_AFTER - 1
    gangs.look()
    assert gangs.find_break(lead_of(gangs)) == ""
    gangs.clock.now += 1
    assert (gangs.find_break(lead_of(gangs)) != "") is over


def row_of(state, gang="a"):
    return {ReplicaKey(1, 0): ReplicaFacts(state=ReplicaState(state), run_id=gang)}


@pytest.mark.parametrize("supervised", [True, False])
@pytest.mark.parametrize(
    ("rows", "lead"),
    [
        *((None, Lead.UNKNOWN), (row_of("ready"), Lead.UNKNOWN), (row_of("starting"), Lead.UNKNOWN)),
        *((row_of("unhealthy"), Lead.GONE), (row_of("ready", gang="later"), Lead.GONE), ({}, Lead.GONE)),
    ],
)
def test_rank_0_on_a_host_that_is_down_is_gone_unless_it_answers(known, supervised, rows, lead):
    follower = follower_of(known)
    known.hosts["gpu-1"].rows = rows
    down(known, "gpu-1", supervised=supervised)
    gangs = Gangs(known.hosts, known.clock)
    if rows is not None and not supervised:
        gangs.note_forsaken(rows)
    gangs.look()
    assert gangs.find_lead(follower) is Lead.UNKNOWN
    gangs.clock.now += ranks.LOST_AFTER
    gangs.look()
    assert gangs.find_lead(follower) is lead


def test_a_supervisor_that_is_started_again_is_waited_for(known):
    known.look()
    follower = follower_of(known)
    known.hosts["gpu-1"].supervises, known.hosts["gpu-1"].rows = False, row_of("unhealthy")
    known.clock.now += ranks.LOST_AFTER - 1
    known.look()
    assert known.find_lead(follower) is Lead.UNKNOWN
    known.clock.now += 1
    assert known.find_lead(follower) is Lead.GONE


# --- What rank 0 has to answer meanwhile


def unanswered(lead, *, refused=False, alone=False, worked=False):
    lead.record_unanswered(NOW, "no answer", refused=refused, alone=alone, worked=worked)
    return lead.state


def test_one_that_is_busy_with_calls_from_before_its_adoption_is_asked_again_unless_a_host_is_silent():
    lead = rank_of(0, "ready")
    lead.unproven, lead.running = True, 3
    assert [unanswered(lead, alone=True) for _ in range(9)] == ["ready"] * 9
    assert unanswered(lead) == "unhealthy"


def test_tokens_that_were_made_meanwhile_prove_that_all_ranks_are_there():
    lead = rank_of(0, "ready")
    lead.running = 3
    assert [unanswered(lead, worked=True) for _ in range(9)] == ["ready"] * 9
    assert unanswered(lead, worked=True, refused=True) == "unhealthy"


def test_one_unanswered_question_takes_it_off_the_catalogue_and_another_one_ends_it(known):
    lead = lead_of(known)
    known.hosts["gpu-2"].silence = ranks.LOST_AFTER
    assert [(unanswered(lead), known.find_break(lead) != "") for _ in range(plan.RANK_CHECKS_LIMIT)] == [
        ("unhealthy", False),
        ("unhealthy", True),
    ]
    lead.enter(ReplicaState.READY, NOW)
    lead.failed_checks = 0
    assert known.find_break(lead) == ""


def test_one_that_is_off_the_catalogue_is_asked_each_second_while_a_host_is_silent():
    unhealthy = first("unhealthy", since=NOW, checked_at=NOW - 1)
    assert next_for(replace(WANT, rank=0), unhealthy) is None
    assert next_for(replace(WANT, rank=0), replace(unhealthy, doubtful=True)) == AskQuestion(key=ReplicaKey(1, 0))


@pytest.mark.parametrize(
    ("before", "work", "worked"), [(None, 5, False), (5, 5, False), (5, 6, True), (5, None, False)]
)
def test_work_is_what_was_done_since_the_last_check(before, work, worked):
    lead = rank_of(0, "ready")
    lead.work_done = before
    assert lead.has_worked(HealthCheck(healthy=True, work=work)) is worked


@pytest.mark.parametrize(
    ("state", "lead"),
    [
        *(("starting", Lead.SERVES), ("unhealthy", Lead.SERVES), ("draining", Lead.LEAVES)),
        *(("stopped", Lead.LEAVES), ("backoff", Lead.FAILED), ("failed", Lead.FAILED)),
    ],
)
def test_what_rank_0_does_is_known_by_its_state(known, state, lead):
    lead_of(known).state = ReplicaState(state)
    assert known.find_lead(follower_of(known)) is lead


def test_a_rank_shows_the_state_of_rank_0(known):
    follower = follower_of(known)
    for state, shown in (("unhealthy", "unhealthy"), ("ready", "joined"), ("draining", "draining")):
        lead_of(known).state = ReplicaState(state)
        follower.follow(lead_of(known), 5.0)
        assert follower.state == shown


def test_a_rank_that_failed_keeps_its_own_reason(known):
    follower = follower_of(known)
    follower.clear_run()
    follower.record_crash(5.0, "CUDA out of memory", "gpu-memory")
    follower.follow(lead_of(known), 6.0)
    assert (follower.state, follower.cause) == ("backoff", "gpu-memory")


@pytest.mark.parametrize("state", ["backoff", "failed"])
def test_a_rank_without_an_engine_says_that_it_waits_for_rank_0(known, state):
    follower = follower_of(known)
    follower.clear_run()
    follower.state, lead_of(known).state = ReplicaState.STOPPED, ReplicaState(state)
    lead_of(known).retry_at = 77.0
    follower.follow(lead_of(known), 5.0)
    assert (follower.state, follower.cause, follower.retry_at) == (state, GANG_WAITS, 77.0)
    assert "gpu-1" in follower.detail
    lead_of(known).state = ReplicaState.ASLEEP
    follower.follow(lead_of(known), 6.0)
    assert (follower.state, follower.cause, follower.detail) == ("asleep", "", "")


def test_a_rank_whose_start_was_given_up_points_to_rank_0_and_keeps_the_reason(known):
    follower = follower_of(known)
    follower.wait_for_ranks(NOW + 10, NOW, "rank 2 of 3: its host is silent", "gang-incomplete")
    lead_of(known).state = ReplicaState.FAILED
    follower.follow(lead_of(known), 6.0)
    assert (follower.state, follower.cause) == ("failed", GANG_WAITS)
    assert follower.detail == "rank 2 of 3: its host is silent"


def test_a_rank_that_ended_for_an_unknown_reason_keeps_the_lines_of_its_log(known):
    follower = follower_of(known)
    follower.clear_run()
    follower.record_crash(5.0, "Oh no")
    lead_of(known).state = ReplicaState.FAILED
    follower.follow(lead_of(known), 6.0)
    assert (follower.state, follower.detail, follower.cause) == ("failed", "Oh no", "")


@pytest.mark.parametrize(
    ("state", "engine", "shown", "later"),
    [
        *(("starting", True, "unhealthy", "starting"), ("unhealthy", True, "unhealthy", "unhealthy")),
        *(("backoff", False, "backoff", "backoff"), ("failed", False, "failed", "failed")),
    ],
)
def test_a_rank_on_a_silent_host_shows_that_until_the_host_answers(known, state, engine, shown, later):
    follower, lead = follower_of(known), lead_of(known)
    lead.state = ReplicaState(state)
    if not engine:
        follower.clear_run()
    follower.follow(lead, 5.0, silent=True)
    assert (follower.state, follower.cause) == (shown, SILENT_HOST)
    follower.follow(lead, 6.0)
    assert (follower.state, follower.cause) == (later, "" if engine else GANG_WAITS)


def test_a_rank_of_a_gang_that_serves_stays_part_of_it_while_its_host_is_silent(known):
    follower_of(known).follow(lead_of(known), 5.0, silent=True)
    assert (follower_of(known).state, follower_of(known).cause) == ("joined", "")


# --- Leaving for other models


def test_all_of_it_leaves_for_a_model_on_any_of_its_hosts(known):
    known.give_place(follower_of(known))
    assert known.hosts["gpu-1"].leaving == [ReplicaKey(1, 0)]
    assert known.hosts["gpu-2"].leaving == []


@pytest.mark.parametrize("host", HOSTS)
def test_it_leaves_for_no_other_while_a_host_of_it_is_silent(known, host):
    known.look()
    assert known.may_leave(lead_of(known))
    known.hosts[host].silence = 1.0
    assert not known.may_leave(lead_of(known))
    assert not known.may_leave(follower_of(known))


def test_a_rank_gives_its_memory_back_soon_when_its_rank_0_has_fallen_asleep(known):
    lead = lead_of(known)
    assert not known.is_leaving(follower_of(known))
    lead.leave_for((), NOW)
    assert not known.is_leaving(follower_of(known))  # it is judged by its rank 0, which leaves
    assert lead.standing is Standing.LEAVING
    lead.clear_run()
    lead.enter(ReplicaState.ASLEEP, NOW)
    assert known.is_leaving(follower_of(known))
    lead.enter(ReplicaState.STARTING, NOW)
    assert not known.is_leaving(follower_of(known))


def test_others_judge_a_rank_by_what_its_rank_0_does(known):
    lead = lead_of(known)
    lead.running, lead.loaded_at, lead.active_at, lead.load_seconds = 2, 3.0, 4.0, 90.0
    share = follower_of(known).share(Occupant(name="m", needed=0, held={}), kept=False, now=NOW, lead=lead)
    assert (share.key, share.standing) == (SECOND, Standing.READY)
    assert (share.busy, share.ready_at, share.active_at, share.reload_seconds) == (True, 3.0, 4.0, 90.0)


@pytest.mark.parametrize("called", [False, True])
async def test_a_start_that_others_come_before_is_tried_again_later_and_sleeps_if_it_is_not_called(known, called):
    with known.take_part(ReplicaKey(1, 0), SPEC) as muster:
        with suppress(OthersFirst), known.take_part(SECOND, replace(SPEC, rank=1)):
            raise OthersFirst("other", called=called)
        with pytest.raises(GangIncomplete) as refused:
            await known.wait_for_all(muster, lambda: True)
    assert (refused.value.asleep, refused.value.lasting) == (not called, False)
    assert refused.value.pause == plan.ROOM_PAUSE
    lead = lead_of(known)
    lead.wait_for_ranks(NOW + 10, NOW, "", refused.value.cause, asleep=refused.value.asleep)
    assert lead.state == ("backoff" if called else "asleep")


# --- A start


async def test_rank_0_is_started_when_all_have_set_memory_apart(known):
    with known.take_part(ReplicaKey(1, 0), SPEC) as muster:
        waiting = asyncio.create_task(known.wait_for_all(muster, lambda: True))
        muster.hold(0, ALIKE)
        await asyncio.sleep(0)
        assert not waiting.done()
        assert known.is_called_up(SECOND, replace(SPEC, rank=1))
        with known.take_part(SECOND, replace(SPEC, rank=1)) as same:
            same.hold(1, ALIKE)
            await waiting
            lead = rank_of(0, "starting", gang="b")
            known.note_launch(lead, metadata(gang="b", master_address="10.0.0.1", master_port=18101))
            order = await known.wait_for_lead(same)
    assert (order.gang, order.address, order.port) == ("b", "10.0.0.1", 18101)
    assert not known.is_called_up(SECOND, replace(SPEC, rank=1))


def metadata(**more):
    usual = {"model": 1, "replica": 0, "name": "m", "task": "chat", "fingerprint": "", "launcher": "vllm"}
    return RunMetadata(**{**usual, "slots": None, "port": 1, "url": "", "api_key": "", **more})


@pytest.mark.parametrize(("can_come", "cause"), [(False, NO_ROOM), (True, "gang-incomplete")])
async def test_a_rank_that_cannot_start_calls_it_off_for_all(known, can_come, cause):
    rank = replace(SPEC, rank=1)
    with known.take_part(ReplicaKey(1, 0), SPEC) as muster:
        muster.hold(0, ALIKE)
        with pytest.raises(DoesNotFit), known.take_part(SECOND, rank):
            raise DoesNotFit("too large", None)
        known.report_no_room(SECOND, rank, "too large", can_come=can_come, coming=False)
        with pytest.raises(GangIncomplete, match="rank 1 of 2 on gpu-2: too large") as refused:
            await known.wait_for_all(muster, lambda: True)
        assert refused.value.cause == cause


async def test_rank_0_waits_for_a_rank_for_which_others_are_unloaded(known):
    rank = replace(SPEC, rank=1)
    with known.take_part(ReplicaKey(1, 0), SPEC) as muster:
        muster.hold(0, ALIKE)
        with pytest.raises(DoesNotFit), known.take_part(SECOND, rank):
            raise DoesNotFit("too large", None)
        known.report_no_room(SECOND, rank, "too large", can_come=True, coming=True)
        assert not known.is_called_up(SECOND, rank, without_room=True)
        assert known.is_called_up(SECOND, rank)
        known.clock.now += ranks.HOLD_WITHIN - 1
        waiting = asyncio.create_task(known.wait_for_all(muster, lambda: True))
        with known.take_part(SECOND, rank) as same:
            same.hold(1, ALIKE)
            await waiting


async def test_others_are_unloaded_for_a_rank_only_while_a_start_waits_for_its_room(known):
    first, second = (replace(SPEC, rank=rank) for rank in range(2))
    assert known.awaits_room(lead_of(known))
    assert not known.awaits_room(follower_of(known))
    with suppress(ValueError), known.take_part(ReplicaKey(1, 0), first):
        assert not known.awaits_room(follower_of(known))
        known.report_no_room(SECOND, second, "too large", can_come=True, coming=True)
        assert known.awaits_room(follower_of(known))
        raise ValueError("disk")
    assert not known.awaits_room(follower_of(known))


def test_starts_that_failed_together_are_not_tried_again_together(known):
    tries = {known.choose_next_try(30.0) for _ in range(9)}
    assert len(tries) == 9
    assert all(30 <= at - known.clock() <= 45 for at in tries)


async def test_a_start_does_not_wait_for_ever(known):
    with known.take_part(ReplicaKey(1, 0), SPEC) as muster:
        muster.hold(0, ALIKE)
        known.clock.now += ranks.GATHER_WITHIN
        with pytest.raises(GangIncomplete, match="rank 1 of 2 on gpu-2"):
            await known.wait_for_all(muster, lambda: True)


@pytest.mark.parametrize("change", [{"silence": 1.0}, {"supervises": False}, {"maintenance": True}, {"address": ""}])
async def test_a_host_that_cannot_start_anything_calls_it_off(known, change):
    for name, value in change.items():
        setattr(known.hosts["gpu-2"], name, value)
    with known.take_part(ReplicaKey(1, 0), SPEC) as muster, pytest.raises(GangIncomplete):
        await known.wait_for_all(muster, lambda: True)


@pytest.mark.parametrize("known_before", [True, False])
async def test_calls_wait_for_a_silent_host_only_until_what_can_has_another_place(known, known_before):
    """`known_before`: this controller has heard it, and not only the one before."""
    start = known.clock()
    if not known_before:
        known.hosts["gpu-2"].supervises = False
        known.look()
        known.heard_since["gpu-1"], known.supervised_at = start, {"gpu-1": start}
    for silence, lasting in ((ranks.REFUSED_AFTER - 1, False), (ranks.REFUSED_AFTER, True)):
        known.clock.now, known.hosts["gpu-2"].silence = start + silence, silence
        with known.take_part(ReplicaKey(1, 0), SPEC) as muster, pytest.raises(GangIncomplete) as refused:
            await known.wait_for_all(muster, lambda: True)
        assert refused.value.lasting is lasting
        assert refused.value.pause == (ranks.TRY_AGAIN if lasting else 1)


async def test_calls_wait_for_a_silent_host_after_an_outage_of_all(known):
    known.hosts["gpu-1"].silence = 1.0
    known.look()
    known.hosts["gpu-1"].silence, known.hosts["gpu-2"].silence = 0.0, 100.0
    known.look()
    known.clock.now += 1
    with known.take_part(ReplicaKey(1, 0), SPEC) as muster, pytest.raises(GangIncomplete) as refused:
        await known.wait_for_all(muster, lambda: True)
    assert not refused.value.lasting


async def test_what_is_not_wanted_any_more_is_called_off(known):
    with known.take_part(ReplicaKey(1, 0), SPEC) as muster, pytest.raises(GangIncomplete):
        await known.wait_for_all(muster, lambda: False)


@pytest.mark.parametrize("other", [{"version": "0.31.0"}, {"on_cards": False}, {"context": 2}])
async def test_ranks_that_differ_are_not_started(known, other):
    with known.take_part(ReplicaKey(1, 0), SPEC) as muster:
        muster.hold(0, ALIKE)
        with pytest.raises(GangIncomplete) as refused, known.take_part(SECOND, replace(SPEC, rank=1)) as same:
            same.hold(1, replace(ALIKE, **other))
        assert refused.value.cause == "gang-differs"
        assert refused.value.lasting


@pytest.mark.parametrize("versions", [("", "0.32.0"), ("0.32.0", ""), ("", "")])
async def test_a_version_that_is_not_known_keeps_no_rank_from_starting(known, versions):
    with known.take_part(ReplicaKey(1, 0), SPEC) as muster:
        for rank, version in enumerate(versions):
            muster.hold(rank, replace(ALIKE, version=version))
        assert muster.complete


@pytest.mark.parametrize(
    ("error", "lasting"),
    [(CannotLaunch("no vLLM", "no-engine"), True), (HostSilent(), False), (OSError("disk"), False)],
)
async def test_callers_wait_for_no_start_that_cannot_be(known, error, lasting):
    with known.take_part(ReplicaKey(1, 0), SPEC) as muster:
        with suppress(type(error)), known.take_part(SECOND, replace(SPEC, rank=1)):
            raise error
        with pytest.raises(GangIncomplete) as refused:
            await known.wait_for_all(muster, lambda: True)
    lead = lead_of(known)
    lead.wait_for_ranks(NOW + 10, NOW, "", refused.value.cause, lasting=refused.value.lasting)
    assert lead.state == ("failed" if lasting else "backoff")
    assert next_for(replace(WANT, rank=0), replace(lead.observe(lambda run: None), fingerprint="f")) is None
    due = replace(lead.observe(lambda run: None), fingerprint="f", retry_at=NOW)
    assert next_for(replace(WANT, rank=0), due) == Start(key=ReplicaKey(1, 0))


async def test_a_rank_waits_no_longer_for_a_rank_0_that_fails(known):
    with suppress(ValueError), known.take_part(ReplicaKey(1, 0), SPEC):
        with known.take_part(SECOND, replace(SPEC, rank=1)) as muster:
            waiting = asyncio.create_task(known.wait_for_lead(muster))
        raise ValueError("disk")
    with pytest.raises(GangIncomplete, match="disk"):
        await waiting


async def test_a_late_rank_takes_no_part(known):
    with pytest.raises(GangIncomplete), known.take_part(SECOND, replace(SPEC, rank=1)):
        pass
    with known.take_part(ReplicaKey(1, 0), SPEC):
        moved = replace(SPEC, rank=1, hosts=("gpu-1", "gpu-3"))
        assert not known.is_called_up(SECOND, moved)


async def test_ranks_that_are_being_launched_are_not_missed(known):
    follower = known.hosts["gpu-2"].replicas.pop(SECOND)
    lead = lead_of(known)
    with known.take_part(ReplicaKey(1, 0), SPEC):
        known.note_launch(lead, metadata(gang=lead.run_id, master_port=1))
    assert known.find_break(lead) == ""
    known.clock.now += ranks.LAUNCH_WITHIN
    assert known.find_break(lead)
    known.note_launch(follower, metadata(gang=lead.run_id))
    known.clock.now -= ranks.LAUNCH_WITHIN
    assert known.find_break(lead)  # it was launched, and is not there
