"""What is booked in Ray follows what supervisors have placed, whatever Ray, controllers and other work do."""

import asyncio
from dataclasses import dataclass, field, replace

import pytest

from modelregistry.cluster.bookings import Booking, BookingTable, FoundBooking
from modelregistry.cluster.link import ClusterNode, ClusterSilent
from modelregistry.controller.booker import LATE_AFTER, Booker, HostBookings
from modelregistry.hostside.surface import HostSilent
from modelregistry.process.gpus import RAM
from tests.clock import Clock

GB = 1_000_000_000


class PaperRay:
    """Ray with nodes by host, which books what there is room for."""

    def __init__(self, **offered: dict[str, float]) -> None:
        self.nodes = {host: dict(resources) for host, resources in offered.items()}
        self.taken: dict[str, dict[str, float]] = {host: {} for host in offered}  # by other work
        self.groups: list[FoundBooking] = []
        self.silent = False
        self.refused: set[str] = set()  # replicas that Ray does not book
        self.numbers = 0

    async def list_nodes(self) -> list[ClusterNode]:
        return [
            ClusterNode(node=f"node-{host}", address="", alive=True, host=host, resources=resources)
            for host, resources in self.nodes.items()
        ]

    async def list_bookings(self) -> BookingTable:
        if self.silent:
            raise ClusterSilent("the head is away")
        self.groups = [self._place(one) for one in self.groups]
        return BookingTable(bookings=list(self.groups), left={f"node-{host}": self._left(host) for host in self.nodes})

    async def book(self, booking: Booking) -> None:
        if booking.replica in self.refused:
            raise ClusterSilent("no")
        self.numbers += 1
        self.groups.append(
            FoundBooking(group=str(self.numbers), name=booking.name, state="PENDING", node="", bundle=booking.bundle)
        )

    async def unbook(self, group: str) -> None:
        self.groups = [one for one in self.groups if one.group != group]

    def _left(self, host: str) -> dict[str, float]:
        made = [one.bundle for one in self.groups if one.node == f"node-{host}"]
        return {
            name: size - self.taken[host].get(name, 0) - sum(bundle.get(name, 0) for bundle in made)
            for name, size in self.nodes[host].items()
        }

    def _place(self, one: FoundBooking) -> FoundBooking:
        left = self._left(one.host) if one.host in self.nodes else {}
        if one.node or any(left.get(name, 0) < size for name, size in one.bundle.items() if "host" not in name):
            return one
        return replace(one, state="CREATED", node=f"node-{one.host}")

    def booked(self) -> list[str]:
        return sorted(one.name.rpartition(":")[0] for one in self.groups)


@dataclass
class PaperHost:
    promises: dict[str, dict[int, int]] | None
    reserved: list[dict[int, int]] = field(default_factory=list)
    silent: bool = False

    def list_promises(self):
        return self.promises

    async def reserve(self, amounts):
        if self.silent:
            raise HostSilent
        self.reserved.append(dict(amounts))


class PaperSite:
    def __init__(self, ray: PaperRay, **hosts: PaperHost) -> None:
        self.ray = ray
        self.hosts = dict(hosts)
        self.known = set(hosts)
        self.clock = Clock()
        self.records: list[tuple[str, HostBookings]] = []
        self.booker = self.make_booker()

    def make_booker(self) -> Booker:
        return Booker(*(self.ray, lambda: self.hosts), read_known=self.read_known, record=self.record, clock=self.clock)

    async def read_known(self):
        return self.known

    async def record(self, name, found):
        self.records.append((name, found))

    def last(self, name: str) -> HostBookings:
        return next(found for one, found in reversed(self.records) if one == name)

    async def look(self, times: int = 1) -> None:
        for _ in range(times):
            await self.booker.look()
            self.clock.now += LATE_AFTER


@pytest.fixture
def site():
    ray = PaperRay(a={"memory": 32.0 * GB, "gpu-memory-mb:0": 80_000}, b={"memory": 32.0 * GB})
    return PaperSite(ray, a=PaperHost({"m #0": {0: 60 * GB, RAM: 2 * GB}}), b=PaperHost({"m #1": {RAM: 3 * GB}}))


async def test_each_replica_that_holds_memory_is_booked_once(site):
    await site.look(3)
    assert site.ray.booked() == ["madoguchi:a:m #0", "madoguchi:b:m #1"]
    assert site.last("a") == HostBookings(
        offered={0: 80 * GB, RAM: 32 * GB}, booked={0: 60 * GB, RAM: 2 * GB}, others={}, late=[]
    )


async def test_what_went_is_given_up(site):
    await site.look(2)
    site.hosts["a"].promises = {}
    await site.look(2)
    assert site.ray.booked() == ["madoguchi:b:m #1"]
    assert site.last("a").booked == {}


async def test_what_takes_more_than_before_is_booked_anew(site):
    await site.look(2)
    site.hosts["b"].promises = {"m #1": {RAM: 4 * GB}}
    await site.look(2)
    assert site.ray.booked() == ["madoguchi:a:m #0", "madoguchi:b:m #1"]
    assert site.last("b").booked == {RAM: 4 * GB}


async def test_the_next_controller_finds_what_is_booked(site):
    await site.look()
    before = list(site.ray.groups)
    site.booker = site.make_booker()
    await site.look(2)
    assert [one.group for one in site.ray.groups] == [one.group for one in before]


