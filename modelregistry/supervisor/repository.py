"""The supervisor's side of the database: what operators want of this host, and the Replica rows, as plain values.

Every function blocks on the database and raises django.db.Error when it is away; call them from one thread.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
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
    EngineTrial,
    EvictionRecord,
    Host,
    HostBid,
    HostReport,
    LogSubscription,
    LogTail,
    Measurement,
    Replica,
    ServedModel,
    WakeRequest,
)
from modelregistry.supervisor.bidding import Bid, Offer, Unassigned
from modelregistry.supervisor.eviction_log import LoggedEviction
from modelregistry.supervisor.lease import STALE_AFTER, Claim
from modelregistry.supervisor.plan import ReplicaState
from modelregistry.supervisor.wake_demand import WakeDemand


@dataclass(frozen=True, slots=True, kw_only=True)
class DesiredModel:
    """A model as operators want it on this host. An external one has a URL, the others a path in `spec`."""

    spec: Spec
    enabled: bool
    replicas: int
    idle_after: float | None
    hours: AwakeHours | None
    url: str
    upstream_key: str
    upstream_model: str
    pinned: bool = False
    wake: WakeDemand | None = None  # callers wait for it

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
class HostRow:
    id: int
    claim: Claim


@dataclass(frozen=True, slots=True, kw_only=True)
class DesiredHost:
    """The host as operators want it. `address`: where its engines listen; `maintenance`: none may run."""

    address: str
    maintenance: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Report(Inspection):
    """As `HostReport`; `at` is when it was seen."""

    at: datetime


def get_or_create_host(name: str) -> HostRow:
    """Return this host's row, which is created if there is none."""
    row, _ = Host.objects.get_or_create(name=name)
    return HostRow(id=row.pk, claim=Claim(row.claim, row.holder, row.seen_at))


def desired_host(host_id: int) -> DesiredHost | None:
    """Return what operators want of the host; None: it was removed."""
    row = Host.objects.filter(pk=host_id).values("address", "maintenance").first()
    return DesiredHost(**row) if row else None


def claim_host(row: HostRow, number: str, holder: str) -> bool:
    """Claim the host, unless the row has changed since it was read."""
    as_read = Host.objects.filter(pk=row.id, claim=row.claim.number, seen_at=row.claim.seen_at)
    return bool(as_read.update(claim=number, holder=holder, seen_at=database_now()))


def renew_claim(host_id: int, number: str) -> bool:
    """Record, by the database's clock, that the supervisor is alive; False if the host has another one now."""
    return bool(Host.objects.filter(pk=host_id, claim=number).update(seen_at=database_now()))


def release_host(host_id: int, number: str) -> None:
    """Delete the claim of a leaving supervisor, so that the next one need not wait."""
    Host.objects.filter(pk=host_id, claim=number).update(claim="")


# States of replicas that an operator who wants a model "wherever it fits" would not want moved.
_WELL_PLACED = (Replica.State.STARTING, Replica.State.READY, Replica.State.UNHEALTHY, Replica.State.ASLEEP)


def desired_models(host_id: int, *, keeping: bool = True) -> dict[int, DesiredModel]:
    """Return what this host is to serve, by the model's id.

    `keeping`: a model whose host was cleared while it runs here is taken again at once: clearing says that it may be
    anywhere (a form that was opened before it had a host says the same), which is no reason to stop it.
    """
    here = Replica.objects.filter(model=OuterRef("pk"), host=host_id, state__in=_WELL_PLACED)
    which = Q(host=host_id) | Q(Exists(here), host=None) if keeping else Q(host=host_id)
    rows = ServedModel.objects.filter(which).select_related("wake_request")
    return {row.pk: _desired_model(row) for row in rows if row.host_id is not None or take_model(row.pk, host_id)}


def unassigned_models() -> dict[int, Unassigned]:
    """Return the models without a host, by their ids, the oldest first."""
    found = {}
    for row in ServedModel.objects.filter(host=None).select_related("wake_request").order_by("pk"):
        desired = _desired_model(row)
        found[row.pk] = Unassigned(spec=desired.spec, replicas=desired.replicas, external=desired.external)
    return found


def bidding_hosts() -> set[int]:
    """Return the hosts that could take a model: not in maintenance, and with a recent heartbeat."""
    now, stale = database_now(), timedelta(seconds=STALE_AFTER)
    alive = Host.objects.filter(maintenance=False, seen_at__gte=now - stale, seen_at__lte=now + stale)
    return set(alive.exclude(claim="").values_list("pk", flat=True))


def place_bids(host_id: int, offers: Mapping[int, Offer]) -> None:
    """Replace the bids of this host. Offers for models that are gone meanwhile are left out."""
    with transaction.atomic():
        HostBid.objects.filter(host=host_id).exclude(model__in=offers).delete()
        for model_id in ServedModel.objects.filter(pk__in=offers, host=None).values_list("pk", flat=True):
            values = {**asdict(offers[model_id]), "at": timezone.now()}
            HostBid.objects.update_or_create(host_id=host_id, model_id=model_id, defaults=values)


def open_bids(model_ids: Collection[int]) -> dict[int, list[Bid]]:
    """Return the bids for these models, by the model's id."""
    found: dict[int, list[Bid]] = {}
    for row in HostBid.objects.filter(model__in=model_ids):
        found.setdefault(row.model_id, []).append(
            Bid(host=row.host_id, offer=Offer(fits=row.fits, free=row.free, cost=row.cost))
        )
    return found


def take_model(model_id: int, host_id: int) -> bool:
    """Give the model to this host, unless a host has it already."""
    with transaction.atomic():
        taken = bool(ServedModel.objects.filter(pk=model_id, host=None).update(host=host_id))
        if taken:
            HostBid.objects.filter(model=model_id).delete()
    return taken


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
    )


def _desired_model(row: ServedModel) -> DesiredModel:
    external = engine_named(row.engine).external
    retired = row.retires_on is not None and timezone.localdate() >= row.retires_on
    return DesiredModel(
        spec=spec_of(row),
        enabled=row.enabled and not retired,
        replicas=1 if external else row.replicas,
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


def record_live_values(host_id: int, key: ReplicaKey, seen: Mapping[str, Any] | None) -> None:
    """Record what a replica does now, without notifying gateways."""
    Replica.objects.filter(host=host_id, model=key.model, index=key.number).update(live=seen)


def record_report(host_id: int, report: Report) -> None:
    """Record the state of the machine."""
    HostReport.objects.update_or_create(host_id=host_id, defaults=asdict(report))


def record_file_facts(model_id: int, report: FileFacts) -> None:
    """Record what the files of a model say. Does nothing if the model was deleted meanwhile."""
    if ServedModel.objects.filter(pk=model_id).exists():
        values = {"facts": report.facts, "fault": report.fault, "stamp": report.stamp, "at": timezone.now()}
        models.FileReport.objects.update_or_create(model_id=model_id, defaults=values)


def watched_logs(host_id: int) -> dict[int, str]:
    """Return the replicas whose log a page shows now, with the id of their last run ("": there was none)."""
    subscriptions = LogSubscription.objects.filter(replica__host=host_id, until__gt=timezone.now())
    return dict(subscriptions.values_list("replica_id", "replica__run_id"))


def record_log_tail(replica_id: int, text: str) -> None:
    """Record the end of a replica's log. Does nothing if the replica is gone meanwhile."""
    if Replica.objects.filter(pk=replica_id).exists():
        LogTail.objects.update_or_create(replica_id=replica_id, defaults={"text": text, "at": timezone.now()})
