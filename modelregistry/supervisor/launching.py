"""Starts the engine of a replica: which program, which port, which key, and what to remember of it."""

import os
import random
import secrets
import socket
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from modelregistry import failure_advice, placement_messages, validation
from modelregistry.engines import base, parsers
from modelregistry.engines.base import Endpoint, Spec
from modelregistry.engines.selection import ChosenEngine, select_engine
from modelregistry.engines.version_trials import NoVersion, Trial
from modelregistry.memory import allocation, placement
from modelregistry.memory.allocation import Allocation, HostedReplica
from modelregistry.memory.estimate import Measured, Prediction, Unpredictable
from modelregistry.process import gpus, process
from modelregistry.process.gpus import Device
from modelregistry.process.process import Run, Runs
from modelregistry.supervisor.bidding import Offer
from modelregistry.supervisor.plan import Key

KEPT_RUNS = 3  # of a replica, the living one included; their logs tell how it went before


class CannotLaunch(Exception):
    """The engine was not started; the message is a sentence for the operator, `cause` a code of `failure_advice` or
    empty.
    """

    def __init__(self, message: str, cause: str = "") -> None:
        super().__init__(message)
        self.cause = cause


class DoesNotFit(CannotLaunch):
    """The host has no room for it now; `need` on each device, None: it does not have the devices at all."""

    def __init__(self, message: str, need: Prediction | None) -> None:
        super().__init__(message, "does-not-fit")
        self.need = need


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorConfig:
    """What a supervisor must know of its host and installation. Times in seconds."""

    host: str
    runs: Path
    cache: Path
    commands: Mapping[str, str]
    ports: Sequence[int]
    start_limit: float
    stop_grace: float
    claim: Path  # keeps this state directory's claim of the host, see `lease`
    walls: base.CallerIsolation = field(default_factory=base.CallerIsolation)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunMetadata:
    """What stands on a run, for the supervisor that adopts it.

    A release adopts what another one started: a field that is added later needs a default.
    """

    model: int
    replica: int
    name: str
    task: str
    fingerprint: str
    launcher: str
    slots: int | None
    port: int
    url: str
    api_key: str
    allotment: Mapping[str, Any] | None = None
    installed: str = ""  # the version of ours that it was started from; "": a program that operators named
    stamp: str = ""
    trial: bool = False
    instead: str = ""

    @property
    def address(self) -> str:
        """Where its engine listens."""
        return self.url.removeprefix("http://").rpartition(":")[0].strip("[]")

    @property
    def allotted(self) -> Allocation | None:
        try:
            return Allocation.of(self.allotment) if self.allotment else None
        except (TypeError, LookupError):  # of another release
            return None

    @property
    def key(self) -> Key:
        return Key(self.model, self.replica)


def metadata_of(run: Run) -> RunMetadata:
    """Fields of a later release are left out."""
    return RunMetadata(**{name: value for name, value in run.label.items() if name in RunMetadata.__dataclass_fields__})


def choose_engine(
    house: SupervisorConfig, spec: Spec, *, trials: Iterable[Trial] = (), tried_now: Collection[str] = ()
) -> ChosenEngine:
    """Return the engine for a model that can be read. Looks at the disk. Raises CannotLaunch.

    `trials`: what is known of versions with this model; `tried_now`: those that its other replicas are trying.
    """
    if fault := validation.path_fault(spec.engine, spec.path, spec.allowed_risks):
        raise CannotLaunch(fault, "bad-files" if Path(spec.path).exists() else "missing-file")
    found = base.find_engines(house.commands, house.cache, os.environ.get("PATH", os.defpath))
    try:
        return select_engine(spec, found, base.all_installed(house.cache), trials=trials, tried_now=tried_now)
    except base.NoLauncher as error:
        raise CannotLaunch(str(error), "no-engine") from error
    except NoVersion as error:
        raise CannotLaunch(placement_messages.explain_missing_version(error), "no-engine") from error


def allocate(
    house: SupervisorConfig,
    spec: Spec,
    engine: ChosenEngine,
    *,
    before: Sequence[Device],
    tenants: Iterable[HostedReplica],
    past: Iterable[Measured],
    versions: Mapping[str, str],
) -> Allocation | None:
    """What the engine gets of this host's memory; None if nobody can say what it takes.

    `before`: the devices as seen last; they are looked at anew. `versions`: of the engines, by launcher. Blocks for
    some 10 ms, for large vocabularies some 100. Raises CannotLaunch; DoesNotFit if there is no room.
    """
    launcher, program = engine.launcher, engine.program
    facts = allocation.facts_of(spec)
    if facts is None:
        return None
    devices = gpus.visible_devices(gpus.list_devices(before), os.environ.get("CUDA_VISIBLE_DEVICES"))
    found = allocation.check_fit(
        spec,
        facts,
        launcher,
        program,
        devices,
        occupants=allocation.occupants(tenants, devices),
        past=past,
        version=engine.measured_version(versions),
    )
    if isinstance(found.refusal, Unpredictable):
        return None
    if found.allotment is None:
        raise DoesNotFit(placement_messages.explain_refusal(found), found.need)
    return found.allotment


