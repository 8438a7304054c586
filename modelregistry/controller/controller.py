"""`Controller`: decides for all hosts of a site.

Of all processes that run it one is elected (`election`); the others wait. It has a supervisor for each host, the
machine on which it runs and those of the cluster, renews the leases of the latter (`cluster_hosts`), and places
replicas (`placer`). It keeps nothing that the next controller needs: that reads the database, and finds engines by
their runs.

The machine on which it runs is reached without a cluster. Where another controller takes over, engines of this machine
run on without supervision; a machine whose engines are to survive that joins the cluster as a host.
"""

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from django.db import Error, close_old_connections, connections

from modelregistry.cluster.access import NotSecured
from modelregistry.cluster.link import ClusterLink
from modelregistry.controller import copier as copying
from modelregistry.controller import forsaken as forsaken_machines
from modelregistry.controller import placer as placement
from modelregistry.controller import repository, watching
from modelregistry.controller import scaler as scaling
from modelregistry.controller.cluster_hosts import ClusterHosts
from modelregistry.controller.copier import Copier
from modelregistry.controller.election import Election
from modelregistry.controller.forsaken import ForsakenMachines
from modelregistry.controller.loads import read_loads
from modelregistry.controller.placer import PlaceableHost, Placer
from modelregistry.controller.repository import CopyProgress, CopyRequest, FreeModel
from modelregistry.controller.scaler import USUAL_SCALING, Scaler, ScalingRule
from modelregistry.controller.shortages import Gap, Shortage
from modelregistry.hostside.executor import Executor
from modelregistry.hostside.replicas import ReplicaKey
from modelregistry.hostside.surface import HostSurface
from modelregistry.supervisor.async_helpers import wait_for_either
from modelregistry.supervisor.database import Database, take_turn
from modelregistry.supervisor.gangs import Gangs
from modelregistry.supervisor.launching import SupervisorConfig
from modelregistry.supervisor.loop import Signals, Supervisor
from modelregistry.supervisor.office import BEAT, Office, Replaced
from modelregistry.supervisor.repository import ReplicaFacts, write_replica
from modelregistry.supervisor.state_sync import HostRemoved
from modelregistry.supervisor.tasks import TaskRunner
from modelregistry.supervisor.watchdog import Watchdog
from modelregistry.transfer.surface import FileSurface

log = logging.getLogger(__name__)

T = TypeVar("T")

CONTROLLER = ""  # itself, beside the supervisors of hosts, which have names
LOOK_AGAIN = 1.0  # seconds between two looks at the claim of another controller
YIELD_AGAIN = 60.0  # seconds between two elections because of what a host has seen: it may be one that lies
AGAIN_AFTER = 5.0  # seconds until the supervisor of a host is started again that failed
NAME_THREADS = 64  # a lookup may occupy one for half a minute, and each external model is checked every 10 s


