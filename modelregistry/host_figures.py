"""Figures of hosts, models, periodic tasks and of the controller for monitoring, by the database's clock."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db.models import F

from modelregistry.database_clock import database_now, read_now
from modelregistry.models import Host, Replica, ServedModel, TaskRun
from modelregistry.one_line import is_odd
from modelregistry.overview import MADE_UP, ControllerNow, HostReach, reach_of, read_controller, with_placements
from modelregistry.supervisor.tasks import registered_tasks

# What a host reports of a device beside its memory: the names of `DeviceFigures.sensors`.
SENSORS = ("utilisation", "temperature", "power", "ecc_errors", "xid_errors", "xid_faults", "last_xid")
# What an engine does now: the names of `ReplicaFigures.live`.
LIVE = ("running", "waiting", "tokens_per_second", "cache_used")
# Most of what is read of a site is text that no figure is made of.
UNUSED = [f"report__{name}" for name in ("strangers", "engines", "installed", "stamps", "default_versions", "problems")]
OF_REPLICAS = (
    *("index", "state", "restarts", "memory_bytes", "live", "model__name", "model__nodes", "host__name"),
    *("host_id", "model_id"),
)
BY_NAMES = ("model__name", "host__name", "index")
NEARLY_FULL = 50e9  # bytes
MOST_DISKS, MOST_PATH = 16, 300
MOST_DEVICES = 64  # of a host: what a host reports is bounded where it is read
INDEXES = range(-1, 1024)  # of devices; -1: the RAM. What is kept of them has 16 bits for it
MOST_NUMBER = 1e18  # an exabyte: sums of such numbers are finite


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFigures:
    """Of a GPU, or an instance of one, or of the RAM, in bytes. `name`: the GPU's index, or "ram".

    `readable`: the driver reports it now. `sensors`: by SENSORS, those that are known, as `gpus.Device`.
    """

    name: str
    total: float
    used: float
    readable: bool
    sensors: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskFigures:
    """Of a disk with state, engines or models, in bytes. `path`: a directory on it."""

    path: str
    total: float
    free: float

    @property
    def is_nearly_full(self) -> bool:
        """Whether less than a tenth is free, and less than 50 GB: on a disk of 10 TB, 1 TB is room for models."""
        return self.free < min(self.total / 10, NEARLY_FULL)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFigures:
    """Of one host. `up`: it answers the controller. `silent_seconds`: for how long it has not; 0: it answers.

    `replicas`: how many are placed on it, by their states; what was moved to another host is not counted.
    `devices`, `disks`: none of a host that is not up, as theirs are old.
    """

    name: str
    up: bool
    silent_seconds: float
    maintenance: bool
    replicas: Mapping[str, int]
    devices: tuple[DeviceFigures, ...]
    disks: tuple[DiskFigures, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaFigures:
    """Of one replica where it is placed. `number` and `rank` as pages show them.

    `memory`: bytes, None: not known. `live`: by LIVE, those that are known; none of one whose host is not up.
    """

    model: str
    host: str
    number: int
    rank: int
    state: str
    restarts: int
    memory: int | None
    live: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFigures:
    """Of a periodic task. Unix seconds, None: never. `failing`: its last run that has ended failed."""

    name: str
    every_seconds: float
    ended_at: float | None
    failing: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteFigures:
    """`shortages`: for how many seconds models have lacked one replica more for which there is no place, by name.

    Of those that may have more while calls wait; 0: they lack none.
    """

    hosts: tuple[HostFigures, ...]
    replicas: tuple[ReplicaFigures, ...]
    tasks: tuple[TaskFigures, ...]
    shortages: Mapping[str, float]
    controller: ControllerNow | None


def read_figures() -> SiteFigures:
    """Read the figures of all hosts, by name, and of the site. Five queries."""
    hosts = list(Host.objects.select_related("report").defer(*UNUSED).annotate(now=database_now()).order_by("name"))
    now = hosts[0].now if hosts else read_now()
    up = {host.pk: reach_of(host, now) == HostReach.ONLINE for host in hosts}
    rows = with_placements(Replica.objects.select_related("model", "host").order_by(*BY_NAMES))
    placed = [row for row in rows.only(*OF_REPLICAS) if not getattr(row, "placed_on", None)]
    counts: dict[int, Counter[str]] = defaultdict(Counter)
    for row in placed:
        counts[row.host_id][row.state] += 1
    return SiteFigures(
        hosts=tuple(_host_figures(host, now, up[host.pk], counts[host.pk]) for host in hosts),
        replicas=tuple(_replica_figures(row, is_current=up[row.host_id]) for row in placed),
        tasks=tuple(_read_tasks()),
        shortages=_read_shortages(now),
        controller=read_controller(now),
    )


def _host_figures(host: Any, now: datetime, up: bool, counts: Mapping[str, int]) -> HostFigures:
    since = host.silent_since or host.seen_at
    silent = 0.0 if up or since is None or since == MADE_UP else max(0.0, (now - since).total_seconds())
    report = getattr(host, "report", None)
    return HostFigures(
        name=host.name,
        up=up,
        silent_seconds=silent,
        maintenance=host.maintenance,
        replicas={state: counts.get(state, 0) for state in Replica.State.values},
        devices=tuple(read_device_figures(report.devices)) if report and up else (),
        disks=tuple(read_disk_figures(report.disks)) if report and up else (),
    )


def read_device_figures(devices: Iterable[Any]) -> Iterator[DeviceFigures]:
    """Yield the figures of devices, each given as `gpus.Device`, without those that cannot be read as such."""
    seen = set()
    for device in list(devices)[:MOST_DEVICES]:
        if not isinstance(device, Mapping):
            continue
        index, total, used = (_read_number(device.get(name)) for name in ("index", "total", "used"))
        if index is None or int(index) not in INDEXES or total is None or used is None or int(index) in seen:
            continue
        seen.add(int(index))
        sensors = {name: _read_number(device.get(name)) for name in SENSORS}
        yield DeviceFigures(
            name="ram" if device.get("kind") == "ram" else str(int(index)),
            total=total,
            used=used,
            readable=not device.get("fault"),
            sensors={name: value for name, value in sensors.items() if value is not None},
        )


def read_disk_figures(disks: Iterable[Any]) -> Iterator[DiskFigures]:
    """Yield the figures of disks, each given as by `inspection.read_disks`, without those that are no such thing."""
    seen = set()
    for disk in list(disks)[:MOST_DISKS]:
        if not isinstance(disk, Mapping):
            continue
        path = "".join("?" if is_odd(character) else character for character in str(disk.get("path"))[:MOST_PATH])
        total, free = _read_number(disk.get("total")), _read_number(disk.get("free"))
        if total and free is not None and path not in seen:
            seen.add(path)
            yield DiskFigures(path=path, total=total, free=free)


def _replica_figures(row: Replica, *, is_current: bool) -> ReplicaFigures:
    live = {name: _read_number((row.live or {}).get(name)) for name in LIVE} if is_current else {}
    return ReplicaFigures(
        model=row.model.name,
        host=row.host.name,
        number=row.index // row.model.nodes,
        rank=row.index % row.model.nodes,
        state=row.state,
        restarts=row.restarts,
        memory=row.memory_bytes,
        live={name: value for name, value in live.items() if value is not None},
    )


def _read_number(value: Any) -> float | None:
    """Return a number that a host reported; None: it is none, or larger than anything that hosts have."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and -MOST_NUMBER <= value <= MOST_NUMBER else None


def _read_tasks() -> Iterator[TaskFigures]:
    """Yield the figures of the periodic tasks of this version, by name."""
    rows = {row.name: row for row in TaskRun.objects.all()}
    for task in sorted(registered_tasks(), key=lambda task: task.name):
        row = rows.get(task.name)
        yield TaskFigures(
            name=task.name,
            every_seconds=task.every.total_seconds(),
            ended_at=row.ended_at.timestamp() if row and row.ended_at else None,
            failing=row is not None and row.succeeded is False,
        )


def _read_shortages(now: datetime) -> dict[str, float]:
    scaled = ServedModel.objects.filter(replicas_max__gt=F("replicas"), enabled=True).order_by("name")
    return {
        name: max(0.0, (now - since).total_seconds()) if since else 0.0
        for name, since in scaled.values_list("name", "shortage__since")
    }
