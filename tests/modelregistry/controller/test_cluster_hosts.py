"""How a controller holds the hosts of a cluster: their leases wait for nothing."""

import asyncio
from collections import Counter
from typing import Any

import pytest

from modelregistry.cluster.link import ClusterNode, ClusterSilent
from modelregistry.controller import cluster_hosts
from modelregistry.controller.cluster_hosts import ClusterHosts
from modelregistry.supervisor.office import Office
from tests.waiting import eventually


class PaperLink:
    """A cluster with one host, which is silent once, and whose agent takes for ever to be created."""

    def __init__(self) -> None:
        self.renewed: Counter[str] = Counter()
        self.opening: Counter[str] = Counter()

    async def open(self) -> None:
        return

    async def close(self) -> None:
        return

    async def list_nodes(self) -> list[ClusterNode]:
        return [ClusterNode(node="n", address="192.0.2.1", alive=True, host="gpu1", resources={})]

    async def renew(self, host: str, renewal: object) -> float:
        self.renewed[host] += 1
        if self.renewed[host] < 3:
            raise ClusterSilent("slow")
        return 30.0

    async def open_host(self, host: str) -> None:
        self.opening[host] += 1
        await asyncio.Event().wait()

    async def list_bookings(self) -> object:
        raise ClusterSilent("slow")

    async def describe(self, host: str) -> dict[str, Any]:
        raise ClusterSilent("slow")


class BoastingLink(PaperLink):
    """Its agent describes itself, with so much more."""

    def __init__(self, more: dict[str, Any]) -> None:
        super().__init__()
        self.more = more

    async def describe(self, host: str) -> dict[str, Any]:
        return {"address": "192.0.2.1", "version": "1.0.0", "clock": 1.0, **self.more}


class Notebook:
    """A database in which hosts are noted, with what their agents said."""

    def __init__(self) -> None:
        self.noted: list[tuple[str, str, dict[str, Any]]] = []

    async def run(self, function: object, *values: Any) -> set[str]:
        if values:
            self.noted.append(values)
        return set()


class NoHostsYet:
    async def run(self, function: object) -> set[str]:
        return set()


@pytest.mark.parametrize(
    ("more", "is_kept"),
    [
        ({"later": "x"}, True),
        ({"version": "x" * 1_000}, False),
        ({"boot": ["x"] * 1_000}, False),
        ({"fenced": "x"}, False),
        ({"address": None}, False),
    ],
)
async def test_what_an_agent_says_of_itself_is_kept_if_it_has_the_types_and_bounds_of_that(caplog, more, is_kept):
    database: Any = Notebook()
    link: Any = BoastingLink(more)
    office = Office(number="n", holder="me", term=1)
    hosts = ClusterHosts(link, office=office, database=database, lease=0.1, supervised_hosts=dict)
    stop = asyncio.Event()
    running = asyncio.create_task(hosts.run(pytest.fail, stop))
    await eventually(lambda: database.noted or "description" in caplog.text, 20)
    stop.set()
    await running
    await hosts.close()
    assert [(name, address) for name, address, _said in database.noted] == [("gpu1", "192.0.2.1")] * is_kept
    assert all(said["version"] == "1.0.0" and "later" not in said for _name, _address, said in database.noted)
    assert "Traceback" not in caplog.text


async def test_leases_are_renewed_while_an_agent_takes_long_to_be_created(monkeypatch):
    monkeypatch.setattr(cluster_hosts, "TRY_AGAIN", 0.01)
    link: Any = PaperLink()
    database: Any = NoHostsYet()
    office = Office(number="n", holder="me", term=1)
    hosts = ClusterHosts(link, office=office, database=database, lease=0.1, supervised_hosts=dict)
    stop = asyncio.Event()
    running = asyncio.create_task(hosts.run(pytest.fail, stop))
    await eventually(lambda: link.renewed["gpu1"] > 5, 20)
    assert link.opening["gpu1"] == 1
    stop.set()
    await running
    await hosts.close()
