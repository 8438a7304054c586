"""Engines on machines that no controller reaches: of a controller that is gone, whose machine was no host of a cluster.

Nothing there can be started or stopped. An engine that answers serves on; one that does not is taken off the catalogue,
and its replica placed on another host, unless its model belongs to that machine. A machine on which a controller runs
again finds what was moved, and stops it.
"""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Protocol

import httpx2

from modelregistry.hostside.replicas import ReplicaKey
from modelregistry.supervisor import doubts, plan
from modelregistry.supervisor.repository import ReplicaFacts

EVERY = plan.CHECK_EVERY
FIRST_LOOK = 15.0  # seconds until each host that can be reached has its supervisor, which waits for its claim


class ForsakenBook(Protocol):
    """Rows of replicas, by the ids of their hosts. Each method raises django.db.Error."""

    async def forsaken_replicas(self, supervised: Collection[int]) -> Mapping[int, Mapping[ReplicaKey, ReplicaFacts]]:
        """Return those that belong where they are, on machines outside of the cluster that are not `supervised`."""

    async def write_replica(self, host: int, key: ReplicaKey, facts: ReplicaFacts) -> bool: ...


class ForsakenMachines:
    """One controller's look at them. `supervised`: the ids of the hosts that have a supervisor now.

    `note` gets the rows of these replicas, as they are after each look.
    """

    def __init__(
        self,
        supervised: Callable[[], Collection[int]],
        book: ForsakenBook,
        *,
        note: Callable[[Mapping[ReplicaKey, ReplicaFacts]], None] = lambda rows: None,
        clock: Callable[[], float],
    ) -> None:
        self.supervised = supervised
        self.book = book
        self.note = note
        self.clock = clock
        self.began = clock()

    async def look(self) -> None:
        """Ask the engines once."""
        if self.clock() - self.began < FIRST_LOOK:
            return
        found = await self.book.forsaken_replicas(list(self.supervised()))
        rows: dict[ReplicaKey, ReplicaFacts] = {}
        if not found:
            self.note(rows)
            return
        limits = httpx2.Limits(max_keepalive_connections=0)
        async with httpx2.AsyncClient(limits=limits, trust_env=False) as client:
            for host, known in found.items():
                rows |= known
                rows |= await doubts.look(client, known, partial(self.book.write_replica, host))
        self.note(rows)
