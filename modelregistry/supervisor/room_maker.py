"""Makes room for models that callers wait for, by what `eviction.evict` decides.

A replica for which there is no room sleeps if others could give it theirs, and has failed if they could not: then
gateways refuse its calls at once. While callers wait for it everything is looked at again each second, and without
callers when something changed, as what is free may be enough for it now.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace

from django.utils import timezone

from modelregistry import placement_messages
from modelregistry.failure_advice import NO_ROOM
from modelregistry.hostside.replicas import ReplicaKey
from modelregistry.hostside.surface import HostRoom, PlacedReplica
from modelregistry.memory.placement import Space
from modelregistry.supervisor import plan
from modelregistry.supervisor.eviction import (
    PATIENCE,
    HeldShare,
    RoomDecision,
    RoomDemand,
    RoomOutcome,
    Standing,
    evict,
)
from modelregistry.supervisor.eviction_log import LoggedEviction
from modelregistry.supervisor.gangs import Gangs
from modelregistry.supervisor.managed_replica import ManagedReplica
from modelregistry.supervisor.plan import Lead, ReplicaState
from modelregistry.supervisor.state_sync import StateSync

log = logging.getLogger(__name__)

EVERY = 1.0  # seconds
NEWCOMER = ReplicaKey(0, 0)  # no model has this id
UNKNOWN_COST = 1e6  # of what loads now; more than any cost that is known: 720 calls an hour × 1,000 s
SERVING = frozenset(
    {ReplicaState.STARTING, ReplicaState.READY, ReplicaState.UNHEALTHY}  # a model of which one serves is not waited for
)


class RoomMaker:
    """One supervisor's decisions about room.

    `measure` reads what is free, and `lock` is held meanwhile, so that no start counts on the same memory.
    `begin_drain` takes a replica off the catalogue, to leave when its running answers are over. `gangs`: what is known
    of the other hosts of replicas that are split over several.
    """

    def __init__(
        self,
        replicas: Mapping[ReplicaKey, ManagedReplica],
        sync: StateSync,
        *,
        measure: Callable[[Sequence[PlacedReplica]], Awaitable[HostRoom]],
        lock: asyncio.Lock,
        begin_drain: Callable[[ManagedReplica, tuple[Space, ...]], None],
        gangs: Gangs,
        clock: Callable[[], float],
    ) -> None:
        self.replicas = replicas
        self.sync = sync
        self.measure = measure
        self.lock = lock
        self.begin_drain = begin_drain
        self.gangs = gangs
        self.clock = clock
        self.seen: object = None  # which replicas held memory when all was last looked at
        self.seen_at = float("-inf")

    async def find_outlook(self, replica: ManagedReplica, spaces: tuple[Space, ...]) -> RoomOutcome:
        """Return whether this replica gets room without any other's, could get theirs, or will have none."""
        demand = RoomDemand(key=replica.key, spaces=spaces, since=None)
        return (await self._decide([demand]))[0].outcome if spaces else RoomOutcome.NEVER

    async def price(self, spaces: tuple[Space, ...]) -> float | None:
        """Return what it would cost to make room for a model that is not here yet; None: that is not possible."""
        if not spaces:
            return None
        # As if its calls had waited for long: what protects others now will not for long.
        demand = RoomDemand(key=NEWCOMER, spaces=spaces, since=self.clock() - PATIENCE)
        [decision] = await self._decide([demand])
        match decision.outcome:
            case RoomOutcome.NEVER:
                return None
            case RoomOutcome.LATER:
                return UNKNOWN_COST
        return decision.cost

    async def make_room(self) -> None:
        """Look once at all for which there is no room, and do what can be done for them now."""
        now = self.clock()
        demands = [demand for replica in self.replicas.values() if (demand := self._demand_of(replica, now))]
        holders = frozenset((key, one.state) for key, one in self.replicas.items() if one.hosted)
        called = any(demand.since is not None for demand in demands)
        unchanged = holders == self.seen and now - self.seen_at < plan.ROOM_PAUSE
        if not demands or (unchanged and not called):
            return
        self.seen, self.seen_at = holders, now
        await self._decide(demands, self._apply)

    def _demand_of(self, replica: ManagedReplica, now: float) -> RoomDemand | None:
        """Return what a replica without room asks for; None: nothing now."""
        failed = replica.state == ReplicaState.FAILED and replica.cause == NO_ROOM
        asleep = replica.state == ReplicaState.ASLEEP and replica.without_room
        if not replica.spaces or not (failed or asleep) or replica.engine_task is not None:
            return None
        desired = self.sync.desired_models.get(replica.key.model)
        if desired is None or not desired.enabled or self.sync.maintenance or not self.gangs.awaits_room(replica):
            return None
        if replica.key.number not in desired.numbers:
            return None
        if desired.of(replica.key.number).fingerprint() != replica.fingerprint:
            return None
        since = self.sync.demands.since(replica.key.model, now)
        if since is not None and self._is_first(replica):
            interactive = self.sync.demands.interactive_since(replica.key.model, now)
            began, batch = (since, True) if interactive is None else (interactive, False)
            return RoomDemand(key=replica.key, spaces=replica.spaces, since=began, batch=batch)
        if asleep and not replica.rank and desired.idle_after_at(timezone.now()) is not None:
            return None  # it sleeps well; a rank is waited for by the others
        return RoomDemand(key=replica.key, spaces=replica.spaces, since=None)

    def _is_first(self, replica: ManagedReplica) -> bool:
        """Return whether it is the one of its model's replicas that callers wait for: one is enough."""
        others = [one for one in self.replicas.values() if one.key.model == replica.key.model and one is not replica]
        return not any(
            one.state in SERVING or (one.key.number < replica.key.number and one.without_room) for one in others
        )

    async def _decide(
        self,
        demands: Sequence[RoomDemand],
        apply: Callable[[RoomDecision, HostRoom, float], None] = lambda *_: None,
    ) -> list[RoomDecision]:
        async with self.lock:
            hosted = {key: hosted for key, one in self.replicas.items() if (hosted := one.hosted)}
            room = await self.measure(list(hosted.values()))
            now = self.clock()
            shares = [
                self._share_of(key, room, number, now) for number, key in enumerate(hosted) if key in self.replicas
            ]
            decisions = evict(shares, demands, now, free=room.free)
            for decision in decisions:
                apply(decision, room, now)
        return decisions

    def _share_of(self, key: ReplicaKey, room: HostRoom, number: int, now: float) -> HeldShare:
        desired, replica = self.sync.desired_models.get(key.model), self.replicas[key]
        kept = desired is None or desired.keeps_its_place(timezone.now()) or not self.gangs.may_leave(replica)
        lead = self.gangs.lead_of(replica) if replica.rank else None
        share = replica.share(room.occupants[number], kept=kept, now=now, lead=lead)
        if not self._is_wanted(key):  # it is stopped, also for a replica of the same model that is to be here instead
            return replace(share, kept=False, standing=Standing.LEAVING)
        if not replica.rank:
            return share
        # What runs is judged by rank 0; what does not yet, or not any more, keeps its place unless all of it leaves.
        if self.gangs.find_lead(replica) in (Lead.SERVES, Lead.LEAVES):
            return share
        return replace(share, standing=Standing.LEAVING if self.gangs.is_leaving(replica) else Standing.FIXED)

    def _is_wanted(self, key: ReplicaKey) -> bool:
        """Return whether operators want a replica here, as far as this host has read."""
        desired = self.sync.desired_models.get(key.model)
        return desired is not None and desired.enabled and key.number in desired.numbers

    def find_prior(self, replica: ManagedReplica) -> str:
        """Return the model here for which room is made, and is called for longer than this one if that is; "": none."""
        now = self.clock()
        mine = self.sync.demands.since(replica.key.model, now)
        for one in self.replicas.values():
            since = self.sync.demands.since(one.key.model, now)
            if one.key.model == replica.key.model or since is None:
                continue
            if (mine is None or since < mine) and (self._is_demanded(one, now) or self._takes_its_room(one, now)):
                return one.desired.spec.name
        return ""

    def _is_demanded(self, replica: ManagedReplica, now: float) -> bool:
        """Return whether room is being made for a replica: not if it waits for anything else, as after a crash."""
        demand = self._demand_of(replica, now)
        return demand is not None and demand.since is not None

    def _takes_its_room(self, replica: ManagedReplica, now: float) -> bool:
        """Return whether room was made for a replica that does not have it yet: its start is next, or has begun."""
        if replica.run is not None or replica.allocation is not None or not replica.spaces:
            return False
        next_up = replica.state == ReplicaState.ASLEEP and not replica.without_room and now >= replica.retry_at
        return (next_up or replica.state == ReplicaState.STARTING) and self.gangs.awaits_room(replica)

    def _apply(self, decision: RoomDecision, room: HostRoom, now: float) -> None:
        replica = self.replicas.get(decision.demand.key)
        if replica is None or self._demand_of(replica, now) is None:
            return  # it is gone, or another action was quicker
        match decision.outcome:
            case RoomOutcome.FITS:
                replica.without_room, replica.retry_at = False, now
            case RoomOutcome.NEVER:
                replica.without_room = False  # its next start reports why
            case _ if replica.state == ReplicaState.FAILED:
                replica.wait_for_room(now, placement_messages.explain_waiting(replica.detail))
                self.sync.changed.set()
        for key in decision.victims:
            self._evict(self.replicas[key], decision.demand, room, now)

    def _evict(self, victim: ManagedReplica, demand: RoomDemand, room: HostRoom, now: float) -> None:
        if victim.allocation is None or demand.since is None:
            return
        successor, waited = demand.key.model, now - demand.since
        name = self.sync.desired_models[successor].spec.name
        log.info("%s: leaves its place to %s, for which calls have waited for %.0f s", victim, name, waited)
        facts = LoggedEviction(
            key=victim.key,
            successor=successor,
            at=timezone.now(),
            waited_seconds=waited,
            calls=self.sync.demands.calls(successor),
        )
        self.sync.evictions.begin(facts, now)
        self.begin_drain(victim, room.spaces_for(victim.allocation, victim.desired.spec))
