"""What a model would take and where it would fit, before it runs, by what the hosts last reported.

For page, API and command: the question itself is `allocation.check_fit`, which the supervisor asks as well when it
starts the model, with the numbers of that moment. A look ahead, no promise.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from django.db.models import Prefetch, Q, QuerySet
from django.utils.translation import gettext as _

from modelregistry import placement_messages
from modelregistry.database_clock import read_now
from modelregistry.engines import arguments
from modelregistry.engines.base import Spec
from modelregistry.engines.programs import NoLauncher
from modelregistry.engines.registry import engine_named
from modelregistry.engines.selection import ChosenEngine, select_engine
from modelregistry.engines.version_trials import Choice, Installed, NoVersion, Trial
from modelregistry.files import model_files
from modelregistry.files.metadata import ModelMetadata
from modelregistry.files.unreadable import UnreadableModel
from modelregistry.memory import allocation, placement
from modelregistry.memory.allocation import Occupant
from modelregistry.memory.estimate import Demand, Measured, Prediction, Unpredictable, predict
from modelregistry.models import FileReport, Host, Replica, ServedModel
from modelregistry.overview import ALIVE, HostReach, reach_of
from modelregistry.process import gpus
from modelregistry.process.gpus import Device
from modelregistry.supervisor import repository


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFit:
    """The outlook of one replica on one host.

    `fits`: it could start there now; `room`: as far as memory is concerned. `unavailable`: why the host takes no model
    at all, whatever has room there. `launcher`: "" if the host has no engine for it; what it would take is then that of
    the usual one. `devices`: indices, none: RAM. `prediction`: on each of them, also where it does not fit. `why_not`:
    sentences, as lines; empty: it fits. `to_go`: replicas of ours without which there would be room.
    """

    host: str
    fits: bool
    room: bool
    launcher: str = ""
    devices: tuple[int, ...] = ()
    prediction: Prediction | None = None
    why_not: str = ""
    to_go: tuple[str, ...] = ()
    unavailable: str = ""

    @property
    def reasons(self) -> list[str]:
        """Why there is no room, without the model's own sum, which the prediction shows."""
        lines = self.why_not.splitlines()
        return lines[1:] if self.prediction and not self.room else lines


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """`hosts`: those that may take it; none if none has reported. All of them, with the ones where it fits first.

    `prediction`: on the first of them that can say, by the formulas alone where none has reported; None: it is unknown.
    `unplanned`: arguments whose memory comes on top of that.
    """

    facts: ModelMetadata
    hosts: tuple[HostFit, ...]
    prediction: Prediction | None
    unplanned: tuple[str, ...]
    nodes: int = 1  # hosts that it needs at a time, with such a part on each

    @property
    def has_room(self) -> bool:
        """There is memory for it on enough hosts, even if something else is missing; also where that is unknown."""
        return not self.hosts or sum(host.room for host in self.hosts) >= self.nodes

    @property
    def fitting(self) -> int:
        """How many hosts could start it, or a part, now."""
        return sum(host.fits for host in self.hosts)


def estimate(model: ServedModel) -> Estimate | None:
    """Estimate one replica. `model` may be unsaved. Reads headers of files; three queries.

    None: nothing can be said (an external engine, files of another host that were not read yet).
    """
    facts = None if model.is_external else facts_of(model)
    if facts is None:
        return None
    there = hosts().filter(pk=model.host_id) if model.host_id else hosts()
    return estimate_on(there, spec_of(model), facts, model=model.pk)


def estimate_on(hosts: Iterable[Host], spec: Spec, facts: ModelMetadata, *, model: int | None = None) -> Estimate:
    """Return the one answer for page, API and command. As `fit_on_hosts`, whose arguments these are."""
    found = fit_on_hosts(spec, facts, hosts, model=model)
    found.sort(key=lambda outlook: (not outlook.fits, not outlook.room))
    alone = None if found else predict_alone(spec, facts)
    parsed = spec.arguments(default_launcher(spec))
    return Estimate(
        facts=facts,
        hosts=tuple(found),
        prediction=next((outlook.prediction for outlook in found if outlook.prediction), alone),
        unplanned=arguments.unplanned_options(parsed),
        nodes=spec.nodes,
    )


def facts_of(model: ServedModel) -> ModelMetadata | None:
    """Return what its files say: read from here where they can be seen, else as their host's supervisor read them."""
    if model.is_on_this_host():
        try:
            return model_files.read_model(model.engine, model.path, model.allowed_risks)
        except UnreadableModel:
            return None
    reading = FileReport.objects.filter(model=model.pk, model__path=model.path, facts__isnull=False).first()
    return ModelMetadata.of(reading.facts) if reading and reading.facts else None


def spec_of(model: ServedModel) -> Spec:
    """Return its spec, not forced: an estimate says what is, whatever the operator decides."""
    return replace(repository.spec_of(model), overcommit=False, generation=0)


def hosts() -> QuerySet[Host]:
    """Return those that have reported, with what a look ahead needs of them, in two queries."""
    asleep = Q(state__in=(Replica.State.ASLEEP, Replica.State.FAILED), pid__isnull=False)  # its engine lives on
    there = Prefetch("replica_set", Replica.objects.filter(Q(state__in=ALIVE) | asleep).select_related("model"))
    return Host.objects.filter(report__isnull=False).select_related("report").prefetch_related(there)


