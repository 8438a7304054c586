"""Keeps in Ray what replicas take of hosts' memory: for each that holds memory one booking, and no other.

It follows what supervisors have placed, and never decides: where Ray cannot book, as other work on the cluster holds
what an engine takes, that is recorded for operators, and the engine runs. What other work has booked is given to hosts,
which count it as taken. Nothing is kept here that the next controller needs: bookings outlive their controllers, and
are found by their names.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from modelregistry.cluster import bookings
from modelregistry.cluster.bookings import CREATED, Booking, BookingTable, FoundBooking
from modelregistry.cluster.link import ClusterNode, ClusterSilent, HostRefused
from modelregistry.hostside.surface import HostFault, HostSilent
from modelregistry.process.gpus import RAM

log = logging.getLogger(__name__)

EVERY = 5.0  # seconds between two looks
LATE_AFTER = 15.0  # seconds that a booking may take; Ray needs one, and tries again what did not fit
LEAST = 1_000_000  # bytes: what was only rounded
# Why a booking is not made: its host's Ray has no such memory to offer, other work has it, or it is not known.
NOT_OFFERED, HELD, LATE = "booking-not-offered", "booking-held", "booking-late"

Amounts = Mapping[int, int]  # bytes by the index of the device


class BookingLink(Protocol):
    """The way to Ray's bookings; see `cluster.link.ClusterLink`. Each method raises ClusterSilent."""

    async def list_nodes(self) -> list[ClusterNode]: ...

    async def list_bookings(self) -> BookingTable: ...

    async def book(self, booking: Booking) -> None: ...

    async def unbook(self, group: str) -> None: ...


