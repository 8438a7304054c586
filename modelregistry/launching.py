"""Starts the engine of a replica: which program, which port, which key, and what to remember of it."""

import os
import random
import secrets
import socket
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from modelregistry import (
    advice,
    allotment,
    engine_parsers,
    engine_trials,
    engines,
    gpus,
    placement,
    process,
    refusals,
    registering,
)
from modelregistry.allotment import Allotment, Tenant
from modelregistry.bidding import Offer
from modelregistry.engine_trials import Choice, NoVersion, Trial
from modelregistry.engines import Place, Spec
from modelregistry.gpus import Device
from modelregistry.memory import Measured, Prediction, Unpredictable
from modelregistry.plan import Key
from modelregistry.process import Run, Runs

KEPT_RUNS = 3  # of a replica, the living one included; their logs tell how it went before


class CannotLaunch(Exception):
    """The engine was not started; the message is a sentence for the operator, `cause` a code of `advice` or empty."""

    def __init__(self, message: str, cause: str = "") -> None:
        super().__init__(message)
        self.cause = cause


class DoesNotFit(CannotLaunch):
    """The host has no room for it now; `need` on each device, None: it does not have the devices at all."""

    def __init__(self, message: str, need: Prediction | None) -> None:
        super().__init__(message, "does-not-fit")
        self.need = need


@dataclass(frozen=True, slots=True, kw_only=True)
class House:
    """What a supervisor must know of its host and installation. Times in seconds."""

    host: str
    runs: Path
    cache: Path
    commands: Mapping[str, str]
    ports: Sequence[int]
    start_limit: float
    stop_grace: float
    claim: Path  # keeps this state directory's claim of the host, see `lease`
    walls: engines.Walls = field(default_factory=engines.Walls)


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
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
    def allotted(self) -> Allotment | None:
        try:
            return Allotment.of(self.allotment) if self.allotment else None
        except (TypeError, LookupError):  # of another release
            return None

    @property
    def key(self) -> Key:
        return Key(self.model, self.replica)


