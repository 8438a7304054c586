"""A model without a host goes where its files are and it fits, not to the first supervisor that looks."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from itertools import permutations

import pytest
from django.utils import timezone

from modelregistry.engines.base import Spec
from modelregistry.models import Host, HostBid, Replica, ServedModel
from modelregistry.supervisor import bidding, lease, repository
from modelregistry.supervisor.bidding import Bid, Bidder, Offer, Unassigned, choose_host

FITS, FITS_WELL, TOO_SMALL = Offer(fits=True, free=10), Offer(fits=True, free=20), Offer(fits=False, free=99)


# --- the choice


def bids(*offers: Offer) -> list[Bid]:
    return [Bid(host=number, offer=offer) for number, offer in enumerate(offers, 1)]


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_e9_it_goes_where_it_fits_and_of_those_where_most_room_is(order):
    all_of_them = bids(TOO_SMALL, FITS, FITS_WELL)
    assert choose_host([all_of_them[number] for number in order], {1, 2, 3}, waited=0) == 3


def test_e9_where_it_fits_nowhere_the_one_with_most_room_takes_it():
    assert choose_host(bids(replace(TOO_SMALL, free=5), TOO_SMALL), {1, 2}, waited=0) == 2


def test_where_it_fits_nowhere_the_one_takes_it_where_making_room_costs_least():
    dear, cheap = replace(TOO_SMALL, cost=500.0), replace(TOO_SMALL, free=1, cost=20.0)
    assert choose_host(bids(dear, cheap, TOO_SMALL), {1, 2, 3}, waited=0) == 2
    assert choose_host(bids(dear, cheap, FITS), {1, 2, 3}, waited=0) == 3


@pytest.mark.django_db
def test_bids_keep_what_making_room_costs():
    host, model = Host.objects.create(name="here"), ServedModel.objects.create(name="m", engine="vllm")
    offer = replace(TOO_SMALL, cost=20.0)
    repository.place_bids(host.pk, {model.pk: offer})
    assert repository.open_bids([model.pk]) == {model.pk: [Bid(host=host.pk, offer=offer)]}


def test_all_see_the_same_winner_of_two_that_are_alike():
    assert {choose_host(order, {1, 2}, waited=0) for order in permutations(bids(FITS, FITS))} == {1}


def test_a_host_that_is_silent_wins_nothing():
    assert choose_host(bids(FITS, FITS_WELL), {1}, waited=0) == 1
    assert choose_host(bids(FITS), {2}, waited=60) is None


def test_a_living_host_is_waited_for_no_longer_than_a_beat():
    assert choose_host(bids(FITS), {1, 2}, waited=bidding.BIDS_WITHIN - 0.1) is None
    assert choose_host(bids(FITS), {1, 2}, waited=bidding.BIDS_WITHIN) == 1


# --- one supervisor's part


class Site:
    """Hosts with their bidders, a clock, and the bids that all of them see."""

    def __init__(self, **free: int) -> None:
        self.now = 0.0
        self.free = dict(zip(range(1, len(free) + 1), free.values(), strict=True))
        self.models: dict[int, Unassigned] = {}
        self.sizes: dict[int, int] = {}
        self.files: dict[int, set[int]] = {}  # by host
        self.owners: dict[int, int] = {}
        self.bids: dict[int, dict[int, Offer]] = {}
        self.writes = 0
        self.away: set[int] = set()  # not alive
        self.unsettled: set[int] = set()
        self.bidders = {host: self.bidder(host) for host in self.free}

    def add(self, size: int, on: set[int], external: bool = False) -> int:
        number = len(self.models) + 1
        spec = Spec(engine="vllm", name=f"m{number}", path="" if external else "/m")
        self.models[number], self.sizes[number] = Unassigned(spec=spec, replicas=1, external=external), size
        for host in on:
            self.files.setdefault(host, set()).add(number)
        return number

    def bidder(self, host: int) -> Bidder:
        async def offer(model: Unassigned) -> Offer:
            number = next(key for key, one in self.models.items() if one is model)
            return Offer(fits=self.sizes[number] <= self.free[host], free=self.free[host])

        async def here(found):
            return [number for number in found if number in self.files.get(host, ())]

        return Bidder(
            host,
            View(self, host),
            make_offer=offer,
            is_settled=lambda model: model not in self.unsettled,
            with_files=here,
            clock=lambda: self.now,
        )

    def turn(self, host: int) -> bool:
        return asyncio.run(self.bidders[host].bid_and_take())

    def turns(self, seconds: int = 1) -> dict[int, int]:
        for _ in range(seconds):
            self.now += 1
            for host in self.bidders:
                if host not in self.away:
                    self.turn(host)
        return self.owners


class View:
    """A host's view of the bids, as `bidding.BidBook`."""

    def __init__(self, site: Site, host: int) -> None:
        self.site, self.host = site, host

    async def unassigned_models(self):
        return {number: one for number, one in self.site.models.items() if number not in self.site.owners}

    async def living_hosts(self):
        return self.site.free.keys() - self.site.away

    async def place_bids(self, offers):
        self.site.writes += 1
        self.site.bids[self.host] = dict(offers)

    async def open_bids(self, models):
        told = self.site.bids.items()
        return {
            model: [Bid(host=host, offer=offers[model]) for host, offers in told if model in offers] for model in models
        }

    async def take_model(self, model):
        if model in self.site.owners:
            return False
        self.site.owners[model] = self.host
        self.site.free[self.host] -= self.site.sizes[model]
        return True


