"""Starts the engine of a replica: chooses the program, the port and the key, and records them with the run."""

import os
import random
import secrets
import socket
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from modelregistry import failure_advice, placement_messages, validation
from modelregistry.engines import parsers, programs
from modelregistry.engines.base import STOP, CallerIsolation, EngineEndpoint, Spec
from modelregistry.engines.registry import launched_by
from modelregistry.engines.selection import ChosenEngine, select_engine
from modelregistry.engines.version_trials import NoVersion, Trial
from modelregistry.hostside.surface import HostRoom
from modelregistry.memory import allocation, placement
from modelregistry.memory.allocation import Allocation, HostedReplica
from modelregistry.memory.estimate import Measured, Prediction, Unpredictable
from modelregistry.memory.placement import Space
from modelregistry.process import gpus, process
from modelregistry.process.gpus import Device
from modelregistry.process.process import Run, Runs
from modelregistry.supervisor.bidding import Offer
from modelregistry.supervisor.plan import ReplicaKey

KEPT_RUNS = 3  # of a replica, the running one included; the logs show what happened before


class CannotLaunch(Exception):
    """The engine was not started. The message is for the operator; `cause`: a code of `failure_advice`, or ""."""

    def __init__(self, message: str, cause: str = "") -> None:
        super().__init__(message)
        self.cause = cause


class DoesNotFit(CannotLaunch):
    """The host has no room for it now. `need`: on each device; None: the host lacks the devices.

    `spaces`: where it could go if others made room.
    """

    def __init__(self, message: str, need: Prediction | None, spaces: tuple[Space, ...] = ()) -> None:
        super().__init__(message, failure_advice.NO_ROOM)
        self.need = need
        self.spaces = spaces


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
    isolation: CallerIsolation = field(default_factory=CallerIsolation)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunMetadata:
    """What is recorded with a run, for the supervisor that adopts it.

    A release adopts engines that another one started: a field that is added later needs a default.
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
    allotment: Mapping[str, Any] | None = None  # as `Allocation.stored`
    installed: str = ""  # the installed version that it was started from; "": a program that operators named
    stamp: str = ""
    trial: bool = False
    fallback: str = ""
    sleep: str = ""  # the level at which it can sleep; "": it cannot
    no_sleep: str = ""  # why it cannot although its model is to, as a code of `failure_advice`

    @property
    def address(self) -> str:
        """Where its engine listens."""
        return self.url.removeprefix("http://").rpartition(":")[0].strip("[]")

    @property
    def allocation(self) -> Allocation | None:
        try:
            return Allocation.of(self.allotment) if self.allotment else None
        except (TypeError, LookupError):  # of another release
            return None

    @property
    def key(self) -> ReplicaKey:
        return ReplicaKey(self.model, self.replica)


def metadata_of(run: Run) -> RunMetadata:
    """Return what is recorded with a run, without fields of a later release."""
    return RunMetadata(**{name: value for name, value in run.label.items() if name in RunMetadata.__dataclass_fields__})


def choose_engine(
    config: SupervisorConfig, spec: Spec, *, trials: Iterable[Trial] = (), tried_now: Collection[str] = ()
) -> ChosenEngine:
    """Return the engine for a model that can be read. Looks at the disk. Raises CannotLaunch.

    `trials`: what is known of versions with this model; `tried_now`: those that its other replicas are trying.
    """
    if fault := validation.find_path_fault(spec.engine, spec.path, spec.allowed_risks):
        raise CannotLaunch(
            validation.explain_unreadable(fault), "bad-files" if Path(spec.path).exists() else "missing-file"
        )
    found = programs.find_engines(config.commands, config.cache, os.environ.get("PATH", os.defpath))
    try:
        return select_engine(spec, found, programs.all_installed(config.cache), trials=trials, tried_now=tried_now)
    except programs.NoLauncher as error:
        raise CannotLaunch(str(error), "no-engine") from error
    except NoVersion as error:
        raise CannotLaunch(placement_messages.explain_missing_version(error), "no-engine") from error


def allocate(
    config: SupervisorConfig,
    spec: Spec,
    engine: ChosenEngine,
    *,
    before: Sequence[Device],
    hosted: Iterable[HostedReplica],
    measurements: Iterable[Measured],
    versions: Mapping[str, str],
) -> Allocation | None:
    """Return the engine's share of this host's memory; None if its need cannot be predicted.

    `before`: the devices as last seen; they are read again. `versions`: of the engines, by launcher. Blocks for some
    10 ms, for large vocabularies some 100. Raises CannotLaunch; DoesNotFit if there is no room.
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
        occupants=allocation.occupants(hosted, devices),
        past=measurements,
        version=engine.measured_version(versions),
    )
    if isinstance(found.refusal, Unpredictable):
        return None
    if found.allocation is None:
        raise DoesNotFit(placement_messages.explain_refusal(found), found.need, found.spaces)
    return found.allocation


def measure_room(before: Sequence[Device], hosted: Iterable[HostedReplica]) -> HostRoom:
    """Read what is free of the devices, and who holds the rest. Blocks for some 10 ms."""
    devices = gpus.visible_devices(gpus.list_devices(before), os.environ.get("CUDA_VISIBLE_DEVICES"))
    occupants = allocation.occupants(hosted, devices)
    shares = [share for one in occupants for share in one.shares]
    free = {device.index: placement.spare_bytes(device, shares) for device in devices if not device.fault}
    return HostRoom(devices=devices, occupants=occupants, free=free)


