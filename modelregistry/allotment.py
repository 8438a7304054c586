"""What one replica gets of its host's memory: read its files, predict, correct by what was measured, find a place.

`answer` is the way in: supervisor, page, API and command ask it alike. No Django: who calls it tells people why there
was no room.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from modelregistry import engines, gpus, memory, model_files, placement, process
from modelregistry.engines import Grant, Spec
from modelregistry.facts import Facts, Unreadable
from modelregistry.gpus import Device
from modelregistry.memory import Demand, Measured, Prediction, Unpredictable
from modelregistry.placement import NoRoom, NoSuchDevice, Share
from modelregistry.process import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Allotment:
    """Where a replica goes and what it may take there. `devices`: indices; none: RAM.

    `formula` is what the formulas alone say of it: what is measured is kept beside that, so that corrections do not
    feed on themselves. `device`: the name of the kind of device. JSON can hold it, by way of `asdict`.
    """

    prediction: Prediction
    formula: Prediction
    devices: tuple[int, ...]
    visible: tuple[str, ...]
    fraction: float
    forced: bool
    fingerprint: str
    launcher: str
    version: str  # of the engine, "": not known yet
    device: str

    @property
    def needed(self) -> int:
        """On each device, without what the kernel can take back."""
        return self.prediction.total - self.prediction.droppable

    @property
    def grant(self) -> Grant:
        return Grant(
            visible=self.visible,
            cache=0 if self.prediction.open else self.prediction.cache,
            fraction=self.fraction,
            context=self.prediction.context,
            batch=self.prediction.batch,
            parallel=self.prediction.parallel,
        )

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> "Allotment":
        """Back from what was kept on a run. Raises TypeError, LookupError for that of another release."""
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


def facts_of(spec: Spec) -> Facts | None:
    """None for files that tell nothing: their engine takes what it takes."""
    try:
        return model_files.read(spec.engine, spec.path, spec.allowed_risks)
    except Unreadable:
        return None


def allot(
    spec: Spec,
    facts: Facts,
    launcher: str,
    program: Sequence[str],
    devices: Sequence[Device],
    *,
    shares: Sequence[Share] = (),
    past: Iterable[Measured] = (),
    version: str = "",
) -> Allotment:
    """Pure. Raises placement.NoRoom, placement.NoSuchDevice, memory.Unpredictable."""
    kind = _kind(spec, launcher, program, devices)
    demand = Demand.of(spec, launcher, kind)
    device = next(device.name for device in devices if device.kind == kind)
    formula = memory.predict(facts, demand)
    if kind == "gpu":
        formula = _as_told(formula, demand, devices)
    mark = memory.fingerprint(facts, demand, formula)
    prediction = memory.corrected(formula, past, mark=mark, launcher=launcher, version=version, device=device)
    found = placement.place(
        prediction, demand, devices, shares, gpus=spec.gpus, overcommit=spec.overcommit, facts=facts
    )
    if found.prediction.cache != prediction.cache:
        formula = placement.with_cache(formula, found.prediction.cache)
        mark = memory.fingerprint(facts, demand, formula)
    return Allotment(
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
    on_cpu = engines.on_cpu(launcher, program) or _told_to_use_ram(spec, launcher)
    return placement.kind_of(devices, on_cpu=on_cpu)


def _told_to_use_ram(spec: Spec, launcher: str) -> bool:
    return spec.arguments(launcher).number("--n-gpu-layers") == 0


def _as_told(formula: Prediction, demand: Demand, devices: Sequence[Device]) -> Prediction:
    """An operator who gives vLLM a part of the card himself means all of that part."""
    part = demand.arguments.decimal("--gpu-memory-utilization") or 0.0
    card = min(device.total for device in devices if device.kind == "gpu")
    # Of that part vLLM takes what it needs after its context, which it does not count.
    spare = int(part * card) - formula.weights - (formula.overhead - formula.apart)
    if demand.launcher != "vllm" or spare <= 0 or not formula.cache:
        return formula
    spare = spare // memory.MIB * memory.MIB
    return placement.with_cache(replace(formula, cache_least=spare), spare)


@dataclass(frozen=True, slots=True, kw_only=True)
class Occupant:
    """A replica that others of its host have to reckon with: what it was promised, and what it holds now.

    `needed`: on each of `devices` (none: in RAM); `host`: of RAM beside its cards. `held`: bytes by device, of RAM what
    cannot be dropped.
    """

    name: str
    needed: int
    devices: tuple[int, ...] = ()
    host: int = 0
    held: Mapping[int, int]

    @property
    def shares(self) -> list[Share]:
        promised = dict.fromkeys(self.devices, self.needed) if self.devices else {gpus.RAM: self.needed}
        if self.devices and self.host:
            promised[gpus.RAM] = self.host
        return [
            Share(name=self.name, device=device, predicted=size, held=self.held.get(device, 0))
            for device, size in promised.items()
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Whether a replica fits on a host, where, and what would have to go.

    `allotment`: where it goes; None: nowhere, and `refusal` says why. `launcher`: "" if the host has no engine for it.
    `need`: what it would take on each of its devices; None: nobody can say. `to_go`: the fewest replicas of ours
    without which it would fit; (): none are in its way, or more than a few.
    """

    launcher: str
    allotment: Allotment | None = None
    need: Prediction | None = None
    refusal: NoRoom | NoSuchDevice | Unpredictable | None = None
    to_go: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        return self.allotment is not None and not self.allotment.forced


