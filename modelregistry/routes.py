"""What is served, as plain values for gateways."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta

from django.db.models import F, Q, QuerySet
from django.utils import timezone

from modelregistry.database_clock import database_now
from modelregistry.engines.registry import engine_named, launched_by
from modelregistry.failure_advice import NO_ROOM
from modelregistry.models import Alias, Host, Replica, ServedModel
from modelregistry.overview import MADE_UP, held_replicas, with_placements
from modelregistry.sampling import SamplingPreset, read_presets

# Two beats may be lost. A quiet host's engines keep serving: gateways check them, as the supervisor may not.
QUIET = timedelta(seconds=5)
# A supervisor that was killed or upgraded is back sooner, on a busy host as well; calls wait for what it loads.
GONE = timedelta(seconds=30)


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A replica that answers now. `upstream_model` is the name that the engine expects in a request.

    `launcher` is what runs the engine (empty: external), as behaviour differs. `slots` is how
    many requests it works on at a time; None: not known, or as many as its memory allows. `supports_priority`: it takes
    waiting requests by their `priority`. `health`: a path that costs the engine nothing.
    """

    replica_id: int
    model_id: int
    url: str
    api_key: str
    upstream_model: str
    launcher: str
    slots: int | None
    supports_priority: bool
    host_id: int
    health: str
    ends_loops: bool  # see `Engine.ends_loops`
    engine: str  # its launcher and version; "": external


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorHeartbeat:
    """A host's supervisor. `claim` differs for each that ever supervised the host.

    `quiet`: it has missed beats; `gone`: for longer than its restart takes.
    """

    host_id: int
    claim: str
    quiet: bool
    gone: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineReport:
    """What an engine that takes as many calls as its memory allows last reported, at the time `at`."""

    replica_id: int
    at: str
    waiting: int  # calls
    cache_used: float | None  # of the memory for contexts, 0 to 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A model that is offered, whether or not a replica answers now. `context` in tokens, None = not known.

    `loading_on`: the hosts on which a replica is starting, will start again by itself, or is asleep or going to sleep
    until a client calls it. `no_room`: none will, as models that are kept loaded, or other work, take its room.
    Time-outs in seconds, None = the settings'.
    """

    model_id: int
    name: str
    task: str
    engine: str
    launcher: str
    context: int | None
    created: int
    loading_on: frozenset[int]
    no_room: bool
    nodes: int  # over how many hosts each replica is split
    retires_on: date | None
    connect_timeout: float | None
    first_byte_timeout: float | None
    idle_timeout: float | None
    total_timeout: float | None
    loops: str
    loop_sensitivity: str
    presets: tuple[SamplingPreset, ...]


def offered_models() -> QuerySet[ServedModel]:
    """Return the models that are enabled and not retired today, in the server's time zone (TIME_ZONE)."""
    today = timezone.localdate(timezone=timezone.get_default_timezone())
    return ServedModel.objects.filter(Q(retires_on=None) | Q(retires_on__gt=today), enabled=True)


# A replica of an enabled model is drained to sleep, or to start with other settings. One that crashed is started again
# within a minute (`plan.backoff`), and one that does not answer recovers or is stopped and started within
# `plan.UNHEALTHY_LIMIT`: clients that never try again get their answer all the same. FAILED: that is hopeless.
COMING = Q(
    state__in=[
        Replica.State.STARTING,
        Replica.State.ASLEEP,
        Replica.State.DRAINING,
        Replica.State.STOPPED,
        Replica.State.BACKOFF,
    ]
) | Q(state=Replica.State.UNHEALTHY, model__url="")  # no supervisor starts an external engine again


