"""Where replicas run whose models have no host of their own, and what moves them."""

import asyncio
from dataclasses import dataclass, field, replace
from itertools import permutations

import pytest
from django.utils import timezone

from modelregistry import fit
from modelregistry.controller import placer
from modelregistry.controller.placer import GAP_AFTER, Placer, choose_host
from modelregistry.controller.repository import (
    FreeModel,
    PlacedAt,
    add_replica,
    forget_former,
    free_models,
    place_replica,
    remove_replica,
    request_files,
)
from modelregistry.controller.shortages import Gap, PlacementAttempt, Shortage
from modelregistry.engines.base import Spec
from modelregistry.failure_advice import NO_ROOM
from modelregistry.fit import Estimate, HostFit
from modelregistry.hostside.replicas import ReplicaKey
from modelregistry.hostside.surface import HostSilent
from modelregistry.models import Host, ModelCopy, Replica, ReplicaMove, ReplicaPlacement, ServedModel
from modelregistry.moves import read_moves
from modelregistry.supervisor import repository
from modelregistry.supervisor.offers import Offer
from tests.clock import Clock

FITS, FITS_WELL, TOO_SMALL = Offer(fits=True, free=10), Offer(fits=True, free=20), Offer(fits=False, free=99)


# --- the choice


@pytest.mark.parametrize("order", list(permutations((1, 2, 3))))
def test_e9_it_goes_where_it_fits_and_of_those_where_most_room_is(order):
    offers = {1: TOO_SMALL, 2: FITS, 3: FITS_WELL}
    assert choose_host({host: offers[host] for host in order}, {}) == 3


def test_a_host_that_has_no_other_replica_of_the_model_comes_before_one_with_more_room():
    assert choose_host({1: FITS, 2: FITS_WELL}, {2: 1}) == 1
    assert choose_host({1: TOO_SMALL, 2: FITS_WELL}, {2: 1}) == 2


def test_e9_where_it_fits_nowhere_the_one_with_most_room_takes_it():
    assert choose_host({1: replace(TOO_SMALL, free=5), 2: TOO_SMALL}, {}) == 2


def test_where_it_fits_nowhere_the_one_takes_it_where_making_room_costs_least():
    dear, cheap = replace(TOO_SMALL, cost=500.0), replace(TOO_SMALL, free=1, cost=20.0)
    assert choose_host({1: dear, 2: cheap, 3: TOO_SMALL}, {}) == 2
    assert choose_host({1: dear, 2: cheap, 3: FITS}, {}) == 3


def test_there_may_be_no_host():
    assert choose_host({}, {}) is None


# --- one controller's part


@dataclass
class PaperHost:
    """A host with so much room; `files`: the paths that it has."""

    free: int
    files: set[str]
    sizes: dict[str, int]
    silence: float = 0.0
    maintenance: bool = False
    lost_calls: bool = False
    unsettled: set[ReplicaKey] = field(default_factory=set)
    causes: dict[ReplicaKey, str] = field(default_factory=dict)
    looks: int = 0

    def silent_for(self) -> float:
        return self.silence

    @property
    def takes_models(self) -> bool:
        return not self.silence and not self.maintenance

    async def find_files(self, paths):
        if self.lost_calls:
            raise HostSilent
        return self.files & set(paths)

    async def make_offer(self, spec):
        return Offer(fits=self.sizes[spec.path] <= self.free, free=self.free, need=self.sizes[spec.path])

    def is_settled(self, key, given_at):
        return key not in self.unsettled

    def cause_of(self, key):
        return self.causes.get(key, "")

    def is_proving(self, key):
        return False

    def look_again(self):
        self.looks += 1