async def test_nothing_is_given_up_of_a_host_of_which_it_is_not_known_what_runs_there(site):
    await site.look()
    site.hosts["a"].promises = None  # a controller that has just begun
    del site.hosts["b"]
    await site.look(2)
    assert site.ray.booked() == ["madoguchi:a:m #0", "madoguchi:b:m #1"]


async def test_what_is_booked_of_a_host_that_left_the_site_is_given_up(site):
    await site.look()
    del site.hosts["b"]
    site.known.discard("b")
    await site.look()
    assert site.ray.booked() == ["madoguchi:a:m #0"]


async def test_a_second_booking_of_the_same_is_given_up(site):
    await site.look(2)
    [one] = [one for one in site.ray.groups if one.host == "b"]
    site.ray.groups.insert(0, replace(one, group="0", state="PENDING", node=""))
    site.ray.taken["b"] = {"memory": 29.0 * GB}
    await site.look()
    assert [each.group for each in site.ray.groups if each.host == "b"] == [one.group]


async def test_all_is_booked_again_by_a_new_and_empty_head(site):
    await site.look(2)
    site.ray.groups.clear()
    await site.look()
    assert site.ray.booked() == ["madoguchi:a:m #0", "madoguchi:b:m #1"]


async def test_a_silent_cluster_changes_nothing_and_is_asked_again(site):
    site.ray.silent = True
    await site.look(2)
    assert site.records == []
    site.ray.silent = False
    await site.look()
    assert len(site.ray.booked()) == 2


async def test_one_that_ray_refuses_keeps_no_other_from_being_booked(site):
    site.ray.refused = {"m #0"}
    await site.look(2)
    assert site.ray.booked() == ["madoguchi:b:m #1"]


async def test_what_other_work_has_booked_is_counted_as_taken_by_the_host(site):
    site.ray.taken["b"] = {"memory": 20.0 * GB}
    await site.look(3)
    assert site.last("b").others == {RAM: 20 * GB}
    assert site.hosts["b"].reserved[-1] == {RAM: 20 * GB}
    assert set(map(str, site.hosts["a"].reserved)) == {"{}"}
    site.ray.taken["b"] = {}
    await site.look(3)
    assert site.last("b").others == {}
    assert site.hosts["b"].reserved[-1] == {}


async def test_a_host_that_forgot_what_others_have_booked_is_given_it_again(site):
    site.ray.taken["b"] = {"memory": 20.0 * GB}
    await site.look(4)
    assert site.hosts["b"].reserved.count({RAM: 20 * GB}) >= 2


async def test_a_host_is_freed_of_what_an_earlier_controller_gave_it(site):
    await site.look(3)
    assert site.hosts["b"].reserved == [{}]


async def test_what_only_one_look_showed_of_others_is_not_believed(site):
    await site.look()
    site.ray.taken["b"] = {"memory": 20.0 * GB}
    await site.look()
    site.ray.taken["b"] = {}
    await site.look(2)
    assert site.hosts["b"].reserved == [{}]


async def test_a_host_that_does_not_answer_keeps_no_other_from_being_settled(site):
    site.hosts["a"].silent = True
    for host in ("a", "b"):
        site.ray.taken[host] = {"memory": 20.0 * GB}
    await site.look(3)
    assert site.hosts["b"].reserved[-1]
    assert site.last("b").others == {RAM: 20 * GB}


@pytest.mark.parametrize(
    ("taken", "offered", "code", "where"),
    [
        ({"gpu-memory-mb:0": 40_000}, {}, "booking-held", "GPU 0: 60.0 GB"),
        ({"memory": 31.0 * GB}, {}, "booking-held", "RAM: 2.0 GB"),
        ({}, {"gpu-memory-mb:0": None}, "booking-not-offered", "GPU 0: 60.0 GB"),
    ],
)
async def test_why_ray_does_not_book_is_recorded(site, taken, offered, code, where):
    site.ray.taken["a"] = taken
    for name in offered:
        del site.ray.nodes["a"][name]
    await site.look()
    assert site.last("a").late == []  # it may be on its way
    await site.look(3)
    assert site.last("a").late == [{"code": code, "replica": "m #0", "detail": f"m #0, {where}"}]
    site.ray.taken["a"] = {}
    site.ray.nodes["a"]["gpu-memory-mb:0"] = 80_000
    await site.look(2)
    assert site.last("a").late == []


async def test_what_does_not_change_is_not_written_again(site):
    await site.look(6)
    assert len(site.records) == len({repr(one) for one in site.records}) <= 4


async def test_when_engines_were_stopped_nothing_stays_booked(site):
    await site.look()
    await site.booker.release()
    assert site.ray.groups == []


async def test_looks_do_not_wait_for_each_change(site):
    """Ten hosts that Ray answers in a tenth of a second each are settled in less than a second."""
    slow = site.ray.book

    async def book(booking):
        await asyncio.sleep(0.1)
        await slow(booking)

    site.ray.book = book
    site.hosts["b"].promises = {f"m #{number}": {RAM: GB} for number in range(20)}
    async with asyncio.timeout(1):
        await site.look()
    assert len(site.ray.booked()) == 21
