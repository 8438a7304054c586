"""Where the ranks of replicas run that are split over several hosts: all of a replica are placed at once, or none.

A gang goes to as many different hosts as it has ranks, each with the model's files and room for its share; of those
where fewest others of the model are, then where most memory is free; where that is not enough, to those where making
room costs least. The first leads. The hosts reach each other at their addresses: loopback is one machine only, so it
goes together with nothing but loopback.

It stays there, with the exceptions of any replica (`placer`), for any of its ranks; then all of it is placed again, on
hosts that all have room. It serves nowhere else meanwhile: two of it would need twice as many hosts.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_address
from typing import Protocol

from modelregistry.controller.repository import FreeModel, PlacedAt
from modelregistry.hostside.replicas import ReplicaKey
from modelregistry.supervisor.offers import Offer, rank_offer

log = logging.getLogger(__name__)


class GangPlacer(Protocol):
    """What of a `placer.Placer` is needed here."""

    def is_doubted(self, key: ReplicaKey, model: FreeModel, places: Sequence[PlacedAt]) -> bool:
        """Return whether other places are to be looked for now, if one of these turns out to be bad."""

    def is_bad(self, key: ReplicaKey, model: FreeModel, at: PlacedAt, *, serves: bool) -> bool:
        """Return whether a host does not do for this replica, or rank."""

    def is_lost(self, host: int) -> bool: ...

    def is_proving(self, key: ReplicaKey, host: int) -> bool:
        """Return whether one whose rank 0 is on that host may yet prove that all its ranks are there."""

    async def find_offers(self, key: ReplicaKey, model: FreeModel, *, needed: int) -> dict[int, Offer] | None:
        """Return the offers of the hosts that have its files; None: not yet."""

    def address_of(self, host: int) -> str: ...

    def note_gap(self, model: int, *, hosts: int, having_files: int, needed: int) -> None:
        """Note that a replica has no place. `hosts`: how many could take a part, of those that have its files."""

    async def place_gang(self, key: ReplicaKey, hosts: Sequence[int], before: Sequence[int | None]) -> bool: ...


def choose_hosts(
    offers: Mapping[int, Offer], neighbours: Mapping[int, int], addresses: Mapping[int, str], count: int
) -> list[int] | None:
    """Return the hosts of the ranks of one replica, by rank; None: there are not enough that reach each other."""
    best: list[int] | None = None
    for there in group_reachable(offers, addresses):
        there.sort(key=lambda one: rank_offer(one, offers[one], neighbours), reverse=True)
        chosen = there[:count]
        if len(chosen) == count and (best is None or _fitting(chosen, offers) > _fitting(best, offers)):
            best = chosen
    return best


def group_reachable(hosts: Iterable[int], addresses: Mapping[int, str]) -> list[list[int]]:
    """Return the hosts in two groups, in each of which all reach each other."""
    known = [one for one in hosts if addresses.get(one)]
    return [[one for one in known if is_loopback(addresses[one]) == loopback] for loopback in (False, True)]


def _fitting(hosts: Sequence[int], offers: Mapping[int, Offer]) -> int:
    return sum(offers[host].fits for host in hosts)


def is_loopback(address: str) -> bool:
    """Return whether an address is reached from its own machine only."""
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return address.lower() == "localhost"


async def place_gangs(placer: GangPlacer, model_id: int, model: FreeModel) -> None:
    """Place all replicas of a model over several hosts that need it."""
    placed, nodes = dict(model.placed), model.spec.nodes
    for gang in range(model.replicas):
        numbers = range(gang * nodes, (gang + 1) * nodes)
        key, at = ReplicaKey(model_id, gang * nodes), [placed.get(number) for number in numbers]
        known = replace(model, placed=placed)
        hosts = await _find_hosts(placer, key, known, at)
        before = [one.host if one else None for one in at]
        if hosts and hosts != before and await placer.place_gang(key, hosts, before):
            placed |= {number: PlacedAt(host=host) for number, host in zip(numbers, hosts, strict=True)}


async def _find_hosts(
    placer: GangPlacer, key: ReplicaKey, model: FreeModel, at: Sequence[PlacedAt | None]
) -> list[int] | None:
    """Return the hosts that are to have a gang, by rank; None: it stays, or there are none yet."""
    nodes = model.spec.nodes
    known = [one for one in at if one]
    complete = len(known) == nodes and len({one.host for one in known}) == nodes
    if complete and not _is_badly_placed(placer, key, model, known):
        return None
    offers = await placer.find_offers(key, model, needed=nodes)
    if offers is None:
        return None
    lost = any(placer.is_lost(one.host) for one in known)
    if complete:
        offers = {one: offer for one, offer in offers.items() if offer.fits or (lost and offer.possible)}
    addresses = {one: placer.address_of(one) for one in offers}
    chosen = choose_hosts(offers, _count_neighbours(model, key.number), addresses, nodes)
    if chosen is None and not complete:
        hosts = max(len(group) for group in group_reachable(offers, addresses))
        placer.note_gap(key.model, hosts=hosts, having_files=len(offers), needed=nodes)
    return chosen


def _is_badly_placed(placer: GangPlacer, key: ReplicaKey, model: FreeModel, at: Sequence[PlacedAt]) -> bool:
    if not placer.is_doubted(key, model, at):
        return False
    serves = at[0].state in ("ready", "draining") or placer.is_proving(key, at[0].host)
    keys = [ReplicaKey(key.model, key.number + rank) for rank in range(len(at))]
    return any(placer.is_bad(one, model, place, serves=serves) for one, place in zip(keys, at, strict=True))


def _count_neighbours(model: FreeModel, first: int) -> dict[int, int]:
    """Return how many ranks of other replicas of the model each host has."""
    found: dict[int, int] = {}
    for number, at in model.placed.items():
        if not first <= number < first + model.spec.nodes:
            found[at.host] = found.get(at.host, 0) + 1
    return found
