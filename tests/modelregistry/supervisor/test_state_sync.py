"""What one exchange of a supervisor asks the database, and that one replica's odd values keep no other's from it."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.db import connections

from modelregistry.controller.repository import read_claim, take_claim
from modelregistry.engines.base import Spec
from modelregistry.hostside.launching import HostConfig
from modelregistry.hostside.local import LocalHost
from modelregistry.hostside.replicas import ReplicaKey
from modelregistry.models import Host, Replica, ServedModel
from modelregistry.supervisor.database import Database
from modelregistry.supervisor.launching import SupervisorConfig
from modelregistry.supervisor.managed_replica import ManagedReplica
from modelregistry.supervisor.plan import ReplicaState
from modelregistry.supervisor.repository import DesiredModel
from modelregistry.supervisor.state_sync import StateSync
from tests.clock import Clock

MANY = 20  # replicas
# What is wanted of the host and of its models, and all live values together, in a transaction of their own.
FEW = 9


class Exchanges:
    """A supervisor's exchange with the database, with the replicas of one model, and the queries that it makes."""

    def __init__(self, model: ServedModel, place: Any) -> None:
        self.clock = Clock()
        self.replicas: dict[ReplicaKey, ManagedReplica] = {}
        self.database = Database()
        self.queries: list[str] = []
        config = SupervisorConfig(
            **{"host": "gpu-1", "runs": place, "cache": place, "commands": {}, "ports": range(1, 2)},
            **{"start_limit": 1.0, "stop_grace": 1.0},
        )
        self.machine = LocalHost(HostConfig(runs=place, cache=place, commands={}, ports=range(1, 2)))
        office = take_claim(read_claim(), "n", "this test")
        assert office
        how: dict[str, Any] = {"office": office, "database": self.database, "clock": self.clock}
        self.sync = StateSync(config, self.replicas, self.machine, on_exchange=lambda: None, **how)
        spec = Spec(engine="vllm", name="m", path="/m")
        desired = DesiredModel(
            **{"spec": spec, "enabled": True, "numbers": frozenset(range(MANY)), "idle_after": None, "hours": None},
            **{"url": "", "upstream_key": "", "upstream_model": ""},
        )
        for number in range(MANY):
            key = ReplicaKey(model.pk, number)
            self.replicas[key] = ManagedReplica(
                key=key, desired=desired, fingerprint="", state=ReplicaState.READY, since=0.0
            )

    def note_queries(self) -> None:
        def note(execute: Any, sql: str, *rest: Any) -> Any:
            self.queries.append(sql)
            return execute(sql, *rest)

        connections["default"].execute_wrappers.append(note)

    async def close(self) -> None:
        await self.database.run(connections.close_all)
        self.database.close()
        await self.machine.close()


@pytest.fixture
async def exchanges(transactional_db, tmp_path) -> AsyncIterator[Exchanges]:
    made = await sync_to_async(
        lambda: Exchanges(ServedModel.objects.create(name="m", engine="vllm", path="/m", replicas=MANY), tmp_path)
    )()
    await made.sync.open(asyncio.Event())
    await made.sync.exchange()
    await made.database.run(made.note_queries)
    yield made
    await made.close()


async def test_what_replicas_do_now_is_written_all_at_once(exchanges):
    await exchanges.sync.exchange()
    idle = len(exchanges.queries)
    assert idle <= FEW - 5
    for number, replica in enumerate(exchanges.replicas.values()):
        replica.live = {"at": "now", "running": number}
    exchanges.queries.clear()
    await exchanges.sync.exchange()
    assert len(exchanges.queries) <= FEW
    rows = await exchanges.database.run(lambda: dict(Replica.objects.values_list("index", "live__running")))
    assert rows == {number: number for number in range(MANY)}
    for replica in exchanges.replicas.values():
        replica.live = None
    await exchanges.sync.exchange()
    assert await exchanges.database.run(Replica.objects.filter(live__isnull=True).count) == MANY


async def test_whether_the_host_answers_is_written_as_soon_as_that_changes(exchanges, monkeypatch):
    async def is_silent() -> bool:
        await exchanges.sync.exchange()
        return await exchanges.database.run(Host.objects.exclude(silent_since=None).exists)

    assert not await is_silent()
    monkeypatch.setattr(exchanges.machine, "silent_for", lambda: 4.0)
    assert await is_silent()
    monkeypatch.setattr(exchanges.machine, "silent_for", lambda: 0.0)
    assert not await is_silent()


async def test_a_check_that_shows_nothing_new_is_no_news(exchanges):
    [replica] = list(exchanges.replicas.values())[:1]
    replica.live = {"at": "now", "running": 1}
    assert not exchanges.sync.has_news_of(replica)
    replica.enter(ReplicaState.UNHEALTHY, exchanges.clock(), "no answer")
    assert exchanges.sync.has_news_of(replica)


async def test_values_that_cannot_be_stored_keep_no_other_replica_from_the_database(exchanges):
    first, *others = exchanges.replicas.values()
    first.slots = 2**70  # as a host's own record of the run said
    for one in others:
        one.enter(ReplicaState.UNHEALTHY, exchanges.clock(), "no answer")
    await exchanges.sync.exchange()
    states = await exchanges.database.run(
        lambda: list(Replica.objects.order_by("index").values_list("state", flat=True))
    )
    assert states == ["ready", *["unhealthy"] * (MANY - 1)]
    exchanges.queries.clear()
    await exchanges.sync.exchange()
    assert len(exchanges.queries) <= FEW  # and it is not tried each second
