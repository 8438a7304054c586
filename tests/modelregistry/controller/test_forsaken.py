"""Engines of a machine that the controller cannot reach: each serves for as long as it answers."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial

import httpx2
import pytest
from asgiref.sync import sync_to_async

from modelregistry.controller import forsaken, repository
from modelregistry.controller.forsaken import ForsakenMachines
from modelregistry.hostside.replicas import ReplicaKey
from modelregistry.models import Host, Replica, ServedModel
from modelregistry.supervisor import doubts
from modelregistry.supervisor.doubts import HOST_UNHEARD
from modelregistry.supervisor.plan import ReplicaState
from modelregistry.supervisor.repository import ReplicaFacts, write_replica
from tests.clock import Clock
from tests.ports import unused_port


class Health:
    """What answers /health on a port, or not."""

    def __init__(self) -> None:
        self.port = unused_port()
        self.server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            writer.close()

        self.server = await asyncio.start_server(answer, "127.0.0.1", self.port)

    async def stop(self) -> None:
        if self.server:
            self.server.close()
            await self.server.wait_closed()
            self.server = None


@pytest.fixture
async def engine() -> AsyncIterator[Health]:
    made = Health()
    await made.start()
    yield made
    await made.stop()


async def test_an_engine_is_doubted_while_it_does_not_answer_and_no_longer(engine):
    key = ReplicaKey(1, 0)
    known = {key: ReplicaFacts(state=ReplicaState.READY, url=engine.url, launcher="llama-server", run_id="r")}
    other = {
        ReplicaKey(2, 0): ReplicaFacts(state=ReplicaState.READY, url="http://127.0.0.1:1"),  # external
        ReplicaKey(3, 0): ReplicaFacts(state=ReplicaState.UNHEALTHY, url=engine.url, launcher="llama-server"),
    }
    written = {}

    async def write(key, facts):
        written[key] = facts
        return True

    async with httpx2.AsyncClient(trust_env=False) as client:
        assert await doubts.look(client, known | other, write) == {}
        await engine.stop()
        doubted = await doubts.look(client, known | other, write)
        assert {key: (one.state, one.detail, one.run_id) for key, one in doubted.items()} == {
            key: ("unhealthy", HOST_UNHEARD, "r")
        }
        assert await doubts.look(client, doubted | other, write) == {}
        await engine.start()
        assert await doubts.look(client, doubted | other, write) == known
    assert written == known


class Rows:
    """The rows of the test's database, a `forsaken.ForsakenBook`."""

    async def forsaken_replicas(self, supervised):
        return await sync_to_async(repository.forsaken_replicas)(supervised)

    async def write_replica(self, host, key, facts):
        await sync_to_async(partial(write_replica, host, key))(facts)
        return True


async def states() -> list[str]:
    return await sync_to_async(lambda: list(Replica.objects.order_by("pk").values_list("state", flat=True)))()


@pytest.mark.django_db(transaction=True)
async def test_what_a_lost_controller_ran_on_its_own_machine_is_known_to_be_gone(engine):
    def furnish() -> list[int]:
        made = [Host.objects.create(name=name, clustered=name == "gpu") for name in ("lost", "mine", "gpu")]
        models = [ServedModel.objects.create(name=f"m{number}", engine="llama.cpp", path="/m") for number in range(2)]
        for host in made:
            values = {"host": host, "state": "ready", "launcher": "llama-server", "url": "http://127.0.0.1:1"}
            Replica.objects.create(model=models[0], **values)
        Replica.objects.create(model=models[1], host=made[0], state="ready", launcher="llama-server", url=engine.url)
        return [host.pk for host in made]

    lost, mine, _gpu = await sync_to_async(furnish)()
    clock = Clock()
    noted: list[object] = []
    machines = ForsakenMachines(lambda: [mine], Rows(), note=noted.append, clock=clock)
    await machines.look()
    assert noted == []
    assert await states() == ["ready"] * 4
    clock.now += forsaken.FIRST_LOOK
    await machines.look()
    assert await states() == ["unhealthy", "ready", "ready", "ready"]
    assert [[str(one.state) for one in rows.values()] for rows in noted] == [["unhealthy", "ready"]]

    def move() -> None:
        model = ServedModel.objects.get(name="m0")
        assert repository.place_replica(model.pk, 0, mine, before=None)
        assert {key.model for key in repository.forsaken_replicas([mine])[lost]} == {model.pk + 1}

    await sync_to_async(move)()
