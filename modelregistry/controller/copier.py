"""Has models' files brought to hosts, as copies are requested.

It orders and watches: files go from host to host, or from the machine of the controller. A host copies one model at a
time. What is interrupted, as a host or the controller was started again or does not answer, is ordered again and goes
on where it was; what failed for another reason waits for the next request.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from modelregistry.controller.repository import CopyProgress, CopyRequest
from modelregistry.hostside.surface import HostFault, HostSilent
from modelregistry.models import ModelCopy
from modelregistry.transfer.surface import FetchOrder, FetchPhase, FetchState, FileOffer, FileSurface

log = logging.getLogger(__name__)

EVERY = 1.0  # seconds
AGAIN_AFTER = 5.0  # seconds until what was interrupted is ordered again
INTERRUPTED = frozenset({"source-away", "stopped", "busy"})
State = ModelCopy.State


class CopyBook(Protocol):
    """The requests, in the database. Each method raises django.db.Error when that is away."""

    async def open_copies(self) -> Sequence[CopyRequest]: ...

    async def note_copy(self, number: str, progress: CopyProgress) -> None: ...

    async def delete_copy(self, number: str) -> None: ...


class Copier:
    """The copier of one controller. `hosts`: the files of hosts, by their names; `arrived`: is given such a name."""

    def __init__(
        self,
        hosts: Callable[[], Mapping[str, FileSurface]],
        book: CopyBook,
        *,
        arrived: Callable[[str], None],
        clock: Callable[[], float],
    ) -> None:
        self.hosts = hosts
        self.book = book
        self.arrived = arrived
        self.clock = clock
        self.sources: dict[str, str] = {}  # by number, the host that gives
        self.running: dict[str, CopyRequest] = {}  # by number, what hosts were seen to fetch
        self.ordered_at: dict[str, float] = {}

    async def work(self) -> None:
        """Look at all copies once."""
        requests = await self.book.open_copies()
        known = {one.number for one in requests}
        for number in self.sources.keys() - known:
            await self._withdraw(number)
        for number in self.running.keys() - known:
            await self._stop_deleted(self.running[number], requests)
        by_host: dict[str, list[CopyRequest]] = {}
        for one in sorted(requests, key=lambda one: one.progress.state != State.RUNNING):
            by_host.setdefault(one.host, []).append(one)
        await asyncio.gather(*(self._look_after_host(name, mine) for name, mine in by_host.items()))

    async def _stop_deleted(self, gone: CopyRequest, requests: Sequence[CopyRequest]) -> None:
        """Stop a copy whose model was deleted, or that was requested again, which gave it another number."""
        target = self.hosts().get(gone.host)
        if target is None:
            return  # it is stopped when its host is back
        try:
            await target.stop_fetch(gone.number)
            if (await target.read_fetch(gone.number)).phase is FetchPhase.RUNNING:
                return  # until the next turn
            if not any((one.host, one.path) == (gone.host, gone.path) for one in requests):
                await target.drop_draft(gone.path)
        except (HostSilent, HostFault) as error:
            log.debug("a copy that was given up is not stopped yet: %s", error)
        else:
            del self.running[gone.number]

    async def _look_after_host(self, name: str, requests: Sequence[CopyRequest]) -> None:
        running: CopyRequest | None = None
        for one in requests:
            if running and one.progress.state != State.STOPPING:
                await self._note(one, self._waiting(one, "after-another", f"{running.path} is copied there first"))
            elif await self._look_after(one):
                running = one

    async def _look_after(self, one: CopyRequest) -> bool:
        """Take one step of a copy, and return whether its host is occupied with it."""
        target = self.hosts().get(one.host)
        try:
            if target is None:
                raise HostSilent("it is not in the cluster now")
            if one.progress.state == State.STOPPING:
                return await self._give_up(one, target)
            return await self._go_on(one, target, await target.read_fetch(one.number))
        except (HostSilent, HostFault) as error:
            if one.progress.state != State.STOPPING:
                await self._note(one, self._waiting(one, "host-away", f"{one.host} does not answer: {error}"))
            return False

    async def _go_on(self, one: CopyRequest, target: FileSurface, found: FetchState) -> bool:
        if found.phase is FetchPhase.RUNNING:
            self.running[one.number] = one
        else:
            self.running.pop(one.number, None)
        match found.phase:
            case FetchPhase.RUNNING:
                await self._note(one, CopyProgress(state=State.RUNNING, done=found.done, total=found.total))
                return True
            case FetchPhase.DONE:
                await self._note(one, CopyProgress(state=State.DONE, done=found.done, total=found.total))
                await self._withdraw(one.number)
                self.arrived(one.host)
                return False
            case FetchPhase.FAILED if found.code not in INTERRUPTED:
                failed = CopyProgress(
                    state=State.FAILED, done=found.done, total=found.total, cause=found.code, detail=found.detail
                )
                await self._note(one, failed)
                await self._withdraw(one.number)
                return False
            case FetchPhase.FAILED if self.clock() - self.ordered_at.get(one.number, float("-inf")) < AGAIN_AFTER:
                await self._note(one, self._waiting(one, found.code, found.detail))
                return False
            case _:
                return await self._order(one, target)

    def _waiting(self, one: CopyRequest, cause: str, detail: str) -> CopyProgress:
        before = one.progress
        return CopyProgress(done=before.done, total=before.total, cause=cause, detail=detail)

    async def _order(self, one: CopyRequest, target: FileSurface) -> bool:
        self.ordered_at[one.number] = self.clock()
        order = FetchOrder(copy=one.number, path=one.path, limit=one.limit)
        if one.source.startswith("/"):
            order = replace(order, directory=one.source)
        else:
            offer, detail = await self._find_offer(one)
            if offer is None:
                await self._note(one, self._waiting(one, "no-source", detail))
                return False
            order = replace(order, offer=offer)
        self.running[one.number] = one
        found = await target.fetch_files(order)
        await self._note(one, CopyProgress(state=State.RUNNING, done=found.done, total=found.total))
        return True

    async def _find_offer(self, one: CopyRequest) -> tuple[FileOffer | None, str]:
        """Return the offer of the host that gives least to others; None: of no host, and why."""
        giving = list(self.sources.values())
        hosts = {name: host for name, host in self.hosts().items() if name != one.host}
        if one.source:
            hosts = {name: host for name, host in hosts.items() if name == one.source}
        reasons = [] if hosts else [f"{one.source or 'another host'} is not in the cluster now"]
        for name in sorted(hosts, key=lambda name: (giving.count(name), name)):
            try:
                offer = await hosts[name].offer_files(one.number, one.path)
            except (HostSilent, HostFault) as error:
                reasons.append(f"{name}: {error}")
                continue
            if not offer.code:
                self.sources[one.number] = name
                return offer, ""
            reasons.append(f"{name}: {offer.detail}")
        return None, " ".join(reasons)[:1000]

    async def _give_up(self, one: CopyRequest, target: FileSurface) -> bool:
        await target.stop_fetch(one.number)
        if (await target.read_fetch(one.number)).phase is FetchPhase.RUNNING:
            return True  # until the next turn
        await target.drop_draft(one.path)
        self.running.pop(one.number, None)
        await self.book.delete_copy(one.number)
        await self._withdraw(one.number)
        return False

    async def _withdraw(self, number: str) -> None:
        self.ordered_at.pop(number, None)
        host = self.hosts().get(self.sources.pop(number, ""))
        if host:
            try:
                await host.withdraw_offer(number)
            except (HostSilent, HostFault) as error:
                log.debug("an offer runs out by itself: %s", error)

    async def _note(self, one: CopyRequest, progress: CopyProgress) -> None:
        if progress != one.progress:
            await self.book.note_copy(one.number, progress)
