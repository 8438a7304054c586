"""Models that are split over hosts, under a real controller with real hosts: all ranks run, or none."""

import os
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import timedelta

import pytest
from django.db import transaction
from django.utils import timezone

from modelregistry import routes
from modelregistry.hostside.run_metadata import metadata_of
from modelregistry.models import EvictionRecord, Host, Replica, ReplicaPlacement, ServedModel, WakeRequest
from modelregistry.supervisor.gangs import LOST_AFTER
from tests.modelregistry.gang_site import GangSite, ask
from tests.modelregistry.repeating import repeating
from tests.waiting import until

ANSWER = "all ranks answer"


def silence_of(name: str) -> float:
    since = Host.objects.get(name=name).silent_since
    return (timezone.now() - since).total_seconds() if since else 0.0


def calling(model: ServedModel) -> AbstractContextManager[None]:
    """Renew the request for a model, as a gateway does while calls wait for it."""

    def renew() -> None:
        WakeRequest.objects.filter(model=model).update(at=timezone.now(), interactive_at=timezone.now())

    return repeating(renew)


@pytest.fixture
def site(transactional_db, tmp_path) -> Iterator[GangSite]:
    site = GangSite(tmp_path)
    yield site
    site.close()


@pytest.fixture
def larger_site(transactional_db, tmp_path) -> Iterator[GangSite]:
    site = GangSite(tmp_path, hosts=3)
    yield site
    site.close()


def test_its_ranks_run_on_different_hosts_and_rank_0_answers_for_all(site):
    site.start()
    site.gang()
    first, second = site.serves()
    assert {first.host.name, second.host.name} == {"gpu-1", "gpu-2"}
    assert ask(first) == ANSWER
    assert [route.replica_id for route in routes.ready_replicas()] == [first.pk]
    assert (second.url, second.api_key != "") == ("", True)
    starts = {one["rank"]: one for one in site.starts()}
    assert starts.keys() == {0, 1}
    assert starts[0]["port"] == starts[1]["port"] == metadata_of(site.run_of_rank(first)).master_port
    assert metadata_of(site.run_of_rank(second)).gang == first.run_id
    # Each has its part of the memory, on its own host's card.
    assert first.devices == second.devices == [0]
    assert first.predicted == second.predicted


@pytest.mark.parametrize("rank", [0, 1])
def test_when_one_rank_is_killed_all_are_started_again_as_one(site, rank):
    site.start()
    site.gang()
    before = site.serves()
    os.kill(site.run_of_rank(before[rank]).engine.pid, signal.SIGKILL)
    after = site.serves_again(before)
    assert ask(after[0]) == ANSWER
    assert site.living_ranks() == {"gpu-1": 1, "gpu-2": 1}
    assert {metadata_of(site.run_of_rank(row)).gang for row in after} == {after[0].run_id}
    assert [one["rank"] for one in site.starts()] in ([0, 1, 0, 1], [0, 1, 1, 0])
    assert len({one["port"] for one in site.starts()}) == 2


def test_a_rank_that_lost_its_shim_is_not_left_behind(site):
    site.start()
    site.gang()
    before = site.serves()
    os.kill(site.run_of_rank(before[1]).shim.pid, signal.SIGKILL)
    site.serves_again(before)
    assert site.living_ranks() == {"gpu-1": 1, "gpu-2": 1}


def test_none_is_started_before_all_hosts_have_room(site):
    site.machines["gpu-2"].occupy(60)
    site.start()
    site.gang()
    without = until(lambda: Replica.objects.filter(host__name="gpu-2", cause="does-not-fit").first())
    waiting = until(lambda: Replica.objects.filter(host__name="gpu-1", cause="does-not-fit").first())
    assert "rank 1 of 2 on gpu-2" in waiting.detail
    assert {without.pid, waiting.pid} == {None}
    assert site.starts() == []
    assert [served.no_room for served in routes.served_models()] == [True]
    site.machines["gpu-2"].occupy(0)
    first, _ = site.serves()
    assert ask(first) == ANSWER