def fit_on_hosts(spec: Spec, facts: ModelMetadata, hosts: Iterable[Host], *, model: int | None = None) -> list[HostFit]:
    """Return the outlook on each of `hosts()`, in their order.

    `model`: its id, if it is registered: its own replicas would make room, and it stays with the launcher and version
    that is proven with it.

    Two queries. Raises django.db.Error.
    """
    past = repository.load_measurements()
    trials = repository.load_trials_of_model(model) if model else {}
    return [fit_on_host(spec, facts, host, past, model, trials.get(host.pk, ())) for host in hosts]


def predict_alone(spec: Spec, facts: ModelMetadata) -> Prediction | None:
    """Predict by the formulas alone, in RAM: for when no host has reported anything. None: it is unknown."""
    try:
        return predict(facts, Demand.of(spec, default_launcher(spec), "ram"))
    except Unpredictable:
        return None


def _why_unavailable(host: Host) -> str:
    if host.maintenance:
        return _("%(host)s is in maintenance and takes no models.") % {"host": host.name}
    reach = reach_of(host, read_now())
    if reach == HostReach.SILENT:
        return _("%(host)s is silent, so nothing can be started there now.") % {"host": host.name}
    if reach == HostReach.UNWATCHED:
        return _("No controller looks at %(host)s, so nothing can be started there now.") % {"host": host.name}
    return ""


def fit_on_host(
    spec: Spec,
    facts: ModelMetadata,
    host: Host,
    past: Iterable[Measured],
    model: int | None,
    trials: Sequence[Trial] = (),
) -> HostFit:
    report = host.report
    if not report.devices:
        why_not = _("%(host)s has not reported how much memory it has.") % {"host": host.name}
        return HostFit(host=host.name, fits=False, room=False, why_not=why_not)
    engine, missing = engine_on_host(host, spec, trials)
    unavailable = _why_unavailable(host)
    there = [(row.model_id == model, occupant_of(row)) for row in host.replica_set.all()]
    devices = with_booked([device_of(one) for one in report.devices], [one for _own, one in there], host)
    answer = allocation.check_fit(
        spec,
        facts,
        engine.launcher,
        engine.program,
        devices_without(devices, [one for own, one in there if own]),
        occupants=[one for own, one in there if not own],
        past=past,
        version=engine.measured_version(report.engines),
    )
    return HostFit(
        host=host.name,
        fits=answer.fits and not missing and not unavailable,
        room=answer.fits,
        launcher="" if missing else engine.launcher,
        devices=answer.allocation.devices if answer.allocation else (),
        prediction=answer.need,
        why_not="\n".join(line for line in (placement_messages.explain_refusal(answer), missing, unavailable) if line),
        to_go=answer.to_go,
        unavailable=unavailable,
    )


def engine_on_host(host: Host, spec: Spec, trials: Sequence[Trial]) -> tuple[ChosenEngine, str]:
    """Return what its supervisor would start the model with; where it cannot, what it would be, and why not."""
    report = host.report
    installed = [
        Installed(
            launcher=launcher,
            version=version,
            stamp=report.stamps.get(launcher, {}).get(version, ""),
            program=(installed_program(launcher, version),),
        )
        for launcher, versions in report.installed.items()
        for version in versions
    ]
    found = {
        launcher: (f"/named/{launcher}" if version == "" else installed_program(launcher, version),)
        for launcher, version in (report.engines | report.default_versions).items()
    }
    try:
        return select_engine(spec, found, installed, trials=trials), ""
    except NoLauncher:
        launcher, missing = default_launcher(spec), _("%(host)s has no engine for it.") % {"host": host.name}
    except NoVersion as error:
        launcher, missing = error.launcher, placement_messages.explain_missing_version(error)
    version = spec.version or report.engines.get(launcher, "")
    program = (installed_program(launcher, version),)
    wanted = Choice(installed=Installed(launcher=launcher, version=version, stamp="", program=program))
    return ChosenEngine(launcher=launcher, program=program, choice=wanted, usual=False), missing


def default_launcher(spec: Spec) -> str:
    """Return the launcher of a host of which it is not known what it has."""
    return engine_named(spec.engine).as_run_by(spec.launcher).launcher


def installed_program(launcher: str, version: str) -> str:
    """Return where our installer puts it: builds for CPUs are known by their place."""
    return f"/engines/{launcher}-{version}/bin/python"


def device_of(stored: Mapping[str, Any]) -> Device:
    """Return a device as a report has it. Who holds it is known from replicas."""
    known = {field.name for field in fields(Device)} - {"processes"}
    return Device(**{name: value for name, value in stored.items() if name in known})


def occupant_of(row: Replica) -> Occupant:
    """Return what its row says: what was promised when it was started, what it was last measured to hold."""
    promised: Mapping[str, Any] = row.predicted or {}
    on_cards = {int(index): int(size) for index, size in row.memory_by_device.items()} if row.devices else {}
    return Occupant(
        name=f"{row.model.name} #{row.index}",
        needed=promised.get("total", 0) - promised.get("droppable", 0),
        devices=tuple(row.devices),
        host=promised.get("host", 0),
        held=on_cards | {gpus.RAM: row.memory_fixed or 0},
    )


def with_booked(devices: Sequence[Device], there: Iterable[Occupant], host: Host) -> list[Device]:
    """Return the devices with what other work has booked of them in Ray as taken, as the host itself counts it."""
    others = (host.bookings or {}).get("others", {}) if host.clustered else {}
    shares = [share for one in there for share in one.shares]
    return placement.with_reserved(devices, shares, {int(device): size for device, size in others.items()})


def devices_without(devices: Iterable[Device], gone: Iterable[Occupant]) -> list[Device]:
    """Return the devices as if these were not there."""
    held: dict[int, int] = {}
    for one in gone:
        for index, size in one.held.items():
            held[index] = held.get(index, 0) + size
    return placement.without_ours(list(devices), held)
