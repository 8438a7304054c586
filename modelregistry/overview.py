"""The state of hosts, models and replicas as plain values, for operators' pages, the API, sockets and the terminal.

Six queries, whatever is read. All memory is in bytes. What is not known is None, never 0.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from django.db import models
from django.db.models import OuterRef, Prefetch, QuerySet, Subquery
from django.utils.timezone import localdate
from django.utils.translation import gettext_lazy as _

from modelregistry.models import (
    ControllerClaim,
    Host,
    PlacementGap,
    Replica,
    ReplicaPlacement,
    ReplicaShortage,
    ServedModel,
)
from modelregistry.process.gpus import RAM

# A controller looks at each host every 5 s. When it has not for longer, the state of the host's replicas is not known.
SILENCE = timedelta(seconds=60)
# Seconds of silence from which a host counts as silent: each is for a moment when a controller begins, and one whose
# agent was restarted is back after 6.
SILENT_AFTER = timedelta(seconds=8)
# `seen_at` of made-up hosts and controllers, for demonstrations: nothing reports for them, and they count as alive.
MADE_UP = datetime(9999, 1, 1, tzinfo=UTC)
ALIVE = frozenset(
    {
        *(Replica.State.STARTING, Replica.State.READY, Replica.State.JOINED),
        *(Replica.State.UNHEALTHY, Replica.State.DRAINING),
    }
)


def is_alive(row: Replica) -> bool:
    """Return whether it has an engine, which may sleep."""
    return row.state in ALIVE or row.pid is not None


class HostReach(models.TextChoices):
    """Whether a host is reached, in one word."""

    ONLINE = "online", _("online")
    SILENT = "silent", _("silent")  # the controller looks at it, and it does not answer
    UNWATCHED = "unwatched", _("not supervised")  # no controller looks at it


class ModelState(models.TextChoices):
    """The state of a model in one word, for operators."""

    READY = "ready", _("ready")
    JOINED = "joined", _("part of a ready replica")  # of a rank over several hosts
    PARTLY = "partly", _("partly ready")
    UNSURE = "unsure", _("not confirmed")
    STARTING = "starting", _("starting")
    UNHEALTHY = "unhealthy", _("not answering")
    ASLEEP = "asleep", _("asleep")
    DRAINING = "draining", _("draining")
    BACKOFF = "backoff", _("waiting to restart")
    FAILED = "failed", _("failed")
    STOPPED = "stopped", _("stopped")
    RETIRED = "retired", _("retired")
    UNPLACED = "unplaced", _("waiting for a host")
    MAINTENANCE = "maintenance", _("host in maintenance")


# For models of which no replica is ready: states that need an operator more come first.
_GRAVEST = (
    Replica.State.FAILED,
    Replica.State.UNHEALTHY,
    Replica.State.BACKOFF,
    Replica.State.STARTING,
    Replica.State.DRAINING,
    Replica.State.ASLEEP,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstToken:
    """Seconds to the first token of recent `requests`: at most `half` for half of them, `slow` for 95 in 100."""

    requests: int
    half: float
    slow: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaNow:
    """One engine. `memory`: measured of its processes; `predicted`: what the plan gave it.

    `moved_to`: the host on which it was placed since, which makes this one a remainder; "": it belongs here.

    `slept`: the level at which it sleeps and holds its memory, "level1" or "level2"; "": it does not. `ram`: bytes of
    RAM that one on GPUs holds beside these, measured. `booked_by_others`: bytes of its host's GPUs, or else of its RAM,
    that other work on the cluster has booked. `rank`: of a replica over several hosts, one of `ranks`; rank 0
    answers for all of them.
    """

    id: int
    model: str
    host: str
    number: int
    state: str
    supervised: bool
    moved_to: str
    since: datetime
    launcher: str
    version: str
    devices: tuple[int, ...]
    slots: int | None
    pid: int | None
    restarts: int
    retry_at: datetime | None
    cause: str
    detail: str
    memory: int | None
    predicted: int | None
    ram: int | None
    slept: str
    running: int | None
    waiting: int | None
    tokens_per_second: float | None
    cache_used: float | None  # 0 to 1
    rank: int
    ranks: int
    booked_by_others: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortageNow:
    """One replica more is wanted, and there is no place for it. As `ReplicaShortage`; `reason`: its cause in words."""

    wanted: int
    since: datetime
    cause: str
    host: str
    free: int | None
    need: int | None

    @property
    def reason(self) -> str:
        return str(ReplicaShortage.Cause(self.cause).label)


@dataclass(frozen=True, slots=True, kw_only=True)
class GapNow:
    """Replicas for which the controller finds no place. As `PlacementGap`; `needed`: hosts that each takes."""

    replicas: int
    hosts: int
    needed: int
    since: datetime
    cause: str

    @property
    def reason(self) -> str:
        return str(PlacementGap.Cause(self.cause).label)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelNow:
    """A model with its replicas; figures are sums over those that run.

    `wanted`: how many replicas there should be; `most`: how many there may be while calls wait long; `shortage`: why
    there is not one more although they do, None: there is no need. `gap`: why some of those that it should have have no
    place; None: all have one, or it is not known.
    `host`: its own, else the one on which all its replicas are. `bound`: it has a host of its own, and runs only there;
    if not, the controller places it.
    """

    id: int
    name: str
    aliases: tuple[str, ...]
    task: str
    engine: str
    host: str | None
    bound: bool
    enabled: bool
    retires_on: str | None
    generation: int
    pinned: bool
    state: ModelState
    wanted: int
    most: int
    ready: int
    running: int | None
    waiting: int | None
    tokens_per_second: float | None
    memory: int | None
    predicted: int | None
    first_token: FirstToken | None
    replicas: tuple[ReplicaNow, ...]
    nodes: int  # hosts over which each replica is split
    shortage: ShortageNow | None
    gap: GapNow | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceNow:
    """A bar of memory. From left to right: weights, cache, overhead (these three are `ours`), others, free.

    `ours` is measured; how it divides follows the predictions for the replicas there. `predicted`: the sum of those.
    """

    index: int
    name: str
    kind: str
    total: int
    used: int
    free: int  # may be less than the rest: some memory is available to no process
    fault: str  # why the numbers are old; empty: they are current
    ours: int
    weights: int
    cache: int
    overhead: int
    others: int
    predicted: int
    utilisation: int | None  # per cent
    temperature: int | None  # °C


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentNow:
    """The agent of a host in the cluster, as it last described itself. "": not known.

    `fenced`: it has a fence, which stops the engines when its host is cut off; None: not known.
    """

    version: str
    python: str
    boot: str
    fenced: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BookedNow:
    """How many bytes of a memory are booked in Ray: for replicas, and by other work. `device`: its index, -1: RAM."""

    device: int
    offered: int
    booked: int
    others: int

    @property
    def memory(self) -> str:
        """What it is called: "GPU 0", "RAM"."""
        return "RAM" if self.device == RAM else f"GPU {self.device}"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostNow:
    """A machine. `supervised`: a controller looks at it; if not, the rest is as it was at `reported_at`.

    `clustered`: it is reached through the cluster, by its `agent`; if not, it is the controller's own machine, or was.
    `silent_since`: since when it does not answer the controller; None: it does. `bookings`: of a host in the cluster.
    """

    id: int
    name: str
    address: str
    maintenance: bool
    clustered: bool
    reach: HostReach
    silent_since: datetime | None
    agent: AgentNow | None
    seen_at: datetime | None
    supervised: bool
    reported_at: datetime | None
    devices: tuple[DeviceNow, ...]
    strangers: tuple[Mapping[str, Any], ...]
    engines: Mapping[str, str]
    bookings: tuple[BookedNow, ...]
    problems: tuple[Mapping[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerNow:
    """The site's controller. `alive`: it was at `seen_at`; if not, it has left or is not heard of any more.

    `moves`: how many replicas controllers have moved to another host, ever.
    """

    alive: bool
    term: int
    holder: str
    since: datetime | None
    seen_at: datetime | None
    moves: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """`controller`: None if there has never been one."""

    at: datetime
    controller: ControllerNow | None
    hosts: tuple[HostNow, ...]
    models: tuple[ModelNow, ...]


def read_overview(now: datetime, first_tokens: Mapping[str, FirstToken] | None = None) -> Overview:
    """Read all hosts and models, by name. `first_tokens`: by the model's name. Raises django.db.Error."""
    served = ServedModel.objects.select_related("host", "shortage", "gap").prefetch_related(
        "aliases", Prefetch("replica_set", with_placements(Replica.objects.select_related("host", "model")))
    )
    seen = [model_now(model, now, (first_tokens or {}).get(model.name)) for model in served]
    rows = [replica for model in served for replica in model.replica_set.all()]
    hosts = [host_now(host, rows, now) for host in Host.objects.select_related("report")]
    return Overview(at=now, controller=read_controller(now), hosts=tuple(hosts), models=tuple(seen))