class BookableHost(Protocol):
    """What is known of a host; see `supervisor.loop.Supervisor`."""

    def list_promises(self) -> Mapping[str, Amounts] | None:
        """Return what each replica there was promised, by their names; None: it is not known yet."""

    async def reserve(self, amounts: Amounts) -> None:
        """Have the host count so much as taken by others. Raises HostSilent, HostFault."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostBookings:
    """What is booked of one host's memory, in bytes by device. `others`: by other work; `late`: what is not booked.

    Each of `late` has "code", "replica" and "detail", as problems of hosts have.
    """

    offered: Amounts = field(default_factory=dict)
    booked: Amounts = field(default_factory=dict)
    others: Amounts = field(default_factory=dict)
    late: Sequence[Mapping[str, str]] = ()

    def stored(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        amounts = {"offered": self.offered, "booked": self.booked, "others": self.others}
        written = {name: {str(device): size for device, size in found.items()} for name, found in amounts.items()}
        return {**written, "late": [dict(one) for one in self.late]}


def reconcile(
    wanted: Sequence[Booking], found: Sequence[FoundBooking], unknown: Collection[str]
) -> tuple[list[Booking], list[FoundBooking]]:
    """Return the bookings that are to be made, and those that are to be given up.

    `unknown`: hosts of which it is not known yet what runs there, whose bookings stay.
    """
    missing = {one.name: one for one in wanted}
    surplus = []
    for one in sorted(found, key=lambda one: (one.state != CREATED, one.group)):  # of two, the one that is made stays
        if missing.pop(one.name, None) is None and one.host not in unknown:
            surplus.append(one)
    return list(missing.values()), surplus


def add_up(amounts: Iterable[Amounts]) -> dict[int, int]:
    """Return the sum for each device."""
    total: dict[int, int] = {}
    for one in amounts:
        for device, size in one.items():
            total[device] = total.get(device, 0) + size
    return total


def judge(node: ClusterNode, table: BookingTable, late: Iterable[Booking]) -> HostBookings:
    """Return what is booked on a node, and why some bookings are not."""
    offered, left = bookings.measure(node.resources), bookings.measure(table.left[node.node])
    here = [one for one in table.bookings if one.node == node.node and one.state == CREATED]
    booked = add_up(bookings.measure(one.bundle) for one in here)
    others = {one: size - left.get(one, 0) - booked.get(one, 0) for one, size in offered.items()}
    return HostBookings(
        offered=offered,
        booked=booked,
        others={device: size for device, size in others.items() if size >= LEAST},
        late=[_explain(one, offered, left) for one in late],
    )


def _explain(booking: Booking, offered: Amounts, left: Amounts) -> dict[str, str]:
    code, device = LATE, min(booking.amounts)
    for one, size in booking.amounts.items():
        if one not in offered:
            code, device = NOT_OFFERED, one
        elif size > left.get(one, 0) and code != NOT_OFFERED:
            code, device = HELD, one
    where = "RAM" if device == RAM else f"GPU {device}"
    return {
        "code": code,
        "replica": booking.replica,
        "detail": f"{booking.replica}, {where}: {booking.amounts[device] / 1e9:.1f} GB",
    }


class Booker:
    """The bookings of one controller. `hosts`: those that are supervised, by name; `read_known`: those of the cluster.

    `record` writes what is booked of a host. Both raise django.db.Error.
    """

    def __init__(
        self,
        link: BookingLink,
        hosts: Callable[[], Mapping[str, BookableHost]],
        *,
        read_known: Callable[[], Awaitable[Collection[str]]],
        record: Callable[[str, HostBookings], Awaitable[None]],
        clock: Callable[[], float],
    ) -> None:
        self.link = link
        self.hosts = hosts
        self.read_known = read_known
        self.record = record
        self.clock = clock
        self.wanted_since: dict[str, float] = {}  # by the name of the booking
        self.recorded: dict[str, HostBookings] = {}  # by host
        self.others: dict[str, Amounts] = {}  # by host, at the look before
        self.cleared: set[str] = set()  # hosts that count nothing: what an earlier controller gave them was taken back

    async def look(self) -> None:
        """Make and give up what has to be, and record what there is. Raises django.db.Error."""
        known = await self.read_known()
        promises = {name: host.list_promises() for name, host in self.hosts().items() if name in known}
        wanted = [
            Booking(host=name, replica=replica, amounts=amounts)
            for name, found in promises.items()
            for replica, amounts in (found or {}).items()
            if any(amounts.values())
        ]
        now = self.clock()
        self.wanted_since = {one.name: self.wanted_since.get(one.name, now) for one in wanted}
        try:
            table = await self.link.list_bookings()
            nodes = [node for node in await self.link.list_nodes() if node.alive and node.host in promises]
            unknown = [name for name in known if promises.get(name) is None]
            await self._change(*reconcile(wanted, table.bookings, unknown))
        except (ClusterSilent, HostRefused) as silence:
            log.debug("bookings wait for the cluster: %s", silence)
            return
        made = {one.name for one in table.bookings if one.state == CREATED}
        late = [one for one in wanted if one.name not in made and now - self.wanted_since[one.name] > LATE_AFTER]
        found = {
            node.host: judge(node, table, [one for one in late if one.host == node.host])
            for node in nodes
            if node.node in table.left
        }
        confirmed = {name: self._confirm(name, one) for name, one in found.items()}
        await asyncio.gather(*(self._reserve(name, one.others) for name, one in confirmed.items()))
        for name, one in confirmed.items():
            await self._record(name, one)

    async def release(self) -> None:
        """Give all bookings up, as no engine is left. Raises ClusterSilent."""
        for one in (await self.link.list_bookings()).bookings:
            await self.link.unbook(one.group)

    async def _change(self, missing: Iterable[Booking], surplus: Iterable[FoundBooking]) -> None:
        await _try_all([self.link.unbook(one.group) for one in surplus])  # first: what is booked may need their room
        await _try_all([self.link.book(one) for one in missing])

    def _confirm(self, name: str, found: HostBookings) -> HostBookings:
        """Return it with so much of others as two looks have shown: Ray's figures come a moment after its bookings."""
        before, self.others[name] = self.others.get(name, {}), found.others
        others = {device: min(size, before.get(device, 0)) for device, size in found.others.items()}
        return replace(found, others={device: size for device, size in others.items() if size})

    async def _reserve(self, name: str, amounts: Amounts) -> None:
        """Have a host count what others have booked: each time, as an agent that was started again has forgotten it."""
        host = self.hosts().get(name)
        if host is None or not (amounts or name not in self.cleared):
            return
        try:
            await host.reserve(amounts)
        except (HostSilent, HostFault) as error:  # one of an earlier release does not know the request
            log.debug("%s does not count what others have booked there: %s", name, error)
        else:
            (self.cleared.discard if amounts else self.cleared.add)(name)

    async def _record(self, name: str, found: HostBookings) -> None:
        if self.recorded.get(name) != found:
            await self.record(name, found)
            self.recorded[name] = found


async def _try_all(changes: Iterable[Awaitable[None]]) -> None:
    """Carry out all changes: one that Ray refuses keeps no other from being made, and is tried at the next look."""
    for answer in await asyncio.gather(*changes, return_exceptions=True):
        if isinstance(answer, ClusterSilent | HostRefused):
            log.debug("a booking is not changed: %s", answer)
        elif isinstance(answer, BaseException):
            raise answer
