"""Hosts and models for operators' pages: the registry's plain values, and what only pages need beside them."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from typing import Any

from django.db.models import Prefetch, QuerySet
from django.utils.timezone import localdate

from modelregistry.models import Alias, Host, Replica, ServedModel
from modelregistry.overview import (
    ALIVE,
    ControllerNow,
    DeviceNow,
    FirstToken,
    HostNow,
    HostReach,
    ModelNow,
    ModelState,
    ReplicaNow,
    host_now,
    model_now,
    read_controller,
    with_placements,
)
from portal.operations.memory_bars import MemoryBar, memory_bar, share_of

State = Replica.State
SOON = timedelta(days=30)

# The colour of a state; the others have none.
LEVELS = {
    ModelState.READY: "fine",
    ModelState.JOINED: "fine",
    ModelState.PARTLY: "watch",
    ModelState.UNSURE: "watch",
    ModelState.STARTING: "watch",
    ModelState.DRAINING: "watch",
    ModelState.UNPLACED: "watch",
    ModelState.MAINTENANCE: "watch",
    ModelState.BACKOFF: "broken",
    ModelState.UNHEALTHY: "broken",
    ModelState.FAILED: "broken",
}
UNWANTED = (ModelState.STOPPED, ModelState.RETIRED)
ANSWERING = (ModelState.READY, ModelState.PARTLY, ModelState.ASLEEP)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaView:
    """One replica. `state` differs from its row's if no controller looks at it.

    `prediction`: as `memory.Prediction`.
    """

    now: ReplicaNow
    state: ModelState
    prediction: dict[str, Any] | None

    @property
    def level(self) -> str:
        return "off" if self.now.moved_to else LEVELS.get(self.state, "off")

    @property
    def failing(self) -> bool:
        """Whether it is trouble of its model; what is left where it was moved from is not."""
        return not self.now.moved_to and self.now.state in (State.FAILED, State.BACKOFF, State.UNHEALTHY)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelView:
    """One model with its replicas. `task` and `engine` in words; `fault`: why its files cannot be used, or ""."""

    now: ModelNow
    task: str
    engine: str
    replicas: tuple[ReplicaView, ...]
    retires_on: date | None
    retires_soon: bool
    fault: str

    @property
    def name(self) -> str:
        return self.now.name

    @property
    def state(self) -> ModelState:
        return self.now.state

    @property
    def level(self) -> str:
        return LEVELS.get(self.now.state, "off")

    @property
    def hosts(self) -> list[str]:
        return sorted({replica.now.host for replica in self.replicas if not replica.now.moved_to})

    @property
    def since(self) -> datetime | None:
        return max((replica.now.since for replica in self.replicas), default=None)

    @property
    def cache_used(self) -> float | None:
        """The share of the cache in use, 0 to 1, of the replica where it is highest."""
        return max((r.now.cache_used for r in self.replicas if r.now.cache_used is not None), default=None)

    @property
    def sleepers(self) -> list[ReplicaNow]:
        """Of the replicas whose engines sleep, one for each level, with the memory of all of these."""
        found: dict[str, ReplicaNow] = {}
        for now in (replica.now for replica in self.replicas if replica.now.slept):
            before = found.get(now.slept)
            memory, ram = (before.memory or 0, before.ram or 0) if before else (0, 0)
            found[now.slept] = replace(now, memory=memory + (now.memory or 0), ram=ram + (now.ram or 0))
        return list(found.values())

    @property
    def gap_level(self) -> str:
        """How grave it is that replicas have no place.

        Those that have one answer all calls, if more slowly, and bring notices of their own when they fail. A model
        without any refuses its calls, and nothing else says so: there is no engine that could fail.
        """
        some_placed = self.now.gap is not None and self.now.gap.replicas < self.now.wanted
        return "watch" if some_placed else "broken"

    @property
    def gave_up(self) -> bool:
        """Whether no replica answers and none is starting, so that another try does no harm."""
        return self.state in (ModelState.FAILED, ModelState.BACKOFF)

    @property
    def troubled(self) -> ReplicaView | None:
        """The replica whose failure is shown first; None for a model that is not to run."""
        if self.state in UNWANTED:
            return None
        return next((replica for replica in self.replicas if replica.failing), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostView:
    """A machine as the controller last saw it, with a bar for each of its memories, and the replicas on it."""

    now: HostNow
    bars: tuple[MemoryBar, ...]
    placed: tuple[tuple[ModelNow, ReplicaView], ...] = ()

    @property
    def name(self) -> str:
        return self.now.name

    @property
    def gpus(self) -> list[DeviceNow]:
        return [device for device in self.now.devices if device.kind == "gpu"]

    @property
    def cards(self) -> str:
        """The kinds of its GPUs and how many there are of each: "8 × NVIDIA H100"; "" for a host without."""
        counted = Counter(device.name for device in self.gpus)
        return ", ".join(f"{number} × {name}" if number > 1 else name for name, number in counted.items())

    @property
    def memory_total(self) -> int:
        return sum(bar.total for bar in self.bars)

    @property
    def memory_used(self) -> int:
        return sum(bar.used for bar in self.bars)

    @property
    def memory_share(self) -> float:
        return self.memory_used / self.memory_total if self.memory_total else 0.0

    @property
    def busy(self) -> int | None:
        """The mean utilisation of its GPUs in per cent; None if none is known."""
        known = [device.utilisation for device in self.gpus if device.utilisation is not None]
        return round(sum(known) / len(known)) if known else None

    @property
    def hottest(self) -> int | None:
        """The temperature of its hottest GPU in °C; None if none is known."""
        return max((device.temperature for device in self.gpus if device.temperature is not None), default=None)

    @property
    def replicas(self) -> int:
        """How many replicas belong on it and have an engine."""
        return sum(view.now.state in ALIVE and not view.now.moved_to for _model, view in self.placed)

    @property
    def moved(self) -> int:
        """How many replicas were moved from it to other hosts and may still run."""
        return sum(bool(view.now.moved_to) for _model, view in self.placed)

    @property
    def level(self) -> str:
        return "fine" if self.now.reach == HostReach.ONLINE else "watch"


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationsOverview:
    """`controller`: None if there has never been one."""

    controller: ControllerNow | None
    hosts: tuple[HostView, ...]
    models: tuple[ModelView, ...]

    @property
    def wanted(self) -> list[ModelView]:
        """The models that ought to answer."""
        return [model for model in self.models if model.state not in UNWANTED]

    @property
    def answering(self) -> int:
        return sum(model.state in ANSWERING for model in self.wanted)

    @property
    def troubled(self) -> list[ModelView]:
        return [model for model in self.wanted if model.level == "broken" or model.fault or model.troubled]

    @property
    def maintained(self) -> list[tuple[str, list[ModelView]]]:
        """The hosts whose maintenance keeps models from answering, with these models."""
        held = [model for model in self.wanted if model.state == ModelState.MAINTENANCE]
        maintained = sorted(host.name for host in self.hosts if host.now.maintenance)
        found = [(host, [one for one in held if host in (*one.hosts, one.now.host)]) for host in maintained]
        return [(host, models) for host, models in found if models]

    @property
    def silent(self) -> list[HostView]:
        """The hosts that do not answer the controller; one in maintenance may be switched off."""
        return [host for host in self.hosts if host.now.reach == HostReach.SILENT and not host.now.maintenance]

    @property
    def unwatched(self) -> list[HostView]:
        """The hosts at which no controller looks although there is one."""
        return [] if self.is_leaderless else self._unwatched()

    @property
    def is_leaderless(self) -> bool:
        """Whether no controller looks at the hosts because there is none."""
        return bool(self._unwatched()) and (self.controller is None or not self.controller.alive)

    def _unwatched(self) -> list[HostView]:
        return [host for host in self.hosts if host.now.reach == HostReach.UNWATCHED and not host.now.maintenance]

    @property
    def problems(self) -> bool:
        return any(host.now.problems for host in self.hosts)

    @property
    def short(self) -> list[ModelView]:
        """The models that want one replica more, for which there is no place."""
        return [model for model in self.wanted if model.now.shortage]

    @property
    def unplaced(self) -> list[ModelView]:
        """The models with replicas for which the controller finds no place, first those without any."""
        found = [model for model in self.wanted if model.now.gap]
        return sorted(found, key=lambda model: model.gap_level == "watch")

    @property
    def needs_attention(self) -> bool:
        hosts = self.silent or self.unwatched or self.is_leaderless
        return bool(self.troubled or self.unplaced or self.short or hosts or self.problems or self.maintained)

    @property
    def shows_hosts(self) -> bool:
        """Whether all is shown of each host at once: several would push the models off the screen."""
        return len(self.hosts) == 1

    @property
    def memory_total(self) -> int:
        return sum(one.total for host in self.hosts for one in host.bars)

    @property
    def memory_used(self) -> int:
        return sum(one.used for host in self.hosts for one in host.bars)

    @property
    def running(self) -> int:
        return sum(model.now.running or 0 for model in self.models)

    @property
    def waiting(self) -> int:
        return sum(model.now.waiting or 0 for model in self.models)

    @property
    def tokens_per_second(self) -> float:
        return sum(model.now.tokens_per_second or 0 for model in self.models)

    @property
    def slowest(self) -> ModelView | None:
        timed = [(model.now.first_token.slow, model) for model in self.models if model.now.first_token]
        return max(timed, key=lambda pair: pair[0], default=(0.0, None))[1]


def read_overview(now: datetime, first_tokens: Mapping[str, FirstToken]) -> OperationsOverview:
    """Read the controller, all hosts and models. Five queries, however many there are."""
    return view_overview(list(prefetch_models(ServedModel.objects.all())), now, first_tokens, with_controller=True)


def read_host_overview(host: Host, now: datetime) -> OperationsOverview:
    """Read one host with what is placed on it, and the controller where it matters. Four queries, five at most."""
    there = ServedModel.objects.filter(pk__in=Replica.objects.filter(host=host).values("model"))
    return view_overview(list(prefetch_models(there, aliases=False)), now, {}, only=host)


def view_overview(
    served: Sequence[ServedModel],
    now: datetime,
    first_tokens: Mapping[str, FirstToken],
    *,
    with_controller: bool = False,
    only: Host | None = None,
) -> OperationsOverview:
    """Return the same of all models, which `prefetch_models` gave. One query.

    `only`: the one host to show. Without `with_controller` that is only read, by another one, where it matters why a
    host is not looked at.
    """
    rows = [replica for model in served for replica in model.replica_set.all()]
    by_host = defaultdict(list)
    for row in rows:
        by_host[row.host_id].append(row)
    models = tuple(model_view(model, now, first_tokens.get(model.name)) for model in served)
    placed = defaultdict(list)
    for model in models:
        for replica in model.replicas:
            placed[replica.now.host].append((model.now, replica))
    shown = Host.objects.filter(pk=only.pk) if only else Host.objects.all()
    hosts = [host_view(host, by_host[host.pk], now) for host in shown.select_related("report")]
    unwatched = any(host.now.reach == HostReach.UNWATCHED for host in hosts)
    return OperationsOverview(
        controller=read_controller(now) if with_controller or unwatched else None,
        hosts=tuple(replace(host, placed=tuple(placed[host.name])) for host in hosts),
        models=models,
    )


def prefetch_models(served: QuerySet[ServedModel], *, aliases: bool = True) -> QuerySet[ServedModel]:
    """Prefetch what `model_view` reads; without `aliases` none are shown, which saves a query."""
    rows = with_placements(Replica.objects.select_related("host", "model"))
    replicas = Prefetch("replica_set", rows.order_by("host__name", "index"))
    return served.select_related("file_report", "host", "shortage", "gap").prefetch_related(
        replicas, Prefetch("aliases", Alias.objects.all() if aliases else Alias.objects.none())
    )


def model_view(model: ServedModel, now: datetime, first_token: FirstToken | None) -> ModelView:
    """Return the view of a model that `prefetch_models` gave."""
    seen = model_now(model, now, first_token)
    report = getattr(model, "file_report", None)
    return ModelView(
        now=seen,
        task=model.get_task_display(),
        engine=model.get_engine_display(),
        replicas=tuple(
            ReplicaView(now=replica, state=find_state(replica), prediction=row.predicted)
            for replica, row in zip(seen.replicas, model.replica_set.all(), strict=True)
        ),
        retires_on=model.retires_on,
        retires_soon=model.retires_on is not None and localdate(now) < model.retires_on <= localdate(now) + SOON,
        fault=report.fault if report else "",
    )


def find_state(replica: ReplicaNow) -> ModelState:
    """Return the replica's state: unsure if no controller looks at it any more and it was alive."""
    silent = not replica.supervised and replica.state not in (State.STOPPED, State.FAILED)
    return ModelState.UNSURE if silent else ModelState(replica.state)