def read_controller(now: datetime) -> ControllerNow | None:
    """Read who the site's controller is; None: there has never been one. One query."""
    row = ControllerClaim.objects.first()
    if row is None or row.seen_at is None:
        return None
    return ControllerNow(
        alive=row.seen_at == MADE_UP or (bool(row.number) and _is_recent(row.seen_at, now)),
        term=row.term,
        holder=row.holder,
        since=row.since,
        seen_at=row.seen_at,
        moves=row.moves,
    )


def is_supervised(host: Host, now: datetime) -> bool:
    """Return whether a controller has looked at a host lately, so that what is known of its replicas is so.

    Also of a host that does not answer: the controller asks its engines.
    """
    return any(at is not None and _is_recent(at, now) for at in (host.seen_at, host.watched_at))


def _is_recent(at: datetime, now: datetime) -> bool:
    """Return whether a heartbeat counts.

    One from the future counts as little as an old one: a clock was set back since, and it would count for that long.
    """
    return at == MADE_UP or abs(now - at) <= SILENCE


def reach_of(host: Host, now: datetime) -> HostReach:
    """Return whether a host is reached."""
    if not is_supervised(host, now):
        return HostReach.UNWATCHED
    silent = host.silent_since is not None and now - host.silent_since >= SILENT_AFTER
    return HostReach.SILENT if silent else HostReach.ONLINE


