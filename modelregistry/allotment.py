"""What one replica gets of its host's memory: read its files, predict, correct by what was measured, find a place.

No Django: who calls it tells people why there was no room.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from modelregistry import engines, gpus, memory, model_files, placement
from modelregistry.engines import Grant, Spec
from modelregistry.facts import Facts, Unreadable
from modelregistry.gpus import Device
from modelregistry.memory import Demand, Measured, Prediction
from modelregistry.placement import Share


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
    device: str

    @property
    def grant(self) -> Grant:
        return Grant(visible=self.visible, cache=self.prediction.cache, fraction=self.fraction)

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

    def shares(self, name: str, held: Mapping[int, int]) -> list[Share]:
        """What it was promised on its devices, beside what it holds there."""
        needed = self.prediction.total - self.prediction.droppable
        return [
            Share(name=name, device=device, predicted=needed, held=held.get(device, 0))
            for device in self.devices or (gpus.RAM,)
        ]


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
    """Pure. Raises placement.NoRoom, placement.NoSuchDevice."""
    kind = placement.kind_of(devices, on_cpu=engines.on_cpu(launcher, program) or _told_to_use_ram(spec))
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
        device=device,
    )


def _told_to_use_ram(spec: Spec) -> bool:
    return engines.argument(spec.args, "--n-gpu-layers", "-ngl", "--gpu-layers", "--n_gpu_layers") == "0"


def _as_told(formula: Prediction, demand: Demand, devices: Sequence[Device]) -> Prediction:
    """An operator who gives vLLM a part of the card himself means all of that part."""
    try:
        part = float(demand.argument("--gpu-memory-utilization") or 0)
    except ValueError:
        return formula
    card = min(device.total for device in devices if device.kind == "gpu")
    spare = int(part * card) - formula.weights - formula.overhead
    if demand.launcher != "vllm" or spare <= 0 or not formula.cache:
        return formula
    return replace(placement.with_cache(formula, spare), cache_least=spare // memory.MIB * memory.MIB)
