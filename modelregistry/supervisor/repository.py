"""The supervisor's side of the database: what operators want of this host, and the Replica rows, as plain values.

Every function blocks on the database and raises django.db.Error when it is away; call them from one thread.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from django.conf import settings
from django.db import transaction
from django.db.models import Exists, OuterRef, Q
from django.utils import timezone

from modelregistry import models
from modelregistry.awake_hours import IDLE_AFTER, AwakeHours
from modelregistry.database_clock import database_now
from modelregistry.engines.base import Spec
from modelregistry.engines.registry import engine_named
from modelregistry.engines.version_trials import UNTRIED, Trial
from modelregistry.hostside.inspection import Inspection
from modelregistry.hostside.replicas import ReplicaKey
from modelregistry.hostside.surface import FileFacts
from modelregistry.memory.allocation import Allocation, MemoryUse
from modelregistry.memory.estimate import Measured
from modelregistry.models import (
    ControllerClaim,
    EngineTrial,
    EvictionRecord,
    Host,
    HostReport,
    LogSubscription,
    LogTail,
    Measurement,
    Replica,
    ReplicaPlacement,
    ServedModel,
    WakeRequest,
)
from modelregistry.supervisor.eviction_log import LoggedEviction
from modelregistry.supervisor.plan import ReplicaState
from modelregistry.supervisor.wake_demand import WakeDemand


@dataclass(frozen=True, slots=True, kw_only=True)
class DesiredModel:
    """A model as operators want it on this host. An external one has a URL, the others a path in `spec`.

    `numbers`: of those of its replicas that belong here; `leaving`: those of them that serve here until they are ready
    on another host. `free`: it has no host of its own.

    Each replica of one over several hosts has as many numbers as hosts, one for each rank. `gangs`: by replica, the
    names of its hosts by rank.
    """

    spec: Spec
    enabled: bool
    numbers: frozenset[int]
    idle_after: float | None
    hours: AwakeHours | None
    url: str
    upstream_key: str
    upstream_model: str
    pinned: bool = False
    wake: WakeDemand | None = None  # callers wait for it
    free: bool = False
    leaving: frozenset[int] = frozenset()
    gangs: Mapping[int, tuple[str, ...]] = field(default_factory=dict)

    def of(self, number: int) -> "DesiredModel":
        """Return it as that replica: of one over several hosts, its rank among which hosts."""
        if self.spec.nodes == 1:
            return self
        hosts = self.gangs.get(number // self.spec.nodes, ())
        return replace(self, spec=replace(self.spec, rank=number % self.spec.nodes, hosts=hosts))

    @property
    def external(self) -> bool:
        return engine_named(self.spec.engine).external

    @property
    def wake_requested(self) -> bool:
        return self.wake is not None

    def keeps_its_place(self, now: datetime) -> bool:
        """Return whether it may not be unloaded for others: it is pinned, or this is one of its hours."""
        zone = ZoneInfo(settings.TIME_ZONE)
        return self.pinned or (self.hours is not None and self.hours.keep_awake(now, zone))

    def idle_after_at(self, now: datetime) -> float | None:
        """Return the seconds without a request after which it sleeps; None: it does not sleep now."""
        if self.hours is None:
            return self.idle_after
        if self.hours.keep_awake(now, ZoneInfo(settings.TIME_ZONE)):
            return None
        return IDLE_AFTER if self.idle_after is None else self.idle_after

    def fingerprint(self) -> str:
        """Return a value that changes exactly when a replica must be restarted."""
        return self.spec.fingerprint() + (f" {self.url} {self.upstream_key}" if self.external else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaFacts:
    """A Replica row without its memory."""

    state: ReplicaState
    url: str = ""
    api_key: str = ""
    launcher: str = ""
    slots: int | None = None
    pid: int | None = None
    run_id: str = ""
    restarts: int = 0
    retry_at: datetime | None = None
    detail: str = ""
    cause: str = ""
    version: str = ""
    load_seconds: float | None = None
    slept: str = ""


# What gateways build their catalogue from. Other changes are written without notifying them.
_ROUTING = ("state", "url", "api_key", "launcher", "slots")


@dataclass(frozen=True, slots=True, kw_only=True)
class DesiredHost:
    """The host as operators want it. `address`: where its engines listen; `maintenance`: none may run."""

    address: str
    maintenance: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Report(Inspection):
    """As `HostReport`; `at` is when it was seen."""

    at: datetime


def take_host(name: str, number: str, holder: str) -> int | None:
    """Claim a host for the controller with this number, and return its row, which is created if there is none.

    None: the site has another controller by now.
    """
    with transaction.atomic():
        if not ControllerClaim.objects.select_for_update().filter(number=number).exists():
            return None
        row, _ = Host.objects.get_or_create(name=name)
        Host.objects.filter(pk=row.pk).update(claim=number, holder=holder)
    return row.pk


def desired_host(host_id: int) -> DesiredHost | None:
    """Return what operators want of the host; None: it was removed."""
    row = Host.objects.filter(pk=host_id).values("address", "maintenance").first()
    return DesiredHost(**row) if row else None


def renew_claim(host_id: int, number: str, *, heard: bool = True) -> bool:
    """Record, by the database's clock, that the host is supervised and answers; False if another one has it now.

    A host that is not `heard` is left as it was last seen: gateways check its engines themselves then.
    """
    mine = Host.objects.filter(pk=host_id, claim=number)
    if heard:
        return bool(mine.update(seen_at=database_now(), watched_at=database_now(), silent_since=None))
    mine.filter(silent_since=None).update(silent_since=database_now())
    return bool(mine.update(watched_at=database_now()))


def release_host(host_id: int, number: str) -> None:
    """Delete the claim of a leaving controller."""
    Host.objects.filter(pk=host_id, claim=number).update(claim="")


# States of replicas that an operator who wants a model "wherever it fits" would not want moved.
WELL_PLACED = (Replica.State.STARTING, Replica.State.READY, Replica.State.UNHEALTHY, Replica.State.ASLEEP)


def desired_models(host_id: int, *, keeping: bool = True) -> dict[int, DesiredModel]:
    """Return what this host is to serve, by the model's id: models that belong to it, and replicas placed here.

    `keeping`: replicas that run here and have no placement stay until they get one. A model whose host was cleared may
    be anywhere from then on, which is no reason to stop it.
    """
    placed = ReplicaPlacement.objects.filter(Q(host=host_id) | Q(former=host_id), model=OuterRef("pk"))
    here = Replica.objects.filter(model=OuterRef("pk"), host=host_id, state__in=WELL_PLACED)
    anywhere = Q(Exists(placed)) | Q(Exists(here)) if keeping else Q(Exists(placed))
    rows = list(ServedModel.objects.filter(Q(host=host_id) | Q(anywhere, host=None)).select_related("wake_request"))
    free = {row.pk: row.replicas for row in rows if row.host_id is None}
    here_now = _numbers_here(host_id, free, keeping=keeping) if free else {}
    here_now |= _ranks_here(host_id, [row for row in rows if row.nodes > 1])
    found = {row.pk: _desired_model(row, here_now.get(row.pk)) for row in rows}
    return {model_id: desired for model_id, desired in found.items() if desired.numbers}


@dataclass(frozen=True, slots=True)
class _Numbers:
    """The replicas of a model that belong on a host, and those that leave it."""

    staying: frozenset[int]
    leaving: frozenset[int]
    gangs: Mapping[int, tuple[str, ...]] = field(default_factory=dict)


def _numbers_here(host_id: int, model_ids: Mapping[int, int], *, keeping: bool) -> dict[int, _Numbers]:
    """Return what of each of these models, which have no host of their own, belongs on this one.

    `model_ids`: with the number of replicas that each always has; a further one is there only where it was placed.
    """
    staying: dict[int, set[int]] = {model_id: set() for model_id in model_ids}
    leaving: dict[int, set[int]] = {model_id: set() for model_id in model_ids}
    placed: set[tuple[int, int]] = set()
    for one in ReplicaPlacement.objects.filter(model__in=model_ids):
        placed.add((one.model_id, one.number))
        if one.host_id == host_id:
            staying[one.model_id].add(one.number)
        elif one.former_id == host_id:
            leaving[one.model_id].add(one.number)
    if keeping:
        running = Replica.objects.filter(host=host_id, model__in=model_ids, state__in=WELL_PLACED)
        for model_id, number in running.values_list("model_id", "index"):
            if (model_id, number) not in placed and number < model_ids[model_id]:
                staying[model_id].add(number)
    return {model_id: _Numbers(frozenset(staying[model_id]), frozenset(leaving[model_id])) for model_id in model_ids}


def _ranks_here(host_id: int, rows: Sequence[ServedModel]) -> dict[int, _Numbers]:
    """Return what of these models, which are over several hosts, belongs here, as far as all hosts of it are known."""
    if not rows:
        return {}
    nodes, found = {row.pk: row.nodes for row in rows}, {row.pk: _Numbers(frozenset(), frozenset()) for row in rows}
    placed: dict[tuple[int, int], dict[int, tuple[int, str]]] = {}
    for one in ReplicaPlacement.objects.filter(model__in=nodes).select_related("host"):
        gang, rank = divmod(one.number, nodes[one.model_id])
        placed.setdefault((one.model_id, gang), {})[rank] = one.host_id, one.host.name
    for (model_id, gang), ranks in placed.items():
        if len(ranks) < nodes[model_id]:
            continue
        mine = {gang * nodes[model_id] + rank for rank, (host, _) in ranks.items() if host == host_id}
        before, names = found[model_id], tuple(ranks[rank][1] for rank in sorted(ranks))
        found[model_id] = _Numbers(before.staying | mine, frozenset(), {**before.gangs, gang: names})
    return found


def spec_of(row: ServedModel) -> Spec:
    """Return what decides how a model's engine is started."""
    return Spec(
        engine=row.engine,
        launcher=row.launcher,
        name=row.name,
        path=row.path,
        task=row.task,
        context=row.context,
        slots=row.slots,
        args=tuple(row.args),
        gpus=tuple(row.gpus),
        tensor_parallel=row.tensor_parallel,
        overcommit=row.overcommit,
        allowed_risks=tuple(row.allowed_risks),
        generation=row.generation,
        version=row.engine_version,
        sleep=row.sleep_mode,
        nodes=row.nodes,
    )