class PaperSite:
    """Hosts by number, models by number, and where replicas were placed."""

    def __init__(self, **free: int) -> None:
        self.clock = Clock()
        self.sizes: dict[str, int] = {}
        self.hosts = {number: PaperHost(room, set(), self.sizes) for number, room in enumerate(free.values(), 1)}
        self.models: dict[int, FreeModel] = {}
        self.removed: list[tuple[int, int, str]] = []
        self.gaps: list[dict[int, Gap]] = []  # as recorded
        self.placer = Placer(lambda: self.hosts, self, clock=self.clock)

    def add(self, size: int, on: set[int], replicas: int = 1, *, external: bool = False) -> int:
        number = len(self.models) + 1
        path = "" if external else f"/m{number}"
        self.sizes[path] = size
        self.models[number] = FreeModel(
            spec=Spec(engine="vllm", name=f"m{number}", path=path),
            **{"replicas": replicas, "external": external, "enabled": True, "called": False, "placed": {}},
        )
        for host in on:
            self.hosts[host].files.add(path)
        return number

    def change(self, model: int, **values) -> None:
        self.models[model] = replace(self.models[model], **values)

    def runs(self, model: int, number: int, state: str) -> None:
        placed = self.models[model].placed
        self.change(model, placed={**placed, number: replace(placed[number], state=state)})

    async def free_models(self):
        return dict(self.models)

    async def note_gaps(self, found):
        self.gaps.append(dict(found))

    async def forget_former(self, model, number):
        placed = self.models[model].placed
        self.change(model, placed={**placed, number: replace(placed[number], former=None)})

    async def place_replica(self, model, number, host, before, *, serves_on=False):
        placed = self.models[model].placed
        if before is None and number in placed and number not in self.models[model].unplaced:
            return False
        self.change(model, placed={**placed, number: PlacedAt(host=host, former=before if serves_on else None)})
        self.hosts[host].free -= self.sizes[self.models[model].spec.path]
        return True

    async def add_replica(self, model, number, host):
        return await self.place_replica(model, number, host, None)

    async def remove_replica(self, model, number, cause):
        placed = dict(self.models[model].placed)
        self.hosts[placed.pop(number).host].free += self.sizes[self.models[model].spec.path]
        self.change(model, placed=placed)
        self.removed.append((model, number, str(cause)))

    def turns(self, seconds: int = 1) -> dict[tuple[int, int], int]:
        """Return where each replica is placed after so many turns."""
        for _ in range(seconds):
            self.clock.now += 1
            asyncio.run(self.placer.place_all())
        return {(model, number): at.host for model, one in self.models.items() for number, at in one.placed.items()}


def test_e9_it_is_placed_where_it_fits():
    site = PaperSite(small=10, large=40)
    model = site.add(30, on={1, 2})
    assert site.turns() == {(model, 0): 2}
    assert site.hosts[2].looks == 1


def test_e9_the_only_host_that_has_the_files_gets_even_what_does_not_fit():
    site = PaperSite(only=10, other=99)
    model = site.add(30, on={1})
    assert site.turns() == {(model, 0): 1}


def test_without_its_files_anywhere_it_waits():
    site = PaperSite(one=10, other=99)
    model = site.add(5, on=set())
    assert site.turns(5) == {}
    site.hosts[2].files.add("/m1")
    assert site.turns() == {(model, 0): 2}


def test_that_a_replica_has_no_place_is_recorded_when_it_lasts_and_until_it_has_one():
    site = PaperSite(one=10, other=99)
    model = site.add(5, on=set(), replicas=2)
    site.turns(int(GAP_AFTER))
    assert site.gaps == [{}]  # an earlier controller may have left some
    site.turns(5)
    assert site.gaps[1:] == [{model: Gap(cause="no-files", replicas=2, hosts=0)}]
    for host in site.hosts.values():
        host.maintenance = True
    site.turns()
    assert site.gaps[2:] == [{model: Gap(cause="no-host", replicas=2, hosts=0)}]
    site.hosts[1].files.add("/m1")
    site.hosts[1].maintenance = False
    site.turns(3)
    assert site.gaps[3:] == [{}]


def test_what_is_not_to_run_or_lacks_only_room_is_not_without_a_place():
    site = PaperSite(only=10)
    site.change(site.add(5, on=set()), enabled=False)
    site.add(30, on={1})
    site.turns(int(GAP_AFTER) + 5)
    assert site.gaps == [{}]


def test_a_host_that_is_silent_for_a_moment_is_recorded_nowhere():
    site = PaperSite(only=10)
    site.add(5, on={1})
    site.hosts[1].silence = 5.0
    site.turns(int(GAP_AFTER) - 1)
    site.hosts[1].silence = 0.0
    site.turns(3)
    site.change(site.add(5, on=set()), enabled=False)
    site.turns(int(GAP_AFTER))
    assert site.gaps == [{}]


