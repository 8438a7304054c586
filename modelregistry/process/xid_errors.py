"""Xid errors: what NVIDIA's driver reports when a GPU, or a program on it, has failed. Read as events of NVML.

Events are counted from the first look on: what the driver reported before is in the kernel's log only.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any

from modelregistry.process.gpus import Device

# Codes after which a card has to be reset, its host restarted or the card replaced, by NVIDIA's catalogue of Xid
# errors. Others, such as 13, 31, 43 and 45, mostly come from the program that ran.
FAULTS = frozenset(
    {
        *(46, 62),  # the GPU, or a controller in it, has halted
        *(48, 63, 64, 94, 95, 140),  # memory: errors that could not be corrected; rows remapped, or not
        74,  # NVLink
        79,  # fallen off the bus
        *(119, 120),  # the GPU's system processor does not answer, or failed
    }
)
# Of one card at a look. A card that reports more is not read to the end: its count is high enough.
MOST_EVENTS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class XidCount:
    """Of a card: how many errors, how many of them of FAULTS, and the code of the last of these, else of the last."""

    errors: int = 0
    faults: int = 0
    last: int | None = None

    def add(self, code: int) -> "XidCount":
        is_fault = code in FAULTS
        shown = code if is_fault or not self.faults else self.last
        return XidCount(errors=self.errors + 1, faults=self.faults + is_fault, last=shown)


@dataclass
class XidWatch:
    """Counts the errors of this host's cards. Keeps the driver's library open, as events come to who listens.

    `nvml`: in the place of the driver's library.
    """

    nvml: Any = None
    counts: dict[str, XidCount] = field(default_factory=dict)  # by the UUIDs of cards
    _listening: dict[str, Any] = field(default_factory=dict)  # sets of events by UUID; empty: not open

    def look(self) -> Mapping[str, XidCount]:
        """Return the counts of cards that are listened to, by UUID. Never raises for a driver that fails."""
        nvml = self.nvml or import_module("pynvml")
        try:
            if not self._listening:
                self._listen(nvml)
            for uuid, events in self._listening.items():
                for code in _take_codes(nvml, events):
                    self.counts[uuid] = self.counts[uuid].add(code)
        except nvml.NVMLError:  # the driver is gone or was replaced: it is opened again at the next look
            self._close(nvml)
        return self.counts

    def _listen(self, nvml: Any) -> None:
        """Open the library and listen to each card that has such events. Raises NVMLError."""
        nvml.nvmlInit()
        try:
            for number in range(nvml.nvmlDeviceGetCount()):
                if found := _listen_to(nvml, number):
                    self._listening[found[0]] = found[1]
                    self.counts.setdefault(found[0], XidCount())
        finally:
            if not self._listening:
                nvml.nvmlShutdown()

    def _close(self, nvml: Any) -> None:
        if self._listening:
            self._listening = {}
            with suppress(nvml.NVMLError):
                nvml.nvmlShutdown()


def _listen_to(nvml: Any, number: int) -> tuple[str, Any] | None:
    """Return a card's UUID and the set of its events; None: it has none, or it cannot be read."""
    try:
        card = nvml.nvmlDeviceGetHandleByIndex(number)
        events = nvml.nvmlEventSetCreate()
        nvml.nvmlDeviceRegisterEvents(card, nvml.nvmlEventTypeXidCriticalError, events)
        return str(nvml.nvmlDeviceGetUUID(card)), events
    except nvml.NVMLError:
        return None


def _take_codes(nvml: Any, events: Any) -> Iterator[int]:
    """Yield the codes that came since the last look, without waiting. Raises NVMLError."""
    for _ in range(MOST_EVENTS):
        try:
            event = nvml.nvmlEventSetWait_v2(events, 0)
        except (nvml.NVMLError_Timeout, nvml.NVMLError_GpuIsLost):  # nothing more; others may have some
            return
        yield int(event.eventData)


def with_xid_counts(devices: Iterable[Device], counts: Mapping[str, XidCount]) -> list[Device]:
    """Return the devices with their counts, as far as they are known: not of instances of a divided card."""
    return [
        replace(device, xid_errors=found.errors, xid_faults=found.faults, last_xid=found.last)
        if (found := counts.get(device.uuid))
        else device
        for device in devices
    ]
