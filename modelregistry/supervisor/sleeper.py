"""Puts replicas to sleep and wakes them, within the memory of their host.

What it gives back can be taken by others, so a replica is awake again only if its own cards have room for it.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace

import httpx2

from modelregistry import placement_messages
from modelregistry.engines.base import LEVEL_1, LEVEL_2
from modelregistry.hostside.replicas import ReplicaKey
from modelregistry.hostside.sleep_record import SleepRecord
from modelregistry.hostside.surface import HostFault, HostSilent, HostSurface
from modelregistry.memory import allocation
from modelregistry.memory.allocation import Allocation, FitResult
from modelregistry.process import probe
from modelregistry.supervisor import sleeping
from modelregistry.supervisor.launching import DoesNotFit
from modelregistry.supervisor.managed_replica import ManagedReplica
from modelregistry.supervisor.plan import ReplicaState
from modelregistry.supervisor.sleeping import SleepFault

log = logging.getLogger(__name__)


class Sleeper:
    """One supervisor's way to put replicas to sleep. `lock`: of allocations.

    Each method raises HostSilent if the host does not answer; then the engine is as it was.
    """

    def __init__(
        self,
        replicas: Mapping[ReplicaKey, ManagedReplica],
        host: HostSurface,
        *,
        lock: asyncio.Lock,
        start_limit: float,
        clock: Callable[[], float],
    ) -> None:
        self.replicas = replicas
        self.host = host
        self.lock = lock
        self.start_limit = start_limit
        self.clock = clock

    async def adopt(self, client: httpx2.AsyncClient, replica: ManagedReplica, written: ReplicaState | None) -> None:
        """Find out whether the engine of an adopted replica sleeps. `written`: its state by its row.

        One that does not say is believed to sleep if its row says so: it proves itself when it is woken. One that was
        to leave service may be about to sleep, or awake without having proved itself: it goes to sleep now.
        """
        asleep = await sleeping.ask_whether_asleep(client, replica.target)
        if asleep or (asleep is None and written == ReplicaState.ASLEEP):
            replica.fall_asleep(self.clock())
        elif written == ReplicaState.DRAINING and replica.state == ReplicaState.READY:
            replica.drain_to(ReplicaState.ASLEEP)
            replica.enter(ReplicaState.DRAINING, self.clock())

    async def keep_answer(self, client: httpx2.AsyncClient, replica: ManagedReplica) -> str:
        """Have an engine that starts answer the fixed question; keep its first answer.

        Returns how the answer differs from one that was kept before (it was woken by an earlier supervisor); empty: it
        does not.
        """
        answer = await probe.ask_sample(client, replica.target)
        if replica.sleep_record.answer is not None:
            return sleeping.find_difference(replica.sleep_record.answer, answer)
        if answer is None:
            replica.sleep_fault = "sleep-no-sample"
            return ""
        await self._record(replica, replace(replica.sleep_record, answer=answer))
        return ""

    async def put_to_sleep(self, client: httpx2.AsyncClient, replica: ManagedReplica) -> None:
        """Put its engine to sleep, with its weights in RAM only if that has room for them. Raises SleepFault."""
        async with self.lock:  # until the RAM counts as its own
            record = await self._choose_level(replica)
            await self._record(replica, record)
        await sleeping.fall_asleep(client, replica.target, record.level)
        given = replica.allocation
        if replica.run and given and await self._keeps_memory(given, replica.run.run_id):
            raise SleepFault("sleep-memory", "keeps most of the GPU's memory while it sleeps")

    async def wake(self, client: httpx2.AsyncClient, replica: ManagedReplica) -> None:
        """Wake its engine and have it prove itself. Raises SleepFault; DoesNotFit if its cards have no room now."""
        async with self.lock:
            fit = await self._find_room(replica)
            if fit and not fit.fits:
                raise DoesNotFit(placement_messages.explain_refusal(fit), fit.need, replica.spaces)
            level, replica.slept = replica.slept, ""  # from now on it is promised its memory
        log.info("%s: wakes from level %d", replica, sleeping.LEVELS[level])
        weights = allocation.bytes_for_sleep(replica.allocation) if replica.allocation else None
        limit = min(sleeping.wake_limit(level, weights), self.start_limit)
        await sleeping.wake_up(client, replica.target, replace(replica.sleep_record, level=level), within=limit)
        replica.sleep_failures, replica.sleep_fault = 0, ""

    async def _choose_level(self, replica: ManagedReplica) -> SleepRecord:
        """Return what is to be recorded of its next sleep."""
        record, given = replica.sleep_record, replica.allocation
        if replica.sleep == LEVEL_2 or given is None:
            return replace(record, level=LEVEL_2)
        wanted = allocation.bytes_for_sleep(given)
        if record.ram >= wanted:
            return replace(record, level=LEVEL_1)  # it has kept the RAM since it slept before
        hosted = [one.hosted for one in self.replicas.values() if one.hosted]
        if await self.host.has_ram(wanted, hosted):
            return replace(record, level=LEVEL_1, ram=wanted)
        log.info("%s: sleeps at level 2, as the RAM has no room for its weights", replica)
        return replace(record, level=LEVEL_2)

    async def _find_room(self, replica: ManagedReplica) -> FitResult | None:
        """Return whether its cards have room for it; None: that is not known, or does not matter to its operator."""
        hosted, given = replica.hosted, replica.allocation
        if hosted is None or given is None or replica.desired.spec.overcommit:
            return None
        others = [one.hosted for one in self.replicas.values() if one is not replica and one.hosted]
        return await self.host.find_room_to_wake(given, hosted, others)

    async def _keeps_memory(self, given: Allocation, run_id: str) -> bool:
        try:
            return await self.host.keeps_memory_asleep(given, run_id)
        except (HostSilent, HostFault):
            return False  # it sleeps already, and may keep what the next measurement shows

    async def _record(self, replica: ManagedReplica, record: SleepRecord) -> None:
        """Keep it with the run, for the next supervisor. Raises SleepFault."""
        assert replica.run, "only a running engine sleeps"
        try:
            await self.host.keep_sleep_record(replica.run.run_id, record)
        except HostFault as error:
            raise SleepFault("sleep-failed", str(error)) from error
        replica.sleep_record = record
