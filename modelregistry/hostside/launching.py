"""Starts the engine of a replica on this machine: chooses the program, the port and the key, and records them.

Blocks on the disk, on /proc and on the driver of GPUs. Refusals are values, which the supervisor words.
"""

import os
import random
import secrets
import socket
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from modelregistry.engines import arguments, parsers, programs
from modelregistry.engines.base import STOP, EngineEndpoint, Spec
from modelregistry.engines.registry import launched_by
from modelregistry.engines.selection import ChosenEngine, select_engine
from modelregistry.engines.version_trials import NoVersion, Trial
from modelregistry.files import model_files
from modelregistry.hostside.replicas import ReplicaKey
from modelregistry.hostside.run_metadata import RunMetadata, metadata_of
from modelregistry.hostside.surface import HostOffer, HostRoom, LaunchOrder, LaunchRefusal, LaunchRefused
from modelregistry.memory import allocation, placement
from modelregistry.memory.allocation import Allocation, HostedReplica, Occupant
from modelregistry.memory.estimate import Measured, Unpredictable
from modelregistry.process import gpus, process
from modelregistry.process.gpus import Device
from modelregistry.process.process import Life, Run, Runs
from modelregistry.wire_bounds import shorten

KEPT_RUNS = 3  # of a replica, the running one included; the logs show what happened before


@dataclass(frozen=True, slots=True, kw_only=True)
class HostConfig:
    """What is particular to a host: where it keeps runs and engines, which programs operators named, its ports.

    `directories`: others whose disks are inspected, as that of models' files.
    """

    runs: Path
    cache: Path
    commands: Mapping[str, str]
    ports: Sequence[int]
    directories: Sequence[Path] = ()


def choose_engine(
    config: HostConfig, spec: Spec, *, trials: Iterable[Trial] = (), tried_now: Collection[str] = ()
) -> ChosenEngine:
    """Return the engine for a model that can be read. Looks at the disk. Raises LaunchRefused.

    `trials`: what is known of versions with this model; `tried_now`: those that its other replicas are trying.
    """
    if fault := model_files.find_path_fault(spec.engine, spec.path, spec.allowed_risks):
        raise LaunchRefused(LaunchRefusal(unreadable=fault, path_exists=Path(spec.path).exists()))
    try:
        found = programs.find_engines(config.commands, config.cache, os.environ.get("PATH", os.defpath))
        return select_engine(spec, found, programs.all_installed(config.cache), trials=trials, tried_now=tried_now)
    except programs.NoLauncher as error:
        raise LaunchRefused(LaunchRefusal(no_launcher=str(error))) from error
    except NoVersion as error:
        raise LaunchRefused(LaunchRefusal(no_version=error)) from error


def allocate(
    spec: Spec,
    engine: ChosenEngine,
    *,
    before: Sequence[Device],
    reserved: Mapping[int, int],
    hosted: Iterable[HostedReplica],
    measurements: Iterable[Measured],
    versions: Mapping[str, str],
) -> Allocation | None:
    """Return the engine's share of this host's memory; None if its need cannot be predicted.

    `before`: the devices as last seen; they are read again. `reserved`: bytes of each by others. `versions`: of the
    engines, by launcher. Blocks for some 10 ms, for large vocabularies some 100. Raises LaunchRefused if there is no
    room.
    """
    launcher, program = engine.launcher, engine.program
    facts = allocation.facts_of(spec)
    if facts is None:
        return None
    devices, occupants = read_memory(before, hosted, reserved)
    found = allocation.check_fit(
        spec,
        facts,
        launcher,
        program,
        devices,
        occupants=occupants,
        past=measurements,
        version=engine.measured_version(versions),
    )
    if isinstance(found.refusal, Unpredictable):
        return None
    if found.allocation is None:
        raise LaunchRefused(LaunchRefusal(no_room=found))
    return found.allocation


def read_devices(before: Sequence[Device]) -> list[Device]:
    """Return the devices that an operator leaves us, as they are now. `before`: as last seen."""
    return gpus.visible_devices(gpus.list_devices(before), os.environ.get("CUDA_VISIBLE_DEVICES"))


def read_memory(
    before: Sequence[Device], hosted: Iterable[HostedReplica], reserved: Mapping[int, int]
) -> tuple[list[Device], list[Occupant]]:
    """Return the devices as they are now, with what others have `reserved` as taken, and our replicas there."""
    devices = read_devices(before)
    occupants = allocation.occupants(hosted, devices)
    shares = [share for one in occupants for share in one.shares]
    return placement.with_reserved(devices, shares, reserved), occupants


def measure_room(before: Sequence[Device], hosted: Iterable[HostedReplica], reserved: Mapping[int, int]) -> HostRoom:
    """Read what is free of the devices, and who holds the rest. Blocks for some 10 ms."""
    devices, occupants = read_memory(before, hosted, reserved)
    shares = [share for one in occupants for share in one.shares]
    free = {device.index: placement.spare_bytes(device, shares) for device in devices if not device.fault}
    return HostRoom(devices=devices, occupants=occupants, free=free)