def test_a_rank_that_fails_to_start_stops_the_others_and_says_why(site):
    site.start()
    model = site.gang()
    site.behave(crash=[1])
    failed = until(lambda: Replica.objects.filter(index=1, cause="gpu-memory").first())
    broken = until(lambda: Replica.objects.filter(index=0, cause="gang-broken").first())
    assert "CUDA out of memory" in failed.detail
    assert f"rank 1 of 2 on {failed.host.name}" in broken.detail
    site.behave()
    first, _ = site.serves()
    assert ask(first) == ANSWER
    assert Replica.objects.filter(model=model).count() == 2


def test_ranks_of_different_versions_are_not_started_and_say_so(site):
    site.machines["gpu-1"].install("0.32.0")
    site.machines["gpu-2"].install("0.31.0")
    site.start()
    site.gang()
    refused = until(lambda: Replica.objects.filter(index=0, state="failed", cause="gang-differs").first())
    assert "rank 1 of 2" in refused.detail
    assert ("vllm 0.32.0" in refused.detail, "vllm 0.31.0" in refused.detail) == (True, True)
    assert site.starts() == []
    site.machines["gpu-2"].install("0.32.0")
    rows = site.serves()
    assert ask(rows[0]) == ANSWER
    assert [row.version for row in rows] == ["0.32.0", "0.32.0"]


def test_ranks_that_do_not_reach_each_other_say_what_to_open(site):
    site.start()
    site.gang()
    site.behave(deaf=True, patience=2)
    # Of whichever rank gives up first: the other one is stopped then.
    until(lambda: Replica.objects.filter(cause="gang-unreachable").exists())
    until(lambda: {row["rank"] for row in site.starts()} == {0, 1})


def test_a_start_has_a_limit_for_all_ranks_together(site):
    for machine in site.machines.values():
        machine.start()
    site.supervise(ENGINE_START_TIMEOUT="3")
    site.gang()
    site.behave(deaf=True)
    until(lambda: Replica.objects.filter(index=0, restarts__gt=0, cause="too-slow").exists())
    site.behave()
    first, _ = site.serves()
    assert ask(first) == ANSWER


def test_the_next_controller_takes_it_over_as_a_whole(site):
    site.start()
    site.gang()
    before = site.serves()
    site.processes[0].kill()
    site.processes[0].wait()
    site.supervise()
    log = site.log
    until(lambda: log.read_text().count(": adopted, process") == 2)
    until(lambda: Replica.objects.get(pk=before[0].pk).live != before[0].live)
    assert [row.run_id for row in site.serves()] == [row.run_id for row in before]
    assert ask(before[0]) == ANSWER
    assert len(site.starts()) == 2


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_died_without_a_controller_takes_the_others_with_it(site, rank):
    site.start()
    site.gang()
    before = site.serves()
    site.processes[0].kill()
    site.processes[0].wait()
    os.kill(site.run_of_rank(before[rank]).engine.pid, signal.SIGKILL)
    site.supervise()
    site.serves_again(before)
    assert site.living_ranks() == {"gpu-1": 1, "gpu-2": 1}


def test_an_agent_that_is_away_ends_nothing(site):
    site.start()
    site.gang()
    before = site.serves()
    silent = site.machines[before[1].host.name]
    silent.fall_silent()
    until(lambda: Host.objects.filter(name=before[1].host.name, silent_since__isnull=False).exists())
    # Rank 0 proves by its answers that the other one is there.
    until(lambda: (Replica.objects.get(pk=before[0].pk).live or {}).get("tokens_per_second"))
    until(lambda: silence_of(before[1].host.name) > 2 * LOST_AFTER)
    assert [row.run_id for row in site.serves()] == [row.run_id for row in before]
    silent.answer_again()
    until(lambda: Host.objects.filter(name=before[1].host.name, silent_since=None).exists())
    assert [row.run_id for row in site.serves()] == [row.run_id for row in before]
    assert len(site.starts()) == 2


