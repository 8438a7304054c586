"""What one replica gets of its host's memory: read its files, predict, correct by what was measured, find a place.

`check_fit` is the way in: supervisor, page, API and command call it alike. No Django: its caller shows people why there
was no room.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

from modelregistry.engines.base import MemoryGrant, Spec
from modelregistry.engines.registry import launched_by
from modelregistry.files import model_files
from modelregistry.files.metadata import ModelMetadata
from modelregistry.files.unreadable import UnreadableModel
from modelregistry.memory import estimate, placement
from modelregistry.memory.estimate import Demand, Measured, Prediction, Unpredictable
from modelregistry.memory.placement import Commitment, NoRoom, NoSuchDevice, Space
from modelregistry.process import gpus, process
from modelregistry.process.gpus import Device
from modelregistry.process.process import Run
from modelregistry.wire_bounds import AtMost, Line, Name, Names


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """Where a replica goes and what it may take there. `devices`: indices; none: RAM.

    `formula` is what the formulas alone say of it: what is measured is kept beside that, so that corrections do not
    feed on themselves. `device`: the name of the kind of device. JSON can hold it, by way of `asdict`.
    """

    prediction: Prediction
    formula: Prediction
    devices: Annotated[tuple[int, ...], AtMost(gpus.MOST_DEVICES)]
    visible: Names
    fraction: float
    forced: bool
    fingerprint: Name
    launcher: Name
    version: Line  # of the engine, "": not known yet
    device: Line

    @property
    def needed(self) -> int:
        """On each device, without what the kernel can take back."""
        return self.prediction.total - self.prediction.droppable

    @property
    def amounts(self) -> dict[int, int]:
        """The same by device, with its RAM beside its cards."""
        if not self.devices:
            return {gpus.RAM: self.needed}
        return {**dict.fromkeys(self.devices, self.needed), gpus.RAM: self.prediction.host}

    @property
    def grant(self) -> MemoryGrant:
        return MemoryGrant(
            visible=self.visible,
            cache=0 if self.prediction.open else self.prediction.cache,
            fraction=self.fraction,
            context=self.prediction.context,
            batch=self.prediction.batch,
            parallel=self.prediction.parallel,
        )

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> "Allocation":
        """Make it from what was kept on a run. Raises TypeError, LookupError for that of another release."""
        return cls(
            **{
                **stored,
                "prediction": Prediction(**stored["prediction"]),
                "formula": Prediction(**stored["formula"]),
                "devices": tuple(stored["devices"]),
                "visible": tuple(stored["visible"]),
            }
        )

    def stored(self) -> dict[str, Any]:
        return asdict(self)


def facts_of(spec: Spec) -> ModelMetadata | None:
    """Return what the files say; None: they cannot be read, so their engine takes what it takes."""
    try:
        return model_files.read_model(spec.engine, spec.path, spec.allowed_risks)
    except UnreadableModel:
        return None


def allocate(
    spec: Spec,
    facts: ModelMetadata,
    launcher: str,
    program: Sequence[str],
    devices: Sequence[Device],
    *,
    shares: Sequence[Commitment] = (),
    past: Iterable[Measured] = (),
    version: str = "",
) -> Allocation:
    """Pure. Raises placement.NoRoom, placement.NoSuchDevice, memory.Unpredictable."""
    kind = _kind(spec, launcher, program, devices)
    demand = Demand.of(spec, launcher, kind)
    device = next(device.name for device in devices if device.kind == kind)
    formula = estimate.predict(facts, demand)
    if kind == "gpu":
        card = min(device.total for device in devices if device.kind == "gpu")
        formula = launched_by(launcher).fill_share(formula, demand, card)
    mark = estimate.fingerprint(facts, demand, formula)
    prediction = estimate.apply_measurements(
        formula, past, mark=mark, launcher=launcher, version=version, device=device
    )
    found = placement.find_place(
        prediction, demand, devices, shares, gpus=spec.gpus, overcommit=spec.overcommit, facts=facts
    )
    if found.prediction.cache != prediction.cache:
        formula = estimate.with_cache(formula, found.prediction.cache)
        mark = estimate.fingerprint(facts, demand, formula)
    return Allocation(
        prediction=found.prediction,
        formula=formula,
        devices=found.devices,
        visible=gpus.cuda_names(devices, found.devices),
        fraction=found.fraction,
        forced=found.forced,
        fingerprint=mark,
        launcher=launcher,
        version=version,
        device=device,
    )


def _kind(spec: Spec, launcher: str, program: Sequence[str], devices: Sequence[Device]) -> str:
    return placement.kind_of(devices, on_cpu=launched_by(launcher).keeps_model_in_ram(spec, program))


@dataclass(frozen=True, slots=True, kw_only=True)
class Occupant:
    """A replica that others of its host have to reckon with: what it was promised, and what it holds now.

    `needed`: on each of `devices` (none: in RAM); `host`: of RAM beside its cards. `held`: bytes by device, of RAM what
    cannot be dropped.
    """

    name: Name
    needed: int
    devices: Annotated[tuple[int, ...], AtMost(gpus.MOST_DEVICES)] = ()
    host: int = 0
    held: Annotated[Mapping[int, int], AtMost(gpus.MOST_DEVICES + 1)]  # its RAM beside its cards

    @property
    def shares(self) -> list[Commitment]:
        promised = dict.fromkeys(self.devices, self.needed) if self.devices else {gpus.RAM: self.needed}
        if self.devices and self.host:
            promised[gpus.RAM] = self.host
        return [
            Commitment(name=self.name, device=device, predicted=size, held=self.held.get(device, 0))
            for device, size in promised.items()
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class FitResult:
    """Whether a replica fits on a host, where, and what would have to go.

    `allocation`: where it goes; None: nowhere, and `refusal` says why. `launcher`: "" if the host has no engine for it.
    `need`: what it would take on each of its devices, at least that where it does not fit; None: unknown.
    `spaces`: where it could go if others made room.
    `to_go`: the fewest replicas of ours without which it would fit; (): none are in its way, or more than a few.
    """

    launcher: Name
    allocation: Allocation | None = None
    need: Prediction | None = None
    spaces: Annotated[tuple[Space, ...], AtMost(placement.MOST_SPACES)] = ()
    refusal: NoRoom | NoSuchDevice | Unpredictable | None = None
    to_go: Annotated[tuple[Name, ...], AtMost(1000)] = ()

    @property
    def fits(self) -> bool:
        return self.allocation is not None and not self.allocation.forced


def check_fit(
    spec: Spec,
    facts: ModelMetadata,
    launcher: str,
    program: Sequence[str],
    devices: Sequence[Device],
    *,
    occupants: Iterable[Occupant] = (),
    past: Iterable[Measured] = (),
    version: str = "",
) -> FitResult:
    """Answer "does it fit, where, and what would have to go?" for supervisor, page, API and command alike. Pure.

    `devices` and `occupants` as they are now. `program`: by its path, whether it is built for CPUs.
    """
    shares = [share for one in occupants for share in one.shares]
    try:
        given = allocate(spec, facts, launcher, program, devices, shares=shares, past=past, version=version)
    except Unpredictable as refusal:
        return FitResult(launcher=launcher, refusal=refusal)
    except NoSuchDevice as refusal:
        return FitResult(launcher=launcher, refusal=refusal)
    except NoRoom as refusal:
        kind = _kind(spec, launcher, program, devices)
        to_go = placement.would_have_to_go(
            refusal.need, Demand.of(spec, launcher, kind), devices, shares, gpus=spec.gpus
        )
        return FitResult(
            launcher=launcher,
            need=placement.at_least(refusal.need),
            spaces=placement.find_spaces(refusal.need, kind, devices, gpus=spec.gpus),
            refusal=refusal,
            to_go=to_go,
        )
    return FitResult(launcher=launcher, allocation=given, need=given.prediction)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostedReplica:
    """Another replica of this host: what it was granted, and its engine if that was started.

    `settled`: it has been ready, so it holds what it wants.
    """

    name: str
    allocation: Allocation
    run: Run | None
    settled: bool


def occupants(tenants: Iterable[HostedReplica], devices: Sequence[Device]) -> list[Occupant]:
    """Return what they were promised, beside what they hold now. Reads /proc."""
    return [
        Occupant(
            name=tenant.name,
            needed=tenant.allocation.needed,
            devices=tenant.allocation.devices,
            host=tenant.allocation.prediction.host,
            held=_measure_tenant(tenant, devices),
        )
        for tenant in tenants
    ]


def _measure_tenant(tenant: HostedReplica, devices: Sequence[Device]) -> dict[int, int]:
    processes = process.process_tree(tenant.run) if tenant.run else []
    on_devices = gpus.memory_held(devices, {who.pid for who in processes})
    # A driver that does not report whose memory it is (in containers): a settled engine holds what it was promised.
    promised = tenant.allocation.needed * tenant.settled
    on_cards = {device: on_devices.get(device, promised) for device in tenant.allocation.devices}
    return on_cards | {gpus.RAM: estimate.measure_held(processes).fixed}


# --- Engines that sleep: they live, without their model on the cards ------------------------------------------------


def bytes_for_sleep(given: Allocation) -> int:
    """Return the RAM that its weights take while it sleeps with them (vLLM's level 1)."""
    return given.prediction.weights * max(len(given.devices), 1)


def while_asleep(given: Allocation, ram: int) -> Allocation:
    """Return what it is promised while it sleeps. `ram`: bytes of RAM that it has for its weights."""
    asleep = launched_by(given.launcher).predict_asleep(given.prediction)
    return replace(given, prediction=replace(asleep, host=asleep.host + ram))


def after_sleep(given: Allocation, ram: int) -> Allocation:
    """Return what it is promised awake: the RAM in which its weights waited stays its own."""
    return replace(given, prediction=replace(given.prediction, host=given.prediction.host + ram))


def space_to_wake(given: Allocation) -> Space:
    """Return what it needs on its own cards beside what it is promised asleep."""
    return Space(needs=dict.fromkeys(given.devices, given.needed - while_asleep(given, 0).needed))


def has_ram(wanted: int, tenants: Iterable[HostedReplica], devices: Sequence[Device]) -> bool:
    """Return whether so many bytes of RAM are neither held nor promised. Reads /proc."""
    shares = [share for one in occupants(tenants, devices) for share in one.shares]
    return any(placement.free_room(one, shares).free >= wanted for one in devices if one.kind == "ram")


def find_room_to_wake(
    given: Allocation, sleeper: HostedReplica, others: Iterable[HostedReplica], devices: Sequence[Device]
) -> FitResult:
    """Return whether it can wake where it sleeps, as its process is bound to its cards. Reads /proc.

    `given`: what it is promised awake; `sleeper`: the same replica as it is.
    """
    [own] = occupants([sleeper], devices)
    around = [share for one in occupants(others, devices) for share in one.shares]
    mine = [device for device in devices if device.index in given.devices]
    free = {one.index: placement.free_room(one, [*around, *own.shares]).free for one in mine}
    # What it holds asleep, or is promised, is its own already.
    more = {one.index: given.needed - max(own.needed, own.held.get(one.index, 0)) for one in mine}
    if free.keys() == set(given.devices) and all(free[index] >= more[index] for index in free):
        return FitResult(launcher=given.launcher, allocation=given, need=given.prediction)
    refusal = NoRoom(given.prediction, [placement.free_room(device, around) for device in mine])
    return FitResult(launcher=given.launcher, need=given.prediction, refusal=refusal)


def keeps_memory_asleep(given: Allocation, run: Run, devices: Sequence[Device]) -> bool:
    """Return whether it holds more than half of what it should have given back to a card. Reads /proc.

    Some versions of vLLM did (its issue 32714). Where a driver does not report whose memory it is, nothing is known.
    """
    held = gpus.memory_held(devices, {who.pid for who in process.process_tree(run)})
    asleep = while_asleep(given, 0).needed
    most = asleep + (given.needed - asleep) // 2
    return any(held.get(device, 0) > most for device in given.devices)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryUse:
    """What a replica holds in all (one on GPUs: on the cards, without its RAM), and on each card.

    `fixed`: of RAM, what cannot be dropped.
    """

    total: int
    by_device: Annotated[Mapping[int, int], AtMost(gpus.MOST_DEVICES)]
    fixed: int

    @property
    def most(self) -> int:
        """On the device where it holds most."""
        return max(self.by_device.values(), default=self.total)


def measure_use(run: Run, devices: Sequence[int]) -> MemoryUse | None:
    """Measure what it holds on `devices` (indices; none: RAM). None: not reported by the driver. Blocks for 10 ms."""
    processes = process.process_tree(run)
    in_ram = estimate.measure_held(processes)
    if not devices:
        return MemoryUse(total=in_ram.taken, by_device={}, fixed=in_ram.fixed)
    on_devices = gpus.memory_held(gpus.list_devices(), {who.pid for who in processes})
    return MemoryUse(total=sum(on_devices.values()), by_device=on_devices, fixed=in_ram.fixed) if on_devices else None