def test_while_it_is_not_known_whether_there_is_a_place_it_stays_recorded():
    site = PaperSite(one=40, other=1)
    first = site.add(10, on={1})
    second = site.add(10, on=set())
    site.turns(int(GAP_AFTER) + 2)
    found = {second: Gap(cause="no-files", replicas=1, hosts=0)}
    assert site.gaps == [{}, found]
    third = site.add(1, on={1, 2})
    assert site.turns()[third, 0]
    site.hosts[1].unsettled = {ReplicaKey(third, 0)}
    site.hosts[2].unsettled = {ReplicaKey(third, 0)}
    for host in site.hosts.values():
        host.files.add("/m2")
    assert (second, 0) not in site.turns()
    assert site.gaps == [{}, found]
    assert first


def test_e9_models_that_come_at_once_are_spread_by_the_room_that_is_left():
    site = PaperSite(one=25, other=24)
    for _ in range(4):
        site.add(10, on={1, 2})
    assert sorted(site.turns(12).values()) == [1, 1, 2, 2]
    assert min(host.free for host in site.hosts.values()) >= 0


def test_replicas_of_a_model_are_spread_over_hosts():
    site = PaperSite(one=90, other=50, third=10)
    model = site.add(10, on={1, 2, 3}, replicas=3)
    assert sorted(site.turns(5).values()) == [1, 2, 3]
    site.change(model, replicas=5)
    assert sorted(site.turns(5).values()) == [1, 1, 2, 2, 3]


def test_nothing_more_is_placed_until_memory_is_set_apart_for_the_last_one():
    site = PaperSite(one=40, other=1)
    first, second = site.add(10, on={1, 2}), site.add(10, on={1, 2})
    site.hosts[1].unsettled = {ReplicaKey(first, 0)}
    assert site.turns(4) == {(first, 0): 1}
    site.hosts[1].unsettled = set()
    assert site.turns() == {(first, 0): 1, (second, 0): 1}


def test_what_never_settles_does_not_hold_the_others_up_for_ever():
    site = PaperSite(one=40, other=1)
    first, second = site.add(10, on={1, 2}), site.add(10, on={1, 2})
    site.hosts[1].unsettled = {ReplicaKey(first, 0)}
    assert set(site.turns(2 + int(placer.SETTLED_WITHIN))) == {(first, 0), (second, 0)}


def test_a_host_that_settles_slowly_holds_up_only_what_would_not_fit_elsewhere():
    site = PaperSite(one=40, other=30)
    first = site.add(10, on={1, 2})
    site.hosts[1].unsettled = {ReplicaKey(first, 0)}
    assert site.turns() == {(first, 0): 1}
    fits, too_large = site.add(10, on={1, 2}), site.add(25, on={1, 2})
    assert set(site.turns(int(placer.WAITED_FOR) - 1)) == {(first, 0)}
    assert site.turns(2) == {(first, 0): 1, (fits, 0): 2}
    site.hosts[1].unsettled = set()
    assert site.turns()[too_large, 0] == 1


def test_an_external_engine_needs_no_files_and_is_watched_from_a_host_in_maintenance_too():
    site = PaperSite(one=1)
    site.hosts[1].maintenance = True
    model = site.add(0, on=set(), external=True)
    assert site.turns() == {(model, 0): 1}


def test_hosts_that_are_silent_in_maintenance_or_do_not_answer_are_given_nothing():
    site = PaperSite(one=50, other=60, third=70, fourth=5)
    site.hosts[1].silence, site.hosts[2].maintenance, site.hosts[3].lost_calls = 1.0, True, True
    model = site.add(5, on={1, 2, 3, 4})
    assert site.turns() == {(model, 0): 4}


# --- Copying files


class Requested:
    """What files were requested, and where they were already. Copies are complete at once on the host `to`."""

    def __init__(self, site: PaperSite, to: int) -> None:
        self.site = site
        self.to = to
        self.asked: list[tuple[int, list[int]]] = []
        site.placer.request_files = self.request

    async def request(self, model, having):
        self.asked.append((model, sorted(having)))
        self.site.hosts[self.to].files.add(f"/m{model}")