@pytest.mark.parametrize("rank", [0, 1])
def test_when_a_host_dies_all_of_it_is_started_on_others(larger_site, rank):
    site = larger_site
    site.start()
    site.gang()
    site.behave(wordless=True)
    before = site.serves()
    dead = before[rank].host.name
    site.machines[dead].die()
    until(lambda: not routes.ready_replicas(), seconds=20)
    after = site.serves_again(before)
    assert dead not in {row.host.name for row in after}
    assert ask(after[0]) == ANSWER
    site.machines[dead].answer_again()
    until(lambda: not Replica.objects.filter(host__name=dead).exists())
    assert site.living_ranks() == {**dict.fromkeys(site.machines, 1), dead: 0}


@pytest.mark.parametrize("rank", [0, 1])
def test_a_host_that_dies_between_two_controllers_does_not_keep_it_from_starting_on_others(larger_site, rank):
    site = larger_site
    site.start()
    site.gang()
    before = site.serves()
    site.processes[-1].kill()
    site.processes[-1].wait()
    dead = before[rank].host.name
    site.machines[dead].die()
    site.supervise()
    after = site.serves_again(before, down=dead)
    assert ask(after[0]) == ANSWER
    site.machines[dead].answer_again()
    until(lambda: not Replica.objects.filter(host__name=dead).exists())
    assert site.living_ranks() == {**dict.fromkeys(site.machines, 1), dead: 0}


def test_a_host_that_was_cut_off_takes_no_part_in_the_next_start(larger_site):
    site = larger_site
    site.start()
    site.gang()
    before = site.serves()
    cut_off = site.machines[before[1].host.name]
    engine = site.run_of_rank(before[1]).engine.pid
    cut_off.fall_silent()
    os.kill(engine, signal.SIGSTOP)  # to the others it is as if the network had gone
    after = site.serves_again(before)
    assert before[1].host.name not in {row.host.name for row in after}
    os.kill(engine, signal.SIGCONT)
    cut_off.answer_again()
    until(lambda: cut_off.living() == [])
    assert [row.run_id for row in site.serves()] == [row.run_id for row in after]
    assert ask(after[0]) == ANSWER


def loading_on() -> frozenset[int]:
    [served] = routes.served_models()
    return served.loading_on


def test_no_call_waits_for_it_while_a_host_of_it_is_cut_off_and_there_is_no_other(site):
    site.start()
    site.gang()
    before = site.serves()
    cut_off = site.machines[before[1].host.name]
    cut_off.die()
    until(lambda: not routes.ready_replicas() and not loading_on(), seconds=30)
    cut_off.answer_again()
    until(loading_on, seconds=30)
    assert ask(site.serves_again(before)[0]) == ANSWER


def test_in_maintenance_of_one_host_none_of_it_runs(site):
    site.start()
    site.gang()
    before = site.serves()
    site.maintain(before[1].host.name)
    until(lambda: set(Replica.objects.values_list("state", flat=True)) == {"stopped"})
    assert site.living_ranks() == {"gpu-1": 0, "gpu-2": 0}
    site.maintain(before[1].host.name, on=False)
    site.serves_again(before)


def test_maintenance_moves_it_where_there_are_other_hosts(larger_site):
    site = larger_site
    site.start()
    site.gang()
    before = site.serves()
    site.maintain(before[0].host.name)
    after = site.serves_again(before)
    assert before[0].host.name not in {row.host.name for row in after}
    until(lambda: not Replica.objects.filter(host=before[0].host).exists())


def test_one_that_is_stopped_leaves_nothing_and_starts_again(site):
    site.start()
    model = site.gang()
    before = site.serves()
    ServedModel.objects.filter(pk=model.pk).update(enabled=False)
    until(lambda: set(Replica.objects.values_list("state", flat=True)) == {"stopped"})
    assert [machine.living() for machine in site.machines.values()] == [[], []]
    ServedModel.objects.filter(pk=model.pk).update(enabled=True)
    after = site.serves_again(before)
    ServedModel.objects.filter(pk=model.pk).delete()
    assert after
    until(lambda: [machine.living() for machine in site.machines.values()] == [[], []])