def make_offer(
    config: SupervisorConfig,
    spec: Spec,
    replicas: int,
    *,
    before: Sequence[Device],
    hosted: Iterable[HostedReplica],
    measurements: Iterable[Measured],
    versions: Mapping[str, str],
) -> tuple[Offer, tuple[Space, ...]]:
    """Return what this host offers for a model that no host has, and where it could go if others made room.

    Blocks as `allocate` does, for each replica.
    """
    try:
        engine = choose_engine(config, spec)
    except CannotLaunch:
        return Offer(fits=False, free=0), ()
    devices = gpus.visible_devices(gpus.list_devices(before), os.environ.get("CUDA_VISIBLE_DEVICES"))
    occupants = allocation.occupants(hosted, devices)
    kind = placement.kind_of(devices, on_cpu=launched_by(engine.launcher).runs_on_cpu(engine.program))
    shares = [share for one in occupants for share in one.shares]
    free = sum(placement.free_room(device, shares).free for device in devices if device.kind == kind)
    facts = allocation.facts_of(spec)
    if facts is None:
        return Offer(fits=True, free=free), ()  # its need is not known
    for number in range(replicas):
        found = allocation.check_fit(
            *(spec, facts, engine.launcher, engine.program, devices),
            occupants=occupants,
            past=measurements,
            version=engine.measured_version(versions),
        )
        if not found.fits or found.allocation is None:
            return Offer(fits=False, free=free), found.spaces
        given = found.allocation
        occupants.append(
            allocation.Occupant(
                name=f"{spec.name} #{number}",
                needed=given.needed,
                devices=given.devices,
                host=given.prediction.host,
                held={},
            )
        )
    return Offer(fits=True, free=free), ()


def launch(
    config: SupervisorConfig,
    runs: Runs,
    key: ReplicaKey,
    spec: Spec,
    engine: ChosenEngine,
    *,
    address: str,
    port: int,
    granted: Allocation | None = None,
    no_sleep: str = "",
) -> tuple[Run, RunMetadata]:
    """Execute an engine on this port of `address`; blocks for ~0.1 s. Raises CannotLaunch.

    `no_sleep`: why it is started without its sleep mode, as a code of `failure_advice`.
    """
    launcher, program, choice = engine.launcher, engine.program, engine.choice
    sleeps = spec.sleep != STOP
    if sleeps and not no_sleep:
        no_sleep = launched_by(launcher).explain_no_sleep(program, choice.installed.version if choice else "")
    _check_arguments(config, spec, launcher, program)
    endpoint = EngineEndpoint(
        address=address,
        port=port,
        api_key=secrets.token_urlsafe(24),
        grace=config.stop_grace,
    )
    metadata = RunMetadata(
        model=key.model,
        replica=key.number,
        name=spec.name,
        task=spec.task,
        fingerprint=spec.fingerprint(),
        launcher=launcher,
        slots=launched_by(launcher).slots(spec),
        port=endpoint.port,
        url=endpoint.url,
        api_key=endpoint.api_key,
        allotment=granted.stored() if granted else None,
        installed=choice.installed.version if choice else "",
        stamp=choice.installed.stamp if choice else "",
        trial=choice.trial if choice else False,
        fallback=choice.instead if choice else "",
        sleep=spec.sleep if sleeps and not no_sleep else "",
        no_sleep=no_sleep if sleeps else "",
    )
    _forget_old_runs(runs, key)
    grant = granted.grant if granted else None
    started = replace(spec, sleep=STOP) if no_sleep else spec
    command = launched_by(launcher).build_command(started, program, endpoint, os.environ, grant, config.isolation)
    try:
        return runs.start(secrets.token_hex(8), command, label=asdict(metadata), grace=endpoint.grace), metadata
    except (process.StartFailed, OSError) as error:
        raise CannotLaunch(str(error), failure_advice.cause(str(error))) from error


def _check_arguments(config: SupervisorConfig, spec: Spec, launcher: str, program: Sequence[str]) -> None:
    """Check the arguments by the engine's own parser, as it would refuse to start. Raises CannotLaunch."""
    if not spec.args:
        return
    options = parsers.load_options(launcher, program, config.cache)
    parsed = validation.read_arguments(spec.engine, launcher, spec.args, options)
    # Nothing else that registration checks: what an older release has registered keeps working.
    if options and parsed.faults:
        raise CannotLaunch(validation.explain_fault(parsed.faults[0]), "bad-argument")


def free_port(address: str, ports: Sequence[int], taken: Collection[int], rng: random.Random) -> int:
    """Return one of `ports`, not in `taken`, on which no process listens. Raises CannotLaunch."""
    # By rng, as another installation on this host may be choosing now from the same range.
    for port in rng.sample(ports, len(ports)):
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


def _forget_old_runs(runs: Runs, key: ReplicaKey) -> None:
    ended = [
        run
        for run in runs.all()
        if metadata_of(run).key == key and process.life_of(run) in (process.Life.ENDED, process.Life.LOST)
    ]
    for run in ended[: max(0, len(ended) - KEPT_RUNS + 1)]:
        runs.forget(run)