def test_a_model_whose_files_no_host_has_is_placed_where_they_are_copied():
    site = PaperSite(one=10, other=99)
    requested = Requested(site, to=2)
    model = site.add(30, on=set())
    assert site.turns(2) == {(model, 0): 2}
    assert requested.asked == [(model, [])]


def test_a_model_that_does_not_fit_where_its_files_are_is_moved_to_where_they_are_copied():
    site = PaperSite(one=10, other=99)
    requested = Requested(site, to=2)
    model = site.add(30, on={1})
    assert site.turns() == {(model, 0): 1}
    assert requested.asked == [(model, [1])]
    site.runs(model, 0, "failed")
    site.hosts[1].causes = {ReplicaKey(model, 0): NO_ROOM}
    assert site.turns() == {(model, 0): 2}


def test_files_of_a_model_that_fits_or_is_disabled_are_not_copied():
    site = PaperSite(one=40, other=99)
    requested = Requested(site, to=2)
    site.add(30, on={1})
    nowhere = site.add(30, on=set())
    site.change(nowhere, enabled=False)
    site.turns(5)
    assert requested.asked == []


def test_files_are_not_requested_each_second():
    site = PaperSite(one=10)
    requested = Requested(site, to=1)
    site.add(30, on=set())
    site.hosts[1].lost_calls = True
    site.turns(int(placer.REQUEST_EVERY) * 2)
    assert len(requested.asked) == 2


# --- Moving


@pytest.fixture
def placed():
    """Provide a model that runs on the first of two hosts."""
    site = PaperSite(one=90, other=50)
    model = site.add(10, on={1, 2})
    assert site.turns(int(placer.LOST_AFTER) + 1) == {(model, 0): 1}
    site.runs(model, 0, "ready")
    return site


def test_nothing_is_moved_while_no_other_host_has_answered_for_a_while(placed):
    placed.runs(1, 0, "unhealthy")
    placed.hosts[1].silence = placed.hosts[2].silence = 100.0
    placed.turns(5)
    placed.hosts[2].silence = 0.0
    assert placed.turns(int(placer.LOST_AFTER)) == {(1, 0): 1}
    assert placed.turns() == {(1, 0): 2}


def test_all_replicas_of_a_host_in_maintenance_get_their_places_as_the_others_settle():
    site = PaperSite(one=90, other=50)
    models = [site.add(10, on={1, 2}) for _ in range(3)]
    site.hosts[2].maintenance = True
    site.turns(3)
    for model in models:
        site.runs(model, 0, "ready")
    site.hosts[1].maintenance, site.hosts[2].maintenance = True, False
    site.hosts[2].unsettled = {ReplicaKey(model, 0) for model in models}
    since = site.clock()
    for count in range(1, 4):
        assert list(site.turns(3).values()).count(2) == count
        site.hosts[2].unsettled.discard(site.placer.given[2][1])
    assert not any(site.placer.may_find_place(ReplicaKey(model, 0), since) for model in models)


def test_a_replica_without_another_place_is_known_to_have_none(placed):
    placed.hosts[2].free = 0
    since = placed.clock()
    placed.hosts[1].maintenance = True
    assert placed.placer.may_find_place(ReplicaKey(1, 0), since)
    assert placed.turns() == {(1, 0): 1}
    assert not placed.placer.may_find_place(ReplicaKey(1, 0), since)


async def test_a_host_whose_disk_hangs_keeps_no_other_from_being_asked(placed, monkeypatch):
    async def hang(paths):
        await asyncio.Event().wait()

    monkeypatch.setattr(placer, "FILES_WITHIN", 0.01)
    placed.hosts[3] = PaperHost(99, set(), placed.sizes)
    monkeypatch.setattr(placed.hosts[3], "find_files", hang)
    for _ in range(3):
        placed.add(5, on={2})
    await placed.placer.place_all()
    assert [one.placed[0].host for number, one in placed.models.items() if number > 1] == [2, 2, 2]