def make_offer(
    house: SupervisorConfig,
    spec: Spec,
    replicas: int,
    *,
    before: Sequence[Device],
    tenants: Iterable[HostedReplica],
    past: Iterable[Measured],
    versions: Mapping[str, str],
) -> Offer:
    """What this host has for a model that belongs to none. Blocks as `allot` does for each replica."""
    try:
        engine = choose_engine(house, spec)
    except CannotLaunch:
        return Offer(fits=False, free=0)
    devices = gpus.visible_devices(gpus.list_devices(before), os.environ.get("CUDA_VISIBLE_DEVICES"))
    occupants = allocation.occupants(tenants, devices)
    kind = placement.kind_of(devices, on_cpu=base.on_cpu(engine.launcher, engine.program))
    shares = [share for one in occupants for share in one.shares]
    free = sum(placement.free_room(device, shares).free for device in devices if device.kind == kind)
    facts = allocation.facts_of(spec)
    if facts is None:
        return Offer(fits=True, free=free)  # it takes what it takes
    for number in range(replicas):
        found = allocation.check_fit(
            *(spec, facts, engine.launcher, engine.program, devices),
            occupants=occupants,
            past=past,
            version=engine.measured_version(versions),
        )
        if not found.fits or found.allotment is None:
            return Offer(fits=False, free=free)
        given = found.allotment
        occupants.append(
            allocation.Occupant(
                name=f"{spec.name} #{number}",
                needed=given.needed,
                devices=given.devices,
                host=given.prediction.host,
                held={},
            )
        )
    return Offer(fits=True, free=free)


def launch(
    house: SupervisorConfig,
    runs: Runs,
    key: Key,
    spec: Spec,
    engine: ChosenEngine,
    *,
    address: str,
    port: int,
    allotted: Allocation | None = None,
) -> tuple[Run, RunMetadata]:
    """Execute an engine on this port of `address`; blocks for ~0.1 s. Raises CannotLaunch."""
    launcher, program, choice = engine.launcher, engine.program, engine.choice
    _see_that_it_takes(house, spec, launcher, program)
    place = Endpoint(
        address=address,
        port=port,
        api_key=secrets.token_urlsafe(24),
        grace=house.stop_grace,
    )
    label = RunMetadata(
        model=key.model,
        replica=key.number,
        name=spec.name,
        task=spec.task,
        fingerprint=spec.fingerprint(),
        launcher=launcher,
        slots=base.parallel_slots(spec, launcher),
        port=place.port,
        url=place.url,
        api_key=place.api_key,
        allotment=allotted.stored() if allotted else None,
        installed=choice.installed.version if choice else "",
        stamp=choice.installed.stamp if choice else "",
        trial=choice.trial if choice else False,
        instead=choice.instead if choice else "",
    )
    _forget_old_runs(runs, key)
    grant = allotted.grant if allotted else None
    command = base.build_command(spec, launcher, program, place, os.environ, grant, house.walls)
    try:
        return runs.start(secrets.token_hex(8), command, label=asdict(label), grace=place.grace), label
    except (process.StartFailed, OSError) as error:
        raise CannotLaunch(str(error), failure_advice.cause(str(error))) from error


def _see_that_it_takes(house: SupervisorConfig, spec: Spec, launcher: str, program: Sequence[str]) -> None:
    """Its arguments, by the engine's own parser: what that refuses need not be started. Raises CannotLaunch."""
    if not spec.args:
        return
    options = parsers.load_options(launcher, program, house.cache)
    said = validation.read_arguments(spec.engine, launcher, spec.args, options)
    # Not the rest of what registration asks: what was registered by an older release goes on.
    if options and said.faults:
        raise CannotLaunch(validation.explain_fault(said.faults[0]), "bad-argument")


def free_port(address: str, ports: Sequence[int], taken: Collection[int], chance: random.Random) -> int:
    """Return one of `ports`, not in `taken`, on which nobody listens. Raises CannotLaunch."""
    # By chance, as another installation on this host may be choosing now from the same range.
    for port in chance.sample(ports, len(ports)):
        if port not in taken and _can_listen(address, port):
            return port
    raise CannotLaunch(f"All ports of ENGINE_PORTS ({ports[0]}-{ports[-1]}) are in use.", "port-in-use")


def _can_listen(address: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((address, port))
        except OSError:
            return False
    return True


def _forget_old_runs(runs: Runs, key: Key) -> None:
    ended = [
        run
        for run in runs.all()
        if metadata_of(run).key == key and process.life_of(run) in (process.Life.ENDED, process.Life.LOST)
    ]
    for run in ended[: max(0, len(ended) - KEPT_RUNS + 1)]:
        runs.forget(run)