def host_view(host: Host, rows: list[Replica], now: datetime) -> HostView:
    """Return the view of a host. `rows`: its replicas."""
    report = getattr(host, "report", None)
    # Of one that was moved nothing is to come any more; what it was measured to hold may still be held.
    there = [row for row in rows if row.memory_bytes or not getattr(row, "placed_on", None)]
    bars = [device_bar(device, there) for device in report.devices] if report else []
    return HostView(now=host_now(host, rows, now), bars=tuple(choose_bars(bars)))


def choose_bars(bars: list[MemoryBar]) -> list[MemoryBar]:
    """Return the bars of the GPUs, and of RAM if the host has no GPU or a model was placed in RAM."""
    gpus = [one for one in bars if one.kind == "gpu"]
    return gpus + [one for one in bars if one.kind == "ram" and (one.shares or not gpus)]


def device_bar(device: dict[str, Any], rows: list[Replica]) -> MemoryBar:
    return memory_bar(
        device,
        [
            share_of(
                model=row.model.name,
                replica=_label(row),
                predicted=row.predicted,
                measured=measured_bytes(row, device),
            )
            for row in rows
            if row.state in ALIVE and is_placed_on(row, device) and (row.predicted or measured_bytes(row, device))
        ],
    )


def _label(row: Replica) -> str:
    number, rank = divmod(row.index, row.model.nodes)
    parts = [row.model.name, f"#{number}" if number else "", f"{rank + 1}/{row.model.nodes}" * (row.model.nodes > 1)]
    return " ".join(filter(None, parts))


def is_placed_on(row: Replica, device: dict[str, Any]) -> bool:
    """Return whether the replica is on this device; one without devices of its own is in RAM."""
    return device["index"] in row.devices if row.devices else device["kind"] == "ram"


def measured_bytes(row: Replica, device: dict[str, Any]) -> int | None:
    """Return the replica's measured bytes on the device; None if not measured. RAM is not reported by device."""
    found: int | None = row.memory_bytes if not row.devices else row.memory_by_device.get(str(device["index"]))
    return found