def with_placements(replicas: QuerySet[Replica]) -> QuerySet[Replica]:
    """Add to replicas where they were placed (`placed_on`), which `replica_now` reads; without, none was moved."""
    placed = ReplicaPlacement.objects.filter(
        model=OuterRef("model"), number=OuterRef("index"), model__host=None
    ).exclude(host=OuterRef("host"))
    return replicas.annotate(placed_on=Subquery(placed.values("host__name")[:1]))


def replica_now(row: Replica, now: datetime) -> ReplicaNow:
    live = (row.live or {}) if row.state in ALIVE else {}
    return ReplicaNow(
        id=row.pk,
        model=row.model.name,
        host=row.host.name,
        number=row.index // row.model.nodes,
        state=row.state,
        supervised=is_supervised(row.host, now),
        moved_to=getattr(row, "placed_on", None) or "",
        since=row.changed_at,
        launcher=row.launcher,
        version=row.version,
        devices=tuple(row.devices),
        slots=row.slots,
        pid=row.pid,
        restarts=row.restarts,
        retry_at=row.retry_at,
        cause=row.cause,
        detail=row.detail,
        memory=row.memory_bytes if is_alive(row) else None,
        predicted=_predicted_bytes(row),
        ram=row.memory_fixed if is_alive(row) and row.devices else None,
        slept=row.slept if row.state == Replica.State.ASLEEP else "",
        running=live.get("running"),
        waiting=live.get("waiting"),
        tokens_per_second=live.get("tokens_per_second"),
        cache_used=live.get("cache_used"),
        rank=row.index % row.model.nodes,
        ranks=row.model.nodes,
        booked_by_others=_sum_others(row.host),
    )


