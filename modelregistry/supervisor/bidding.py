"""Which host takes a model that belongs to none: the one where it fits and has most room, among those with its files.

Each supervisor writes a bid for the models whose files it sees, looks at the bids of all, and takes what it wins by a
conditional update: whatever two of them see, one gets it. A host that is alone takes at once, without a bid. `choose`
decides, purely and for one replica; `Bidder` is what one supervisor does about it.

Clocks of hosts are compared only to leave out those that have been silent for long: who waits, waits by his own.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

from django.db import Error

from modelregistry.engines.base import Spec

log = logging.getLogger(__name__)

EVERY = 1.0  # seconds between two looks for models of no host
BIDS_WITHIN = 5.0  # seconds that a living host is waited for: its disk may not be there
OFFER_AGAIN = 5.0  # seconds after which what was offered is worked out anew: others start and stop
SETTLED_WITHIN = 10.0  # after which what was taken no longer keeps others waiting, whatever became of it
MOST = 20  # models that are bid for at a time; working one out takes some 10 ms, for large vocabularies 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What a host has for a model: whether it fits there now, and bytes that are free where it would go."""

    fits: bool
    free: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Bid:
    host: int
    offer: Offer


@dataclass(frozen=True, slots=True, kw_only=True)
class Unassigned:
    """A model of no host. An external one has no files, and needs no room."""

    spec: Spec
    replicas: int
    external: bool


def choose_host(bids: Iterable[Bid], living: Collection[int], *, waited: float) -> int | None:
    """Return the host that is to have it; None: none yet.

    `living`: the hosts that could bid. `waited`: seconds since the asker's own bid: after BIDS_WITHIN nobody else is
    waited for, as a host may be alive and its disk not. Where it fits nowhere, the one with most room takes it and says
    why.
    """
    there = [bid for bid in bids if bid.host in living]
    if not there or (waited < BIDS_WITHIN and not {bid.host for bid in there} >= set(living)):
        return None
    return max(there, key=lambda bid: (bid.offer.fits, bid.offer.free, -bid.host)).host


class BidBook(Protocol):
    """The bids, as all hosts see them. Each method raises django.db.Error when the database is away."""

    async def unassigned(self) -> Mapping[int, Unassigned]: ...
    async def living(self) -> set[int]:
        """Hosts that could take a model, this one among them; without it: it takes none now."""

    async def bid(self, offers: Mapping[int, Offer]) -> None:
        """These are all that this host bids."""

    async def bids(self, models: Collection[int]) -> Mapping[int, list[Bid]]: ...
    async def take(self, model: int) -> bool:
        """Whether it is ours now: somebody may have been quicker."""


class Bidder:
    """One supervisor's part. `offer` works out what the host has for a model; `settled`: whether memory is set apart
    for what was taken before, so that two models do not count on the same.
    """

    def __init__(
        self,
        host: int,
        book: BidBook,
        *,
        offer: Callable[[Unassigned], Awaitable[Offer]],
        settled: Callable[[int], bool],
        here: Callable[[Mapping[int, Unassigned]], Awaitable[list[int]]],
        clock: Callable[[], float],
    ) -> None:
        self.host = host
        self.book = book
        self.offer = offer
        self.settled = settled
        self.here = here
        self.clock = clock
        self.offers: dict[int, tuple[float, Offer]] = {}  # when it was worked out
        self.since: dict[int, float] = {}  # when it was first bid for
        self.written: Mapping[int, Offer] | None = None  # None: an earlier supervisor's may be there
        self.taken: tuple[float, int] | None = None  # when, and which

    async def turn(self) -> bool:
        """Return one look at the models of no host; whether some were taken."""
        found = await self.book.unassigned()
        living = await self.book.living() if found else set()
        if self.host not in living:
            await self._write({})
            return False
        outside = [model for model, one in found.items() if one.external]
        taken = [model for model in outside if await self.book.take(model)]
        there = await self.here({model: one for model, one in found.items() if not one.external})
        if living == {self.host}:
            taken += [model for model in there if await self.book.take(model)]
            await self._write({})
        elif self._is_free():
            taken += await self._compete({model: found[model] for model in islice(sorted(there), MOST)}, living)
        return bool(taken)

    def _is_free(self) -> bool:
        """Return whether it is known how much room is left after what was taken last."""
        return self.taken is None or self.clock() - self.taken[0] >= SETTLED_WITHIN or self.settled(self.taken[1])

    async def _compete(self, found: Mapping[int, Unassigned], living: Collection[int]) -> list[int]:
        """At most one at a time is taken: the next ones have less room then."""
        self.taken = None
        now = self.clock()
        for model, one in found.items():
            if model not in self.offers or now - self.offers[model][0] >= OFFER_AGAIN:
                self.offers[model] = now, await self.offer(one)
            self.since.setdefault(model, now)
        await self._write({model: self.offers[model][1] for model in found})
        bids = await self.book.bids(found)
        for model in found:
            winner = choose_host(bids.get(model, ()), living, waited=self.clock() - self.since[model])
            if winner == self.host and await self.book.take(model):
                self.taken = self.clock(), model
                self.offers.clear()
                return [model]
        return []

    async def _write(self, offers: Mapping[int, Offer]) -> None:
        for known in (self.offers, self.since):
            for model in known.keys() - offers.keys():
                del known[model]
        if offers != self.written:
            self.written = None  # if it fails
            await self.book.bid(offers)
            self.written = offers

    async def keep(self, taken: Callable[[], None]) -> None:
        """A turn and a pause, for a watchdog; calls `taken` when there is more to serve."""
        try:
            if await self.turn():
                taken()
        except Error as error:
            # The supervisor's other exchanges tell that the database is away.
            log.debug("no bids: %s", error)
        await asyncio.sleep(EVERY)


def with_files(found: Mapping[int, Unassigned]) -> list[int]:
    """Return those whose files this machine sees. Looks at the disk, which may hang."""
    return [model for model, one in found.items() if one.spec.path and Path(one.spec.path).exists()]
