"""The hosts of a cluster, as the controller has them: it finds them, gives each an agent, and renews their leases.

It also keeps in Ray what replicas take of their memory (`booker`).

A host is known by its node, and from its first appearance on by its row: one that is gone is supervised as well, as
its replicas have to be taken off the catalogue and started elsewhere.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial

from django.db import Error

from modelregistry.cluster.agent_description import AgentDescription
from modelregistry.cluster.lease import LONGEST_HOLDER, NewerController
from modelregistry.cluster.link import ClusterChannel, ClusterLink, ClusterSilent, HostRefused, Renewal
from modelregistry.controller import booker, repository
from modelregistry.controller.booker import BookableHost, Booker, HostBookings
from modelregistry.hostside import wire
from modelregistry.hostside.executor import Executor
from modelregistry.hostside.remote import RemoteHost
from modelregistry.hostside.surface import HostSurface
from modelregistry.supervisor.async_helpers import cancel_and_wait, wait_for_either
from modelregistry.supervisor.database import take_turn
from modelregistry.supervisor.office import Office
from modelregistry.supervisor.watchdog import Watchdog
from modelregistry.transfer.remote import RemoteFiles
from modelregistry.transfer.surface import FileSurface

log = logging.getLogger(__name__)

LOOK_EVERY = 1.0  # seconds between two looks at the cluster's nodes
RENEW_EVERY = 5.0  # seconds between two renewals of a host's lease
TRY_AGAIN = 0.5  # seconds after a host did not answer
DESCRIBE_EVERY = 30.0  # seconds between two questions to an agent about itself
TERMS = 2**53  # a term is below that; one that is not is no term of ours

Join = Callable[[str, Callable[[], HostSurface]], asyncio.Task[None]]


class ClusterHosts:
    """The cluster of one controller. `lease`: seconds that hosts keep their engines without it.

    `supervised_hosts`: those that have a supervisor now, by their names.
    `highest_term`: the latest that a host which refused this controller has seen.
    """

    def __init__(
        self,
        link: ClusterLink,
        *,
        office: Office,
        database: Executor,
        lease: float,
        supervised_hosts: Callable[[], Mapping[str, BookableHost]],
    ) -> None:
        self.link = link
        self.database = database
        # A term belongs to one holder, also where two databases gave it twice.
        holder = f"{office.number} on {office.holder}"[:LONGEST_HOLDER]
        self.renewal = Renewal(term=office.term, holder=holder, seconds=lease)
        self.pause = min(RENEW_EVERY, lease / 6)
        self.watchdog = Watchdog()
        self.alive: set[str] = set()  # as the cluster's head saw it last
        self.holding: dict[str, tuple[asyncio.Task[None], ...]] = {}
        self.opening: dict[str, asyncio.Task[None]] = {}
        self.supervised: dict[str, asyncio.Task[None]] = {}
        self.highest_term = 0
        self.booker = Booker(
            *(link, supervised_hosts),
            read_known=partial(database.run, repository.clustered_hosts),
            record=self._record_bookings,
            clock=time.monotonic,
        )

    async def run(self, join: Join, stop: asyncio.Event) -> None:
        """Hold the cluster's hosts until `stop`. `join` begins to supervise one."""
        await self.link.open()
        self.watchdog.keep_running("bookings", partial(take_turn, self.booker.look, booker.EVERY))
        while not stop.is_set():
            await self._look(join)
            await wait_for_either(stop, LOOK_EVERY)

    async def _record_bookings(self, name: str, found: HostBookings) -> None:
        await self.database.run(repository.note_bookings, name, found.stored())

    async def release_bookings(self) -> None:
        """Give up what is booked, as all engines were stopped. What Ray does not hear the next controller gives up."""
        with contextlib.suppress(ClusterSilent):
            await self.booker.release()

    async def close(self) -> None:
        """Let go of the hosts: they keep their engines until their leases are over, or the next controller comes."""
        await self.watchdog.close()
        await cancel_and_wait(list(self.opening.values()))
        await self.link.close()

    async def _look(self, join: Join) -> None:
        try:
            self.alive = {node.host for node in await self.link.list_nodes() if node.alive and node.host}
        except ClusterSilent as silence:
            log.debug("the cluster's head is silent: %s", silence)
        try:
            known = await self.database.run(repository.clustered_hosts)
        except Error as error:
            log.debug("the database is away: %s", error)
            return
        for name in self.holding.keys() - self.alive - known:
            for task in self.holding.pop(name):  # it left, and its row was removed
                task.cancel()
        for name in sorted((self.alive | known) - self.holding.keys()):
            self.holding[name] = (
                self.watchdog.keep_running(f"lease of {name}", partial(self._hold, name)),
                self.watchdog.keep_running(f"description of {name}", partial(self._note, name)),
            )
        for name in sorted(known):
            running = self.supervised.get(name)
            if running is None or running.done():
                self.supervised[name] = join(name, partial(self._reach, name))

    def _reach(self, name: str) -> HostSurface:
        return RemoteHost(self._channel(name))

    def files(self) -> dict[str, FileSurface]:
        """Return the files of the hosts that are in the cluster now, by their names."""
        return {name: RemoteFiles(self._channel(name)) for name in self.alive}

    def _channel(self, name: str) -> ClusterChannel:
        return ClusterChannel(self.link, name, self.renewal.term, self.renewal.holder)

    async def _hold(self, name: str) -> None:
        """Renew the lease of a host once, and give it an agent if it has none, as a watchdog's step."""
        try:
            await self.link.renew(name, self.renewal)
        except ClusterSilent as silence:
            log.debug("%s is silent: %s", name, silence)
            self._begin_opening(name)
            await asyncio.sleep(TRY_AGAIN)
        except HostRefused as refusal:
            log.warning("%s refuses this controller: %s", name, refusal)
            if refusal.kind == NewerController.__name__ and refusal.term < TERMS:
                self.highest_term = max(self.highest_term, refusal.term)
            await asyncio.sleep(self.pause)
        else:
            await asyncio.sleep(self.pause)

    def _begin_opening(self, name: str) -> None:
        """Have it get an agent, beside the renewals: that may take half a minute, and it may have one that was slow."""
        running = self.opening.get(name)
        if name in self.alive and (running is None or running.done()):
            self.opening[name] = asyncio.create_task(self._open(name), name=f"agent of {name}")

    async def _open(self, name: str) -> None:
        try:
            await self.link.open_host(name)
        except (ClusterSilent, HostRefused) as error:
            log.debug("%s got no agent: %s", name, error)

    async def _note(self, name: str) -> None:
        """Record what the agent of a host says of itself, as a watchdog's step; one that is new gets a row.

        Apart from the renewals, which wait for no database.
        """
        try:
            found = await self.link.describe(name)
            described: AgentDescription = wire.decode(AgentDescription, found, "description")
            await self.database.run(repository.note_host, name, described.address, asdict(described))
        except wire.WireFault as fault:
            log.warning("%s describes itself as no agent does: %s", name, fault)
            await asyncio.sleep(DESCRIBE_EVERY)
        except (ClusterSilent, HostRefused, Error) as error:
            log.debug("%s is not described: %s", name, error)
            await asyncio.sleep(TRY_AGAIN)
        else:
            await asyncio.sleep(DESCRIBE_EVERY)
