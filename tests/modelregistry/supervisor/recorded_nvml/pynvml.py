"""Replaces the real pynvml on the path of a supervisor: the cards are those of the JSON file in RECORDED_NVML.

{"error": code of nvmlInit or 0, "cards": [{"uuid", "name", "total", "used", "processes": {pid: bytes}, "error"}]}, read
again at each nvmlInit, so that a test can let a card get lost. With "models", a directory, llama-servers (stand-ins or
real ones) that run with a file from there hold as many bytes of their card as it has. Stand-ins for vLLM whose
VLLM_CARDS is that file hold the part of their card that an argument gives them.
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
    # Complete before it is seen: threads of a supervisor ask at the same time, and each would add the engines.
    state = json.loads(Path(os.environ["RECORDED_NVML"]).read_text())
    if not state["error"]:
        _add_engines(state["cards"], state.get("models", ""))
    _now.update(state)
    if state["error"]:
        raise NVMLError(state["error"])


def _add_engines(cards: list[dict[str, Any]], models: str) -> None:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            argv = (process / "cmdline").read_bytes().decode().split("\0")
            environ = dict(line.partition("=")[::2] for line in (process / "environ").read_text().split("\0"))
        except (OSError, UnicodeDecodeError):
            continue  # it has ended, or is no engine
        if environ.get("VLLM_CARDS") == os.environ["RECORDED_NVML"]:
            _add_rank(cards, process.name, argv, environ.get("CUDA_VISIBLE_DEVICES", ""))
        stand_in = len(argv) > 1 and argv[1].endswith("llama_server.py")
        if not (stand_in or argv[0].endswith("/llama-server")) or "--model" not in argv:
            continue
        path = Path(argv[argv.index("--model") + 1])
        if str(path.parent) == models and environ.get("CUDA_VISIBLE_DEVICES", "").isdecimal():
            card = cards[int(environ["CUDA_VISIBLE_DEVICES"])]
            card["processes"][process.name] = path.stat().st_size
            card["used"] += path.stat().st_size


def _add_rank(cards: list[dict[str, Any]], pid: str, argv: list[str], visible: str) -> None:
    """Add a stand-in for a vLLM of this host, which holds the part of its card that an argument gives it."""
    parts = [word.partition("=")[2] for word in argv if word.startswith("--gpu-memory-utilization=")]
    if parts and visible.isdecimal():
        held = int(float(parts[0]) * cards[int(visible)]["total"])
        cards[int(visible)]["processes"][pid] = held
        cards[int(visible)]["used"] += held


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
    gone = sum(size for pid, size in card["processes"].items() if not os.path.exists(f"/proc/{pid}"))
    used = card["used"] - gone
    return SimpleNamespace(total=card["total"], used=used, free=card["total"] - used)


def nvmlDeviceGetComputeRunningProcesses(card: Any) -> Any:
    # A stand-in that reported its own memory cannot take it back when it is killed.
    there = {pid: size for pid, size in card["processes"].items() if os.path.exists(f"/proc/{pid}")}
    return [SimpleNamespace(pid=int(pid), usedGpuMemory=size) for pid, size in there.items()]


def nvmlDeviceGetGraphicsRunningProcesses(card: Any) -> Any:
    return []
