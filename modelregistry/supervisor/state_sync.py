"""The supervisor's exchange with the database: reads what operators want of this host, writes what became of it.

What is to be written is read off the charges at each exchange, and what was written is remembered there: while the
database is away nothing queues up, and the rows follow when it is back.
"""

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from datetime import datetime

from django.db import DataError, Error, close_old_connections, connections
from django.utils import timezone

from modelregistry import addresses
from modelregistry.addresses import AddressFault
from modelregistry.engines.version_trials import UNTRIED, Trial
from modelregistry.memory import allocation
from modelregistry.memory.estimate import Measured
from modelregistry.process import process
from modelregistry.process.process import Run
from modelregistry.supervisor import lease, repository
from modelregistry.supervisor.async_helpers import wait_for_either
from modelregistry.supervisor.bidding import Bid, Offer, Unassigned
from modelregistry.supervisor.executor import Executor
from modelregistry.supervisor.faults import describe_exception
from modelregistry.supervisor.launching import SupervisorConfig
from modelregistry.supervisor.lease import HeldElsewhere, Lease
from modelregistry.supervisor.managed_replica import ManagedReplica
from modelregistry.supervisor.plan import Key, State
from modelregistry.supervisor.repository import DesiredModel, FileFacts, ReplicaFacts, Report

log = logging.getLogger(__name__)

EVERY = 1.0  # seconds between two exchanges
MEASURE_EVERY = 30.0
ADDRESS_EVERY = 10.0  # seconds between two looks whether the machine has the host's address
ADDRESS_WITHIN = 2.0  # seconds to look a name up
TAIL_LINES = 200


