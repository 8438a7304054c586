"""What a model would take and where it would fit, told before it is registered.

From its files and from what the supervisors of the hosts last reported; advisory: what is decided is decided by the
supervisor that starts it, with the numbers of that moment.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from django.conf import settings
from django.db.models import Prefetch

from modelregistry import allotment, model_files, refusals
from modelregistry.engines import LLAMA_CPP_LAUNCHERS, Spec
from modelregistry.facts import Facts
from modelregistry.gpus import RAM, Device
from modelregistry.memory import Measured, Prediction, Unpredictable
from modelregistry.models import Host, Reading, Replica, ServedModel
from modelregistry.overview import ALIVE
from modelregistry.placement import NoRoom, NoSuchDevice, Share, without_ours
from modelregistry.rows import measurements


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """One host. `prediction`: what it would take there, on each of its devices; `devices`: which, empty for RAM.

    `refusal`: why it does not fit, with the sum, as lines; empty: it does.
    """

    host: str
    prediction: Prediction | None = None
    devices: tuple[int, ...] = ()
    refusal: str = ""

    @property
    def reasons(self) -> list[str]:
        """The refusal without the model's own sum, which the prediction tells."""
        lines = self.refusal.splitlines()
        return lines[1:] if self.prediction else lines


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """`hosts`: those that may take it; none if none has reported. All of them, with the ones where it fits first."""

    facts: Facts
    hosts: tuple[Fit, ...]

    @property
    def fits(self) -> bool:
        """Somewhere; also where nobody can say."""
        return not self.hosts or any(not host.refusal for host in self.hosts)


def estimate(model: ServedModel) -> Estimate | None:
    """For one replica. `model` may be unsaved. None: nothing can be said (an external engine, files of another host
    that nobody has read yet). Reads headers of files; three queries.
    """
    facts = None if model.engine == ServedModel.Engine.EXTERNAL else facts_of(model)
    if facts is None:
        return None
    rows = Prefetch("replica_set", Replica.objects.filter(state__in=ALIVE).select_related("model"))
    hosts = Host.objects.filter(report__isnull=False).select_related("report").prefetch_related(rows)
    if model.host_id:
        hosts = hosts.filter(pk=model.host_id)
    past = measurements()
    fits = [on_host(host, model, facts, past) for host in hosts]
    return Estimate(facts=facts, hosts=tuple(sorted(fits, key=lambda fit: bool(fit.refusal))))


def facts_of(model: ServedModel) -> Facts | None:
    """By the files themselves where they can be seen from here, else as their host's supervisor read them."""
    if model.host is None or model.host.name == settings.HOST_NAME:
        try:
            return model_files.read(model.engine, model.path, model.allowed_risks)
        except model_files.Unreadable:
            return None
    reading = Reading.objects.filter(model=model.pk, model__path=model.path, facts__isnull=False).first()
    return Facts.of(reading.facts) if reading and reading.facts else None


def on_host(host: Host, model: ServedModel, facts: Facts, past: list[Measured]) -> Fit:
    others = [row for row in host.replica_set.all() if row.model_id != model.pk]
    own = [row for row in host.replica_set.all() if row.model_id == model.pk]
    devices = without_ours([device(told) for told in host.report.devices], held(own))
    launcher = launcher_of(model, host.report.engines)
    try:
        found = allotment.allot(
            spec_of(model),
            facts,
            launcher,
            [program(host.report.engines.get(launcher, ""))],
            devices,
            shares=[share for row in others for share in shares(row)],
            past=past,
            version=host.report.engines.get(launcher, ""),
        )
    except Unpredictable as refusal:
        return Fit(host=host.name, refusal=refusals.unpredictable(refusal))
    except NoSuchDevice as refusal:
        return Fit(host=host.name, refusal=refusals.no_such_device(refusal))
    except NoRoom as refusal:
        return Fit(host=host.name, prediction=refusal.need, refusal=refusals.no_room(refusal))
    return Fit(host=host.name, prediction=found.prediction, devices=found.devices)


def spec_of(model: ServedModel) -> Spec:
    """Not forced: an estimate says what is, whatever the operator decides."""
    return Spec(
        engine=model.engine,
        name=model.name,
        path=model.path,
        launcher=model.launcher,
        task=model.task,
        context=model.context,
        slots=model.slots,
        args=tuple(model.args),
        gpus=tuple(model.gpus),
        tensor_parallel=model.tensor_parallel,
        allowed_risks=tuple(model.allowed_risks),
    )


def launcher_of(model: ServedModel, engines: dict[str, str]) -> str:
    """As the host would choose; the usual one where it has none."""
    if model.launcher or model.engine == ServedModel.Engine.VLLM:
        return model.launcher or "vllm"
    return next((name for name in LLAMA_CPP_LAUNCHERS if name in engines), LLAMA_CPP_LAUNCHERS[0])


def program(version: str) -> str:
    """A path that tells builds for CPUs from others, as the host's own would."""
    return "/+cpu/engine" if "cpu" in version else "/engine"


def device(told: dict[str, Any]) -> Device:
    """As a report tells it. Who holds it is known from replicas."""
    known = {field.name for field in fields(Device)} - {"processes"}
    return Device(**{name: value for name, value in told.items() if name in known})


def shares(row: Replica) -> Iterable[Share]:
    promised = row.predicted["total"] - row.predicted.get("droppable", 0) if row.predicted else 0
    there = held([row])
    return [
        Share(name=row.model.name, device=index, predicted=promised, held=there.get(index, 0))
        for index in row.devices or [RAM]
    ]


def held(rows: Iterable[Replica]) -> dict[int, int]:
    """Bytes by device, as last measured."""
    found: dict[int, int] = {}
    for row in rows:
        by_device = {int(index): size for index, size in row.memory_by_device.items()} if row.devices else {}
        for index, size in (by_device or {RAM: row.memory_bytes or 0}).items():
            found[index] = found.get(index, 0) + size
    return found