def _desired_model(row: ServedModel, here: _Numbers | None) -> DesiredModel:
    """Return a row's model. `here`: the replicas that belong here, as far as it has so many; None: all."""
    external = engine_named(row.engine).external
    most = row.replicas if here is None else row.most_replicas
    every = frozenset(range(1 if external else most * row.nodes))
    retired = row.retires_on is not None and timezone.localdate() >= row.retires_on
    return DesiredModel(
        spec=spec_of(row),
        enabled=row.enabled and not retired,
        numbers=every if here is None else every & (here.staying | here.leaving),
        leaving=frozenset() if here is None else every & here.leaving,
        free=here is not None,
        gangs=here.gangs if here else {},
        idle_after=None if external else row.idle_after,
        hours=None if external else row.awake_hours,
        pinned=row.pinned,
        wake=_wake_demand(row),
        url=row.url.rstrip("/"),
        upstream_key=row.upstream_key,
        upstream_model=row.upstream_model or row.name,
    )


def _wake_demand(row: ServedModel) -> WakeDemand | None:
    found: WakeRequest | None = getattr(row, "wake_request", None)
    if found is None:
        return None
    if found.since is None:  # of a gateway of version 1.0, which knows no batches
        return WakeDemand(at=found.at, since=found.at, calls=found.calls, interactive_at=found.at)
    return WakeDemand(at=found.at, since=found.since, calls=found.calls, interactive_at=found.interactive_at)


