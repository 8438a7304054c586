"""The state of a host: its devices, which other processes hold their memory, its engines, and its problems.

Strangers are reported, never touched. A stranger is a process that is not of our runs and

- holds memory of a GPU, or
- belongs to another installation of Madoguchi (it carries the mark of a run that is not ours), or
- on a host without GPUs, holds LARGE bytes of RAM or more.
"""

import os
import shutil
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from modelregistry.engines import programs
from modelregistry.engines.versions import EngineVersions
from modelregistry.process import gpus, process, shim
from modelregistry.process.process import Life, Run, Runs
from modelregistry.process.shim import Identity

Remains = Mapping[str, Sequence[Identity]]  # by run id

EVERY = 10.0  # seconds between two inspections
LARGE = 1_000_000_000  # bytes; a browser or a database with a large cache, which a plan for RAM should know of
LITTLE_DISK = 1_000_000_000  # bytes; runs, logs and the database share it
JUMP = 5.0  # seconds between wall clock and monotonic clock; NTP corrects less at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """As `HostReport`, without its time."""

    devices: list[dict[str, Any]]
    strangers: list[dict[str, Any]]
    engines: dict[str, str]
    installed: dict[str, list[str]]
    stamps: dict[str, dict[str, str]]
    default_versions: dict[str, str]
    problems: list[dict[str, str]]


class Inspector:
    """Inspects the host; keeps what is slow to find out. `inspect` blocks, usually for 50 ms."""

    def __init__(self, runs: Runs, cache: Path, commands: Mapping[str, str]) -> None:
        self.runs = runs
        self.cache = cache
        self.commands = commands
        self.versions = EngineVersions()
        self.devices: list[gpus.Device] = []
        self.clocks: tuple[float, float] | None = None  # wall and monotonic
        self.left: set[Identity] = set()
        self.were_ours: set[int] = set()

    def inspect(self) -> Inspection:
        self.devices = devices = gpus.list_devices(self.devices)
        found = programs.find_engines(self.commands, self.cache, os.environ.get("PATH", os.defpath))
        installed = programs.all_installed(self.cache)
        runs = self.runs.all()
        remains = process.leftovers_of(runs)
        ours = {who.pid for who in _own_processes(runs, remains)}
        problems = [
            *disk_problems([self.runs.root, self.cache]),
            *self.report_clock_jump(time.time(), time.monotonic()),
            *self.report_leftovers(runs, remains),
            *self.report_ghosts(devices, ours),
        ]
        return Inspection(
            devices=[asdict(device) for device in devices],
            strangers=find_strangers(devices, ours, self.runs.root),
            engines=self.versions.of(found),
            installed=programs.group_versions(installed),
            stamps=programs.group_stamps(installed),
            default_versions=programs.default_versions(found, installed),
            problems=problems,
        )

    def report_clock_jump(self, wall: float, monotonic: float) -> list[dict[str, str]]:
        """Report that the wall clock was set since the last inspection."""
        before, self.clocks = self.clocks or (wall, monotonic), (wall, monotonic)
        jump = (wall - before[0]) - (monotonic - before[1])
        return [{"code": "clock-jumped", "detail": f"{jump:+.0f} s"}] if abs(jump) > JUMP else []

    def report_leftovers(self, runs: Sequence[Run], remains: Remains) -> list[dict[str, str]]:
        """Report processes left from ended runs, seen at two inspections: just killed ones may still be going."""
        over = [run for run in runs if process.life_of(run) in (Life.ENDED, Life.LOST)]
        before, self.left = self.left, {who for run in over for who in remains[run.run_id]}
        stay = [f"{who.pid} ({shim.process_name(who.pid)})" for who in sorted(before & self.left)]
        return [{"code": "remains", "detail": ", ".join(stay)}] if stay else []

    def report_ghosts(self, devices: Sequence[gpus.Device], ours: Collection[int]) -> list[dict[str, str]]:
        """Report memory of a GPU that the driver still counts for processes of ours that are gone."""
        self.were_ours = {pid for pid in self.were_ours if shim.identify(pid) is None} | set(ours)
        held = gpus.memory_held(devices, self.were_ours - set(ours))
        return [
            {"code": "memory-not-back", "detail": f"GPU {index}: {used / 1e9:.1f} GB"} for index, used in held.items()
        ]


def _own_processes(runs: Iterable[Run], remains: Remains) -> Iterator[Identity]:
    for run in runs:
        if process.life_of(run) in (Life.RUNNING, Life.ENDING):
            yield run.shim
            yield from process.process_tree(run)
        yield from remains[run.run_id]


def describe_stranger(found: Mapping[str, Any]) -> str:
    held = "memory" if found["bytes"] is None else f"{found['bytes'] / 1e9:.1f} GB"
    where = "RAM" if found["device"] == gpus.RAM else f"GPU {found['device']}"
    return f"process {found['pid']} ({found['name']}) is not ours and holds {held} of {where}"


def find_strangers(devices: Sequence[gpus.Device], ours: Collection[int], root: Path) -> list[dict[str, Any]]:
    """Return strangers as `gpus.Stranger`, with "installation": the state directory of their Madoguchi, or ""."""
    marks = {who.pid: mark for who, mark in process.find_marked("") if not mark.startswith(f"{root}/")}
    found = gpus.find_strangers(devices, ours)
    on_gpus = {stranger.pid for stranger in found}
    has_gpus = any(device.kind == "gpu" for device in devices)
    for pid in shim.list_processes():
        resident = _resident_bytes(pid)
        named = pid in marks or (not has_gpus and resident >= LARGE)
        if resident and named and pid not in on_gpus and pid not in ours:
            found.append(gpus.Stranger(pid=pid, name=shim.process_name(pid), device=gpus.RAM, bytes=resident))
    return [
        {**asdict(stranger), "installation": _installation(marks.get(stranger.pid, ""))}
        for stranger in sorted(found, key=lambda stranger: -(stranger.bytes or 0))
    ]


def disk_problems(paths: Iterable[Path]) -> list[dict[str, str]]:
    """Return a problem for each disk that is nearly full."""
    found = {}
    for path in paths:
        existing = next(each for each in (path, *path.parents) if each.exists())
        free = shutil.disk_usage(existing).free
        if free < LITTLE_DISK:
            found[existing.stat().st_dev] = {"code": "disk-full", "detail": f"{existing}: {free / 1e6:.0f} MB"}
    return list(found.values())


def _installation(mark: str) -> str:
    # A mark is VAR/run/engines/RUN.
    return str(Path(mark).parent.parent.parent) if mark else ""


def _resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, LookupError):
        return 0
