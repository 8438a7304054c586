"""What a model would take and where it would fit, told before it is registered, by what the hosts last reported.

A look ahead, no promise: what counts is what the host's supervisor finds when it starts the model.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from django.utils.translation import gettext as _

from modelregistry import engines, gpus, refusals, rows
from modelregistry.allotment import allot
from modelregistry.engines import NoLauncher, Spec
from modelregistry.facts import Facts
from modelregistry.gpus import Device, Holder
from modelregistry.memory import Demand, Prediction, Unpredictable, predict
from modelregistry.models import Host, Replica
from modelregistry.overview import ALIVE
from modelregistry.placement import NoRoom, NoSuchDevice, Share


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """Of one replica on one host. `devices`: indices, none: RAM. `why_not`: sentences; empty: it fits."""

    host: str
    fits: bool
    launcher: str
    devices: tuple[int, ...]
    prediction: Prediction | None
    why_not: str


def outlooks(spec: Spec, facts: Facts, hosts: Iterable[Host]) -> list[Outlook]:
    """For those of the hosts that have reported. Raises django.db.Error."""
    past = rows.measurements()
    return [_outlook(spec, facts, host, past) for host in hosts if hasattr(host, "report")]


def alone(spec: Spec, facts: Facts) -> Prediction | None:
    """By the formulas alone, in RAM: for when no host has reported anything. None: nobody can say."""
    launcher = spec.launcher or ("vllm" if spec.engine == "vllm" else "llama-server")
    try:
        return predict(facts, Demand.of(spec, launcher, "ram"))
    except Unpredictable:
        return None


def _outlook(spec: Spec, facts: Facts, host: Host, past: Iterable[Any]) -> Outlook:
    report = host.report
    found = {name: (_program(name, version),) for name, version in report.engines.items()}
    devices = [_device(stored) for stored in report.devices]
    launcher, need = "", None
    if not devices:
        why_not = _("%(host)s has not told how much memory it has.") % {"host": host.name}
        return Outlook(host=host.name, fits=False, launcher="", devices=(), prediction=None, why_not=why_not)
    try:
        launcher = engines.choose(spec, found)
        given = allot(
            spec,
            facts,
            launcher,
            found[launcher],
            devices,
            shares=_shares(host),
            past=past,
            version=report.engines[launcher],
        )
    except NoLauncher:
        why_not = _("%(host)s has no engine for it.") % {"host": host.name}
    except NoSuchDevice as refusal:
        why_not = refusals.no_such_device(refusal)
    except Unpredictable as refusal:
        why_not = refusals.unpredictable(refusal)
    except NoRoom as refusal:
        need, why_not = refusal.need, refusals.no_room(refusal)
    else:
        return Outlook(
            host=host.name,
            fits=not given.forced,
            launcher=launcher,
            devices=given.devices,
            prediction=given.prediction,
            why_not="",
        )
    return Outlook(host=host.name, fits=False, launcher=launcher, devices=(), prediction=need, why_not=why_not)


def _program(launcher: str, version: str) -> str:
    """Where our installer puts it: builds for CPUs are known by their place."""
    return f"/engines/{launcher}-{version}/bin/python"


def _device(stored: Mapping[str, Any]) -> Device:
    return Device(**{**stored, "processes": tuple(Holder(**one) for one in stored.get("processes", ()))})


def _shares(host: Host) -> list[Share]:
    """What its replicas were promised on each device, and hold there as last measured."""
    running = Replica.objects.filter(host=host, state__in=ALIVE, predicted__isnull=False).select_related("model")
    return [
        Share(
            name=row.model.name, device=device, predicted=(row.predicted or {}).get("total", 0), held=_held(row, device)
        )
        for row in running
        for device in row.devices or [gpus.RAM]
    ]


def _held(row: Replica, device: int) -> int:
    if device == gpus.RAM:
        return row.memory_bytes or 0
    return int(row.memory_by_device.get(str(device), 0))
