"""Where the replicas of models run that have no host of their own.

A replica goes where its model's files are and it fits; of those where fewest others of its model are, then where most
memory is free. Where it fits nowhere, it goes where making room costs least; where that is not possible either, to the
host with most room, which reports why it does not fit. A host is given one at a time: the next when it is known how
much memory the last one takes, or that it is not to run there any more. A host for which that takes long holds up only
what would not fit elsewhere.

A replica that is moved although its engine answers serves where it was until it is ready elsewhere.

If that is allowed, the files of a model that fits on no host which has them are copied to one where it fits.

Further replicas, which `scaler` has while calls wait long, are placed only where they fit as it is, and leave where
they cannot be moved like that.

A replica stays where it is, with these exceptions: its host is silent and its engine does not answer (a host whose
agent alone is away keeps its engines), its host is in maintenance, or its host has no room for it and another one has.
One that sleeps is moved when it is called.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

from django.db import Error

from modelregistry.controller import gang_placing
from modelregistry.controller.repository import FreeModel, PlacedAt
from modelregistry.controller.shortages import Gap, PlacementAttempt, Shortage
from modelregistry.engines.base import Spec
from modelregistry.failure_advice import NO_ROOM
from modelregistry.hostside.replicas import ReplicaKey
from modelregistry.hostside.surface import HostFault, HostSilent
from modelregistry.models import PlacementGap, ReplicaMove, ReplicaShortage
from modelregistry.supervisor.offers import Offer, rank_offer

log = logging.getLogger(__name__)

T = TypeVar("T")

EVERY = 1.0  # seconds
# Seconds of silence before replicas of a host that do not answer are started elsewhere: an agent or a raylet that died
# is back after 6. A host that comes back stops what was moved.
LOST_AFTER = 8.0
SETTLED_WITHIN = 60.0  # seconds until a host is given more that does not settle what it was given
# Seconds until such a host is done without, where others have room: to begin a start takes 0.5, with large files 2.
WAITED_FOR = 5.0
FORMER_FOR = 1800.0  # seconds that a replica serves where it was, if it does not become ready elsewhere
FILES_WITHIN = 5.0  # seconds for a host to say which files it has: its disk may hang, and others are to be asked
OFFERED_WITHIN = 15.0  # seconds for an offer: the host may just give another replica its memory, which takes 0.1
MOVE_AGAIN = 30.0  # seconds between two tries to find another place for one that has a bad one
# Seconds for which a replica has no place until that is recorded: hosts are silent for a moment when a controller
# begins, and one whose agent was restarted is back after 6.
GAP_AFTER = 10.0
REQUEST_EVERY = 10.0  # seconds between two looks for a host to which the files of a model could be copied
NOT_THERE = frozenset({NO_ROOM, "missing-file", "no-engine"})  # causes which another host may not have
# The same for a rank: the others have their memory set apart again and again, and can use none of it.
RANK_NOT_THERE = NOT_THERE | {"bad-address"}
SERVING = ("ready", "draining")


# Requests that the files of a model are copied to a host where it fits, and which is none of these.
RequestFiles = Callable[[int, Collection[int]], Awaitable[None]]


class PlaceableHost(Protocol):
    """What the placer knows of a host; see `supervisor.loop.Supervisor`."""

    def silent_for(self) -> float: ...

    @property
    def takes_models(self) -> bool:
        """Whether it answers, its runs are known, and it is not in maintenance."""

    @property
    def maintenance(self) -> bool: ...

    @property
    def address(self) -> str:
        """Where its engines listen; empty: nothing can listen there."""

    async def find_files(self, paths: Collection[str]) -> set[str]: ...

    async def make_offer(self, spec: Spec) -> Offer: ...

    def is_settled(self, key: ReplicaKey, given_at: float) -> bool:
        """Return whether a replica that was placed there at that time has its memory, if it is to run at all."""

    def cause_of(self, key: ReplicaKey) -> str:
        """Return why a replica does not run there, as a code of `failure_advice`; "": it does, or it is not known."""

    def is_proving(self, key: ReplicaKey) -> bool:
        """Return whether a replica over several hosts is being asked whether its ranks are there; it may serve on."""

    def look_again(self) -> None:
        """Read soon what the host is to serve."""


class PlacementBook(Protocol):
    """The placements, in the database. Each method raises django.db.Error when that is away."""

    async def free_models(self) -> Mapping[int, FreeModel]: ...

    async def place_replica(
        self, model: int, number: int, host: int, before: int | None, *, serves_on: bool = False
    ) -> bool: ...

    async def forget_former(self, model: int, number: int) -> None: ...

    async def add_replica(self, model: int, number: int, host: int) -> bool:
        """Place one more than there always are."""

    async def remove_replica(self, model: int, number: int, cause: str) -> None: ...

    async def note_shortages(self, found: Mapping[int, Shortage]) -> None:
        """Record which models lack a replica, by their ids, and that no other one does."""

    async def note_gaps(self, found: Mapping[int, Gap]) -> None:
        """Record which models have replicas without a place, by their ids, and that no other one has."""

    async def place_gang(self, model: int, first: int, hosts: Sequence[int], before: Sequence[int | None]) -> bool: ...


def choose_host(offers: Mapping[int, Offer], neighbours: Mapping[int, int]) -> int | None:
    """Return the host that is to have a replica; None: there is none. `neighbours`: others of its model, by host."""
    return max(offers, key=lambda host: rank_offer(host, offers[host], neighbours), default=None)


class Placer:
    """The placer of one controller. `hosts`: those that are supervised now, by their ids.

    `request_files`: None where files are copied by operators only.
    """

    def __init__(
        self,
        hosts: Callable[[], Mapping[int, PlaceableHost]],
        book: PlacementBook,
        *,
        clock: Callable[[], float],
        request_files: RequestFiles | None = None,
    ) -> None:
        self.hosts = hosts
        self.book = book
        self.clock = clock
        self.request_files = request_files
        self.requested_at: dict[int, float] = {}  # by model, when its files were requested elsewhere
        self.began = clock()
        self.given: dict[int, tuple[float, ReplicaKey]] = {}  # by host, what it was given last, and when
        self.tried_at: dict[ReplicaKey, float] = {}  # when another place was looked for, and all had answered
        self.heard_since: dict[int, float] = {}  # since when hosts answer
        self.models: Mapping[int, FreeModel] = {}  # as last read
        self.slow: set[int] = set()  # hosts that did not answer a question in this turn
        self.gaps: dict[int, Gap] = {}  # models with replicas that have no place, by the last turn
        self.gap_since: dict[int, float] = {}
        self.undecided: set[int] = set()  # models of which this turn does not know it yet
        self.recorded_gaps: Mapping[int, Gap] | None = None  # None: an earlier controller may have left some

    async def place_all(self) -> None:
        """Look once at all replicas, and place those that need it."""
        models = self.models = await self.book.free_models()
        now, heard = self.clock(), {one for one, host in self.hosts().items() if not host.silent_for()}
        self.heard_since = {one: self.heard_since.get(one, now) for one in heard}
        self.slow.clear()
        self.undecided.clear()
        before, self.gaps = self.gaps, {}
        self.tried_at = {key: at for key, at in self.tried_at.items() if key.model in models}
        self.requested_at = {model: at for model, at in self.requested_at.items() if model in models}
        for model_id, model in models.items():
            try:
                await self._place_model(model_id, model)
            except Error:
                raise
            except Exception:  # of one model: the others are not to suffer from it
                log.exception("model %d cannot be placed", model_id)
                self.undecided.add(model_id)
        for model_id in self.undecided & before.keys():
            self.gaps.setdefault(model_id, before[model_id])
        await self._record_gaps(now)

    async def _record_gaps(self, now: float) -> None:
        self.gap_since = {model: self.gap_since.get(model, now) for model in self.gaps}
        lasting = {model: gap for model, gap in self.gaps.items() if now - self.gap_since[model] >= GAP_AFTER}
        if lasting != self.recorded_gaps:
            await self.book.note_gaps(lasting)
            self.recorded_gaps = lasting

    def note_gap(self, model: int, *, hosts: int, having_files: int, needed: int) -> None:
        """Note that a replica has no place. `hosts`: how many could take a part, of those that have its files."""
        if not self.models[model].enabled:
            return
        answering = sum(one.takes_models for number, one in self.hosts().items() if number not in self.slow)
        cause = PlacementGap.Cause.NO_HOST if answering < needed else PlacementGap.Cause.NO_FILES
        before = self.gaps.get(model)
        self.gaps[model] = Gap(
            cause=PlacementGap.Cause.APART if having_files >= needed else cause,
            replicas=before.replicas + 1 if before else 1,
            hosts=hosts,
        )

    def may_find_place(self, key: ReplicaKey, since: float) -> bool:
        """Return whether another place for a replica was not yet looked for since then, and there may be one."""
        return self.tried_at.get(key, float("-inf")) < since and any(one.takes_models for one in self.hosts().values())

    async def _place_model(self, model_id: int, model: FreeModel) -> None:
        if model.spec.nodes > 1:
            await gang_placing.place_gangs(self, model_id, model)
            return
        for number in sorted(model.unplaced):
            await self._place(ReplicaKey(model_id, number), model.placed[number].host, None)
        placed = dict(model.placed)  # the next replica is to know where the one before it was placed
        further = sorted(number for number in placed if number >= model.replicas)
        for number in [*range(model.replicas), *further]:
            key, at = ReplicaKey(model_id, number), placed.get(number)
            chosen = await self._choose_place(key, replace(model, placed=placed), at)
            if chosen is not None and await self._place(key, chosen, at):
                placed[number] = PlacedAt(host=chosen)

    async def _choose_place(self, key: ReplicaKey, model: FreeModel, at: PlacedAt | None) -> int | None:
        """Return the host that is to have a replica from now on; None: none yet, or it stays where it is."""
        if at is None:
            return await self._find_place(key, model)
        if at.former is not None and self._has_moved(at):
            await self.book.forget_former(key.model, key.number)
            self._look_again(at.former)
        if key.number in model.unplaced or not self._is_badly_placed(key, model, at):
            return None
        began = self.clock()
        chosen = await self._find_other_place(key, model, at)
        if chosen is None and key.number >= model.replicas and self.tried_at.get(key, float("-inf")) >= began:
            await self.remove_further(key, quiet=False)
        return chosen

    # --- Further replicas, as `scaler.ScaledPlacer`

    async def add_further(self, key: ReplicaKey) -> PlacementAttempt:
        """Place one more replica of a model where it fits without making room."""
        model = self.models.get(key.model)
        if model is None or key.number in model.placed:
            return PlacementAttempt()
        candidates = await self._find_candidates(model)
        offers = await self._ask_for_offers(model.spec, candidates)
        if offers is None:
            return PlacementAttempt()
        fitting = {host: offer for host, offer in offers.items() if offer.fits}
        chosen = choose_host(fitting, _count_neighbours(model, key.number))
        if chosen is None:
            return PlacementAttempt(shortage=self._explain_shortage(offers, any_files=bool(candidates)))
        if not await self.book.add_replica(key.model, key.number, chosen):
            return PlacementAttempt()
        self.given[chosen] = self.clock(), key
        self._look_again(chosen)
        return PlacementAttempt(placed=True)

    def _explain_shortage(self, offers: Mapping[int, Offer], *, any_files: bool) -> Shortage:
        if offers:
            host = max(offers, key=lambda one: (offers[one].free, -one))
            cause = ReplicaShortage.Cause.NO_ROOM
            return Shortage(cause=cause, host=host, free=offers[host].free, need=offers[host].need)
        answering = any(one.takes_models for number, one in self.hosts().items() if number not in self.slow)
        has_none = answering and not any_files
        return Shortage(cause=ReplicaShortage.Cause.NO_FILES if has_none else ReplicaShortage.Cause.NO_HOST)

    async def note_shortages(self, found: Mapping[int, Shortage]) -> None:
        """Record which models lack a replica, by their ids, and that no other one does."""
        await self.book.note_shortages(found)

    async def remove_further(self, key: ReplicaKey, *, quiet: bool) -> None:
        """Have one of a model's further replicas leave. `quiet`: it is not needed; else it could not run."""
        at = self.models[key.model].placed.get(key.number)
        cause = ReplicaMove.Cause.QUIET if quiet else ReplicaMove.Cause.USELESS
        await self.book.remove_replica(key.model, key.number, cause)
        if at is not None:
            self._look_again(at.host)

    def _is_badly_placed(self, key: ReplicaKey, model: FreeModel, at: PlacedAt) -> bool:
        return self.is_doubted(key, model, [at]) and self.is_bad(key, model, at, serves=at.state in SERVING)

    def is_doubted(self, key: ReplicaKey, model: FreeModel, places: Sequence[PlacedAt]) -> bool:
        """Return whether other places are to be looked for now, if one of these turns out to be bad.

        `places`: of a replica, or of the ranks of one over several hosts.
        """
        pause = min(self._pause_of(at) for at in places)
        if not model.enabled or self.clock() - self.tried_at.get(key, float("-inf")) < pause:
            return False
        return places[0].state != "asleep" or model.called

    def is_bad(self, key: ReplicaKey, model: FreeModel, at: PlacedAt, *, serves: bool) -> bool:
        """Return whether a host does not do for this replica, or rank. `serves`: the replica answers."""
        host = self.hosts().get(at.host)
        if host is None or host.silent_for():
            return self.is_lost(at.host) and (not serves or (model.external and host is None))
        if host.maintenance:
            return not model.external
        return not model.external and host.cause_of(key) in (RANK_NOT_THERE if model.spec.nodes > 1 else NOT_THERE)

    def is_lost(self, host_id: int) -> bool:
        """Return whether a host has been silent for so long that what does not answer there is started elsewhere."""
        host = self.hosts().get(host_id)
        silent_for = self.clock() - self.began if host is None else host.silent_for()
        return silent_for >= LOST_AFTER and self._hears_others(host_id)

    def is_proving(self, key: ReplicaKey, host_id: int) -> bool:
        """Return whether a replica over several hosts, with its rank 0 there, may yet prove itself."""
        host = self.hosts().get(host_id)
        return host is not None and host.is_proving(key)

    def address_of(self, host_id: int) -> str:
        host = self.hosts().get(host_id)
        return host.address if host else ""

    def _hears_others(self, host: int) -> bool:
        """Return whether other hosts have answered for a while: all are silent while Ray's head is away."""
        return any(self.clock() - since >= LOST_AFTER for other, since in self.heard_since.items() if other != host)

    def _pause_of(self, at: PlacedAt) -> float:
        host = self.hosts().get(at.host)
        return EVERY if host is None or host.silent_for() else MOVE_AGAIN

    async def _find_place(self, key: ReplicaKey, model: FreeModel) -> int | None:
        """Return the host that is to have a replica; None: none yet."""
        candidates = await self._find_candidates(model)
        if not candidates:
            self.note_gap(key.model, hosts=0, having_files=0, needed=1)
        if model.external or (len(candidates) == 1 and self.request_files is None):
            return min(candidates, default=None)
        offers = await self._ask_for_offers(model.spec, candidates)
        if offers is None:
            self.undecided.add(key.model)
            return None
        if len(offers) == len(candidates) and not any(offer.fits for offer in offers.values()):
            await self._request_files(key, model, candidates)
        return choose_host(offers, _count_neighbours(model, key.number))

    async def _find_other_place(self, key: ReplicaKey, model: FreeModel, at: PlacedAt) -> int | None:
        """Return another host where it can run; None: it stays."""
        having = await self._find_candidates(model)
        candidates = {one: host for one, host in having.items() if one != at.host}
        if model.external:
            return min(candidates, default=None)
        offers = await self._ask_for_offers(model.spec, candidates)
        if offers is None:
            return None
        self.tried_at[key] = self.clock()
        if len(offers) == len(candidates) and not any(offer.fits for offer in offers.values()):
            await self._request_files(key, model, {*having, at.host})
        here = self.hosts().get(at.host)
        # Others are evicted for one that has lost its host, and not for one that has another way, or is a further one.
        lost = (here is None or here.silent_for() > 0) and key.number < model.replicas
        good = {host: offer for host, offer in offers.items() if offer.fits or (lost and offer.possible)}
        return choose_host(good, _count_neighbours(model, key.number))

    async def find_offers(self, key: ReplicaKey, model: FreeModel, *, needed: int) -> dict[int, Offer] | None:
        """Return the offers of the hosts that have its files; None: not yet. Has them copied if too few have room."""
        candidates = await self._find_candidates(model)
        offers = await self._ask_for_offers(model.spec, candidates, needed=needed)
        if offers is None:
            self.undecided.add(key.model)
            return None
        if key.number in model.placed:
            self.tried_at[key] = self.clock()
        if len(offers) == len(candidates) and sum(offer.fits for offer in offers.values()) < needed:
            await self._request_files(key, model, candidates)
        return offers

    async def place_gang(self, key: ReplicaKey, hosts: Sequence[int], before: Sequence[int | None]) -> bool:
        """Place all ranks of a replica over several hosts, which were placed on the hosts `before`."""
        placed = await self.book.place_gang(key.model, key.number, hosts, before)
        if placed:
            log.info("replica %d of model %d: its hosts are %s", key.number, key.model, hosts)
            for rank, host_id in enumerate(hosts):
                self.given[host_id] = self.clock(), ReplicaKey(key.model, key.number + rank)
            for one in {*hosts, *(host for host in before if host is not None)}:
                self._look_again(one)
        return placed

    async def _request_files(self, key: ReplicaKey, model: FreeModel, having: Collection[int]) -> None:
        """Have its files copied to a host where it would fit; that is a candidate when they are there."""
        asked = self.requested_at.get(key.model, float("-inf"))
        if self.request_files and model.enabled and self.clock() - asked >= REQUEST_EVERY:
            self.requested_at[key.model] = self.clock()
            await self.request_files(key.model, list(having))

    async def _find_candidates(self, model: FreeModel) -> dict[int, PlaceableHost]:
        """Return the hosts that could take it: that have its files."""
        hosts = self.hosts()
        if model.external:  # nothing of it runs there, so maintenance is no obstacle
            return {one: host for one, host in hosts.items() if host.takes_models or host.maintenance}
        there = {one: host for one, host in hosts.items() if host.takes_models and one not in self.slow}
        questions = {one: host.find_files([model.spec.path]) for one, host in there.items()}
        found = await _gather({one: asyncio.wait_for(ask, FILES_WITHIN) for one, ask in questions.items()})
        self.slow |= there.keys() - found.keys()
        return {one: host for one, host in there.items() if model.spec.path in found.get(one, ())}

    async def _ask_for_offers(
        self, spec: Spec, hosts: Mapping[int, PlaceableHost], *, needed: int = 1
    ) -> dict[int, Offer] | None:
        """Return the offers of those hosts; None: not yet, as one of them is settling what it was given last.

        Without those that have been settling for long, if it fits on as many others as are `needed`.
        """
        free = {host_id: host for host_id, host in hosts.items() if self._is_free(host_id, host)}
        busy = hosts.keys() - free.keys()
        if any(self.clock() - self.given[host_id][0] < WAITED_FOR for host_id in busy):
            return None
        asked = {one: asyncio.wait_for(host.make_offer(spec), OFFERED_WITHIN) for one, host in free.items()}
        offers = await _gather(asked)
        self.slow |= free.keys() - offers.keys()
        if busy and sum(offer.fits for offer in offers.values()) < needed:
            return None
        return offers

    def _is_free(self, host_id: int, host: PlaceableHost) -> bool:
        given = self.given.get(host_id)
        if given and (host.is_settled(given[1], given[0]) or self.clock() - given[0] >= SETTLED_WITHIN):
            del self.given[host_id]
        return host_id not in self.given

    def _has_moved(self, at: PlacedAt) -> bool:
        """Return whether a replica that serves where it was need not do so any longer."""
        former = self.hosts().get(at.former or 0)
        return at.state == "ready" or at.age > FORMER_FOR or former is None or former.silent_for() > 0

    def _look_again(self, host_id: int) -> None:
        if host := self.hosts().get(host_id):
            host.look_again()

    async def _place(self, key: ReplicaKey, host_id: int, at: PlacedAt | None) -> bool:
        here = self.hosts().get(at.host) if at else None
        serves_on = at is not None and at.state == "ready" and here is not None and not here.silent_for()
        placed = await self.book.place_replica(
            key.model, key.number, host_id, at.host if at else None, serves_on=serves_on
        )
        if placed:
            log.info("replica %d of model %d: its host is %d", key.number, key.model, host_id)
            self.given[host_id] = self.clock(), key
            for one in (host_id, *([at.host] if at else [])):
                self._look_again(one)
        return placed


def _count_neighbours(model: FreeModel, number: int) -> dict[int, int]:
    found: dict[int, int] = {}
    for other, at in model.placed.items():
        if other != number:
            found[at.host] = found.get(at.host, 0) + 1
    return found


async def _gather(questions: Mapping[int, Awaitable[T]]) -> dict[int, T]:
    """Return the answers of the hosts that give one."""
    answers = await asyncio.gather(*questions.values(), return_exceptions=True)
    found = {}
    for host, answer in zip(questions, answers, strict=True):
        if isinstance(answer, HostSilent | HostFault | TimeoutError):
            continue
        if isinstance(answer, Exception):  # one that a host may not give
            log.error("an answer of host %d cannot be used", host, exc_info=answer)
        elif isinstance(answer, BaseException):
            raise answer
        else:
            found[host] = answer
    return found
