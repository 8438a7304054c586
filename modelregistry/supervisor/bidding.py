"""Which host takes a model that no host has: of those with its files, one where it fits, with most room left.

Each supervisor writes a bid for the models whose files it sees, reads the bids of all, and takes what it wins by a
conditional update: whatever two of them see, one gets it. A single host takes a model at once, without a bid.
`choose_host` decides, as a pure function; `Bidder` is one supervisor's part.

Clocks of hosts are compared only to leave out those that have been silent for long: each waits by its own clock.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from django.db import Error

from modelregistry.engines.base import Spec

log = logging.getLogger(__name__)

EVERY = 1.0  # seconds between two searches for models without a host
BIDS_WITHIN = 5.0  # seconds to wait for the bid of a living host, whose disk may hang
OFFER_AGAIN = 5.0  # seconds after which an offer is computed again: others start and stop
SETTLED_WITHIN = 10.0  # seconds after which a taken model no longer delays others, settled or not
MAX_BIDS = 20  # models that are bid for at a time; computing an offer takes some 10 ms, for large vocabularies 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What a host offers for a model: whether it fits there now, and the free bytes where it would go.

    `cost`: where it does not fit, what it would cost to make room for it (`eviction.cost_of`); None: there cannot be.
    """

    fits: bool
    free: int
    cost: float | None = None

    @property
    def worth(self) -> tuple[bool, bool, float, int]:
        """Return what orders offers: where it fits, else where making room costs least, else where most is free."""
        can_come = self.fits or self.cost is not None
        return self.fits, can_come, 0.0 if self.fits else -(self.cost or 0.0), self.free


@dataclass(frozen=True, slots=True, kw_only=True)
class Bid:
    host: int
    offer: Offer


@dataclass(frozen=True, slots=True, kw_only=True)
class Unassigned:
    """A model without a host. An external one has no files, and needs no room."""

    spec: Spec
    replicas: int
    external: bool


def choose_host(bids: Iterable[Bid], living: Collection[int], *, waited: float) -> int | None:
    """Return the host that is to have the model; None: none yet.

    `living`: the hosts that could bid. `waited`: seconds since the caller's own bid; after BIDS_WITHIN it waits for no
    other host, whose disk may hang. If the model fits nowhere, it goes where making room for it costs least, or to the
    host with most room, which reports why it does not fit.
    """
    there = [bid for bid in bids if bid.host in living]
    if not there or (waited < BIDS_WITHIN and not {bid.host for bid in there} >= set(living)):
        return None
    return max(there, key=lambda bid: (*bid.offer.worth, -bid.host)).host


class BidBook(Protocol):
    """The bids, as all hosts see them. Each method raises django.db.Error when the database is away."""

    async def unassigned_models(self) -> Mapping[int, Unassigned]: ...
    async def living_hosts(self) -> set[int]:
        """Return the hosts that could take a model; without this one if it takes none now."""

    async def place_bids(self, offers: Mapping[int, Offer]) -> None:
        """Replace the bids of this host."""

    async def open_bids(self, models: Collection[int]) -> Mapping[int, list[Bid]]: ...
    async def take_model(self, model: int) -> bool:
        """Take the model; False if another host was quicker."""


class Bidder:
    """One supervisor's part in the bidding.

    `make_offer` computes what the host offers for a model. `is_settled`: whether a model that was taken has its memory,
    so that two models do not count on the same. `with_files`: those of some models whose files the host sees.
    """

    def __init__(
        self,
        host: int,
        book: BidBook,
        *,
        make_offer: Callable[[Unassigned], Awaitable[Offer]],
        is_settled: Callable[[int], bool],
        with_files: Callable[[Mapping[int, Unassigned]], Awaitable[list[int]]],
        clock: Callable[[], float],
    ) -> None:
        self.host = host
        self.book = book
        self.make_offer = make_offer
        self.is_settled = is_settled
        self.with_files = with_files
        self.clock = clock
        self.offers: dict[int, tuple[float, Offer]] = {}  # when it was computed
        self.first_bid_at: dict[int, float] = {}  # when it was first bid for
        self.written: Mapping[int, Offer] | None = None  # None: those of an earlier supervisor may be there
        self.taken: tuple[float, int] | None = None  # when, and which

    async def bid_and_take(self) -> bool:
        """Bid for the models without a host, and return whether some were taken."""
        found = await self.book.unassigned_models()
        living = await self.book.living_hosts() if found else set()
        if self.host not in living:
            await self._write({})
            return False
        outside = [model for model, one in found.items() if one.external]
        taken = [model for model in outside if await self.book.take_model(model)]
        there = await self.with_files({model: one for model, one in found.items() if not one.external})
        if living == {self.host}:
            taken += [model for model in there if await self.book.take_model(model)]
            await self._write({})
        elif self._is_free():
            taken += await self._compete({model: found[model] for model in islice(sorted(there), MAX_BIDS)}, living)
        return bool(taken)

    def _is_free(self) -> bool:
        """Return whether it is known how much room the model that was taken last leaves."""
        return self.taken is None or self.clock() - self.taken[0] >= SETTLED_WITHIN or self.is_settled(self.taken[1])

    async def _compete(self, found: Mapping[int, Unassigned], living: Collection[int]) -> list[int]:
        """Bid for these models, and take at most one: it leaves less room for the others."""
        self.taken = None
        now = self.clock()
        for model, one in found.items():
            if model not in self.offers or now - self.offers[model][0] >= OFFER_AGAIN:
                self.offers[model] = now, await self.make_offer(one)
            self.first_bid_at.setdefault(model, now)
        await self._write({model: self.offers[model][1] for model in found})
        bids = await self.book.open_bids(found)
        for model in found:
            winner = choose_host(bids.get(model, ()), living, waited=self.clock() - self.first_bid_at[model])
            if winner == self.host and await self.book.take_model(model):
                self.taken = self.clock(), model
                self.offers.clear()
                return [model]
        return []

    async def _write(self, offers: Mapping[int, Offer]) -> None:
        for known in (self.offers, self.first_bid_at):
            for model in known.keys() - offers.keys():
                del known[model]
        if offers != self.written:
            self.written = None  # if it fails
            await self.book.place_bids(offers)
            self.written = offers

    async def run_turn(self, taken: Callable[[], None]) -> None:
        """Bid once and pause, as a watchdog's step; call `taken` when there is more to serve."""
        try:
            if await self.bid_and_take():
                taken()
        except Error as error:
            # `StateSync` logs that the database is away.
            log.debug("no bids: %s", error)
        await asyncio.sleep(EVERY)