def clear_wake_requests(model_id: int, since: datetime) -> None:
    """Delete the request to wake a model, which is awake or not waited for; one made after `since` stays."""
    WakeRequest.objects.filter(model=model_id, at__lte=since).delete()


def replica_facts(host_id: int) -> dict[ReplicaKey, ReplicaFacts]:
    """Return the replicas as last written, by this supervisor or an earlier one."""
    return {
        ReplicaKey(row.model_id, row.index): ReplicaFacts(
            state=ReplicaState(row.state),
            url=row.url,
            api_key=row.api_key,
            launcher=row.launcher,
            slots=row.slots,
            pid=row.pid,
            run_id=row.run_id,
            restarts=row.restarts,
            retry_at=row.retry_at,
            detail=row.detail,
            cause=row.cause,
            version=row.version,
            load_seconds=row.load_seconds,
            slept=row.slept,
        )
        for row in Replica.objects.filter(host=host_id)
    }


def write_replica(host_id: int, key: ReplicaKey, facts: ReplicaFacts) -> None:
    """Write the row of a replica. Does nothing if the model was deleted, and its rows with it.

    A change that concerns gateways is saved, which notifies them; the rest is updated without a signal.
    """
    values = {name: getattr(facts, name) for name in ReplicaFacts.__dataclass_fields__}
    with transaction.atomic():
        row = Replica.objects.filter(host=host_id, model=key.model, index=key.number).first()
        if row is None:
            if ServedModel.objects.filter(pk=key.model).exists():
                Replica.objects.create(host_id=host_id, model_id=key.model, index=key.number, **values)
        elif all(getattr(row, name) == values[name] for name in _ROUTING):
            Replica.objects.filter(pk=row.pk).update(**values)
        else:
            for name, value in values.items():
                setattr(row, name, value)
            row.save(update_fields=[*values, "changed_at"])


