"""Replaces the real pynvml on the path of a supervisor: the cards are those of the JSON file in RECORDED_NVML.

{"error": code of nvmlInit or 0, "cards": [{"uuid", "name", "total", "used", "processes": {pid: bytes}, "error"}]}, read
again at each nvmlInit, so that a test can let a card get lost.
"""

import importlib.machinery
import importlib.util
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

_HERE = str(Path(__file__).parent)
_spec = importlib.machinery.PathFinder.find_spec("pynvml", [path for path in sys.path if path != _HERE])
assert _spec
assert _spec.loader
_real = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_real)
globals().update({name: value for name, value in vars(_real).items() if not name.startswith("__")})
_real._extractNVMLErrorsAsClasses()  # the classes of its errors, which it gives to the module called pynvml
NVMLError = _real.NVMLError
_now: dict[str, Any] = {}


def nvmlInit() -> Any:
    _now.update(json.loads(Path(os.environ["RECORDED_NVML"]).read_text()))
    if _now["error"]:
        raise NVMLError(_now["error"])


def nvmlShutdown() -> Any:
    pass


def nvmlDeviceGetCount() -> Any:
    return len(_now["cards"])


def nvmlDeviceGetHandleByIndex(index: Any) -> Any:
    card = _now["cards"][index]
    if card["error"]:
        raise NVMLError(card["error"])
    return card


def nvmlDeviceGetMigMode(card: Any) -> Any:
    raise NVMLError(_real.NVML_ERROR_NOT_SUPPORTED)


def nvmlDeviceGetUUID(card: Any) -> Any:
    return card["uuid"]


def nvmlDeviceGetName(card: Any) -> Any:
    return card["name"]


def nvmlDeviceGetMemoryInfo(card: Any) -> Any:
    return SimpleNamespace(total=card["total"], used=card["used"], free=card["total"] - card["used"])


def nvmlDeviceGetComputeRunningProcesses(card: Any) -> Any:
    return [SimpleNamespace(pid=int(pid), usedGpuMemory=size) for pid, size in card["processes"].items()]


def nvmlDeviceGetGraphicsRunningProcesses(card: Any) -> Any:
    return []
