"""Stops an engine, and checks whether the memory that it held is free again."""

import time
from collections.abc import Callable, Collection, Sequence

from modelregistry.process import gpus, process, shim
from modelregistry.process.gpus import Device
from modelregistry.process.process import Run

BACK_WITHIN = 10.0  # seconds; a driver takes up to 4 s to free what a killed process held
LOOK_AGAIN = 0.25


def processes_of(run: Run) -> set[int]:
    """Return the processes of a run, which may hold memory of GPUs."""
    return {who.pid for who in process.process_tree(run)} | {who.pid for who in process.find_leftovers(run)}


def stop_and_release(
    run: Run,
    *,
    grace: float,
    devices: Callable[[], Sequence[Device]] = gpus.list_devices,
    pids: Collection[int] = (),
) -> str:
    """Stop a run, and return what is left of it, in words, or "".

    Blocks for as long as `process.stop`, and BACK_WITHIN at most. `pids`: `processes_of` it when it still ran.
    """
    pids = processes_of(run) | set(pids)
    if not process.stop(run, grace=grace):
        left = [f"{who.pid} ({shim.process_name(who.pid)})" for who in process.find_leftovers(run)]
        return f"processes that cannot be stopped: {', '.join(left)}"
    return _find_unreleased(pids, devices)


def _find_unreleased(pids: set[int], devices: Callable[[], Sequence[Device]]) -> str:
    """Return which GPUs still count memory for these processes, as the driver does also after they are gone."""
    deadline = time.monotonic() + BACK_WITHIN
    while held := gpus.memory_held(devices(), pids):
        if time.monotonic() >= deadline:
            return "; ".join(f"GPU {index} did not get {used / 1e9:.1f} GB back" for index, used in held.items())
        time.sleep(LOOK_AGAIN)
    return ""