class Controller:
    """One process's controller. Run it once.

    `config`: of the machine on which it runs; `claim`: where its claim is kept. `make_local`: returns a surface of
    that machine; None: the usual one. `make_link`: returns a way into the cluster; None: there is none. `files`: of
    that machine, which is a source of copies also where it is no host. `copies_files`: also by itself, where a replica
    fits on no host that has them.
    """

    def __init__(
        self,
        config: SupervisorConfig,
        *,
        claim: Path,
        periodic_tasks: TaskRunner | None = None,
        make_local: Callable[[], HostSurface] | None = None,
        make_link: Callable[[], ClusterLink] | None = None,
        files: FileSurface | None = None,
        copies_files: bool = False,
        lease: float = 60.0,
        scaling: ScalingRule = USUAL_SCALING,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.periodic_tasks = periodic_tasks
        self.make_local = make_local
        self.make_link = make_link
        self.files = files
        self.copies_files = copies_files
        self.lease = lease
        self.scaling = scaling
        self.clock = clock
        self.election = Election(claim, clock)
        self.holder = f"{socket.gethostname()}, process {os.getpid()}, {claim.parent.parent}"
        self.database = Database()
        self.readers = Executor(1, "files")  # for what reads files as well, of a disk that may hang
        self.supervisors: dict[str, Supervisor] = {}
        self.gangs = Gangs(self.supervisors, clock)  # of this term
        self.least_term = 0  # hosts have seen that, so the next election's is above
        self.link: ClusterLink | None = None  # into the cluster, of one that waits and may be elected soon
        self.warned = False  # that it cannot control the hosts of a cluster
        self.yielded_at = float("-inf")  # when it stepped down for a later term that a host had seen

    async def run(self, signals: Signals, *, stop_engines: bool) -> None:
        """Wait to be elected, then control until `signals.stop`. Engines keep running, unless `stop_engines`.

        Raises HostRemoved when the machine itself was.
        """
        # Names are resolved by the loop's own threads, of which there are six by default: lookups for one external
        # model whose name server does not answer must not keep others from being checked.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(NAME_THREADS, "names"))
        removed: HostRemoved | None = None
        try:
            while not signals.stop.is_set() and removed is None:
                office = await self._wait_for_office(signals.stop)
                if office is None:
                    return
                try:
                    await self._control(office, signals, stop_engines=stop_engines)
                except* Replaced as replaced:
                    log.warning("another controller takes over; engines are left as they are: %s", replaced.exceptions)
                except* HostRemoved as group:
                    removed = _first_of(group)
                    await self.database.ask(repository.release_claim, office.number)
                else:
                    await self.database.ask(repository.release_claim, office.number)
        finally:
            await self._prepare_link(wanted=False)
            await self.database.ask(connections.close_all)
            self.database.close()
            self.readers.close()
        if removed:
            raise removed

    # --- Being elected

    async def _wait_for_office(self, stop: asyncio.Event) -> Office | None:
        while not stop.is_set():
            try:
                office = await self._try_to_take_office()
                self.database.note(CONTROLLER, None)
                if office:
                    self.election.keep_claim()
                    return office
            except Error as error:
                self.database.note(CONTROLLER, error)
            await wait_for_either(stop, LOOK_AGAIN)
        return None

    async def _try_to_take_office(self) -> Office | None:
        found = await self.database.run(repository.read_claim)
        may_take = self.election.may_take(found)
        if may_take and await self._reaches_hosts():
            taking = repository.take_claim
            number, least = self.election.number, self.least_term
            if office := await self.database.run(taking, found, number, self.holder, above=least):
                return office
        await self._prepare_link(wanted=self.election.is_expected())
        return None

    async def _prepare_link(self, *, wanted: bool) -> None:
        """Have a way into the cluster before an election that is expected, and none while another one controls.

        A driver takes 1 to 4 s to be there. It asks no host for anything before this process is elected.
        """
        if not wanted and self.link:
            link, self.link = self.link, None
            await link.close()
        elif wanted and self.make_link and self.link is None:
            try:
                self.link = self.make_link()
            except NotSecured as error:  # one that is elected has to say so
                log.warning("the way into the cluster cannot be prepared: %s", error)
            else:
                await self.link.open()

    async def _reaches_hosts(self) -> bool:
        """Return whether this process can renew the leases of the site's hosts: else their engines would be stopped."""
        joined = set() if self.make_link else await self.database.run(repository.clustered_hosts)
        if joined and not self.warned:
            log.error(
                "the site has hosts in a cluster (%s), and there is no way into it here (MADOGUCHI_VAR/cluster is "
                "missing): this process controls nothing",
                ", ".join(sorted(joined)),
            )
        self.warned = bool(joined)
        return not joined

    # --- Controlling

    async def _control(self, office: Office, signals: Signals, *, stop_engines: bool) -> None:
        """Control until `signals.stop`. Raises an ExceptionGroup of Replaced or HostRemoved."""
        log.info("term %d: this is the site's controller", office.term)
        watchdog = Watchdog()
        self.gangs = Gangs(self.supervisors, self.clock)
        cluster = self._find_cluster(office)
        placer = Placer(
            self._placeable_hosts,
            _Book(self.database),
            clock=self.clock,
            request_files=self._request_files if self.copies_files else None,
        )
        forsaken = ForsakenMachines(
            self._placeable_hosts, _Forsaken(self.database), note=self.gangs.note_forsaken, clock=self.clock
        )
        watchdog.keep_running("forsaken machines", partial(take_turn, forsaken.look, forsaken_machines.EVERY))
        watchdog.keep_running("placement", partial(take_turn, placer.place_all, placement.EVERY))
        scaler = Scaler(placer, partial(self.database.run, read_loads), self.scaling, clock=self.clock)
        watchdog.keep_running("numbers of replicas", partial(take_turn, scaler.look, scaling.EVERY))
        notify = partial(self.database.run, watching.send)
        watchdog.keep_running("notices of hosts", partial(take_turn, notify, watching.EVERY))
        copier = Copier(
            partial(self._hosts_with_files, cluster), _Copies(self.database), arrived=self._look_again, clock=self.clock
        )
        watchdog.keep_running("copies of files", partial(take_turn, copier.work, copying.EVERY))
        if self.periodic_tasks:
            watchdog.keep_running("periodic tasks", self.periodic_tasks.run)
        try:
            async with asyncio.TaskGroup() as services:
                renewal = services.create_task(self._keep_renewing(office, cluster))
                async with asyncio.TaskGroup() as hosts:

                    def supervise(name: str, make_host: Callable[[], HostSurface] | None) -> asyncio.Task[None]:
                        work = self._keep_supervising(
                            *(name, make_host, office, placer, signals), stop_engines=stop_engines
                        )
                        return hosts.create_task(work, name=name)

                    joined = await self._read_joined(signals.stop)
                    own = None if self.config.host in joined else supervise(self.config.host, self.make_local)
                    if cluster:

                        def join(name: str, make_host: Callable[[], HostSurface]) -> asyncio.Task[None]:
                            if own and name == self.config.host:  # this machine has become a host of the cluster
                                own.cancel()
                            return supervise(name, make_host)

                        hosts.create_task(cluster.run(join, signals.stop))
                if cluster and stop_engines:
                    await cluster.release_bookings()
                renewal.cancel()
        finally:
            await watchdog.close()
            if cluster:
                await cluster.close()

    def _find_cluster(self, office: Office) -> ClusterHosts | None:
        if self.make_link is None:
            return None
        link, self.link = self.link or self.make_link(), None
        return ClusterHosts(
            link,
            office=office,
            database=self.database,
            lease=self.lease,
            supervised_hosts=lambda: self.supervisors,
        )

    async def _keep_renewing(self, office: Office, cluster: ClusterHosts | None) -> None:
        """Renew the claim until this process is replaced: raises Replaced."""
        while True:
            await asyncio.sleep(BEAT)
            if cluster and cluster.highest_term >= office.term and self.clock() - self.yielded_at >= YIELD_AGAIN:
                # Another one is elected; or the database is an older one, and the next term has to be above it.
                self.yielded_at = self.clock()
                self.least_term = cluster.highest_term
                raise Replaced(f"a host has seen term {cluster.highest_term}")
            try:
                renewed = await self.database.run(repository.renew_claim, office.number)
            except Error as error:
                self.database.note(CONTROLLER, error)
                continue
            self.database.note(CONTROLLER, None)
            if not renewed:
                raise Replaced

    async def _keep_supervising(
        self,
        name: str,
        make_host: Callable[[], HostSurface] | None,
        office: Office,
        placer: Placer,
        signals: Signals,
        *,
        stop_engines: bool,
    ) -> None:
        """Supervise a host until `signals.stop`, and again if that fails. Raises Replaced, HostRemoved."""
        while not signals.stop.is_set():
            supervisor = self.supervisors[name] = Supervisor(
                replace(self.config, host=name),
                office=office,
                database=self.database,
                host=make_host() if make_host else None,
                may_move=placer.may_find_place,
                gangs=self.gangs,
                clock=self.clock,
            )
            try:
                await supervisor.run(signals, stop_engines=stop_engines)
            except Replaced:
                raise
            except HostRemoved:
                if name == self.config.host and make_host is self.make_local:
                    raise
                log.warning("%s was removed", name)
                return
            except Exception:  # of one host: others are not to suffer from it
                log.exception("the supervisor of %s is started again", name)
                await wait_for_either(signals.stop, AGAIN_AFTER)
            finally:
                if self.supervisors.get(name) is supervisor:
                    del self.supervisors[name]

    def _placeable_hosts(self) -> Mapping[int, PlaceableHost]:
        return {one.sync.host_id: one for one in self.supervisors.values() if one.sync.host_id}

    def _hosts_with_files(self, cluster: ClusterHosts | None) -> Mapping[str, FileSurface]:
        own = {self.config.host: self.files} if self.files else {}
        return {**own, **(cluster.files() if cluster else {})}

    async def _request_files(self, model: int, having: Collection[int]) -> None:
        await self.readers.run(close_old_connections)
        await self.readers.run(repository.request_files, model, having)

    def _look_again(self, host: str) -> None:
        if supervisor := self.supervisors.get(host):
            supervisor.look_again()

    async def _read_joined(self, stop: asyncio.Event) -> set[str]:
        """Return the hosts of the cluster, once the database says which: one of them may be this machine."""
        while (found := await self.database.ask(repository.clustered_hosts)) is None and not stop.is_set():
            await wait_for_either(stop, LOOK_AGAIN)
        return found or set()


class _Book:
    """The placements, read and written in the controller's thread: a `placer.PlacementBook`."""

    def __init__(self, database: Executor) -> None:
        self.database = database

    async def free_models(self) -> Mapping[int, FreeModel]:
        return await self.database.run(repository.free_models)

    async def place_replica(
        self, model: int, number: int, host: int, before: int | None, *, serves_on: bool = False
    ) -> bool:
        placing = repository.place_replica
        return await self.database.run(placing, model, number, host, before=before, serves_on=serves_on)

    async def place_gang(self, model: int, first: int, hosts: Sequence[int], before: Sequence[int | None]) -> bool:
        return await self.database.run(repository.place_gang, model, first, hosts, before)

    async def add_replica(self, model: int, number: int, host: int) -> bool:
        return await self.database.run(repository.add_replica, model, number, host)

    async def remove_replica(self, model: int, number: int, cause: str) -> None:
        await self.database.run(repository.remove_replica, model, number, cause=cause)

    async def note_shortages(self, found: Mapping[int, Shortage]) -> None:
        await self.database.run(repository.note_shortages, found)

    async def note_gaps(self, found: Mapping[int, Gap]) -> None:
        await self.database.run(repository.note_gaps, found)

    async def forget_former(self, model: int, number: int) -> None:
        await self.database.run(repository.forget_former, model, number)


class _Forsaken:
    """Replicas on machines that cannot be reached, in the controller's thread: a `forsaken.ForsakenBook`."""

    def __init__(self, database: Executor) -> None:
        self.database = database

    async def forsaken_replicas(self, supervised: Collection[int]) -> Mapping[int, Mapping[ReplicaKey, ReplicaFacts]]:
        return await self.database.run(repository.forsaken_replicas, supervised)

    async def write_replica(self, host: int, key: ReplicaKey, facts: ReplicaFacts) -> bool:
        await self.database.run(write_replica, host, key, facts)
        return True


class _Copies:
    """The requested copies of files, read and written in the controller's thread: a `copier.CopyBook`."""

    def __init__(self, database: Executor) -> None:
        self.database = database

    async def open_copies(self) -> Sequence[CopyRequest]:
        return await self.database.run(repository.open_copies)

    async def note_copy(self, number: str, progress: CopyProgress) -> None:
        await self.database.run(repository.note_copy, number, progress)

    async def delete_copy(self, number: str) -> None:
        await self.database.run(repository.delete_copy, number)


def _first_of(group: BaseExceptionGroup[HostRemoved]) -> HostRemoved:
    first = group.exceptions[0]
    return _first_of(first) if isinstance(first, BaseExceptionGroup) else first
