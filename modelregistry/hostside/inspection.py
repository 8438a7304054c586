"""The state of a host: its devices, which other processes hold their memory, its engines, and its problems.

Strangers are reported, never touched. A stranger is a process that is not of our runs and

- holds memory of a GPU, or
- belongs to another installation of Madoguchi (it carries the mark of a run that is not ours), or
- on a host without GPUs, holds LARGE bytes of RAM or more.
"""

import os
import shutil
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from modelregistry.engines import programs
from modelregistry.engines.versions import EngineVersions
from modelregistry.process import gpus, process, shim
from modelregistry.process.process import Life, Run, Runs
from modelregistry.process.shim import Identity
from modelregistry.process.xid_errors import XidWatch, with_xid_counts
from modelregistry.wire_bounds import AtMost, Line, Name

Remains = Mapping[str, Sequence[Identity]]  # by run id

EVERY = 10.0  # seconds between two inspections
LARGE = 1_000_000_000  # bytes; a browser or a database with a large cache, which a plan for RAM should know of
LITTLE_DISK = 1_000_000_000  # bytes; runs, logs and the database share it
MOST_STRANGERS = 200  # of which each is reported, the largest; of the others, how many there are
MOST_LISTED = 100  # launchers, versions of one, problems
JUMP = 5.0  # seconds between wall clock and monotonic clock; NTP corrects less at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """As `HostReport`, without its time."""

    devices: Annotated[list[gpus.Device], AtMost(gpus.MOST_DEVICES)]
    strangers: Annotated[list[gpus.Stranger], AtMost(MOST_STRANGERS)]
    engines: Annotated[dict[str, Line], AtMost(MOST_LISTED)]
    installed: Annotated[dict[str, Annotated[list[Name], AtMost(MOST_LISTED)]], AtMost(MOST_LISTED)]
    stamps: Annotated[dict[str, Annotated[dict[str, Line], AtMost(MOST_LISTED)]], AtMost(MOST_LISTED)]
    default_versions: Annotated[dict[str, Name], AtMost(MOST_LISTED)]
    problems: Annotated[list[Annotated[dict[str, Line], AtMost(10)]], AtMost(MOST_LISTED)]
    # An agent of the version before reports none.
    disks: Annotated[list[Annotated[dict[str, int | Line], AtMost(10)]], AtMost(MOST_LISTED)] = field(
        default_factory=list
    )

    def __post_init__(self) -> None:
        if not all({"code", "detail"} <= each.keys() for each in self.problems):
            raise ValueError("a problem has no code or detail")


class Inspector:
    """Inspects the host; keeps what is slow to find out. `inspect` blocks, usually for 50 ms."""

    def __init__(self, runs: Runs, cache: Path, commands: Mapping[str, str], directories: Sequence[Path] = ()) -> None:
        """Inspect the disks of `directories` as well."""
        self.runs = runs
        self.cache = cache
        self.disks = DiskReader((runs.root, cache, *directories))
        self.commands = commands
        self.versions = EngineVersions()
        self.devices: list[gpus.Device] = []
        self.xids = XidWatch()
        self.clocks: tuple[float, float] | None = None  # wall and monotonic
        self.left: set[Identity] = set()
        self.were_ours: set[int] = set()

    def inspect(self) -> Inspection:
        self.devices = devices = with_xid_counts(gpus.list_devices(self.devices), self.xids.look())
        found = programs.find_engines(self.commands, self.cache, os.environ.get("PATH", os.defpath))
        installed = programs.all_installed(self.cache)
        runs = self.runs.all()
        remains = process.leftovers_of(runs)
        ours = {who.pid for who in _own_processes(runs, remains)}
        disks = self.disks.read()
        strangers = find_strangers(devices, ours, self.runs.root)
        problems = [
            *disk_problems(disks),
            *self.report_clock_jump(time.time(), time.monotonic()),
            *self.report_leftovers(runs, remains),
            *self.report_ghosts(devices, ours),
            *report_more(strangers),
        ]
        return Inspection(
            devices=devices,
            strangers=strangers[:MOST_STRANGERS],
            engines=self.versions.of(found),
            installed=programs.group_versions(installed),
            stamps=programs.group_stamps(installed),
            default_versions=programs.default_versions(found, installed),
            problems=problems,
            disks=disks,
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
        return [{"code": "remains", "detail": ", ".join(stay[:MOST_LISTED])}] if stay else []

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


def find_strangers(devices: Sequence[gpus.Device], ours: Collection[int], root: Path) -> list[gpus.Stranger]:
    """Return all strangers, the largest first."""
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
        replace(stranger, installation=_installation(marks.get(stranger.pid, "")))
        for stranger in sorted(found, key=lambda stranger: -(stranger.bytes or 0))
    ]


class DiskReader:
    """Reads the sizes of disks in a thread of its own: a share that hangs keeps nothing else from being reported."""

    def __init__(self, directories: Sequence[Path]) -> None:
        self.directories = directories
        self.found: list[dict[str, Any]] = []
        self.thread: threading.Thread | None = None

    def read(self, patience: float = 1.0) -> list[dict[str, Any]]:
        """Return them as `read_disks`; none while one of them has not answered for `patience` seconds."""
        if self.thread is None or not self.thread.is_alive():
            self.thread = threading.Thread(target=self._read, daemon=True, name="disks")
            self.thread.start()
        self.thread.join(patience)
        return [] if self.thread.is_alive() else self.found

    def _read(self) -> None:
        self.found = read_disks(self.directories)


def read_disks(directories: Iterable[Path]) -> list[dict[str, Any]]:
    """Return each disk on which one of these directories is, or will be: {"path", "total", "free"}, in bytes.

    One that does not answer with its size is left out. Several directories on one disk are one disk, by the first.
    """
    found: dict[int, dict[str, Any]] = {}
    for directory in directories:
        try:
            existing = next(each for each in (directory, *directory.parents) if each.exists())
            device, usage = existing.stat().st_dev, shutil.disk_usage(existing)
        except OSError:
            continue
        found.setdefault(device, {"path": str(existing), "total": usage.total, "free": usage.free})
    return list(found.values())


def report_more(strangers: Sequence[gpus.Stranger]) -> list[dict[str, str]]:
    """Report how many strangers there are beside those that are reported each."""
    more = len(strangers) - MOST_STRANGERS
    return [{"code": "more-strangers", "detail": f"+{more}"}] if more > 0 else []


def disk_problems(disks: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Return a problem for each disk that is nearly full."""
    return [
        {"code": "disk-full", "detail": f"{disk['path']}: {disk['free'] / 1e6:.0f} MB"}
        for disk in disks
        if disk["free"] < LITTLE_DISK
    ]


def _installation(mark: str) -> str:
    # A mark is VAR/run/engines/RUN.
    return str(Path(mark).parent.parent.parent) if mark else ""


def _resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, LookupError):
        return 0
