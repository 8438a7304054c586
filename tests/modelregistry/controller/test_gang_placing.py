"""Where the ranks of models run that are split over hosts."""

import asyncio
from dataclasses import dataclass, field, replace
from itertools import permutations

import pytest
from django.utils import timezone

from modelregistry import overview, routes
from modelregistry.controller import placer
from modelregistry.controller.gang_placing import choose_hosts
from modelregistry.controller.placer import GAP_AFTER, Placer
from modelregistry.controller.repository import FreeModel, PlacedAt, free_models, place_gang
from modelregistry.controller.shortages import Gap
from modelregistry.engines.base import Spec
from modelregistry.failure_advice import NO_ROOM
from modelregistry.hostside.replicas import ReplicaKey
from modelregistry.models import Host, Replica, ReplicaMove, ReplicaPlacement, ServedModel
from modelregistry.overview import ModelNow, ModelState
from modelregistry.supervisor import repository
from modelregistry.supervisor.offers import Offer
from tests.clock import Clock

FITS, FITS_WELL, TOO_SMALL = Offer(fits=True, free=10), Offer(fits=True, free=20), Offer(fits=False, free=99)
APART = {1: "10.0.0.1", 2: "10.0.0.2", 3: "10.0.0.3"}


# --- The choice


@pytest.mark.parametrize("order", list(permutations((1, 2, 3))))
def test_it_goes_to_the_hosts_where_it_fits_those_with_most_room_first(order):
    offers = {1: FITS, 2: TOO_SMALL, 3: FITS_WELL}
    assert choose_hosts({host: offers[host] for host in order}, {}, APART, 2) == [3, 1]


def test_hosts_with_other_replicas_of_it_come_last():
    assert choose_hosts({1: FITS, 2: FITS_WELL, 3: FITS}, {2: 1}, APART, 2) == [1, 3]


def test_without_room_everywhere_it_goes_where_making_it_costs_least():
    offers = {1: replace(TOO_SMALL, cost=500.0), 2: FITS, 3: replace(TOO_SMALL, cost=20.0)}
    assert choose_hosts(offers, {}, APART, 2) == [2, 3]


def test_fewer_hosts_than_it_needs_are_none():
    assert choose_hosts({1: FITS}, {}, APART, 2) is None


def test_loopback_goes_together_with_nothing_else():
    offers = {1: FITS, 2: FITS, 3: FITS_WELL}
    assert choose_hosts(offers, {}, APART | {3: "127.0.0.1"}, 2) == [1, 2]
    assert choose_hosts(offers, {}, APART | {2: "localhost", 3: "::1"}, 2) == [3, 2]
    assert choose_hosts(offers, {}, APART | {1: "127.0.0.1", 2: ""}, 2) is None


# --- One controller's part


@dataclass
class PaperHost:
    """A host with so much room, which has all files."""

    free: int
    address: str
    silence: float = 0.0
    maintenance: bool = False
    causes: dict[ReplicaKey, str] = field(default_factory=dict)
    proving: set[ReplicaKey] = field(default_factory=set)

    def silent_for(self) -> float:
        return self.silence

    @property
    def takes_models(self) -> bool:
        return not self.silence and not self.maintenance

    async def find_files(self, paths):
        return set(paths)

    async def make_offer(self, spec):
        return Offer(fits=self.free >= 10, free=self.free)

    def is_settled(self, key, given_at):
        return True

    def cause_of(self, key):
        return self.causes.get(key, "")

    def is_proving(self, key):
        return key in self.proving

    def look_again(self):
        pass