class StateSync:
    """`orders` is what is wanted, as read last; `changed` asks for an exchange at once, `heard` follows each."""

    def __init__(
        self,
        house: SupervisorConfig,
        charges: dict[Key, ManagedReplica],
        hands: Executor,
        *,
        clock: Callable[[], float],
        heard: Callable[[], None],
    ) -> None:
        self.house = house
        self.charges = charges
        self.clock = clock
        self.heard = heard
        self.orders: dict[int, DesiredModel] = {}
        self.removed: set[Key] = set()
        self.changed = asyncio.Event()
        self.host: repository.HostRow
        self.report: Report | None = None
        self.measurements: list[Measured] = []  # by this and earlier supervisors
        self.trials: dict[int, list[Trial]] = {}  # of engines' versions, by the model's id; the oldest first
        self.untold: list[tuple[int, Trial]] = []  # not written yet
        self.reported_at: datetime | None = None
        self.readings: dict[int, FileFacts] = {}  # not written yet
        self.lease = Lease(house.claim, clock)
        self.beat_at = float("-inf")
        self.maintenance = False  # no engine shall run here
        self.address = ""  # where engines are to listen
        self.address_fault: AddressFault | None = None  # why they cannot
        self.address_at = float("-inf")
        self.tails: dict[int, str] = {}
        self.away = False
        # One thread, so that there is one connection.
        self.books = Executor(1, "books")
        self.hands = hands

    async def open(self, stop: asyncio.Event) -> dict[Key, ReplicaFacts] | None:
        """Wait for the database and for this host's claim; what was written last, or None if told to stop before.

        Raises HeldElsewhere.
        """
        while not stop.is_set():
            try:
                if await self._claimed():
                    await self._follow_host()
                    self.orders = await self.books.do(
                        repository.desired_models, self.host.id, keeping=not self.maintenance
                    )
                    known = await self.books.do(repository.replica_facts, self.host.id)
                    self.measurements = await self.books.do(repository.load_measurements)
                    self.trials = await self.books.do(repository.load_trials, self.host.id)
                    self._answered()
                    return known
            except Error as error:
                self._failed(error)
            await wait_for_either(stop, EVERY)
        return None

    async def keep(self) -> None:
        """Exchanges for ever. Raises HeldElsewhere when another supervisor took this host over."""
        while True:
            try:
                await self.exchange()
            except Error as error:
                self._failed(error)
            else:
                self._answered()
            await wait_for_either(self.changed, EVERY)
            self.changed.clear()

    async def exchange(self) -> None:
        """Write what changed, read what is wanted. Raises django.db.Error, HeldElsewhere."""
        await self.books.do(close_old_connections)
        await self._beat()
        for key in list(self.removed):
            await self.books.do(repository.remove_replica, self.host.id, key)
            self.removed.discard(key)
        for charge in list(self.charges.values()):
            await self._publish(charge)
        if self.report and self.report.at != self.reported_at:
            report = self.report
            await self.books.do(repository.record_report, self.host.id, report)
            self.reported_at = report.at
        for model_id, reading in list(self.readings.items()):
            await self._record_file_facts(model_id, reading)
            if self.readings.get(model_id) is reading:
                del self.readings[model_id]
        while self.untold:
            await self.books.do(repository.record_trial, self.host.id, *self.untold[0])
            del self.untold[0]
        await self._show_logs()
        await self._follow_host()
        asked_at = timezone.now()
        self.orders = await self.books.do(repository.desired_models, self.host.id, keeping=not self.maintenance)
        for model_id in self._fulfilled():
            await self.books.do(repository.clear_wake_requests, model_id, asked_at)
        self.heard()

    async def _record_file_facts(self, model_id: int, facts: FileFacts) -> None:
        try:
            await self.books.do(repository.record_file_facts, model_id, facts)
        except (DataError, ValueError, OverflowError) as error:  # else nothing would be written any more, of no model
            log.error("what the files of model %d say cannot be kept: %s", model_id, error)
            fault = FileFacts(facts=None, fault=describe_exception(error))
            await self.books.do(repository.record_file_facts, model_id, fault)

    def tried(self, model_id: int, trial: Trial) -> None:
        """What became of a version; known at once, written at the next exchange."""
        known = self.trials.setdefault(model_id, [])
        known[:] = [one for one in known if (one.launcher, one.version) != (trial.launcher, trial.version)]
        if trial.state != UNTRIED:
            known.append(trial)
        self.untold.append((model_id, trial))
        self.changed.set()

    # --- Models of no host: as `bidding.Book`

    async def unassigned(self) -> Mapping[int, Unassigned]:
        return await self.books.do(repository.unassigned_models)

    async def living(self) -> set[int]:
        # Of itself it knows better than the row: that may be late.
        others = await self.books.do(repository.bidders) - {self.host.id}
        return others if self.maintenance else others | {self.host.id}

    async def bid(self, offers: Mapping[int, Offer]) -> None:
        await self.books.do(repository.place_bid, self.host.id, offers)

    async def bids(self, models: Collection[int]) -> Mapping[int, list[Bid]]:
        return await self.books.do(repository.open_bids, models)

    async def take(self, model: int) -> bool:
        return await self.books.do(repository.take_model, model, self.host.id)

    async def last_exchange(self) -> None:
        """If the database answers; the engines do not wait for it."""
        with contextlib.suppress(Error, HeldElsewhere):
            await self.exchange()

    async def close(self, *, leave: bool) -> None:
        """`leave`: the host is free for another supervisor at once."""
        with contextlib.suppress(Error):
            if leave:
                await self.books.do(repository.release_host, self.host.id, self.lease.number)
            await self.books.do(connections.close_all)
        self.books.close()

    async def _claimed(self) -> bool:
        self.host = await self.books.do(repository.get_or_create_host, self.house.host)
        if not self.lease.may_take(self.host.claim):
            return False
        holder = f"{socket.gethostname()}, process {os.getpid()}, {self.house.claim.parent.parent}"
        if not await self.books.do(repository.claim_host, self.host, self.lease.number, holder[:200]):
            return False
        self.lease.taken()
        return True

    async def _beat(self) -> None:
        if self.clock() - self.beat_at < lease.BEAT:
            return
        if not await self.books.do(repository.record_sign_of_life, self.host.id, self.lease.number):
            raise HeldElsewhere("Another supervisor took this host over; its engines are left as they are.")
        self.beat_at = self.clock()

    async def _follow_host(self) -> None:
        """What operators want of the host itself. Raises HeldElsewhere when it was removed."""
        wanted = await self.books.do(repository.desired_host, self.host.id)
        if wanted is None:
            raise HeldElsewhere("This host was removed; its engines are left as they are.")
        if wanted.maintenance != self.maintenance:
            log.info("maintenance begins: engines end" if wanted.maintenance else "maintenance is over")
        self.maintenance = wanted.maintenance
        await self._find_address(wanted.address)

    async def _find_address(self, address: str) -> None:
        """Whether the machine has that address now."""
        if address == self.address and self.clock() - self.address_at < ADDRESS_EVERY:
            return
        before = self.address, self.address_fault
        try:
            looking = self.hands.do(addresses.find_fault, address)
            fault = await asyncio.wait_for(looking, ADDRESS_WITHIN)
        except TimeoutError:
            fault = AddressFault(code="address-slow", address=address, reason=f"{ADDRESS_WITHIN:g}")
        self.address, self.address_fault, self.address_at = address, fault, self.clock()
        if fault and before != (address, fault):
            log.error("%s", fault)
        elif before[0] not in ("", address):
            log.info("engines move from %s to %s", before[0], address)

    async def _publish(self, charge: ManagedReplica) -> None:
        facts = charge.facts(self.clock())
        if facts != charge.written:
            await self.books.do(repository.write_replica, self.host.id, charge.key, facts)
            charge.written = facts
        if charge.published_at is None and facts.state == charge.state:
            charge.published_at = self.clock()
        await self._place(charge)
        if charge.live is not charge.live_written:
            live = charge.live
            await self.books.do(repository.record_live_values, self.host.id, charge.key, live)
            charge.live_written = live
        if charge.run and charge.state == State.READY and self.clock() - charge.measured_at >= MEASURE_EVERY:
            charge.measured_at = self.clock()
            await self._measure(charge, charge.run)

    async def _place(self, charge: ManagedReplica) -> None:
        placed = charge.placed
        if placed != charge.placed_written:
            prediction, devices = placed
            predicted = asdict(prediction) if prediction else None
            await self.books.do(repository.record_placement, self.host.id, charge.key, predicted, devices)
            charge.placed_written = placed

    async def _measure(self, charge: ManagedReplica, run: Run) -> None:
        """What it holds now; the most of this run is remembered for later predictions."""
        allotted = charge.allotment
        used = await self.hands.do(allocation.measure_use, run, allotted.devices if allotted else ())
        if used is None:
            return
        await self.books.do(repository.record_measurement, self.host.id, charge.key, used)
        if allotted is None or used.most <= charge.peak * 1.01:
            return
        charge.peak = used.most
        version = allotted.version or (self.report.engines.get(allotted.launcher, "") if self.report else "")
        await self.books.do(repository.record_learned, allotted, version, used.most)
        self.measurements = await self.books.do(repository.load_measurements)

    async def _show_logs(self) -> None:
        watched = await self.books.do(repository.watched_logs, self.host.id)
        self.tails = {replica: text for replica, text in self.tails.items() if replica in watched}
        for replica, run_id in watched.items():
            text = process.log_tail(self.house.runs / run_id, TAIL_LINES) if run_id else ""
            if self.tails.get(replica) != text:
                await self.books.do(repository.record_log_tail, replica, text)
                self.tails[replica] = text

    def _fulfilled(self) -> list[int]:
        ready = {charge.key.model for charge in self.charges.values() if charge.state == State.READY}
        return [model_id for model_id, order in self.orders.items() if order.wake_requested and model_id in ready]

    def _failed(self, error: Error) -> None:
        if not self.away:
            log.error("the database does not answer; engines go on as they are: %s", error)
        self.away = True

    def _answered(self) -> None:
        if self.away:
            log.warning("the database answers again")
        self.away = False
