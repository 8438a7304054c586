"""What this host has for models: the memory of its GPUs, or else its RAM."""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A place for weights and caches. Bytes."""

    name: str
    total: int
    free: int

    def __str__(self) -> str:
        return f"{self.name} {self.total / 1e9:.0f} GB, {self.free / 1e9:.0f} GB free"


def devices() -> list[Device]:
    """The GPUs that NVIDIA's driver shows; on a host without, one device that stands for its RAM."""
    return _gpus() or [ram(Path("/proc/meminfo").read_text())]


def ram(meminfo: str) -> Device:
    """From the text of /proc/meminfo. Free is what can be had without swapping."""
    values = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in meminfo.splitlines() if line.endswith(" kB")}
    return Device(name="RAM", total=values["MemTotal"], free=values["MemAvailable"])


def _gpus() -> list[Device]:
    try:
        nvml = import_module("pynvml")  # comes with the driver's tools on GPU hosts, not with us
        nvml.nvmlInit()
    except ImportError:
        return []
    except nvml.NVMLError:  # the module, but no driver or no card
        return []
    try:
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        return [_gpu(nvml, handle) for handle in handles]
    finally:
        nvml.nvmlShutdown()


def _gpu(nvml: object, handle: object) -> Device:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)  # type: ignore[attr-defined]
    return Device(name=nvml.nvmlDeviceGetName(handle), total=memory.total, free=memory.free)  # type: ignore[attr-defined]