class PaperSite:
    """Hosts by number, and one model over two of them, each of which takes 10."""

    def __init__(self, *free: int, replicas: int = 1) -> None:
        self.clock = Clock()
        self.hosts = {number: PaperHost(room, f"10.0.0.{number}") for number, room in enumerate(free, 1)}
        spec = Spec(engine="vllm", name="m", path="/m", tensor_parallel=2, nodes=2)
        self.model = FreeModel(
            spec=spec, **{"replicas": replicas, "external": False, "enabled": True, "called": False, "placed": {}}
        )
        self.placer = Placer(lambda: self.hosts, self, clock=self.clock)
        self.gaps: dict[int, Gap] = {}  # as recorded last

    async def note_gaps(self, found):
        self.gaps = dict(found)

    async def free_models(self):
        return {1: self.model}

    async def add_replica(self, model, number, host):
        raise NotImplementedError

    async def remove_replica(self, model, number, cause):
        raise NotImplementedError

    async def forget_former(self, model, number):
        raise NotImplementedError

    async def place_replica(self, model, number, host, before, *, serves_on=False):
        raise NotImplementedError

    async def place_gang(self, model, first, hosts, before):
        placed = dict(self.model.placed)
        assert [placed[number].host if number in placed else None for number in range(first, first + 2)] == before
        for number, host in enumerate(hosts, first):
            if number in placed:
                self.hosts[placed[number].host].free += 10
            placed[number] = PlacedAt(host=host)
            self.hosts[host].free -= 10
        self.model = replace(self.model, placed=placed)
        return True

    def runs(self, state: str) -> None:
        placed = {number: replace(at, state=state) for number, at in self.model.placed.items()}
        self.model = replace(self.model, placed=placed)

    def turns(self, seconds: int = 1) -> list[int]:
        """Return where each rank is placed after so many turns."""
        for _ in range(seconds):
            self.clock.now += 1
            asyncio.run(self.placer.place_all())
        return [self.model.placed[number].host for number in sorted(self.model.placed)]


def test_how_many_hosts_it_has_of_those_that_it_needs_is_recorded_until_it_has_them():
    site = PaperSite(20, 30)
    site.hosts[2].maintenance = True
    site.turns(int(GAP_AFTER) + 1)
    assert site.gaps == {1: Gap(cause="no-host", replicas=1, hosts=1)}
    site.hosts[2].maintenance = False
    assert site.turns() == [2, 1]
    assert site.gaps == {}


def test_hosts_that_do_not_reach_each_other_are_too_few():
    site = PaperSite(20, 30)
    site.hosts[2].address = "127.0.0.1"
    site.turns(int(GAP_AFTER) + 1)
    assert site.gaps == {1: Gap(cause="apart", replicas=1, hosts=1)}


def test_each_of_its_replicas_that_has_too_few_hosts_counts_once():
    site = PaperSite(20, replicas=2)
    site.turns(int(GAP_AFTER) + 1)
    assert site.gaps == {1: Gap(cause="no-host", replicas=2, hosts=1)}


def test_all_of_its_ranks_are_placed_at_once():
    site = PaperSite(20, 30, 5)
    assert site.turns() == [2, 1]


def test_it_waits_for_as_many_hosts_as_it_needs():
    site = PaperSite(50, 40)
    site.hosts[2].maintenance = True
    assert site.turns(3) == []
    site.hosts[2].maintenance = False
    assert site.turns() == [1, 2]


def test_replicas_go_to_other_hosts_each():
    site = PaperSite(40, 40, 30, 30, replicas=2)
    assert site.turns(2) == [1, 2, 3, 4]


@pytest.fixture
def placed():
    site = PaperSite(40, 30, 20)
    assert site.turns(int(placer.LOST_AFTER) + 1) == [1, 2]
    site.runs("ready")
    return site


def test_it_stays_where_it_runs(placed):
    assert placed.turns(40) == [1, 2]


@pytest.mark.parametrize("host", [1, 2])
def test_with_one_host_lost_all_of_it_is_placed_again(placed, host):
    placed.hosts[host].silence = 9.0
    assert placed.turns(3) == [1, 2]  # rank 0 answers, so the other one is there
    placed.runs("unhealthy")
    assert sorted(placed.turns()) == sorted({1, 2, 3} - {host})