def model_now(model: ServedModel, now: datetime, first_token: FirstToken | None = None) -> ModelNow:
    rows = list(model.replica_set.all())
    if model.nodes > 1:  # by host, ranks of different replicas would alternate
        rows.sort(key=lambda row: row.index)
    replicas = tuple(replica_now(row, now) for row in rows)
    retired = model.retires_on is not None and model.retires_on <= localdate(now)
    counted = placed_replicas(replicas)
    alive = [replica for replica in counted if replica.state in ALIVE]
    wanted = 1 if model.is_external else model.replicas
    return ModelNow(
        id=model.pk,
        name=model.name,
        aliases=tuple(alias.name for alias in model.aliases.all()),
        task=model.task,
        engine=model.engine,
        host=model.host.name if model.host else _only_host(counted),
        bound=model.host_id is not None,
        enabled=model.enabled,
        retires_on=model.retires_on.isoformat() if model.retires_on else None,
        generation=model.generation,
        pinned=model.pinned,
        state=state_of(
            replicas, enabled=model.enabled, retired=retired, wanted=wanted, maintained=is_maintained(model)
        ),
        wanted=wanted,
        most=max(wanted, model.most_replicas),
        ready=sum(replica.state == Replica.State.READY for replica in replicas),
        running=_sum(replica.running for replica in alive),
        waiting=_sum(replica.waiting for replica in alive),
        tokens_per_second=_sum(replica.tokens_per_second for replica in alive),
        memory=_sum(replica.memory for replica in counted),
        predicted=_sum(replica.predicted for replica in alive),
        first_token=first_token,
        replicas=replicas,
        nodes=model.nodes,
        shortage=_find_shortage(model),
        gap=_find_gap(model),
    )


def _find_gap(model: ServedModel) -> GapNow | None:
    row = getattr(model, "gap", None)
    if row is None or not model.enabled or model.host_id is not None:
        return None  # a controller that is away has not looked at what was changed since
    return GapNow(replicas=row.replicas, hosts=row.hosts, needed=model.nodes, since=row.since, cause=row.cause)


def _find_shortage(model: ServedModel) -> ShortageNow | None:
    row = getattr(model, "shortage", None)
    if row is None or not model.enabled or model.most_replicas <= model.replicas:
        return None  # a controller that is away has not looked at what was changed since
    return ShortageNow(wanted=row.wanted, since=row.since, cause=row.cause, host=row.host, free=row.free, need=row.need)


def _only_host(replicas: Iterable[ReplicaNow]) -> str | None:
    """Return the host of all these replicas; None: they are on several, or there are none."""
    hosts = {replica.host for replica in replicas}
    return min(hosts) if len(hosts) == 1 else None


