"""The supervisor's exchange with the database: reads what operators want, writes the state of its replicas.

Each exchange compares the replicas with what was last written of them: while the database is away nothing queues up,
and the rows follow when it is back.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import datetime

from django.db import DataError, Error
from django.utils import timezone

from modelregistry.engines.version_trials import UNTRIED, Trial
from modelregistry.failure_advice import NO_ROOM
from modelregistry.hostside.faults import describe_exception
from modelregistry.hostside.own_address import AddressFault
from modelregistry.hostside.replicas import ReplicaKey
from modelregistry.hostside.surface import FileFacts, HostedRun, HostFault, HostSilent, HostSurface
from modelregistry.memory.estimate import Measured
from modelregistry.supervisor import repository
from modelregistry.supervisor.async_helpers import wait_for_either
from modelregistry.supervisor.database import Database
from modelregistry.supervisor.eviction_log import EvictionLog
from modelregistry.supervisor.launching import SupervisorConfig
from modelregistry.supervisor.managed_replica import ManagedReplica
from modelregistry.supervisor.office import BEAT, Office, Replaced
from modelregistry.supervisor.plan import ReplicaState
from modelregistry.supervisor.repository import DesiredModel, ReplicaFacts, Report
from modelregistry.supervisor.wake_demand import WakeDemands

log = logging.getLogger(__name__)

EVERY = 1.0  # seconds between two exchanges
MEASURE_EVERY = 30.0
ADDRESS_EVERY = 10.0  # seconds between two checks whether the machine has the host's address
ADDRESS_WITHIN = 2.0  # seconds to look a name up
TAIL_LINES = 200


class HostRemoved(Exception):
    """An operator removed this host; its engines are left as they are."""


class StateSync:
    """One supervisor's view of the database, which it reaches through `database`, one thread for all hosts.

    Set `changed` for an exchange at once; `on_exchange` is called after each.
    """

    def __init__(
        self,
        config: SupervisorConfig,
        replicas: dict[ReplicaKey, ManagedReplica],
        machine: HostSurface,
        *,
        office: Office,
        database: Database,
        clock: Callable[[], float],
        on_exchange: Callable[[], None],
    ) -> None:
        self.config = config
        self.replicas = replicas
        self.clock = clock
        self.on_exchange = on_exchange
        self.desired_models: dict[int, DesiredModel] = {}  # as last read
        self.desired_at = float("-inf")  # what was written before is in `desired_models`
        self.removed: set[ReplicaKey] = set()
        self.changed = asyncio.Event()
        self.office = office
        self.host_id = 0  # its row, known once it is claimed
        self.report: Report | None = None
        self.measurements: list[Measured] = []  # by this and earlier supervisors
        self.trials: dict[int, list[Trial]] = {}  # of versions of engines, by the model's id; the oldest first
        self.unwritten_trials: list[tuple[int, Trial]] = []  # by the model's id
        self.reported_at: datetime | None = None
        self.unwritten_file_facts: dict[int, FileFacts] = {}  # by the model's id
        self.beat_at = float("-inf")
        self.beat_heard = False  # whether the host answered at the last beat
        self.maintenance = False  # no engine may run here
        self.maintenance_since = float("-inf")  # when it last began or ended
        self.address = ""  # where engines are to listen
        self.address_fault: AddressFault | None = None  # why they cannot
        self.address_at = float("-inf")
        self.log_tails: dict[int, str] = {}
        self.demands = WakeDemands()
        self.evictions = EvictionLog()
        self.database = database
        self.machine = machine

    async def open(self, stop: asyncio.Event) -> dict[ReplicaKey, ReplicaFacts] | None:
        """Wait for the database, and claim this host; return the replicas as last written.

        Returns None if `stop` is set first. Raises Replaced.
        """
        while not stop.is_set():
            try:
                await self._claim_host()
                await self._read_host()
                self.desired_models = await self.database.run(
                    repository.desired_models, self.host_id, keeping=not self.maintenance
                )
                known = await self.database.run(repository.replica_facts, self.host_id)
                self.measurements = await self.database.run(repository.load_measurements)
                self.trials = await self.database.run(repository.load_trials, self.host_id)
                self.database.note(self.config.host, None)
                return known
            except Error as error:
                self.database.note(self.config.host, error)
            await wait_for_either(stop, EVERY)
        return None

    async def run(self) -> None:
        """Exchange for ever. Raises Replaced, and HostRemoved."""
        while True:
            try:
                await self.exchange()
            except Error as error:
                self.database.note(self.config.host, error)
            else:
                self.database.note(self.config.host, None)
            await wait_for_either(self.changed, EVERY)
            self.changed.clear()

    async def exchange(self) -> None:
        """Write what changed, read what is wanted. Raises django.db.Error, Replaced, HostRemoved."""
        await self._renew_lease()
        await self._write_rows()
        await self._read_host()
        asked_at, desired_at = timezone.now(), self.clock()
        self.desired_models = await self.database.run(
            repository.desired_models, self.host_id, keeping=not self.maintenance
        )
        self.desired_at = desired_at
        wakes = {model_id: one.wake for model_id, one in self.desired_models.items() if one.wake}
        self.demands.update(wakes, self.clock())
        for model_id in self._woken_models():
            await self.database.run(repository.clear_wake_requests, model_id, asked_at)
        for model_id in self._forsaken_models():
            await self.database.run(repository.clear_wake_requests, model_id, wakes[model_id].at)
        self.on_exchange()

    def has_news_of(self, replica: ManagedReplica) -> bool:
        """Return whether its row says something else than what is known of it, beside what it does just now."""
        return replica.current_facts(self.clock()) != replica.written

    async def observe_machine(self) -> None:
        """Write what has to be asked of the machine. Raises django.db.Error.

        Apart from the exchange: a host that falls silent answers nothing for as long as its requests may take, and the
        rows of its replicas must say soon that they do not answer either.
        """
        await self._check_address(self.address)
        for replica in list(self.replicas.values()):
            serves = replica.state in (ReplicaState.READY, ReplicaState.JOINED)
            holds = (serves or replica.slept) and not self.machine.silent_for()
            if replica.run and holds and self.clock() - replica.measured_at >= MEASURE_EVERY:
                replica.measured_at = self.clock()
                await self._write_measurement(replica, replica.run)
        await self._write_log_tails()

    async def _write_rows(self) -> None:
        for key in list(self.removed):
            await self.database.run(repository.remove_replica, self.host_id, key)
            self.removed.discard(key)
        for replica in list(self.replicas.values()):
            await self._try_to_write(replica)
        await self._write_live_values()
        if self.report and self.report.at != self.reported_at:
            report = self.report
            await self.database.run(repository.record_report, self.host_id, report)
            self.reported_at = report.at
        for model_id, facts in list(self.unwritten_file_facts.items()):
            await self._record_file_facts(model_id, facts)
            if self.unwritten_file_facts.get(model_id) is facts:
                del self.unwritten_file_facts[model_id]
        while self.unwritten_trials:
            await self.database.run(repository.record_trial, self.host_id, *self.unwritten_trials[0])
            del self.unwritten_trials[0]
        await self._write_evictions()

    async def _write_evictions(self) -> None:
        for logged, row_id in list(self.evictions.unwritten()):
            row_id = await self.database.run(repository.record_eviction, self.host_id, logged, row_id)
            self.evictions.note_written(logged, row_id, self.clock())

    async def _record_file_facts(self, model_id: int, facts: FileFacts) -> None:
        try:
            await self.database.run(repository.record_file_facts, model_id, facts)
        except (DataError, ValueError, OverflowError) as error:  # else no model's rows would be written any more
            log.error("the facts of the files of model %d cannot be stored: %s", model_id, error)
            fault = replace(facts, facts=None, fault=describe_exception(error))
            await self.database.run(repository.record_file_facts, model_id, fault)

    def record_trial(self, model_id: int, trial: Trial) -> None:
        """Remember the result of a trial at once, and write it at the next exchange."""
        known = self.trials.setdefault(model_id, [])
        known[:] = [one for one in known if (one.launcher, one.version) != (trial.launcher, trial.version)]
        if trial.state != UNTRIED:
            known.append(trial)
        self.unwritten_trials.append((model_id, trial))
        self.changed.set()

    async def write_facts(self, key: ReplicaKey, facts: ReplicaFacts) -> bool:
        """Write the row of a replica that is not adopted yet; False if the database does not answer."""
        try:
            await self.database.run(repository.write_replica, self.host_id, key, facts)
        except Error as error:
            self.database.note(self.config.host, error)
            return False
        return True

    async def last_exchange(self) -> None:
        """Exchange once more if the database answers; engines do not wait for it."""
        with contextlib.suppress(Error, Replaced, HostRemoved):
            await self.exchange()

    async def close(self) -> None:
        """Free the host for the next controller."""
        if self.host_id:
            await self.database.ask(repository.release_host, self.host_id, self.office.number)

    async def _claim_host(self) -> None:
        """Take this host over from the controller before, which was replaced. Raises Replaced."""
        office = self.office
        found = await self.database.run(repository.take_host, self.config.host, office.number, office.holder[:200])
        if found is None:
            raise Replaced
        self.host_id = found

    async def _renew_lease(self) -> None:
        heard = self.machine.silent_for() == 0
        if heard == self.beat_heard and self.clock() - self.beat_at < BEAT:
            return
        if not await self.database.run(repository.renew_claim, self.host_id, self.office.number, heard=heard):
            await self._read_host()  # raises HostRemoved where that is why
            await self._claim_host()
        self.beat_at, self.beat_heard = self.clock(), heard

    async def _read_host(self) -> None:
        """Read what operators want of the host itself. Raises HostRemoved."""
        wanted = await self.database.run(repository.desired_host, self.host_id)
        if wanted is None:
            raise HostRemoved(f"{self.config.host} was removed; its engines are left as they are.")
        if wanted.maintenance != self.maintenance:
            self.maintenance_since = self.clock()
            log.info("maintenance begins: engines stop" if wanted.maintenance else "maintenance is over")
        self.maintenance = wanted.maintenance
        if wanted.address != self.address:
            await self._check_address(wanted.address)

    async def _check_address(self, address: str) -> None:
        """Find out whether the machine has that address now."""
        if address == self.address and (self.machine.silent_for() or self.clock() - self.address_at < ADDRESS_EVERY):
            return
        before = self.address, self.address_fault
        try:
            fault = await asyncio.wait_for(self.machine.find_address_fault(address), ADDRESS_WITHIN)
        except TimeoutError:
            slow = AddressFault(code="address-slow", address=address, reason=f"{ADDRESS_WITHIN:g}")
            fault = None if self.machine.silent_for() else slow
        except (HostSilent, HostFault):
            fault = self.address_fault if address == before[0] else None  # nothing is known of it: nothing changes
        self.address, self.address_fault, self.address_at = address, fault, self.clock()
        if fault and before != (address, fault):
            log.error("%s", fault)
        elif before[0] not in ("", address):
            log.info("engines move from %s to %s", before[0], address)

    async def _try_to_write(self, replica: ManagedReplica) -> None:
        """Write what changed of a replica; of what no database can hold, nothing, as others are to be written."""
        try:
            await self._write_replica(replica)
        except (DataError, ValueError, OverflowError) as error:
            log.error("%s cannot be stored: %s", replica, error)
            replica.written, replica.written_placement = replica.current_facts(self.clock()), replica.placement

    async def _write_replica(self, replica: ManagedReplica) -> None:
        facts = replica.current_facts(self.clock())
        if facts != replica.written:
            await self.database.run(repository.write_replica, self.host_id, replica.key, facts)
            replica.written = facts
        if replica.published_at is None and facts.state == replica.state:
            replica.published_at = self.clock()
        await self._write_placement(replica)

    async def _write_live_values(self) -> None:
        """Write what replicas do now, all of them at once: each is checked every 5 s."""
        changed = {one: one.live for one in list(self.replicas.values()) if one.live is not one.written_live}
        if changed:
            values = {replica.key: live for replica, live in changed.items()}
            await self.database.run(repository.record_live_values, self.host_id, values)
            for replica, live in changed.items():
                replica.written_live = live

    async def _write_placement(self, replica: ManagedReplica) -> None:
        placement = replica.placement
        if placement != replica.written_placement:
            prediction, devices = placement
            predicted = asdict(prediction) if prediction else None
            await self.database.run(repository.record_placement, self.host_id, replica.key, predicted, devices)
            replica.written_placement = placement

    async def _write_measurement(self, replica: ManagedReplica, run: HostedRun) -> None:
        """Write the memory that it uses now; the peak of a run is kept for later predictions."""
        granted = replica.allocation
        try:
            used = await self.machine.measure_use(run.run_id, granted.devices if granted else ())
        except (HostSilent, HostFault):
            return
        if used is None:
            return
        await self.database.run(repository.record_measurement, self.host_id, replica.key, used)
        if granted is None or replica.slept or used.most <= replica.peak * 1.01:
            return
        replica.peak = used.most
        version = granted.version or (self.report.engines.get(granted.launcher, "") if self.report else "")
        await self.database.run(repository.record_learned, granted, version, used.most)
        self.measurements = await self.database.run(repository.load_measurements)

    async def _write_log_tails(self) -> None:
        watched = await self.database.run(repository.watched_logs, self.host_id)
        if self.machine.silent_for():
            return
        self.log_tails = {replica: text for replica, text in self.log_tails.items() if replica in watched}
        for replica, run_id in watched.items():
            try:
                text = await self.machine.log_tail(run_id, TAIL_LINES) if run_id else ""
            except (HostSilent, HostFault):
                continue
            if self.log_tails.get(replica) != text:
                await self.database.run(repository.record_log_tail, replica, text)
                self.log_tails[replica] = text

    def _woken_models(self) -> list[int]:
        ready = {replica.key.model for replica in self.replicas.values() if replica.state == ReplicaState.READY}
        return [
            model_id
            for model_id, desired in self.desired_models.items()
            if desired.wake_requested and model_id in ready
        ]

    def _forsaken_models(self) -> list[int]:
        """Return the models without room whose callers have left: room that comes later is not for them."""
        now = self.clock()
        without = {one.key.model for one in self.replicas.values() if one.without_room or one.cause == NO_ROOM}
        return [
            model_id
            for model_id, desired in self.desired_models.items()
            if desired.wake_requested and model_id in without and self.demands.since(model_id, now) is None
        ]