def test_it_is_not_moved_while_it_may_yet_prove_that_its_ranks_are_there(placed):
    placed.hosts[2].silence = 9.0
    placed.runs("unhealthy")
    placed.hosts[1].proving = {ReplicaKey(1, 0)}
    assert placed.turns(3) == [1, 2]
    placed.hosts[1].proving = set()
    assert sorted(placed.turns()) == [1, 3]


def test_nothing_is_moved_while_no_other_host_has_answered_for_a_while(placed):
    placed.runs("unhealthy")
    for host in placed.hosts.values():
        host.silence = 100.0
    placed.turns(2)
    placed.hosts[1].silence = placed.hosts[3].silence = 0.0
    assert placed.turns(int(placer.LOST_AFTER)) == [1, 2]
    assert sorted(placed.turns()) == [1, 3]


def test_with_one_host_in_maintenance_all_of_it_is_placed_again(placed):
    placed.hosts[1].maintenance = True
    assert sorted(placed.turns()) == [2, 3]


def test_without_enough_other_hosts_it_stays(placed):
    placed.hosts[3].free = 5
    placed.hosts[1].maintenance = True
    assert placed.turns(40) == [1, 2]


def test_a_rank_without_room_takes_the_others_to_where_all_have_some(placed):
    placed.runs("backoff")
    placed.hosts[2].causes = {ReplicaKey(1, 1): NO_ROOM}
    placed.hosts[2].free = 0
    assert sorted(placed.turns()) == [1, 3]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_whose_host_lacks_its_address_takes_the_others_to_where_all_can_listen(placed, rank):
    placed.runs("failed")
    placed.hosts[rank + 1].causes = {ReplicaKey(1, rank): "bad-address"}
    placed.hosts[rank + 1].address = ""
    assert rank + 1 not in placed.turns()


def test_one_that_sleeps_is_moved_when_it_is_called(placed):
    placed.runs("asleep")
    placed.hosts[1].maintenance = True
    assert placed.turns(2) == [1, 2]
    placed.model = replace(placed.model, called=True)
    assert sorted(placed.turns()) == [2, 3]


# --- The rows


@pytest.fixture
def hosts(db):
    return [Host.objects.create(name=f"gpu-{number}") for number in range(3)]


@pytest.fixture
def model(hosts):
    return ServedModel.objects.create(name="m", engine="vllm", path="/m", nodes=2, tensor_parallel=2)


def numbers_on(host):
    return {model: set(one.numbers) for model, one in repository.desired_models(host.pk).items()}


def read_models() -> list[ModelNow]:
    return [overview.model_now(model, timezone.now()) for model in ServedModel.objects.all()]


def test_each_host_has_its_rank_and_knows_the_others(hosts, model):
    assert place_gang(model.pk, 0, [hosts[1].pk, hosts[0].pk], [None, None])
    assert [numbers_on(host) for host in hosts] == [{model.pk: {1}}, {model.pk: {0}}, {}]
    desired = [
        repository.desired_models(host.pk)[model.pk].of(number).spec
        for host, number in zip(hosts[:2], (1, 0), strict=True)
    ]
    assert [(one.rank, one.hosts) for one in desired] == [(1, ("gpu-1", "gpu-0")), (0, ("gpu-1", "gpu-0"))]


def test_callers_wait_for_a_model_over_several_hosts_while_its_rank_0_may_come(hosts, model):
    leading, other = (
        Replica.objects.create(model=model, host=host, index=index, state="backoff")
        for index, host in enumerate(hosts[:2])
    )
    assert [one.loading_on for one in routes.served_models()] == [{leading.host_id}]
    Replica.objects.filter(pk=leading.pk).update(state="failed")
    assert [one.loading_on for one in routes.served_models()] == [frozenset()]
    Replica.objects.filter(pk=other.pk).update(state="failed", cause=NO_ROOM)
    assert [one.no_room for one in routes.served_models()] == [True]