async def test_a_host_that_makes_no_offer_keeps_no_other_from_being_chosen(placed, monkeypatch):
    async def hang(spec):
        await asyncio.Event().wait()

    monkeypatch.setattr(placer, "OFFERED_WITHIN", 0.01)
    placed.hosts[3] = PaperHost(99, set(), placed.sizes)
    monkeypatch.setattr(placed.hosts[3], "make_offer", hang)
    for _ in range(2):
        placed.add(5, on={2, 3})
    async with asyncio.timeout(20):
        await placed.placer.place_all()
    assert [one.placed[0].host for number, one in placed.models.items() if number > 1] == [2, 2]


def test_a_model_that_cannot_be_placed_stops_no_other(placed, monkeypatch):
    broken = placed.add(5, on={1, 2})
    whole = placed.add(5, on={1, 2})
    placed.change(broken, spec=None)
    assert (whole, 0) in placed.turns(3)


@pytest.mark.parametrize("state", ["unhealthy", "starting", "backoff", "failed", "stopped"])
def test_a_replica_of_a_host_that_is_gone_is_started_elsewhere(placed, state):
    placed.runs(1, 0, state)
    placed.hosts[1].silence = placer.LOST_AFTER - 1
    assert placed.turns() == {(1, 0): 1}
    placed.hosts[1].silence = placer.LOST_AFTER
    assert placed.turns() == {(1, 0): 2}
    placed.hosts[1].silence = 0.0
    assert placed.turns(100) == {(1, 0): 2}


def test_an_engine_that_answers_stays_although_its_host_is_silent(placed):
    placed.hosts[1].silence = 1000.0
    assert placed.turns(100) == {(1, 0): 1}


def test_a_replica_that_sleeps_on_a_host_that_is_gone_is_moved_when_it_is_called(placed):
    placed.runs(1, 0, "asleep")
    placed.hosts[1].silence = 100.0
    assert placed.turns(5) == {(1, 0): 1}
    placed.change(1, called=True)
    assert placed.turns() == {(1, 0): 2}


def test_a_host_that_no_supervisor_has_counts_as_gone_after_a_while(placed):
    placed.runs(1, 0, "unhealthy")
    placed.placer.began = placed.clock()
    del placed.hosts[1]
    assert placed.turns(int(placer.LOST_AFTER) - 1) == {(1, 0): 1}
    assert placed.turns() == {(1, 0): 2}


def test_what_others_could_make_room_for_is_moved_only_if_its_host_is_gone(placed, monkeypatch):
    async def offer(spec):
        return Offer(fits=False, free=0, cost=1.0)

    monkeypatch.setattr(placed.hosts[2], "make_offer", offer)
    placed.runs(1, 0, "unhealthy")
    placed.hosts[1].causes = {ReplicaKey(1, 0): NO_ROOM}
    assert placed.turns(70) == {(1, 0): 1}
    placed.hosts[1].silence = 100.0
    assert placed.turns() == {(1, 0): 2}


def test_a_host_in_maintenance_gives_its_replicas_to_others(placed):
    placed.hosts[1].maintenance = True
    assert placed.turns() == {(1, 0): 2}
    assert placed.hosts[1].looks == 2


def test_a_replica_serves_where_it_was_until_it_is_ready_elsewhere(placed):
    placed.hosts[1].maintenance = True
    placed.turns()
    assert placed.models[1].placed[0] == PlacedAt(host=2, former=1)
    placed.runs(1, 0, "starting")
    placed.turns(5)
    assert placed.models[1].placed[0].former == 1
    placed.runs(1, 0, "ready")
    placed.turns()
    assert placed.models[1].placed[0] == PlacedAt(host=2, state="ready")


@pytest.mark.parametrize("change", ["silent", "gone", "old"])
def test_where_a_replica_was_is_forgotten_when_it_does_not_serve_there_or_for_too_long(placed, change):
    placed.hosts[1].maintenance = True
    placed.turns()
    at = placed.models[1].placed[0]
    if change == "silent":
        placed.hosts[1].silence = 1.0
    elif change == "gone":
        del placed.hosts[1]
    else:
        placed.change(1, placed={0: replace(at, age=placer.FORMER_FOR + 1)})
    placed.turns()
    assert placed.models[1].placed[0].former is None


def test_a_replica_without_room_goes_where_there_is_some(placed):
    placed.hosts[2].free = 5
    placed.runs(1, 0, "failed")
    placed.hosts[1].causes = {ReplicaKey(1, 0): NO_ROOM}
    assert placed.turns(int(placer.MOVE_AGAIN)) == {(1, 0): 1}
    placed.hosts[2].free = 10
    assert placed.turns(int(placer.MOVE_AGAIN)) == {(1, 0): 2}