def remove_replica(host_id: int, key: ReplicaKey) -> None:
    for row in Replica.objects.filter(host=host_id, model=key.model, index=key.number):
        row.delete()


def record_placement(
    host_id: int, key: ReplicaKey, predicted: Mapping[str, Any] | None, devices: Sequence[int]
) -> None:
    """Record where a replica runs and what it was predicted to use there, without notifying gateways."""
    Replica.objects.filter(host=host_id, model=key.model, index=key.number).update(
        predicted=predicted, devices=list(devices)
    )


def record_measurement(host_id: int, key: ReplicaKey, used: MemoryUse) -> None:
    """Record the memory that a replica uses, without notifying gateways."""
    Replica.objects.filter(host=host_id, model=key.model, index=key.number).update(
        memory_bytes=used.total,
        memory_fixed=used.fixed,
        memory_by_device={str(device): size for device, size in used.by_device.items()},
    )


def record_learned(granted: Allocation, version: str, most: int) -> None:
    """Record the memory that a start used on one of its devices, beside what the formulas predict.

    Replaces the earlier measurement.
    """
    formula = granted.formula
    Measurement.objects.update_or_create(
        fingerprint=granted.fingerprint,
        launcher=granted.launcher,
        version=version,
        device=granted.device,
        defaults={
            "weights": formula.weights,
            "cache": formula.cache,
            "overhead": formula.overhead,
            "measured": most,
            "at": timezone.now(),
        },
    )


def load_measurements() -> list[Measured]:
    """Return all measurements, the oldest first."""
    names = [name for name in Measured.__dataclass_fields__]
    return [Measured(**row) for row in Measurement.objects.order_by("at").values(*names)]


def load_trials(host_id: int) -> dict[int, list[Trial]]:
    """Return the trials of engine versions on this host, by the model's id, the oldest first."""
    found: dict[int, list[Trial]] = {}
    for row in EngineTrial.objects.filter(host=host_id).order_by("at"):
        found.setdefault(row.model_id, []).append(_trial_of(row))
    return found


def load_trials_of_model(model_id: int) -> dict[int, list[Trial]]:
    """Return the trials of engine versions with this model, by the host's id, the oldest first."""
    found: dict[int, list[Trial]] = {}
    for row in EngineTrial.objects.filter(model=model_id).order_by("at"):
        found.setdefault(row.host_id, []).append(_trial_of(row))
    return found