@pytest.mark.parametrize("maintained", [0, 1])
@pytest.mark.parametrize("state", ["draining", "stopped"])
def test_no_caller_waits_while_any_host_of_it_is_in_maintenance(hosts, model, maintained, state):
    for index, host in enumerate(hosts[:2]):
        Replica.objects.create(model=model, host=host, index=index, state=state)
    assert place_gang(model.pk, 0, [hosts[0].pk, hosts[1].pk], [None, None])
    Host.objects.filter(pk=hosts[maintained].pk).update(maintenance=True)
    assert [one.loading_on for one in routes.served_models()] == [frozenset()]
    Replica.objects.filter(index=1).update(state="failed", cause=NO_ROOM)
    assert [one.no_room for one in routes.served_models()] == [False]
    assert place_gang(model.pk, 0, [hosts[2].pk, hosts[1 - maintained].pk], [hosts[0].pk, hosts[1].pk])
    assert [one.loading_on for one in routes.served_models()] == [{hosts[0].pk}]


def test_a_second_replica_comes_while_maintenance_holds_the_first(hosts, model):
    model.replicas = 2
    model.save()
    hosts.append(Host.objects.create(name="gpu-3"))
    for index, host in enumerate(hosts):
        Replica.objects.create(model=model, host=host, index=index, state="stopped")
    Host.objects.filter(pk=hosts[1].pk).update(maintenance=True)
    assert [one.loading_on for one in routes.served_models()] == [{hosts[2].pk}]
    [seen] = read_models()
    assert seen.state == ModelState.UNPLACED


def test_it_is_shown_as_in_maintenance_when_one_of_its_hosts_is(hosts, model):
    for index, host in enumerate(hosts[:2]):
        Replica.objects.create(model=model, host=host, index=index, state="stopped")
    Host.objects.filter(pk=hosts[1].pk).update(maintenance=True)
    [seen] = read_models()
    assert seen.state == ModelState.MAINTENANCE


def test_a_gang_that_has_lost_a_host_runs_nowhere(hosts, model):
    place_gang(model.pk, 0, [hosts[0].pk, hosts[1].pk], [None, None])
    Replica.objects.create(model=model, host=hosts[0], index=0, state="ready")
    hosts[1].delete()
    assert numbers_on(hosts[0]) == {}
    assert free_models()[model.pk].placed.keys() == {0}


def test_all_ranks_are_placed_or_none(hosts, model):
    first, second, third = (host.pk for host in hosts)
    assert place_gang(model.pk, 0, [first, second], [None, None])
    assert not place_gang(model.pk, 0, [first, third], [first, None])
    assert not place_gang(model.pk, 0, [first, 999], [first, second])
    assert dict(ReplicaPlacement.objects.values_list("number", "host")) == {0: first, 1: second}
    assert place_gang(model.pk, 0, [first, third], [first, second])
    assert dict(ReplicaPlacement.objects.values_list("number", "host")) == {0: first, 1: third}
    assert list(ReplicaMove.objects.values_list("number", "source", "target")) == [(0, "gpu-1", "gpu-2")]


def test_placements_follow_the_number_of_replicas_and_hosts(hosts, model):
    for first in (0, 2):
        place_gang(model.pk, first, [hosts[0].pk, hosts[1].pk], [None, None])
    ServedModel.objects.update(replicas=2)
    assert free_models()[model.pk].placed.keys() == {0, 1, 2, 3}
    ServedModel.objects.update(replicas=1)
    assert free_models()[model.pk].placed.keys() == {0, 1}
    ServedModel.objects.update(nodes=1)
    assert free_models()[model.pk].placed.keys() == {0}


def test_a_model_that_got_a_host_of_its_own_is_not_placed(hosts, model):
    ServedModel.objects.update(host=hosts[0])
    assert not place_gang(model.pk, 0, [hosts[0].pk, hosts[1].pk], [None, None])