def test_a_disabled_model_is_not_moved(placed):
    placed.change(1, enabled=False)
    placed.hosts[1].maintenance = True
    assert placed.turns(5) == {(1, 0): 1}


# --- Further replicas


@pytest.fixture
def further():
    """Provide a model that runs on the first of two hosts, and may have three replicas."""
    site = PaperSite(one=15, other=30)
    site.add(10, on={1, 2})
    site.change(1, most=3)
    site.hosts[2].maintenance = True
    site.turns(int(placer.LOST_AFTER) + 1)
    site.runs(1, 0, "ready")
    site.hosts[2].maintenance = False
    site.turns(int(placer.LOST_AFTER) + 1)
    return site


def test_a_further_replica_goes_where_it_fits_and_apart_from_others(further):
    assert asyncio.run(further.placer.add_further(ReplicaKey(1, 1))).placed
    assert further.turns() == {(1, 0): 1, (1, 1): 2}
    assert further.hosts[2].looks == 1
    assert asyncio.run(further.placer.add_further(ReplicaKey(1, 1))) == PlacementAttempt()  # it is there


def test_no_room_is_made_for_a_further_replica(further, monkeypatch):
    async def offer(spec):
        return Offer(fits=False, free=0, cost=1.0)

    monkeypatch.setattr(further.hosts[2], "make_offer", offer)
    assert not asyncio.run(further.placer.add_further(ReplicaKey(1, 1))).placed
    assert further.turns() == {(1, 0): 1}


def test_without_room_for_a_further_replica_the_host_with_most_of_it_is_named(further):
    further.hosts[1].free, further.hosts[2].free = 4, 7
    found = asyncio.run(further.placer.add_further(ReplicaKey(1, 1)))
    assert found == PlacementAttempt(shortage=Shortage(cause="no-room", host=2, free=7, need=10))


@pytest.mark.parametrize(
    ("change", "cause"), [("no files", "no-files"), ("maintenance", "no-host"), ("silent", "no-host"), ("", "no-host")]
)
def test_without_a_host_for_a_further_replica_it_is_known_what_hosts_lack(further, change, cause):
    for host in further.hosts.values():
        if change == "no files":
            host.files = set()
        elif change == "maintenance":
            host.maintenance = True
        elif change == "silent":
            host.silence = 1.0
        else:
            host.lost_calls = True
    found = asyncio.run(further.placer.add_further(ReplicaKey(1, 1)))
    assert found == PlacementAttempt(shortage=Shortage(cause=cause))


@pytest.mark.parametrize("gone", ["silent", "maintenance", "no room"])
def test_a_further_replica_that_can_neither_stay_nor_move_leaves(further, gone):
    asyncio.run(further.placer.add_further(ReplicaKey(1, 1)))
    further.turns()
    further.runs(1, 1, "unhealthy")
    if gone == "silent":
        further.hosts[2].silence = 100.0
    elif gone == "maintenance":
        further.hosts[2].maintenance = True
    else:
        further.hosts[2].causes = {ReplicaKey(1, 1): NO_ROOM}
    further.hosts[1].free = 5
    assert further.turns(2) == {(1, 0): 1}
    assert further.removed == [(1, 1, "useless")]


def test_a_further_replica_is_moved_to_a_host_where_it_fits(further):
    asyncio.run(further.placer.add_further(ReplicaKey(1, 1)))
    further.turns()
    further.runs(1, 1, "ready")
    further.hosts[1].free, further.hosts[2].maintenance = 10, True
    assert further.turns(2)[1, 1] == 1
    assert further.removed == []


# --- the rows


@pytest.fixture
def hosts(db) -> list[Host]:
    return [Host.objects.create(name=f"gpu-{number}") for number in range(2)]


def free(name: str = "m", **values) -> ServedModel:
    return ServedModel.objects.create(name=name, engine="vllm", path="/m", **values)


def numbers_on(host: Host, **options) -> dict[int, set[int]]:
    return {model: set(one.numbers) for model, one in repository.desired_models(host.pk, **options).items()}


