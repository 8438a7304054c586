"""The state of hosts, models and replicas as plain values, for operators' pages, the API, sockets and the terminal.

Five queries, whatever is read. All memory is in bytes. What is not known is None, never 0.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from django.db import models
from django.db.models import Prefetch
from django.utils.timezone import localdate
from django.utils.translation import gettext_lazy as _

from modelregistry.models import Host, Replica, ServedModel

# A supervisor has a heartbeat every 2 s. When it is silent for longer, the state of its replicas is not known.
SILENCE = timedelta(seconds=60)
# `seen_at` of made-up hosts, for demonstrations: no supervisor reports for them, and they count as alive.
MADE_UP = datetime(9999, 1, 1, tzinfo=UTC)
ALIVE = frozenset({Replica.State.STARTING, Replica.State.READY, Replica.State.UNHEALTHY, Replica.State.DRAINING})


def is_alive(row: Replica) -> bool:
    """Return whether it has an engine, which may sleep."""
    return row.state in ALIVE or row.pid is not None


class ModelState(models.TextChoices):
    """The state of a model in one word, for operators."""

    READY = "ready", _("ready")
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

    `slept`: the level at which it sleeps and holds its memory, "level1" or "level2"; "": it does not. `ram`: bytes of
    RAM that one on GPUs holds beside these, measured.
    """

    id: int
    model: str
    host: str
    number: int
    state: str
    supervised: bool
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


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelNow:
    """A model with its replicas; figures are sums over those that run. `wanted`: how many replicas there should be."""

    id: int
    name: str
    aliases: tuple[str, ...]
    task: str
    engine: str
    host: str | None
    enabled: bool
    retires_on: str | None
    generation: int
    pinned: bool
    state: ModelState
    wanted: int
    ready: int
    running: int | None
    waiting: int | None
    tokens_per_second: float | None
    memory: int | None
    predicted: int | None
    first_token: FirstToken | None
    replicas: tuple[ReplicaNow, ...]


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
class HostNow:
    """A machine. `supervised`: its supervisor is alive; if not, the rest is as it was at `reported_at`."""

    id: int
    name: str
    address: str
    maintenance: bool
    seen_at: datetime | None
    supervised: bool
    reported_at: datetime | None
    devices: tuple[DeviceNow, ...]
    strangers: tuple[Mapping[str, Any], ...]
    engines: Mapping[str, str]
    problems: tuple[Mapping[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    at: datetime
    hosts: tuple[HostNow, ...]
    models: tuple[ModelNow, ...]


def read_overview(now: datetime, first_tokens: Mapping[str, FirstToken] | None = None) -> Overview:
    """Read all hosts and models, by name. `first_tokens`: by the model's name. Raises django.db.Error."""
    served = ServedModel.objects.select_related("host").prefetch_related(
        "aliases", Prefetch("replica_set", Replica.objects.select_related("host", "model"))
    )
    seen = [model_now(model, now, (first_tokens or {}).get(model.name)) for model in served]
    rows = [replica for model in served for replica in model.replica_set.all()]
    hosts = [host_now(host, rows, now) for host in Host.objects.select_related("report")]
    return Overview(at=now, hosts=tuple(hosts), models=tuple(seen))


def is_supervised(host: Host, now: datetime) -> bool:
    """Return whether a host's supervisor had a recent heartbeat.

    One from the future counts as little as an old one: a clock was set back since, and it would count for that long.
    """
    return host.seen_at is not None and (abs(now - host.seen_at) <= SILENCE or host.seen_at == MADE_UP)


def replica_now(row: Replica, now: datetime) -> ReplicaNow:
    live = (row.live or {}) if row.state in ALIVE else {}
    return ReplicaNow(
        id=row.pk,
        model=row.model.name,
        host=row.host.name,
        number=row.index,
        state=row.state,
        supervised=is_supervised(row.host, now),
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
    )


def model_now(model: ServedModel, now: datetime, first_token: FirstToken | None = None) -> ModelNow:
    replicas = tuple(replica_now(row, now) for row in model.replica_set.all())
    retired = model.retires_on is not None and model.retires_on <= localdate(now)
    alive = [replica for replica in replicas if replica.state in ALIVE]
    wanted = 1 if model.is_external else model.replicas
    return ModelNow(
        id=model.pk,
        name=model.name,
        aliases=tuple(alias.name for alias in model.aliases.all()),
        task=model.task,
        engine=model.engine,
        host=model.host.name if model.host else None,
        enabled=model.enabled,
        retires_on=model.retires_on.isoformat() if model.retires_on else None,
        generation=model.generation,
        pinned=model.pinned,
        state=state_of(
            replicas, enabled=model.enabled, retired=retired, wanted=wanted, maintained=is_maintained(model)
        ),
        wanted=wanted,
        ready=sum(replica.state == Replica.State.READY for replica in replicas),
        running=_sum(replica.running for replica in alive),
        waiting=_sum(replica.waiting for replica in alive),
        tokens_per_second=_sum(replica.tokens_per_second for replica in alive),
        memory=_sum(replica.memory for replica in replicas),
        predicted=_sum(replica.predicted for replica in alive),
        first_token=first_token,
        replicas=replicas,
    )


def is_maintained(model: ServedModel) -> bool:
    """Return whether a model does not run because its host is in maintenance, which stops no external engine."""
    return model.host is not None and model.host.maintenance and not model.is_external


def state_of(
    replicas: Iterable[ReplicaNow], *, enabled: bool, retired: bool, wanted: int, maintained: bool = False
) -> ModelState:
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


def host_now(host: Host, rows: Iterable[Replica], now: datetime) -> HostNow:
    """Return the state of a host. `rows`: all replicas, of any host."""
    report = getattr(host, "report", None)
    alive = [row for row in rows if row.host_id == host.pk and is_alive(row)]
    return HostNow(
        id=host.pk,
        name=host.name,
        address=host.address,
        maintenance=host.maintenance,
        seen_at=host.seen_at,
        supervised=is_supervised(host, now),
        reported_at=report.at if report else None,
        devices=tuple(device_now(device, alive) for device in report.devices) if report else (),
        strangers=tuple(report.strangers) if report else (),
        engines=report.engines if report else {},
        problems=tuple(report.problems) if report else (),
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