def served_models() -> list[Served]:
    """Return every enabled model, also retired ones: gateways know the day. Four queries."""
    in_maintenance = Replica.objects.filter(host__maintenance=True).select_related("host", "model")
    held = held_replicas(with_placements(in_maintenance))
    # Of one over several hosts rank 0 says it: the others fail, and wait, in their own ways.
    leading = Replica.objects.annotate(rank=F("index") % F("model__nodes")).filter(rank=0)
    hosts: dict[int, set[int]] = defaultdict(set)
    for model_id, host_id in _select_free(leading.filter(COMING), held):
        hosts[model_id].add(host_id)
    without_room = Replica.objects.filter(state=Replica.State.FAILED, cause=NO_ROOM)
    refused = {model_id for model_id, _host in _select_free(without_room, held)} - hosts.keys()
    return [
        Served(
            model_id=model.pk,
            name=model.name,
            task=model.task,
            engine=model.engine,
            launcher=model.launcher,
            context=model.context,
            created=int(model.created_at.timestamp()),
            loading_on=frozenset(hosts.get(model.pk, ())),
            no_room=model.pk in refused,
            nodes=model.nodes,
            retires_on=model.retires_on,
            connect_timeout=model.connect_timeout,
            first_byte_timeout=model.first_byte_timeout,
            idle_timeout=model.idle_timeout,
            total_timeout=model.total_timeout,
            loops=model.loops,
            loop_sensitivity=model.loop_sensitivity,
            presets=presets_of(model),
        )
        for model in ServedModel.objects.filter(enabled=True)
    ]


def _select_free(rows: QuerySet[Replica], held: set[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield the model and host of those that maintenance does not hold, see `held_replicas`."""
    for model_id, index, nodes, host_id in rows.values_list("model_id", "index", "model__nodes", "host_id"):
        if (model_id, index // nodes) not in held:
            yield model_id, host_id


def presets_of(model: ServedModel) -> tuple[SamplingPreset, ...]:
    """Return how the model samples where its clients do not say, and within which bounds they may."""
    return read_presets(model.sampling, engine_named(model.engine).sampling_members)


def names_by_alias() -> dict[str, str]:
    """Return the names of enabled models by their other names. One query."""
    return dict(Alias.objects.filter(model__enabled=True).values_list("name", "model__name"))


def ready_replicas() -> list[Route]:
    """Return every replica that can take requests. One query."""
    ready = Replica.objects.filter(state=Replica.State.READY, model__enabled=True)
    replicas = ready.exclude(url="").select_related("model")
    return [
        Route(
            replica_id=replica.pk,
            model_id=replica.model_id,
            url=replica.url,
            api_key=replica.api_key,
            upstream_model=replica.model.upstream_model or replica.model.name,
            launcher=replica.launcher,
            # As an operator described a server that we did not start.
            slots=replica.slots or (None if replica.launcher else replica.model.slots),
            supports_priority=launched_by(replica.launcher).supports_priority(replica.model.task, replica.model.args),
            host_id=replica.host_id,
            health=launched_by(replica.launcher).monitoring.health,
            ends_loops=launched_by(replica.launcher).ends_loops(replica.version),
            engine=f"{replica.launcher} {replica.version}".strip()[:80],
        )
        for replica in replicas
    ]


def engine_reports() -> list[EngineReport]:
    """Return the last report of each ready engine whose slots are unknown. One query."""
    rows = Replica.objects.filter(state=Replica.State.READY, slots=None).exclude(launcher="")
    return [
        EngineReport(replica_id=pk, at=live["at"], waiting=live["waiting"], cache_used=live.get("cache_used"))
        for pk, live in rows.values_list("pk", "live")
        if live is not None and live.get("waiting") is not None
    ]


def supervisor_heartbeats() -> list[SupervisorHeartbeat]:
    """Return the supervisor of every host that ever had one, by the database's clock. One query."""
    rows = Host.objects.exclude(seen_at=None).annotate(now=database_now())
    found = []
    for pk, claim, seen_at, now in rows.values_list("pk", "claim", "seen_at", "now"):
        silence = timedelta(0) if seen_at == MADE_UP else abs(now - seen_at)
        found.append(SupervisorHeartbeat(host_id=pk, claim=claim, quiet=silence > QUIET, gone=silence > GONE))
    return found