def answer(
    spec: Spec,
    facts: Facts,
    launcher: str,
    program: Sequence[str],
    devices: Sequence[Device],
    *,
    occupants: Iterable[Occupant] = (),
    past: Iterable[Measured] = (),
    version: str = "",
) -> Answer:
    """The one answer to "does it fit, where, and what would have to go?", for supervisor, page, API and command. Pure.

    `devices` and `occupants` as they are now. `program`: by its path, whether it is built for CPUs.
    """
    shares = [share for one in occupants for share in one.shares]
    try:
        given = allot(spec, facts, launcher, program, devices, shares=shares, past=past, version=version)
    except Unpredictable as refusal:
        return Answer(launcher=launcher, refusal=refusal)
    except NoSuchDevice as refusal:
        return Answer(launcher=launcher, refusal=refusal)
    except NoRoom as refusal:
        kind = _kind(spec, launcher, program, devices)
        to_go = placement.would_have_to_go(
            refusal.need, Demand.of(spec, launcher, kind), devices, shares, gpus=spec.gpus
        )
        need = refusal.need
        need = placement.with_cache(need, need.cache_least) if need.open else need
        return Answer(launcher=launcher, need=need, refusal=refusal, to_go=to_go)
    return Answer(launcher=launcher, allotment=given, need=given.prediction)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """Another replica of this host: what it was allotted, and its engine if that was started. `settled`: it has been
    ready, so it holds what it wants.
    """

    name: str
    allotment: Allotment
    run: Run | None
    settled: bool


def occupants(tenants: Iterable[Tenant], devices: Sequence[Device]) -> list[Occupant]:
    """What they were promised, beside what they hold now. Reads /proc."""
    return [
        Occupant(
            name=tenant.name,
            needed=tenant.allotment.needed,
            devices=tenant.allotment.devices,
            host=tenant.allotment.prediction.host,
            held=_held(tenant, devices),
        )
        for tenant in tenants
    ]


def _held(tenant: Tenant, devices: Sequence[Device]) -> dict[int, int]:
    processes = process.tree(tenant.run) if tenant.run else []
    told = gpus.held(devices, {who.pid for who in processes})
    # A driver that does not tell whose memory it is (in containers): a settled engine holds what it was promised.
    promised = tenant.allotment.needed * tenant.settled
    on_cards = {device: told.get(device, promised) for device in tenant.allotment.devices}
    return on_cards | {gpus.RAM: memory.held(processes).fixed}


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """What a replica holds in all (one on GPUs: on the cards, without its RAM), and on each card. `fixed`: of RAM, what
    cannot be dropped.
    """

    total: int
    by_device: Mapping[int, int]
    fixed: int

    @property
    def most(self) -> int:
        """On the device where it holds most."""
        return max(self.by_device.values(), default=self.total)


def measure(run: Run, devices: Sequence[int]) -> Use | None:
    """`devices`: indices of its cards; none: RAM. None if the driver does not tell. Blocks for some 10 ms."""
    processes = process.tree(run)
    in_ram = memory.held(processes)
    if not devices:
        return Use(total=in_ram.taken, by_device={}, fixed=in_ram.fixed)
    told = gpus.held(gpus.devices(), {who.pid for who in processes})
    return Use(total=sum(told.values()), by_device=told, fixed=in_ram.fixed) if told else None
