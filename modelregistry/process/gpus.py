"""What this host has for models: the memory of its GPUs, as NVIDIA's driver reports it, and its RAM.

Numbers are of the moment. A card that cannot be read (it fell off the bus, the driver was upgraded below us) stays in
the list with what was last known of it and a `fault`: engines may still hold its memory.
"""

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

from modelregistry.process.shim import process_name
from modelregistry.wire_bounds import AtMost, Line, Name

RAM = -1  # the index of the device that stands for the host's RAM
CGROUPS = Path("/sys/fs/cgroup")
# Sixteen cards of seven instances each are 112. So many processes may hold memory of one of them.
MOST_DEVICES, MOST_HOLDERS = 128, 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuProcess:
    """A process that holds memory of a GPU."""

    pid: int
    bytes: int | None  # None where the driver does not report it (containers, some MIGs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A place for weights and caches: a GPU, an instance of one (MIG), or the RAM. Bytes.

    `index` counts the host's devices in the driver's order, each instance of a divided card separately; RAM is -1.
    `uuid` is what CUDA_VISIBLE_DEVICES understands. `free` may be less than `total` - `used`: some memory is available
    to no process. `fault`: why the numbers are old; empty: they are current.
    `utilisation`: in how much of the last second any program ran on the card, in per cent; `temperature`: of its chip,
    in °C; `power`: what the card takes, in watts; `ecc_errors`: errors of its memory that could not be corrected, since
    the driver was loaded; `xid_errors`, `xid_faults` and `last_xid`: as `xid_errors.XidCount`. None: not known, as of
    RAM and of instances of a divided card.
    """

    index: int
    uuid: Name
    name: Name
    kind: Name  # "gpu" or "ram"
    total: int
    used: int
    free: int
    processes: Annotated[tuple[GpuProcess, ...], AtMost(MOST_HOLDERS)] = ()
    fault: Line = ""
    utilisation: int | None = None
    temperature: int | None = None
    power: int | None = None
    ecc_errors: int | None = None
    xid_errors: int | None = None
    xid_faults: int | None = None
    last_xid: int | None = None

    def __str__(self) -> str:
        return f"{self.name} {self.total / 1e9:.0f} GB, {self.free / 1e9:.0f} GB free"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stranger:
    """A process that is not ours and holds memory of a device.

    `installation`: the state directory of the Madoguchi to which it belongs, or "".
    """

    pid: int
    name: Name
    device: int
    bytes: int | None
    installation: Line = ""


class _Unreadable(Exception):
    """The driver is there and does not answer."""


def list_devices(before: Sequence[Device] = (), *, nvml: Any = None) -> list[Device]:
    """Return the GPUs, in the driver's order, then the RAM. Never empty, never raises for a driver that fails.

    `before`: what was seen last, for cards that cannot be read now. `nvml`: in the place of the driver's library.
    Blocks for some 10 ms; for a second or two on a host whose driver no other process keeps loaded.
    """
    known = [device for device in before if device.kind == "gpu"]
    try:
        found = _list_gpus(nvml or import_module("pynvml"), known)
    except _Unreadable as error:
        found = [replace(device, fault=str(error)) for device in known]
    return [*found, read_ram()]


def visible_devices(found: Sequence[Device], variable: str | None) -> list[Device]:
    """Return the GPUs that an operator leaves us by CUDA_VISIBLE_DEVICES (None: all), and the RAM.

    Read as CUDA does: numbers or UUIDs (or their beginnings); what follows the first unknown one does not count.
    """
    if variable is None:
        return list(found)
    left = []
    for word in filter(None, (word.strip() for word in variable.split(","))):
        match = [
            each for each in found if each.kind == "gpu" and (word == str(each.index) or _is_prefix_of(word, each.uuid))
        ]
        if not match:
            break
        left.append(match[0])
    return [*left, *(device for device in found if device.kind == "ram")]


def cuda_names(found: Iterable[Device], indices: Collection[int]) -> tuple[str, ...]:
    """Return the names of devices for CUDA_VISIBLE_DEVICES: numbers, as older engines read no UUIDs, but for MIG."""
    cards = [device for device in found if device.kind == "gpu"]
    divided = any(device.uuid.startswith("MIG-") for device in cards)
    return tuple(card.uuid if divided else str(card.index) for card in cards if card.index in indices)


def _is_prefix_of(word: str, uuid: str) -> bool:
    return word.startswith(("GPU-", "MIG-")) and uuid.startswith(word)


def memory_held(found: Iterable[Device], pids: Collection[int]) -> dict[int, int]:
    """Return the bytes that these processes hold together, by GPU; only where the driver reports them."""
    return {
        device.index: sum(holder.bytes for holder in ours if holder.bytes)
        for device in found
        if (ours := [holder for holder in device.processes if holder.pid in pids and holder.bytes])
    }


def find_strangers(found: Iterable[Device], ours: Collection[int]) -> list[Stranger]:
    """Return the other processes that hold memory of the GPUs, the largest first, with their names from /proc."""
    others = [
        Stranger(pid=holder.pid, name=process_name(holder.pid), device=device.index, bytes=holder.bytes)
        for device in found
        for holder in device.processes
        if holder.pid not in ours
    ]
    return sorted(others, key=lambda who: -(who.bytes or 0))


# --- GPUs ---------------------------------------------------------------------------------------------------------


def _list_gpus(nvml: Any, before: Sequence[Device]) -> list[Device]:
    """Read the GPUs. Raises _Unreadable when there are cards, or were, and none can be read."""
    try:
        nvml.nvmlInit()
    except (nvml.NVMLError_LibraryNotFound, nvml.NVMLError_DriverNotLoaded) as error:
        if before:
            raise _Unreadable(str(error)) from error
        return []  # a host without a GPU
    except nvml.NVMLError as error:  # above all: the library is of another version than the loaded driver
        raise _Unreadable(str(error)) from error
    try:
        return list(_read_gpus(nvml, {device.index: device for device in before}))
    except nvml.NVMLError as error:
        raise _Unreadable(str(error)) from error
    finally:
        nvml.nvmlShutdown()


def _read_gpus(nvml: Any, before: Mapping[int, Device]) -> Iterator[Device]:
    index = 0
    for number in range(nvml.nvmlDeviceGetCount()):
        try:
            seen = [_read_gpu(nvml, handle, index + place) for place, handle in enumerate(_instances(nvml, number))]
        except nvml.NVMLError as error:  # this card; the others are read
            seen = [_unread_device(before.get(index), index, str(error))]
        yield from seen
        index += len(seen)


def _instances(nvml: Any, number: int) -> list[Any]:
    """Return the card itself, or its instances if it is divided."""
    card = nvml.nvmlDeviceGetHandleByIndex(number)
    try:
        divided = nvml.nvmlDeviceGetMigMode(card)[0] == nvml.NVML_DEVICE_MIG_ENABLE
    except nvml.NVMLError_NotSupported:
        divided = False
    if not divided:
        return [card]
    parts = []
    for place in range(nvml.nvmlDeviceGetMaxMigDeviceCount(card)):
        try:
            parts.append(nvml.nvmlDeviceGetMigDeviceHandleByIndex(card, place))
        except nvml.NVMLError_NotFound:
            continue
    return parts


def _read_gpu(nvml: Any, handle: Any, index: int) -> Device:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    return Device(
        index=index,
        uuid=nvml.nvmlDeviceGetUUID(handle),
        name=nvml.nvmlDeviceGetName(handle),
        kind="gpu",
        total=memory.total,
        used=memory.used,
        free=memory.free,
        processes=tuple(_read_holders(nvml, handle)),
        utilisation=_read_sensor(nvml, lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu),
        temperature=_read_sensor(nvml, lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
        power=_read_sensor(nvml, lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000),  # of milliwatts
        ecc_errors=_read_sensor(nvml, lambda: _read_ecc_errors(nvml, handle)),
    )


def _read_ecc_errors(nvml: Any, handle: Any) -> int:
    kinds = nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
    return int(nvml.nvmlDeviceGetTotalEccErrors(handle, *kinds))


def _read_sensor(nvml: Any, read: Callable[[], float]) -> int | None:
    """Return what a sensor says; None where there is none: a card without it holds models as well as any other."""
    try:
        return int(read())
    except nvml.NVMLError:
        return None


def _read_holders(nvml: Any, handle: Any) -> Iterator[GpuProcess]:
    """Yield the processes that hold its memory: those that compute, and displays (a desktop's use some 100 MB)."""
    seen: dict[int, int | None] = {}
    for ask in (nvml.nvmlDeviceGetComputeRunningProcesses, nvml.nvmlDeviceGetGraphicsRunningProcesses):
        try:
            for process in ask(handle):
                # A process that does both is listed twice, with the same number.
                seen[process.pid] = seen.get(process.pid) or process.usedGpuMemory
        except (nvml.NVMLError_NotSupported, nvml.NVMLError_NoPermission):  # some MIGs, some virtual GPUs
            continue
    for pid, size in seen.items():
        yield GpuProcess(pid=pid, bytes=size)


def _unread_device(before: Device | None, index: int, why: str) -> Device:
    if before:
        return replace(before, fault=why, utilisation=None, temperature=None, power=None, ecc_errors=None)
    return Device(index=index, uuid="", name="GPU", kind="gpu", total=0, used=0, free=0, fault=why)


# --- RAM ----------------------------------------------------------------------------------------------------------


def read_ram(proc: Path = Path("/proc"), cgroups: Path = CGROUPS) -> Device:
    """Return the host's RAM, or the part that our container or service may use (cgroup v2)."""
    machine, free = _parse_meminfo((proc / "meminfo").read_text())
    total = machine
    for directory in _own_cgroups(proc, cgroups):
        if (limit := _cgroup_limit(directory)) and limit[0] < machine:
            total, free = min(total, limit[0]), min(free, limit[1])
    return Device(index=RAM, uuid="", name="RAM", kind="ram", total=total, used=total - free, free=free)


def _parse_meminfo(text: str) -> tuple[int, int]:
    """Return the total, and what is available without swapping."""
    values = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in text.splitlines() if line.endswith(" kB")}
    return values["MemTotal"], values["MemAvailable"]


def _own_cgroups(proc: Path, cgroups: Path) -> list[Path]:
    """Return our cgroup and those above it, as far as they are visible from here."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return []
    own = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    directory = Path(os.path.normpath(cgroups / own))
    return [each for each in (directory, *directory.parents) if each.is_relative_to(cgroups)]


def _cgroup_limit(directory: Path) -> tuple[int, int] | None:
    """Return a cgroup's limit and what is left of it, with files that the kernel may drop; None: no limit."""
    try:
        limit = int((directory / "memory.max").read_text())
        used = int((directory / "memory.current").read_text())
        stat = dict(line.split() for line in (directory / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no such controller; "max"
        return None
    return limit, max(0, limit - used + int(stat.get("inactive_file", 0)) + int(stat.get("active_file", 0)))