def test_replicas_belong_to_the_hosts_on_which_they_were_placed(hosts):
    model = free(replicas=3)
    for number in range(3):
        assert place_replica(model.pk, number, hosts[number % 2].pk, before=None)
    assert numbers_on(hosts[0]) == {model.pk: {0, 2}}
    assert numbers_on(hosts[1]) == {model.pk: {1}}
    ServedModel.objects.update(host=hosts[1])
    assert numbers_on(hosts[0]) == {}
    assert numbers_on(hosts[1]) == {model.pk: {0, 1, 2}}


def test_a_replica_that_moves_belongs_to_both_hosts_until_the_first_is_forgotten(hosts):
    model = free()
    place_replica(model.pk, 0, hosts[0].pk, before=None)
    place_replica(model.pk, 0, hosts[1].pk, before=hosts[0].pk, serves_on=True)
    for keeping in (True, False):
        there = repository.desired_models(hosts[0].pk, keeping=keeping)[model.pk]
        assert (there.numbers, there.leaving, there.free) == ({0}, {0}, True)
    assert repository.desired_models(hosts[1].pk)[model.pk].leaving == frozenset()
    assert free_models()[model.pk].placed[0].former == hosts[0].pk
    forget_former(model.pk, 0)
    assert numbers_on(hosts[0]) == {}
    assert numbers_on(hosts[1]) == {model.pk: {0}}


def test_a_replica_serves_on_where_it_was_ready_last_however_often_it_is_placed_anew(hosts):
    third = Host.objects.create(name="gpu-3")
    model = free()
    place_replica(model.pk, 0, hosts[0].pk, before=None)
    place_replica(model.pk, 0, hosts[1].pk, before=hosts[0].pk, serves_on=True)
    place_replica(model.pk, 0, third.pk, before=hosts[1].pk)
    assert ReplicaPlacement.objects.get().former == hosts[0]
    place_replica(model.pk, 0, hosts[0].pk, before=third.pk)
    assert ReplicaPlacement.objects.get().former is None


def test_a_placement_that_changed_meanwhile_is_left_as_it_is(hosts):
    model = free()
    assert place_replica(model.pk, 0, hosts[0].pk, before=None)
    assert not place_replica(model.pk, 0, hosts[1].pk, before=None)
    assert not place_replica(model.pk, 0, hosts[0].pk, before=hosts[1].pk)
    assert place_replica(model.pk, 0, hosts[1].pk, before=hosts[0].pk)
    assert not place_replica(4711, 0, hosts[1].pk, before=None)
    assert not place_replica(model.pk, 1, 4711, before=None)
    ServedModel.objects.update(host=hosts[0])
    assert not place_replica(model.pk, 0, hosts[0].pk, before=hosts[1].pk)


def test_a_further_replica_belongs_to_its_host_for_as_long_as_it_is_placed(hosts):
    model = free(replicas_max=3)
    place_replica(model.pk, 0, hosts[0].pk, before=None)
    assert add_replica(model.pk, 2, hosts[1].pk)
    assert not add_replica(model.pk, 2, hosts[0].pk)
    assert not add_replica(model.pk, 3, hosts[1].pk)
    found = free_models()[model.pk]
    assert (found.replicas, found.most, set(found.placed)) == (1, 3, {0, 2})
    assert numbers_on(hosts[1]) == {model.pk: {2}}
    Replica.objects.create(model=model, host=hosts[1], index=2, state="ready")
    remove_replica(model.pk, 0, cause="quiet")  # none of the further ones
    remove_replica(model.pk, 2, cause="quiet")
    assert numbers_on(hosts[1]) == {}  # it is not kept for running there
    assert set(free_models()[model.pk].placed) == {0}
    assert numbers_on(hosts[0]) == {model.pk: {0}}
    moves = [(one.number, one.source, one.target, one.cause) for one in read_moves(model=model)]
    assert moves == [(2, "gpu-1", "", "quiet"), (2, "", "gpu-1", "busy")]
    assert not ReplicaMove.objects.filter(notified_at=None).exists()