def held_replicas(rows: Iterable[Replica]) -> set[tuple[int, int]]:
    """Return the model and number of each replica that maintenance keeps from running.

    One host in maintenance holds up all ranks of a replica over several. What was placed elsewhere meanwhile is not
    held, nor is an external engine, which runs on none of our hosts. `rows`: as `with_placements` returns them.
    """
    return {
        (row.model_id, row.index // row.model.nodes)
        for row in rows
        if row.host.maintenance and not getattr(row, "placed_on", None) and not row.model.is_external
    }


def is_maintained(model: ServedModel) -> bool:
    """Return whether a model does not run because its hosts are in maintenance, which stops no external engine."""
    if model.host:
        return model.host.maintenance and not model.is_external
    here = [row for row in model.replica_set.all() if not getattr(row, "placed_on", None)]
    return bool(here) and {(model.pk, row.index // model.nodes) for row in here} <= held_replicas(here)


def state_of(
    replicas: Iterable[ReplicaNow], *, enabled: bool, retired: bool, wanted: int, maintained: bool = False
) -> ModelState:
    replicas = placed_replicas(tuple(replicas))
    states = {replica.state for replica in replicas}
    if retired or not enabled:
        if states & ALIVE:
            return ModelState.DRAINING
        return ModelState.RETIRED if retired else ModelState.STOPPED
    ready = [replica for replica in replicas if replica.state == Replica.State.READY]
    if ready:
        if not any(replica.supervised for replica in ready):
            return ModelState.UNSURE
        return ModelState.READY if len(ready) >= wanted else ModelState.PARTLY
    if maintained and not states & ALIVE:
        return ModelState.MAINTENANCE
    return next((ModelState(state.value) for state in _GRAVEST if state in states), ModelState.UNPLACED)


def placed_replicas(replicas: tuple[ReplicaNow, ...]) -> tuple[ReplicaNow, ...]:
    """Return the replicas without the remainders of those that were moved, which count for nothing.

    A remainder that still answers counts, and so do all of a model of which there is nothing else yet.
    """
    here = tuple(one for one in replicas if not one.moved_to or one.state == Replica.State.READY)
    return here or replicas


def host_now(host: Host, rows: Iterable[Replica], now: datetime) -> HostNow:
    """Return the state of a host. `rows`: all replicas, of any host."""
    report = getattr(host, "report", None)
    alive = [row for row in rows if row.host_id == host.pk and is_alive(row)]
    return HostNow(
        id=host.pk,
        name=host.name,
        address=host.address,
        maintenance=host.maintenance,
        clustered=host.clustered,
        reach=reach_of(host, now),
        silent_since=host.silent_since,
        agent=_agent_now(host),
        seen_at=host.seen_at,
        supervised=is_supervised(host, now),
        reported_at=report.at if report else None,
        devices=tuple(device_now(device, alive) for device in report.devices) if report else (),
        strangers=tuple(report.strangers) if report else (),
        engines=report.engines if report else {},
        bookings=tuple(_booked_now(host)),
        problems=(*(report.problems if report else ()), *_find_bookings(host).get("late", ())),
    )


def _find_bookings(host: Host) -> Mapping[str, Any]:
    return host.bookings if host.clustered and isinstance(host.bookings, dict) else {}


def _sum_others(host: Host) -> int:
    others = {int(device): size for device, size in _find_bookings(host).get("others", {}).items()}
    return sum(size for device, size in others.items() if device != RAM) or others.get(RAM, 0)


def _booked_now(host: Host) -> Iterable[BookedNow]:
    """Yield what is booked of its GPUs, and then of its RAM."""
    found = _find_bookings(host)
    booked, others = found.get("booked", {}), found.get("others", {})
    for device, size in sorted(found.get("offered", {}).items(), key=lambda one: (one[0] == str(RAM), int(one[0]))):
        taken = {"booked": booked.get(device, 0), "others": others.get(device, 0)}
        yield BookedNow(device=int(device), offered=size, **taken)


def _agent_now(host: Host) -> AgentNow | None:
    if not host.clustered or not isinstance(host.agent, dict):
        return None
    said = host.agent
    return AgentNow(
        version=str(said.get("version", "")),
        python=str(said.get("python", "")),
        boot=str(said.get("boot", "")),
        fenced=said["fenced"] if isinstance(said.get("fenced"), bool) else None,
    )


def device_now(device: Mapping[str, Any], alive: Iterable[Replica]) -> DeviceNow:
    """Return the memory bar of a device, given as `gpus.Device`. `alive`: the host's replicas that run."""
    there = [row for row in alive if _is_on(row, device)]
    planned = [row.predicted for row in there if row.predicted]
    ours = sum(_held_bytes(row, device) for row in there)
    # Measured and predicted values need not agree: all that is held beyond weights and cache is overhead.
    weights = min(sum(plan["weights"] for plan in planned), ours)
    cache = min(sum(plan["cache"] for plan in planned), ours - weights)
    return DeviceNow(
        index=device["index"],
        name=device["name"],
        kind=device["kind"],
        total=device["total"],
        used=device["used"],
        free=device["free"],
        fault=device["fault"],
        ours=ours,
        weights=weights,
        cache=cache,
        overhead=ours - weights - cache,
        others=max(device["used"] - ours, 0),
        predicted=sum(plan["total"] for plan in planned),
        # Supervisors of version 1.0 report neither.
        utilisation=device.get("utilisation"),
        temperature=device.get("temperature"),
    )


def _is_on(row: Replica, device: Mapping[str, Any]) -> bool:
    """Return whether a replica uses the device; one without devices of its own uses RAM."""
    return device["index"] in row.devices if row.devices else device["kind"] == "ram"


def _held_bytes(row: Replica, device: Mapping[str, Any]) -> int:
    """Return the bytes that a replica holds of the device; those of RAM are not recorded by device."""
    return (row.memory_by_device.get(str(device["index"])) if row.devices else row.memory_bytes) or 0


def _predicted_bytes(row: Replica) -> int | None:
    """Return the predicted bytes on all devices of a replica together; a prediction is for each."""
    return row.predicted["total"] * row.predicted["devices"] if row.predicted else None


def _sum(figures: Iterable[Any]) -> Any:
    """Return the sum of the known figures; None if none is known."""
    known = [figure for figure in figures if figure is not None]
    return sum(known) if known else None
