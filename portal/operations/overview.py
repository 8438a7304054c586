"""What operators see of hosts and models: rows of the registry and the last minutes of usage as plain values."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

from django.db import models
from django.db.models import Prefetch, QuerySet
from django.utils.translation import gettext_lazy as _

from modelregistry.models import Host, Replica, ServedModel
from portal.keys.access import SILENCE
from portal.operations.bars import Bar, bar, share
from portal.operations.pace import Pace

State = Replica.State
EXTERNAL = ServedModel.Engine.EXTERNAL
# How old a replica's live numbers may be before they are no longer "now".
STALE = SILENCE


class Condition(models.TextChoices):
    """How a model is, in one word."""

    READY = "ready", _("ready")
    PARTLY = "partly", _("partly ready")
    UNSURE = "unsure", _("not confirmed")
    STARTING = "starting", _("starting")
    DRAINING = "draining", _("draining")
    ASLEEP = "asleep", _("asleep")
    BACKOFF = "backoff", _("waiting to restart")
    UNHEALTHY = "unhealthy", _("not answering")
    FAILED = "failed", _("failed")
    UNPLACED = "unplaced", _("waiting for a host")
    STOPPED = "stopped", _("stopped")
    RETIRED = "retired", _("retired")


LEVELS = {
    Condition.READY: "fine",
    Condition.PARTLY: "watch",
    Condition.UNSURE: "watch",
    Condition.STARTING: "watch",
    Condition.DRAINING: "watch",
    Condition.UNPLACED: "watch",
    Condition.BACKOFF: "broken",
    Condition.UNHEALTHY: "broken",
    Condition.FAILED: "broken",
}
# What needs an operator more comes first; for models of which no replica is ready.
GRAVEST = [
    (State.FAILED, Condition.FAILED),
    (State.UNHEALTHY, Condition.UNHEALTHY),
    (State.BACKOFF, Condition.BACKOFF),
    (State.STARTING, Condition.STARTING),
    (State.DRAINING, Condition.DRAINING),
    (State.ASLEEP, Condition.ASLEEP),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaView:
    """One replica. Bytes; `level` of the colours; `sure`: its supervisor still reports."""

    id: int
    index: int
    host: str
    state: str
    label: str
    level: str
    sure: bool
    launcher: str
    version: str
    pid: int | None
    devices: tuple[int, ...]
    predicted: dict[str, Any] | None
    measured: int | None
    running: int | None
    waiting: int | None
    tokens_per_second: float | None
    cache_used: float | None
    restarts: int
    retry_at: datetime | None
    since: datetime
    cause: str
    detail: str

    @property
    def failing(self) -> bool:
        return self.state in (State.FAILED, State.BACKOFF, State.UNHEALTHY)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelView:
    """One model with its replicas. Sums are None when no replica tells."""

    name: str
    engine: str
    task: str
    aliases: tuple[str, ...]
    enabled: bool
    external: bool
    condition: Condition
    ready: int
    wanted: int
    replicas: tuple[ReplicaView, ...]
    since: datetime | None
    retires_on: date | None
    retires_soon: bool
    fault: str
    pace: Pace | None

    @property
    def level(self) -> str:
        return LEVELS.get(self.condition, "off")

    @property
    def hosts(self) -> list[str]:
        return sorted({replica.host for replica in self.replicas})

    @property
    def running(self) -> int | None:
        return added(replica.running for replica in self.replicas)

    @property
    def waiting(self) -> int | None:
        return added(replica.waiting for replica in self.replicas)

    @property
    def tokens_per_second(self) -> float | None:
        known = [r.tokens_per_second for r in self.replicas if r.tokens_per_second is not None]
        return sum(known) if known else None

    @property
    def cache_used(self) -> float | None:
        """Of the replica whose cache is fullest, 0 to 1."""
        return max((r.cache_used for r in self.replicas if r.cache_used is not None), default=None)

    @property
    def measured(self) -> int | None:
        return added(replica.measured for replica in self.replicas)

    @property
    def predicted(self) -> int | None:
        return added(
            replica.predicted["total"] * replica.predicted["devices"] if replica.predicted else None
            for replica in self.replicas
        )

    @property
    def troubled(self) -> ReplicaView | None:
        """The replica whose failure is told in the list."""
        return next((replica for replica in self.replicas if replica.failing), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stranger:
    """A process that is not ours and holds memory of a device."""

    pid: int
    name: str  # "" if it cannot be seen from there
    device: int
    bytes: int | None
    installation: str = ""  # the state directory of the other Madoguchi that it belongs to


@dataclass(frozen=True, slots=True, kw_only=True)
class HostView:
    """A machine as its supervisor last saw it. `sure`: it reported within the last minute."""

    name: str
    address: str
    seen_at: datetime | None
    sure: bool
    bars: tuple[Bar, ...]
    strangers: tuple[Stranger, ...]
    engines: dict[str, str]
    problems: tuple[dict[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    hosts: tuple[HostView, ...]
    models: tuple[ModelView, ...]

    @property
    def wanted(self) -> list[ModelView]:
        """The models that ought to answer."""
        return [model for model in self.models if model.condition not in (Condition.STOPPED, Condition.RETIRED)]

    @property
    def answering(self) -> int:
        return sum(model.condition in (Condition.READY, Condition.PARTLY, Condition.ASLEEP) for model in self.wanted)

    @property
    def troubled(self) -> list[ModelView]:
        return [model for model in self.models if model.level == "broken" or model.fault or model.troubled]

    @property
    def silent(self) -> list[HostView]:
        return [host for host in self.hosts if not host.sure]

    @property
    def problems(self) -> bool:
        return any(host.problems for host in self.hosts)

    @property
    def bars(self) -> list[Bar]:
        return [one for host in self.hosts for one in host.bars]

    @property
    def memory_total(self) -> int:
        return sum(one.total for one in self.bars)

    @property
    def memory_used(self) -> int:
        return sum(one.used for one in self.bars)

    @property
    def running(self) -> int:
        return sum(model.running or 0 for model in self.models)

    @property
    def waiting(self) -> int:
        return sum(model.waiting or 0 for model in self.models)

    @property
    def tokens_per_second(self) -> float:
        return sum(model.tokens_per_second or 0 for model in self.models)

    @property
    def slowest(self) -> ModelView | None:
        timed = [model for model in self.models if model.pace]
        return max(timed, key=lambda model: model.pace.slow if model.pace else 0, default=None)


def overview(now: datetime, today: date, paces: dict[str, Pace]) -> Overview:
    """Everything. Five queries, however many hosts and models."""
    served = list(with_all(ServedModel.objects.all()))
    hosts = Host.objects.select_related("report")
    held = defaultdict(list)
    for model in served:
        for replica in model.replica_set.all():
            held[replica.host_id].append((model.name, replica))
    return Overview(
        hosts=tuple(host_view(host, held[host.pk], now) for host in hosts),
        models=tuple(model_view(model, now, today, paces.get(model.name)) for model in served),
    )


def with_all(served: QuerySet[ServedModel]) -> QuerySet[ServedModel]:
    """What `model_view` reads, fetched beforehand."""
    replicas = Prefetch("replica_set", Replica.objects.select_related("host").order_by("host__name", "index"))
    return served.select_related("reading").prefetch_related(replicas, "aliases")


def model_view(model: ServedModel, now: datetime, today: date, pace: Pace | None) -> ModelView:
    replicas = tuple(replica_view(replica, now) for replica in model.replica_set.all())
    ready = sum(replica.state == State.READY and replica.sure for replica in replicas)
    external = model.engine == EXTERNAL
    wanted = 1 if external else model.replicas
    retired = model.retires_on is not None and model.retires_on <= today
    reading = getattr(model, "reading", None)
    return ModelView(
        name=model.name,
        engine=model.get_engine_display(),
        task=model.get_task_display(),
        aliases=tuple(alias.name for alias in model.aliases.all()),
        enabled=model.enabled,
        external=external,
        condition=condition(replicas, ready=ready, wanted=wanted, enabled=model.enabled, retired=retired),
        ready=ready,
        wanted=wanted,
        replicas=replicas,
        since=max((replica.since for replica in replicas), default=None),
        retires_on=model.retires_on,
        retires_soon=model.retires_on is not None and not retired and model.retires_on <= today + timedelta(days=30),
        fault=reading.fault if reading else "",
        pace=pace,
    )


def condition(replicas: Iterable[ReplicaView], *, ready: int, wanted: int, enabled: bool, retired: bool) -> Condition:
    """A model that is not wanted is stopped, or on its way to it; else the best of its replicas, then the gravest."""
    states = {replica.state for replica in replicas}
    if retired or not enabled:
        running = states - {State.STOPPED, State.FAILED}
        return Condition.DRAINING if running else Condition.RETIRED if retired else Condition.STOPPED
    if ready:
        return Condition.READY if ready >= wanted else Condition.PARTLY
    if State.READY in states:
        return Condition.UNSURE
    return next((found for state, found in GRAVEST if state in states), Condition.UNPLACED)


def replica_view(replica: Replica, now: datetime) -> ReplicaView:
    sure = is_sure(replica.host, now)
    live = replica.live if sure and replica.live else {}
    silent = not sure and replica.state not in (State.STOPPED, State.FAILED)
    state = Condition.UNSURE if silent else Condition(replica.state)
    return ReplicaView(
        id=replica.pk,
        index=replica.index,
        host=replica.host.name,
        state=replica.state,
        label=str(state.label),
        level=LEVELS.get(state, "off"),
        sure=sure,
        launcher=replica.launcher,
        version=replica.version,
        pid=replica.pid,
        devices=tuple(replica.devices),
        predicted=replica.predicted,
        measured=replica.memory_bytes,
        running=live.get("running"),
        waiting=live.get("waiting"),
        tokens_per_second=live.get("tokens_per_second"),
        cache_used=live.get("cache_used"),
        restarts=replica.restarts,
        retry_at=replica.retry_at,
        since=replica.changed_at,
        cause=replica.cause,
        detail=replica.detail,
    )


def host_view(host: Host, held: list[tuple[str, Replica]], now: datetime) -> HostView:
    report = getattr(host, "report", None)
    return HostView(
        name=host.name,
        address=host.address,
        seen_at=host.seen_at,
        sure=is_sure(host, now),
        bars=tuple(shown([device_bar(device, held) for device in report.devices])) if report else (),
        strangers=tuple(Stranger(**found) for found in report.strangers) if report else (),
        engines=report.engines if report else {},
        problems=tuple(report.problems) if report else (),
    )


def is_sure(host: Host, now: datetime) -> bool:
    return host.seen_at is not None and now - host.seen_at <= SILENCE


def shown(bars: list[Bar]) -> list[Bar]:
    """The GPUs. RAM is where models live on a host without any, or where one was put all the same."""
    gpus = [one for one in bars if one.kind == "gpu"]
    return gpus + [one for one in bars if one.kind == "ram" and (one.shares or not gpus)]


def device_bar(device: dict[str, Any], held: list[tuple[str, Replica]]) -> Bar:
    shares = []
    for name, replica in held:
        if measured_on(replica, device) is not None or is_placed_on(replica, device):
            shares.append(
                share(
                    model=name,
                    replica=f"{name} #{replica.index}" if replica.index else name,
                    predicted=replica.predicted if is_placed_on(replica, device) else None,
                    measured=measured_on(replica, device),
                )
            )
    return bar(device, shares)


def is_placed_on(replica: Replica, device: dict[str, Any]) -> bool:
    """An engine without devices of its own lives in RAM."""
    if replica.predicted is None or replica.state in (State.STOPPED, State.FAILED, State.ASLEEP):
        return False
    return device["index"] in replica.devices if replica.devices else device["kind"] == "ram"


def measured_on(replica: Replica, device: dict[str, Any]) -> int | None:
    """Bytes; None if nothing of it was measured there. RAM's are not told by device."""
    if device["kind"] == "ram":
        return None if replica.devices else replica.memory_bytes
    found: int | None = replica.memory_by_device.get(str(device["index"]))
    return found


def added(numbers: Iterable[int | None]) -> int | None:
    known = [number for number in numbers if number is not None]
    return sum(known) if known else None