@pytest.mark.parametrize("change", [{"replicas_max": None}, {"host": True}, {"replicas_max": 2}])
def test_further_replicas_leave_when_they_may_not_be(hosts, change):
    model = free(replicas_max=3)
    place_replica(model.pk, 0, hosts[0].pk, before=None)
    add_replica(model.pk, 2, hosts[1].pk)
    ServedModel.objects.update(**({"host": hosts[0]} if "host" in change else change))
    free_models()
    assert not ReplicaPlacement.objects.filter(number=2).exists()


def test_placements_are_read_without_writing_anything(hosts, django_assert_num_queries):
    place_replica(free().pk, 0, hosts[0].pk, before=None)
    with django_assert_num_queries(3) as queries:
        free_models()
    assert all(one["sql"].startswith("SELECT") for one in queries)


def test_placements_that_nothing_needs_any_more_are_deleted(hosts):
    many, own = free(replicas=3), free("n")
    for model, number in ((many, 0), (many, 2), (own, 0)):
        place_replica(model.pk, number, hosts[0].pk, before=None)
    ServedModel.objects.filter(pk=many.pk).update(replicas=2)
    ServedModel.objects.filter(pk=own.pk).update(host=hosts[1])
    assert list(free_models()) == [many.pk]
    assert [one.number for one in ReplicaPlacement.objects.all()] == [0]


@pytest.mark.parametrize(
    ("state", "keeping", "kept"),
    [("ready", True, True), ("asleep", True, True), ("failed", True, False), ("ready", False, False)],
)
def test_a_model_whose_host_was_cleared_stays_where_it_runs(hosts, state, keeping, kept):
    model = free()
    Replica.objects.create(model=model, host=hosts[1], state=state)
    assert numbers_on(hosts[0], keeping=keeping) == {}
    assert numbers_on(hosts[1], keeping=keeping) == ({model.pk: {0}} if kept else {})
    if state != "failed":
        found = free_models()[model.pk]
        assert (found.placed, found.unplaced) == ({0: PlacedAt(host=hosts[1].pk, state=state)}, {0})
    ReplicaPlacement.objects.create(model=model, number=0, host=hosts[0], at=timezone.now())
    assert numbers_on(hosts[1], keeping=keeping) == {}
    assert numbers_on(hosts[0], keeping=keeping) == {model.pk: {0}}


def test_what_a_replica_does_is_read_where_it_is_placed(hosts):
    model = free()
    Replica.objects.create(model=model, host=hosts[0], state="unhealthy")
    Replica.objects.create(model=model, host=hosts[1], state="ready")
    place_replica(model.pk, 0, hosts[1].pk, before=None)
    found = free_models()[model.pk]
    at = found.placed[0]
    assert (at.host, at.state, found.unplaced) == (hosts[1].pk, "ready", frozenset())


@pytest.fixture
def outlook(monkeypatch):
    """Return a function that says on which hosts a model would fit, the best first."""

    def outlook(*names: str) -> None:
        hosts = tuple(HostFit(host=name, fits=True, room=True) for name in names)
        monkeypatch.setattr(
            fit, "estimate", lambda model: Estimate(facts=None, hosts=hosts, prediction=None, unplanned=())
        )

    return outlook


def test_files_are_requested_for_the_best_host_of_the_cluster_that_lacks_them(hosts, outlook):
    model = free()
    outlook("gpu-0", "gpu-1")
    request_files(model.pk, [])
    assert not ModelCopy.objects.exists()  # neither is in a cluster
    Host.objects.update(clustered=True)
    request_files(model.pk, [hosts[0].pk])
    assert [(copy.host, copy.state) for copy in ModelCopy.objects.all()] == [(hosts[1], "waiting")]
    request_files(model.pk, [])  # one at a time
    assert ModelCopy.objects.count() == 1
    ModelCopy.objects.update(state="failed")
    request_files(model.pk, [hosts[0].pk])
    assert [copy.state for copy in ModelCopy.objects.all()] == ["failed"]
    request_files(model.pk, [])
    assert {(copy.host, copy.state) for copy in ModelCopy.objects.all()} == {
        (hosts[1], "failed"),
        (hosts[0], "waiting"),
    }
    ModelCopy.objects.update(state="done")  # and deleted there since
    request_files(model.pk, [hosts[0].pk])
    assert ModelCopy.objects.get(host=hosts[1]).state == "waiting"
