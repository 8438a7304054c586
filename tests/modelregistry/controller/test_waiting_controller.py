"""A controller that waits for its election: its way into the cluster is ready by then, and asks nothing before."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from modelregistry.cluster.access import NotSecured
from modelregistry.cluster.link import ClusterNode, ClusterSilent
from modelregistry.controller import controller, election, repository
from modelregistry.controller.controller import Controller
from modelregistry.models import ControllerClaim, Host
from modelregistry.supervisor.launching import SupervisorConfig
from modelregistry.supervisor.loop import Signals
from tests.clock import Clock
from tests.waiting import eventually

pytestmark = pytest.mark.django_db(transaction=True)


class Link:
    """A way into a cluster whose hosts are silent. `asked`: what was done with it, in turn."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def open(self) -> None:
        self.asked.append("open")

    async def close(self) -> None:
        self.asked.append("close")

    async def list_nodes(self) -> list[ClusterNode]:
        self.asked.append("list_nodes")
        return []

    def __getattr__(self, name: str) -> Any:
        async def ask(*arguments: object, **options: object) -> None:
            self.asked.append(name)
            raise ClusterSilent("silent")

        return ask


class Waiting:
    """A controller that waits while another one has the site. `links`: which it made."""

    def __init__(self, place: Path) -> None:
        self.clock = Clock()
        self.links: list[Link] = []
        self.secured = True
        self.signals = Signals()
        config = SupervisorConfig(
            **{"host": "here", "runs": place / "engines", "cache": place, "commands": {}, "ports": ()},
            **{"start_limit": 60.0, "stop_grace": 1.0},
        )
        make: Any = self.make_link
        self.controller = Controller(config, claim=place / "run" / "claim", make_link=make, clock=self.clock)

    def make_link(self) -> Link:
        if not self.secured:
            raise NotSecured("others can read the token")
        self.links.append(Link())
        return self.links[-1]

    async def look(self) -> None:
        """Have it look at the claim after another second."""
        self.clock.now += 1
        await eventually(lambda: self.controller.election.looked_at == self.clock.now)

    async def look_until_linked(self, links: int = 1) -> None:
        """Have it look until it has made so many links, no longer than it may take."""
        deadline = self.clock.now + election.EXPECTED_AFTER + 1
        while len(self.links) < links:
            assert self.clock.now < deadline
            await self.look()

    async def renew(self) -> None:
        """Be the other one, which is alive after all."""
        await self.controller.database.run(repository.renew_claim, "theirs")
        await self.look()

    async def controls(self) -> bool:
        claim = await self.controller.database.run(repository.read_claim)
        return claim.number == self.controller.election.number


@asynccontextmanager
async def waiting(place: Path) -> AsyncIterator[Waiting]:
    made = Waiting(place)
    running = asyncio.create_task(made.controller.run(made.signals, stop_engines=False))
    try:
        await eventually(lambda: made.controller.election.watched)
        yield made
    finally:
        made.signals.stop.set()
        await running


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(controller, "LOOK_AGAIN", 0.01)
    (tmp_path / "run").mkdir()
    repository.read_claim()
    ControllerClaim.objects.update(number="theirs", holder="another machine")
    Host.objects.create(name="here", clustered=True)  # this machine, so that none is supervised without the cluster
    return tmp_path


def test_it_opens_its_link_before_it_is_elected_and_asks_nothing_until_then(place):
    async def wait() -> None:
        async with waiting(place) as made:
            await made.look_until_linked()
            for _ in range(int(election.STALE_AFTER - election.EXPECTED_AFTER) - 1):
                await made.look()
                assert [link.asked for link in made.links] == [["open"]]
                assert not await made.controls()
            made.clock.now += 1
            await eventually(made.controls)
            await eventually(lambda: "renew" in made.links[0].asked)
        assert len(made.links) == 1
        assert made.links[0].asked[-1] == "close"

    asyncio.run(wait())


def test_it_closes_its_link_when_the_other_one_renews_its_claim_after_all(place):
    async def wait() -> None:
        async with waiting(place) as made:
            await made.look_until_linked()
            await made.renew()
            assert made.links[0].asked == ["open", "close"]
            assert not await made.controls()
            await made.look_until_linked(2)
        assert [link.asked for link in made.links] == [["open", "close"]] * 2

    asyncio.run(wait())


def test_a_link_that_cannot_be_prepared_keeps_it_from_no_election(place):
    async def wait() -> None:
        async with waiting(place) as made:
            made.secured = False
            for _ in range(int(election.STALE_AFTER) - 1):
                await made.look()
            assert made.links == []
            made.secured = True
            made.clock.now += 1
            await eventually(made.controls)
            await eventually(lambda: made.links and "renew" in made.links[0].asked)

    asyncio.run(wait())