def label_of(run: Run) -> Label:
    """Fields of a later release are left out."""
    return Label(**{name: value for name, value in run.label.items() if name in Label.__dataclass_fields__})


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What a replica is started with. `choice`: among our installations; None: a program that operators named.

    `usual`: it is what this host takes where nobody says which.
    """

    launcher: str
    program: tuple[str, ...]
    choice: Choice | None = None
    usual: bool = True


def engine_for(house: House, spec: Spec, *, trials: Iterable[Trial] = (), tried_now: Collection[str] = ()) -> Engine:
    """The engine for a model that can be read. Looks at the disk. Raises CannotLaunch.

    `trials`: what is known of versions with this model; `tried_now`: those that its other replicas are trying.
    """
    if fault := registering.path_fault(spec.engine, spec.path, spec.allowed_risks):
        raise CannotLaunch(fault, "bad-files" if Path(spec.path).exists() else "missing-file")
    found = engines.find(house.commands, house.cache, os.environ.get("PATH", os.defpath))
    try:
        launcher = engines.choose(spec, found)
    except engines.NoLauncher as error:
        raise CannotLaunch(str(error), "no-engine") from error
    installed = engines.installed(launcher, house.cache)
    # Whoever names a program means that one; a version that is told for a model is still more particular.
    if not installed or (not spec.version and found[launcher] != installed[0].program):
        if spec.version:
            raise CannotLaunch(refusals.no_version(launcher, NoVersion(spec.version, ())), "no-engine")
        return Engine(launcher=launcher, program=found[launcher])
    try:
        choice = engine_trials.choose(installed, trials, pinned=spec.version, tried_now=tried_now)
    except NoVersion as error:
        raise CannotLaunch(refusals.no_version(launcher, error), "no-engine") from error
    usual = choice.installed.program == found[launcher]
    return Engine(launcher=launcher, program=choice.installed.program, choice=choice, usual=usual)


def allot(
    house: House,
    spec: Spec,
    engine: Engine,
    *,
    before: Sequence[Device],
    tenants: Iterable[Tenant],
    past: Iterable[Measured],
    versions: Mapping[str, str],
) -> Allotment | None:
    """What the engine gets of this host's memory; None if nobody can say what it takes.

    `before`: the devices as seen last; they are looked at anew. `versions`: of the engines, by launcher. Blocks for
    some 10 ms, for large vocabularies some 100. Raises CannotLaunch; DoesNotFit if there is no room.
    """
    launcher, program = engine.launcher, engine.program
    facts = allotment.facts_of(spec)
    if facts is None:
        return None
    devices = gpus.visible(gpus.devices(before), os.environ.get("CUDA_VISIBLE_DEVICES"))
    found = allotment.answer(
        spec,
        facts,
        launcher,
        program,
        devices,
        occupants=allotment.occupants(tenants, devices),
        past=past,
        version=_version(engine, versions),
    )
    if isinstance(found.refusal, Unpredictable):
        return None
    if found.allotment is None:
        raise DoesNotFit(refusals.why_not(found), found.need)
    return found.allotment


def offer(
    house: House,
    spec: Spec,
    replicas: int,
    *,
    before: Sequence[Device],
    tenants: Iterable[Tenant],
    past: Iterable[Measured],
    versions: Mapping[str, str],
) -> Offer:
    """What this host has for a model that belongs to none. Blocks as `allot` does for each replica."""
    try:
        engine = engine_for(house, spec)
    except CannotLaunch:
        return Offer(fits=False, free=0)
    devices = gpus.visible(gpus.devices(before), os.environ.get("CUDA_VISIBLE_DEVICES"))
    occupants = allotment.occupants(tenants, devices)
    kind = placement.kind_of(devices, on_cpu=engines.on_cpu(engine.launcher, engine.program))
    shares = [share for one in occupants for share in one.shares]
    free = sum(placement.room(device, shares).free for device in devices if device.kind == kind)
    facts = allotment.facts_of(spec)
    if facts is None:
        return Offer(fits=True, free=free)  # it takes what it takes
    for number in range(replicas):
        found = allotment.answer(
            *(spec, facts, engine.launcher, engine.program, devices),
            occupants=occupants,
            past=past,
            version=_version(engine, versions),
        )
        if not found.fits or found.allotment is None:
            return Offer(fits=False, free=free)
        given = found.allotment
        occupants.append(
            allotment.Occupant(
                name=f"{spec.name} #{number}",
                needed=given.needed,
                devices=given.devices,
                host=given.prediction.host,
                held={},
            )
        )
    return Offer(fits=True, free=free)


def _version(engine: Engine, versions: Mapping[str, str]) -> str:
    """As measurements know it. `versions`: of what the host takes where nobody says which."""
    if engine.usual or engine.choice is None:
        return versions.get(engine.launcher, "")
    return engine.choice.installed.version


def launch(
    house: House,
    runs: Runs,
    key: Key,
    spec: Spec,
    engine: Engine,
    *,
    address: str,
    port: int,
    allotted: Allotment | None = None,
) -> tuple[Run, Label]:
    """Executes an engine on this port of `address`; blocks for ~0.1 s. Raises CannotLaunch."""
    launcher, program, choice = engine.launcher, engine.program, engine.choice
    _see_that_it_takes(house, spec, launcher, program)
    place = Place(
        address=address,
        port=port,
        api_key=secrets.token_urlsafe(24),
        grace=house.stop_grace,
    )
    label = Label(
        model=key.model,
        replica=key.number,
        name=spec.name,
        task=spec.task,
        fingerprint=spec.fingerprint(),
        launcher=launcher,
        slots=engines.slots(spec, launcher),
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
    command = engines.command(spec, launcher, program, place, os.environ, grant, house.walls)
    try:
        return runs.start(secrets.token_hex(8), command, label=asdict(label), grace=place.grace), label
    except (process.StartFailed, OSError) as error:
        raise CannotLaunch(str(error), advice.cause(str(error))) from error


def _see_that_it_takes(house: House, spec: Spec, launcher: str, program: Sequence[str]) -> None:
    """Its arguments, by the engine's own parser: what that refuses need not be started. Raises CannotLaunch."""
    if not spec.args:
        return
    options = engine_parsers.ask(launcher, program, house.cache)
    said = registering.arguments_of(spec.engine, launcher, spec.args, options)
    # Not the rest of what registration asks: what was registered by an older release goes on.
    if options and said.faults:
        raise CannotLaunch(registering.fault_sentence(said.faults[0]), "bad-argument")


def free_port(address: str, ports: Sequence[int], taken: Collection[int], chance: random.Random) -> int:
    """One of `ports`, not in `taken`, on which nobody listens. Raises CannotLaunch."""
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
        if label_of(run).key == key and process.life(run) in (process.Life.ENDED, process.Life.LOST)
    ]
    for run in ended[: max(0, len(ended) - KEPT_RUNS + 1)]:
        runs.forget(run)