def test_it_sleeps_and_wakes_as_one(site):
    site.start()
    model = site.gang(idle_after=1)
    before = site.serves()
    until(lambda: set(Replica.objects.values_list("state", flat=True)) == {"asleep"})
    assert site.living_ranks() == {"gpu-1": 0, "gpu-2": 0}
    WakeRequest.objects.create(model=model, at=timezone.now())
    site.serves_again(before)


def test_changed_settings_start_all_ranks_again(site):
    site.start()
    model = site.gang()
    before = site.serves()
    ServedModel.objects.filter(pk=model.pk).update(context=1024)
    site.serves_again(before)
    assert [one["argv"][one["argv"].index("--max-model-len") + 1] for one in site.starts()][2:] == ["1024", "1024"]


def test_one_that_is_split_over_more_hosts_finds_room_where_its_earlier_ranks_leave(larger_site):
    """Its calls wait for that, and are not refused."""
    larger_site.start()
    model = larger_site.gang(args=["--gpu-memory-utilization=0.8"], pinned=True)
    larger_site.serves()
    ServedModel.objects.filter(pk=model.pk).update(nodes=3, tensor_parallel=3)
    refused = []

    def serves() -> object:
        refused.extend(served for served in routes.served_models() if served.no_room)
        return larger_site.is_ready(nodes=3)

    until(serves, 60)
    assert refused == []
    assert larger_site.living_ranks() == {"gpu-1": 1, "gpu-2": 1, "gpu-3": 1}


def test_others_leave_their_places_on_all_its_hosts_when_it_is_called(site):
    site.start()
    for name in site.machines:
        # By its argument this one takes half of a card as well, and the gang is to have more than that.
        site.gang(f"on-{name}", nodes=1, host=Host.objects.get_or_create(name=name)[0], slots=1)
    for name in site.machines:
        site.serves(f"on-{name}", nodes=1)
    large = site.gang("large", args=["--gpu-memory-utilization=0.8"])
    until(lambda: set(Replica.objects.filter(model=large).values_list("cause", flat=True)) & {"does-not-fit", ""})
    WakeRequest.objects.create(model=large, at=timezone.now(), since=timezone.now() - timedelta(minutes=5), calls=1)
    with calling(large):
        first, _ = site.serves("large")
    assert ask(first) == ANSWER
    assert site.living_ranks() == {"gpu-1": 1, "gpu-2": 1}
    assert EvictionRecord.objects.filter(successor=large).count() == 2


@pytest.fixture(params=[0, 1])
def crowded(site, request) -> tuple[GangSite, list[Replica], ServedModel]:
    """Provide a gang that serves, and a model without room on the host of one of its ranks, which has been called."""
    site.start()
    site.gang("large", args=["--gpu-memory-utilization=0.8"])
    rows = site.serves("large")
    small = site.gang("small", nodes=1, host=rows[request.param].host, slots=1)
    until(lambda: Replica.objects.filter(model=small, state="asleep").first())
    return site, rows, small


def states_of(name: str) -> set[tuple[str, int | None]]:
    """Return the states of a model's ranks with their processes."""
    return set(Replica.objects.filter(model__name=name).values_list("state", "pid"))


def call(model: ServedModel) -> AbstractContextManager[None]:
    WakeRequest.objects.update_or_create(
        model=model, defaults={"at": timezone.now(), "since": timezone.now() - timedelta(minutes=5), "calls": 2}
    )
    return calling(model)


