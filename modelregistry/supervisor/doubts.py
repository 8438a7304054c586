"""Engines of a host that cannot be asked: whether they answer themselves decides whether they are on the catalogue.

One that does not is doubted, and so off the catalogue; one that answers again is believed.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace

import httpx2

from modelregistry.failure_advice import SILENT_HOST
from modelregistry.hostside.replicas import ReplicaKey
from modelregistry.process import probe
from modelregistry.supervisor.plan import ReplicaState
from modelregistry.supervisor.repository import ReplicaFacts

HOST_UNHEARD = "neither it nor its host answers"

# Writes the row of a replica, and returns whether the database answered.
WriteFacts = Callable[[ReplicaKey, ReplicaFacts], Awaitable[bool]]


async def look(
    client: httpx2.AsyncClient, known: Mapping[ReplicaKey, ReplicaFacts], write: WriteFacts
) -> dict[ReplicaKey, ReplicaFacts]:
    """Ask all engines that are on the catalogue, or were doubted, at once; return what changed. Not external ones."""
    asked = {key: facts for key, facts in known.items() if facts.launcher and _is_asked(facts)}
    targets = [
        probe.Target(launcher=one.launcher, url=one.url, api_key=one.api_key, model="", task="")
        for one in asked.values()
    ]
    answers = await asyncio.gather(*(probe.check_health(client, target) for target in targets))
    changed = {}
    for (key, facts), answer in zip(asked.items(), answers, strict=True):
        if answer.healthy is not _is_doubted(facts):
            continue
        now = (
            replace(facts, state=ReplicaState.READY, detail="", cause="")
            if answer.healthy
            else replace(facts, state=ReplicaState.UNHEALTHY, detail=HOST_UNHEARD, cause=SILENT_HOST)
        )
        if await write(key, now):
            changed[key] = now
    return changed


def _is_doubted(facts: ReplicaFacts) -> bool:
    return facts.state == ReplicaState.UNHEALTHY and facts.detail == HOST_UNHEARD


def _is_asked(facts: ReplicaFacts) -> bool:
    return facts.state == ReplicaState.READY or _is_doubted(facts)
