"""Every process of one installation, and whether each has one that answers for it.

Found by four things, any of which will do: our state directory in the environment (what `up` starts), the mark in the
environment (engines), the run directory on the command line (shims), an output that goes into the state directory.
"""

import contextlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelregistry.hostside.run_metadata import metadata_of
from modelregistry.process import process, shim
from modelregistry.process.process import Life, Run
from modelregistry.supervisor import tasks
from tests.chaos.discrepancy import Discrepancy

HELPER = "multiprocessing.resource_tracker"  # of vLLM: whether it lives makes no difference to the engine
PROGRAMS = ("up", "gateway", "portal", "supervisor")
RESTING = ("stopped", "asleep", "backoff", "failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A living process. `part`: up, gateway, portal, supervisor, task, shim, front, worker, helper, other."""

    who: shim.Identity
    part: str
    run: str  # of an engine or a shim: its run's id
    command: str

    def __str__(self) -> str:
        return f"{self.part} {self.who.pid} {self.run} {self.command[:120]}".rstrip()


class Census:
    """Of the installation in `var`."""

    def __init__(self, var: Path) -> None:
        self.var = var.resolve()
        self.runs = process.Runs(self.var / "run" / "engines")

    def take(self) -> list[Found]:
        """Return all processes that run now."""
        runs = self._runs()
        return [found for pid in shim.list_processes() if pid != os.getpid() and (found := self._find(pid, runs))]

    def living_runs(self) -> list[Run]:
        return [run for run in self.runs.all() if process.life_of(run) in (Life.RUNNING, Life.ENDING)]

    def _runs(self) -> dict[str, Run]:
        return {run.run_id: run for run in self.runs.all()}

    def _find(self, pid: int, runs: Mapping[str, Run]) -> Found | None:
        who = shim.identify(pid)
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:  # gone meanwhile
            return None
        if who is None:
            return None
        run_id = self._run_of(environment, command)
        if run_id:
            return Found(
                who=who, part=_part_of_run(who, runs.get(run_id), environment, command), run=run_id, command=command
            )
        ours = f"MADOGUCHI_VAR={self.var}".encode() in environment
        if ours or self._writes_here(pid):
            return Found(who=who, part=name_part(command), run="", command=command)
        return None

    def _run_of(self, environment: Sequence[bytes], command: str) -> str:
        for entry in environment:
            if entry.startswith(f"{shim.MARK}={self.runs.root}/".encode()):
                return Path(entry.decode()).name
        last = command.rpartition(" ")[2]
        return Path(last).name if last.startswith(f"{self.runs.root}/") else ""

    def _writes_here(self, pid: int) -> bool:
        with contextlib.suppress(OSError):
            return os.readlink(f"/proc/{pid}/fd/1").startswith(f"{self.var}/")
        return False


def _part_of_run(who: shim.Identity, run: Run | None, environment: Sequence[bytes], command: str) -> str:
    if run and who == run.shim:
        return "shim"
    if run and who == run.engine:
        return "front"
    marked = any(entry.startswith(f"{shim.MARK}=".encode()) for entry in environment)
    if not marked:
        return "other"
    return "helper" if HELPER in command else "worker"


def name_part(command: str) -> str:
    words = {
        "manage.py up": "up",
        "apiproxy.server.gateway_worker": "gateway",
        "apiproxy.server.portal_worker": "portal",
        "manage.py supervise": "supervisor",
    }
    # What a supervisor does now and then beside its engines; ends with it.
    words |= {f"manage.py {' '.join(work.argv)}": "task" for work in tasks.registered_tasks()}
    return next((part for word, part in words.items() if word in command), "other")


def unaccounted(
    found: Sequence[Found], runs: Sequence[Run], replicas: Sequence[Mapping[str, Any]]
) -> list[Discrepancy]:
    """Return what is wrong while everything runs. `runs` are the living ones, `replicas` the rows.

    Each process has a living shim, each shim one row, each row one shim; of each of our own programs there is one.
    """
    return [*_strange_processes(found, runs), *_differences(runs, replicas), *_twice(runs)]


def _strange_processes(found: Sequence[Found], runs: Sequence[Run]) -> Iterator[Discrepancy]:
    for each in found:
        if each.part == "other":
            yield Discrepancy("unknown-process", f"{each.part} without a reason to be: {each}")
    parts = Counter(each.part for each in found)
    for part in PROGRAMS:
        if parts[part] != 1:
            yield Discrepancy(f"not-one-{part}", f"{parts[part]} times {part}")
    held = {run.run_id: set(shim.descendants(run.shim.pid)) for run in runs}
    for each in found:
        if each.part in ("front", "worker", "helper") and each.who not in held.get(each.run, ()):
            yield Discrepancy("orphan", f"orphan, no living shim holds it: {each}")


def _differences(runs: Sequence[Run], replicas: Sequence[Mapping[str, Any]]) -> Iterator[Discrepancy]:
    """Yield engines and rows that have not each other."""
    rows = {row["run_id"]: row for row in replicas if row["state"] not in RESTING}
    living = {run.run_id: run for run in runs}
    for name in living.keys() - rows.keys():
        yield Discrepancy("no-row", f"an engine without a row: {metadata_of(living[name]).name} {name}")
    for name in rows.keys() - living.keys():
        yield Discrepancy("no-engine", f"a row without an engine: {rows[name]['model']} {name}")
    for name in living.keys() & rows.keys():
        written, there = rows[name]["pid"], living[name].engine.pid
        if written != there:
            text = f"{rows[name]['model']}: the row says process {written}, its shim {there}"
            yield Discrepancy("another-process", text)


def _twice(runs: Sequence[Run]) -> Iterator[Discrepancy]:
    for key, count in Counter(metadata_of(run).key for run in runs).items():
        if count > 1:
            yield Discrepancy("twice", f"{count} engines for one replica: model {key.model} #{key.number}")