def _trial_of(row: EngineTrial) -> Trial:
    return Trial(**{name: getattr(row, name) for name in Trial.__dataclass_fields__})


def record_trial(host_id: int, model_id: int, trial: Trial) -> None:
    """Record the result of a trial, which sends signals. Does nothing if the model was deleted meanwhile."""
    if trial.state == UNTRIED:
        known = EngineTrial.objects.filter(host=host_id, model=model_id, launcher=trial.launcher)
        known.filter(version=trial.version).delete()
        return
    if ServedModel.objects.filter(pk=model_id).exists():
        values = {name: getattr(trial, name) for name in Trial.__dataclass_fields__}
        key = {"launcher": values.pop("launcher"), "version": values.pop("version")}
        EngineTrial.objects.update_or_create(
            host_id=host_id, model_id=model_id, **key, defaults=values | {"at": timezone.now()}
        )


MOST_EVICTIONS = 500  # that are kept of a host: at one a minute those of a day's work


def record_eviction(host_id: int, facts: LoggedEviction, row_id: int | None) -> int | None:
    """Write an eviction, or what is known of it since, and return its row. None if one of the models was deleted."""
    known = {"drain_seconds": facts.drain_seconds, "load_seconds": facts.load_seconds, "calls": facts.calls}
    if row_id is not None:
        EvictionRecord.objects.filter(pk=row_id).update(**known)
        return row_id
    with transaction.atomic():
        models_there = {facts.key.model, facts.successor}
        if ServedModel.objects.filter(pk__in=models_there).count() < len(models_there):
            return None
        row = EvictionRecord.objects.create(
            host_id=host_id,
            model_id=facts.key.model,
            index=facts.key.number,
            successor_id=facts.successor,
            at=facts.at,
            waited_seconds=facts.waited_seconds,
            **known,
        )
        mine = EvictionRecord.objects.filter(host=host_id)
        mine.filter(pk__in=list(mine.values_list("pk", flat=True)[MOST_EVICTIONS:])).delete()
    return row.pk


def record_live_values(host_id: int, seen: Mapping[ReplicaKey, Mapping[str, Any] | None]) -> None:
    """Record what replicas do now, without notifying gateways. Two or three queries, however many there are."""
    rows = Replica.objects.filter(host=host_id, model__in={key.model for key in seen}).only("model_id", "index")
    known = {row: ReplicaKey(row.model_id, row.index) for row in rows}
    changed = {row: seen[key] for row, key in known.items() if key in seen}
    for row, live in changed.items():
        row.live = live
    Replica.objects.bulk_update([row for row, live in changed.items() if live is not None], ["live"])
    if over := [row.pk for row, live in changed.items() if live is None]:
        Replica.objects.filter(pk__in=over).update(live=None)


def record_report(host_id: int, report: Report) -> None:
    """Record the state of the machine."""
    HostReport.objects.update_or_create(host_id=host_id, defaults=asdict(report))


def record_file_facts(model_id: int, report: FileFacts) -> None:
    """Record what the files of a model say. Does nothing if the model was deleted meanwhile."""
    if ServedModel.objects.filter(pk=model_id).exists():
        facts = report.facts.stored() if report.facts else None
        values = {"facts": facts, "fault": report.fault, "stamp": report.stamp, "at": timezone.now()}
        models.FileReport.objects.update_or_create(model_id=model_id, defaults=values)


def watched_logs(host_id: int) -> dict[int, str]:
    """Return the replicas whose log a page shows now, with the id of their last run ("": there was none)."""
    subscriptions = LogSubscription.objects.filter(replica__host=host_id, until__gt=timezone.now())
    return dict(subscriptions.values_list("replica_id", "replica__run_id"))


def record_log_tail(replica_id: int, text: str) -> None:
    """Record the end of a replica's log. Does nothing if the replica is gone meanwhile."""
    if Replica.objects.filter(pk=replica_id).exists():
        LogTail.objects.update_or_create(replica_id=replica_id, defaults={"text": text, "at": timezone.now()})
