"""NVIDIA's library as it answered on other machines: what `pynvml` gives, replayed. Its errors are pynvml's own."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pynvml

GIB = 2**30


@dataclass
class Card:
    """A recorded card, or an instance of a divided one. `processes`: pid -> bytes, None as in a container."""

    uuid: str
    name: str
    total: int
    used: int
    processes: dict[int, int | None] = field(default_factory=dict)
    graphics: dict[int, int | None] = field(default_factory=dict)
    instances: "list[Card | None] | None" = None  # of a card in MIG mode; None: a free place
    error: int = 0  # of any question about its memory
    busy: int = 0  # per cent
    heat: int = 41  # °C
    milliwatts: int = 61_250
    ecc_errors: int | None = 0  # that could not be corrected; None: a card without ECC
    xids: list[int] | None = field(default_factory=list)  # codes that were not taken yet; None: it has no such events


class Nvml:
    """In the place of the module. `error`: of nvmlInit."""

    def __init__(self, *cards: Card, error: int = 0) -> None:
        self.cards = cards
        self.error = error
        self.open = 0

    def __getattr__(self, name: str) -> Any:  # error classes and constants
        return getattr(pynvml, name)

    def nvmlInit(self) -> Any:
        if self.error:
            raise pynvml.NVMLError(self.error)
        self.open += 1

    def nvmlShutdown(self) -> Any:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> Any:
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: Any) -> Any:
        if self.cards[index].error == pynvml.NVML_ERROR_GPU_IS_LOST:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return self.cards[index]

    def nvmlDeviceGetMigMode(self, card: Any) -> Any:
        if card.instances is None and "A100" not in card.name:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return [int(card.instances is not None)] * 2

    def nvmlDeviceGetMaxMigDeviceCount(self, card: Any) -> Any:
        return len(card.instances)

    def nvmlDeviceGetMigDeviceHandleByIndex(self, card: Any, index: Any) -> Any:
        if card.instances[index] is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return card.instances[index]

    def nvmlDeviceGetUUID(self, card: Any) -> Any:
        return card.uuid

    def nvmlDeviceGetName(self, card: Any) -> Any:
        return card.name

    def nvmlDeviceGetMemoryInfo(self, card: Any) -> Any:
        if card.error:
            raise pynvml.NVMLError(card.error)
        return SimpleNamespace(total=card.total, used=card.used, free=card.total - card.used)

    def nvmlDeviceGetUtilizationRates(self, card: Any) -> Any:
        if card.uuid.startswith("MIG-"):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return SimpleNamespace(gpu=card.busy, memory=0)

    def nvmlDeviceGetTemperature(self, card: Any, sensor: int) -> Any:
        assert sensor == pynvml.NVML_TEMPERATURE_GPU
        if card.uuid.startswith("MIG-"):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return card.heat

    def nvmlDeviceGetPowerUsage(self, card: Any) -> Any:
        if card.uuid.startswith("MIG-"):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return card.milliwatts

    def nvmlDeviceGetTotalEccErrors(self, card: Any, kind: int, counter: int) -> Any:
        assert (kind, counter) == (pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC)
        if card.ecc_errors is None or card.uuid.startswith("MIG-"):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return card.ecc_errors

    def nvmlEventSetCreate(self) -> Any:
        return []

    def nvmlDeviceRegisterEvents(self, card: Any, kinds: int, events: Any) -> Any:
        assert kinds == pynvml.nvmlEventTypeXidCriticalError
        if card.xids is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        card.xids.clear()  # what came before is not delivered
        events.append(card)

    def nvmlEventSetWait_v2(self, events: Any, milliseconds: int) -> Any:
        assert (self.open > 0, milliseconds) == (True, 0)
        if self.error:
            raise pynvml.NVMLError(self.error)
        for card in events:
            if card.xids:
                return SimpleNamespace(eventType=pynvml.nvmlEventTypeXidCriticalError, eventData=card.xids.pop(0))
        lost = any(card.error == pynvml.NVML_ERROR_GPU_IS_LOST for card in events)
        raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST if lost else pynvml.NVML_ERROR_TIMEOUT)

    def nvmlDeviceGetComputeRunningProcesses(self, card: Any) -> Any:
        return [SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in card.processes.items()]

    def nvmlDeviceGetGraphicsRunningProcesses(self, card: Any) -> Any:
        if card.uuid.startswith("MIG-"):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return [SimpleNamespace(pid=pid, usedGpuMemory=size) for pid, size in card.graphics.items()]


def two_a100(**first: Any) -> Nvml:
    """Return a host with two A100 of 80 GB, nothing on them."""
    cards = [
        Card(uuid=f"GPU-{letter * 8}-1b2c", name="NVIDIA A100-SXM4-80GB", total=85_899_345_920, used=607_649_792)
        for letter in "ab"
    ]
    for name, value in first.items():
        setattr(cards[0], name, value)
    return Nvml(*cards)


def desktop_4090() -> Nvml:
    """Return a workstation's RTX 4090 of 24 GB: a desktop on it, and a colleague's notebook that computes."""
    return Nvml(
        Card(
            uuid="GPU-9e0f8a51-77aa",
            name="NVIDIA GeForce RTX 4090",
            total=25_757_220_864,
            used=7_025_459_200,
            processes={4242: 5_872_025_600},
            graphics={2101: 402_653_184, 4242: 5_872_025_600},
        )
    )


def divided_a100() -> Nvml:
    """Return an A100 in MIG mode: two instances of 20 GB and three places that are free, beside a whole one."""
    parts = [
        Card(
            uuid=f"MIG-{number}{number}{number}-4c60",
            name="NVIDIA A100-SXM4-80GB MIG 2g.20gb",
            total=20_937_965_568,
            used=39_845_888,
            processes={777: None} if number == 1 else {},
        )
        for number in (1, 2)
    ]
    whole = two_a100().cards
    whole[0].instances = [parts[0], None, parts[1], None, None]
    return Nvml(*whole)