def make_offer(
    config: HostConfig,
    spec: Spec,
    replicas: int,
    *,
    before: Sequence[Device],
    reserved: Mapping[int, int],
    hosted: Iterable[HostedReplica],
    measurements: Iterable[Measured],
    versions: Mapping[str, str],
) -> HostOffer:
    """Return what this host offers for a model that no host has, and where it could go if others made room.

    Blocks as `allocate` does, for each replica.
    """
    try:
        engine = choose_engine(config, spec)
    except LaunchRefused:
        return HostOffer(fits=False, free=0)
    devices, occupants = read_memory(before, hosted, reserved)
    kind = placement.kind_of(devices, on_cpu=launched_by(engine.launcher).runs_on_cpu(engine.program))
    shares = [share for one in occupants for share in one.shares]
    free = sum(placement.free_room(device, shares).free for device in devices if device.kind == kind)
    facts = allocation.facts_of(spec)
    if facts is None:
        return HostOffer(fits=True, free=free)  # its need is not known
    for number in range(replicas):
        found = allocation.check_fit(
            *(spec, facts, engine.launcher, engine.program, devices),
            occupants=occupants,
            past=measurements,
            version=engine.measured_version(versions),
        )
        if not found.fits or found.allocation is None:
            return HostOffer(fits=False, free=free, spaces=found.spaces)
        given = found.allocation
        occupants.append(
            Occupant(
                name=f"{spec.name} #{number}",
                needed=given.needed,
                devices=given.devices,
                host=given.prediction.host,
                held={},
            )
        )
    return HostOffer(fits=True, free=free)


def launch(config: HostConfig, runs: Runs, order: LaunchOrder, *, port: int, master_port: int = 0) -> Run:
    """Execute an engine on this port; blocks for ~0.1 s. Raises LaunchRefused.

    `master_port`: of rank 0 of a replica over several hosts, where the others find it.
    """
    spec, engine, granted, no_sleep = order.spec, order.engine, order.granted, order.no_sleep
    launcher, program, choice = engine.launcher, engine.program, engine.choice
    sleeps = spec.sleep != STOP
    if sleeps and not no_sleep:
        no_sleep = launched_by(launcher).explain_no_sleep(program, choice.installed.version if choice else "")
    _check_arguments(config, spec, launcher, program)
    endpoint = EngineEndpoint(
        address=order.address,
        port=port,
        api_key=secrets.token_urlsafe(24),
        grace=order.grace,
        master=(order.rank.address, order.rank.port or master_port) if order.rank else ("", 0),
    )
    serves = spec.rank == 0
    metadata = RunMetadata(
        model=order.key.model,
        replica=order.key.number,
        name=spec.name,
        task=spec.task,
        fingerprint=spec.fingerprint(),
        launcher=launcher,
        slots=launched_by(launcher).slots(spec),
        port=endpoint.port if serves else 0,
        url=endpoint.url if serves else "",
        api_key=endpoint.api_key,
        allotment=granted.stored() if granted else None,
        installed=choice.installed.version if choice else "",
        stamp=choice.installed.stamp if choice else "",
        trial=choice.trial if choice else False,
        fallback=choice.instead if choice else "",
        sleep=spec.sleep if sleeps and not no_sleep else "",
        no_sleep=no_sleep if sleeps else "",
        rank=spec.rank,
        hosts=spec.hosts,
        gang=order.rank.gang if order.rank else "",
        master_address=endpoint.master[0],
        master_port=endpoint.master[1],
        own_address="" if serves else order.address,
    )
    _forget_old_runs(runs, order.key)
    grant = granted.grant if granted else None
    started = replace(spec, sleep=STOP) if no_sleep else spec
    command = launched_by(launcher).build_command(started, program, endpoint, os.environ, grant, order.isolation)
    try:
        return runs.start(order.run_id, command, label=asdict(metadata), grace=endpoint.grace)
    except (process.StartFailed, OSError) as error:
        raise LaunchRefused(LaunchRefusal(failed=str(error))) from error


def _check_arguments(config: HostConfig, spec: Spec, launcher: str, program: Sequence[str]) -> None:
    """Check the arguments by the engine's own parser, as it would refuse to start. Raises LaunchRefused."""
    if not spec.args:
        return
    options = parsers.load_options(launcher, program, config.cache)
    parsed = arguments.read_arguments(launcher, spec.args, options)
    # Nothing else that registration checks: what an older release has registered keeps working.
    if options and parsed.faults:
        fault = parsed.faults[0]
        raise LaunchRefused(LaunchRefusal(bad_argument=replace(fault, arg=shorten(fault.arg))))


def free_port(address: str, ports: Sequence[int], taken: Collection[int], rng: random.Random) -> int:
    """Return one of `ports`, not in `taken`, on which no process listens. Raises LaunchRefused."""
    # By rng, as another installation on this host may be choosing now from the same range.
    for port in rng.sample(ports, len(ports)):
        if port not in taken and _can_listen(address, port):
            return port
    raise LaunchRefused(LaunchRefusal(no_port=(ports[0], ports[-1])))


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
        run for run in runs.all() if metadata_of(run).key == key and process.life_of(run) in (Life.ENDED, Life.LOST)
    ]
    for run in ended[: max(0, len(ended) - KEPT_RUNS + 1)]:
        runs.forget(run)