def test_all_of_an_idle_one_leaves_when_another_model_is_called_on_one_of_its_hosts_and_comes_back(crowded):
    site, before, small = crowded
    ServedModel.objects.filter(name="large").update(idle_after=3600)
    with call(small):
        [row] = site.serves("small", nodes=1)
    assert ask(row)
    until(lambda: set(Replica.objects.filter(model__name="large").values_list("state", flat=True)) == {"asleep"})
    assert site.living_ranks() == {before[0].host.name: 0, before[1].host.name: 0} | {row.host.name: 1}
    assert len(site.starts("large")) == 2  # it was not tried meanwhile
    [record] = EvictionRecord.objects.all()
    assert (record.model.name, record.successor, record.host) == ("large", small, row.host)
    until(lambda: EvictionRecord.objects.exclude(load_seconds=None).exclude(drain_seconds=None).exists())
    WakeRequest.objects.all().delete()
    with call(ServedModel.objects.get(name="large")):
        first, _ = site.serves_again(before, "large")
    assert ask(first) == ANSWER


def test_one_that_is_always_to_run_comes_back_only_when_its_whole_room_is_free(crowded):
    site, before, small = crowded
    with call(small):
        site.serves("small", nodes=1)
    WakeRequest.objects.all().delete()
    until(lambda: set(Replica.objects.filter(model__name="large").values_list("state", flat=True)) == {"asleep"})
    assert sum(site.living_ranks().values()) == 1
    assert site.is_ready("small", nodes=1)
    ServedModel.objects.filter(pk=small.pk).update(enabled=False)
    assert ask(site.serves_again(before, "large", seconds=120)[0]) == ANSWER


def test_a_pinned_one_leaves_for_no_other(crowded):
    site, before, small = crowded
    ServedModel.objects.filter(name="large").update(pinned=True)
    with call(small):
        until(lambda: Replica.objects.filter(model=small, state="failed", cause="does-not-fit").first())
    assert [row.run_id for row in site.serves("large")] == [row.run_id for row in before]


def test_two_replicas_of_it_are_two_gangs(transactional_db, tmp_path):
    site = GangSite(tmp_path, hosts=4)
    try:
        site.start()
        site.gang(replicas=2)
        rows = [*site.serves(first=0), *site.serves(first=2)]
        assert len({row.host.name for row in rows}) == 4
        os.kill(site.run_of_rank(rows[3]).engine.pid, signal.SIGKILL)
        until(lambda: len(site.starts()) == 6)
        site.serves(first=2)
        assert [row.run_id for row in site.serves(first=0)] == [row.run_id for row in rows[:2]]
    finally:
        site.close()


@pytest.mark.timeout(240)  # three loads, each after the ten seconds for which a model keeps its place
@pytest.mark.parametrize("crossed", [False, True])
def test_two_of_them_with_room_for_one_give_their_place_to_each_other_as_a_whole(site, crossed):
    """`crossed`: the host of the one's rank 0 has rank 1 of the other."""
    values = {"args": ["--gpu-memory-utilization=0.8"], "idle_after": 3600}
    site.start()
    gangs = {"a": site.gang("a", **values)}
    hosts = {"a": [row.host for row in site.serves("a")]}
    hosts["b"] = hosts["a"][::-1] if crossed else hosts["a"]
    with transaction.atomic():
        gangs["b"] = site.gang("b", **values)
        for rank, host in enumerate(hosts["b"]):
            ReplicaPlacement.objects.create(model=gangs["b"], number=rank, host=host, at=timezone.now())
    until(lambda: states_of("b") == {("asleep", None)})
    for count, name, other in ((1, "a", "b"), (1, "b", "a"), (2, "a", "b")):
        with call(gangs[name]):
            rows = site.serves(name)
        assert ask(rows[0]) == ANSWER
        until(lambda gone=other: states_of(gone) == {("asleep", None)})
        assert [row.host for row in rows] == hosts[name]
        assert site.living_ranks() == {"gpu-1": 1, "gpu-2": 1}
        ranks = [one["rank"] for one in site.starts(name)]
        assert [sorted(ranks[one : one + 2]) for one in range(0, len(ranks), 2)] == [[0, 1]] * count
        WakeRequest.objects.all().delete()
    records = EvictionRecord.objects.order_by("pk").values_list("model__name", "successor__name")
    assert list(records) == [("a", "b"), ("b", "a")]