def test_e9_who_looks_first_takes_nothing_that_fits_elsewhere():
    site = Site(small=10, large=40)
    model = site.add(30, on={1, 2})
    assert site.turns(2) == {model: 2}


def test_e9_a_host_that_is_alone_takes_at_once_even_what_does_not_fit():
    site = Site(only=10, gone=99)
    site.away = {2}
    model = site.add(30, on={1})
    assert site.turns(1) == {model: 1}
    assert site.bids == {1: {}}


def test_a_host_without_the_files_is_waited_for_a_beat():
    site = Site(one=10, other=99)
    model = site.add(5, on={1})
    assert site.turns(5) == {}
    assert site.turns(1) == {model: 1}


def test_e9_models_that_come_at_once_are_spread_by_the_room_that_is_left():
    site = Site(one=25, other=24)
    for _ in range(4):
        site.add(10, on={1, 2})
    site.turns(12)
    assert sorted(site.owners.values()) == [1, 1, 2, 2]
    assert min(site.free.values()) >= 0


def test_nothing_more_is_taken_until_memory_is_set_apart_for_the_last_one():
    site = Site(one=40, other=1)
    first, second = site.add(10, on={1, 2}), site.add(10, on={1, 2})
    site.unsettled = {first}
    assert site.turns(4) == {first: 1}
    site.unsettled = set()
    assert site.turns(2) == {first: 1, second: 1}


def test_what_never_settles_does_not_hold_the_others_up_for_ever():
    site = Site(one=40, other=1)
    first, second = site.add(10, on={1, 2}), site.add(10, on={1, 2})
    site.unsettled = {first}
    assert set(site.turns(2 + int(bidding.SETTLED_WITHIN))) == {first, second}


def test_an_external_engine_needs_no_bid():
    site = Site(one=1, other=1)
    model = site.add(0, on=set(), external=True)
    assert site.turn(2)
    assert site.owners == {model: 2}


def test_a_host_that_takes_none_now_withdraws_its_bids():
    site = Site(one=10, other=99)
    site.add(5, on={1})
    site.turns(1)
    assert site.bids[1]
    site.away = {1}  # maintenance: its supervisor still looks
    site.turn(1)
    assert site.bids[1] == {}


def test_what_has_not_changed_is_not_written_again():
    site = Site(one=10, other=99)
    site.add(5, on={1})
    site.turns(4)
    assert site.writes == 2  # one of each: a bid, and none


# --- the rows


@pytest.fixture
def hosts(db) -> list[Host]:
    now = timezone.now()
    return [Host.objects.create(name=f"gpu-{number}", claim="c", seen_at=now) for number in range(2)]


def unassigned(name: str = "m", **values) -> ServedModel:
    return ServedModel.objects.create(name=name, engine="vllm", path="/m", **values)


def test_of_two_hosts_that_take_one_gets_it_and_the_bids_are_gone(hosts):
    model = unassigned()
    for host in hosts:
        repository.place_bids(host.pk, {model.pk: FITS})
    assert [repository.take_model(model.pk, host.pk) for host in hosts] == [True, False]
    model.refresh_from_db()
    assert model.host == hosts[0]
    assert not HostBid.objects.exists()
    assert repository.unassigned_models() == {}


def test_bids_are_replaced_and_none_is_left_of_what_is_gone(hosts):
    first, second = unassigned(), unassigned("n", replicas=2)
    repository.place_bids(hosts[0].pk, {first.pk: FITS})
    repository.place_bids(hosts[1].pk, {first.pk: FITS_WELL, second.pk: TOO_SMALL, 4711: FITS})
    repository.place_bids(hosts[0].pk, {second.pk: FITS})
    assert repository.open_bids([first.pk, second.pk]) == {
        first.pk: [Bid(host=hosts[1].pk, offer=FITS_WELL)],
        second.pk: [Bid(host=hosts[1].pk, offer=TOO_SMALL), Bid(host=hosts[0].pk, offer=FITS)],
    }
    assert repository.unassigned_models()[second.pk].replicas == 2


@pytest.mark.parametrize(
    ("state", "keeping", "kept"),
    [("ready", True, True), ("asleep", True, True), ("failed", True, False), ("ready", False, False)],
)
def test_a_model_whose_host_was_cleared_stays_where_it_runs(hosts, state, keeping, kept):
    """A form that was opened before the model had a host clears it, too."""
    model = unassigned()
    Replica.objects.create(model=model, host=hosts[1], state=state)
    assert repository.desired_models(hosts[0].pk, keeping=keeping) == {}
    assert list(repository.desired_models(hosts[1].pk, keeping=keeping)) == ([model.pk] if kept else [])
    model.refresh_from_db()
    assert (model.host == hosts[1]) is kept


@pytest.mark.parametrize(
    ("change", "could"),
    [
        ({}, True),
        ({"maintenance": True}, False),
        ({"claim": ""}, False),
        ({"seen_at": None}, False),
        ({"seen_at": timedelta(seconds=lease.STALE_AFTER + 1)}, False),
        ({"seen_at": -timedelta(hours=1)}, False),  # its clock was ahead
    ],
)
def test_who_is_silent_or_in_maintenance_could_take_nothing(hosts, change, could):
    values = {name: timezone.now() - value if isinstance(value, timedelta) else value for name, value in change.items()}
    Host.objects.filter(pk=hosts[0].pk).update(**values)
    assert (hosts[0].pk in repository.bidding_hosts()) is could
    assert hosts[1].pk in repository.bidding_hosts()
