"""One load on one contender that runs: what it cost, what it added, and whether every answer was right."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Any

from tests.bench import processes
from tests.bench.contenders import Contender
from tests.bench.processes import ROOT, Cores
from tests.bench.workloads import WARM_UP, Workload, load

QUIET = 0.25  # cores
BIN = Path(__file__).with_name("bin")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Which cores are whose."""

    gateway: Cores
    load: Cores  # and the engine's


APART = Layout(gateway="1", load="0")
TOGETHER = Layout(gateway="0,1", load="0,1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """Contenders by name, and the pid of each one's first process. `direct` is the engine itself."""

    everybody: Mapping[str, Contender]
    pids: Mapping[str, int]
    layout: Layout

    def put(self, workload: Workload, name: str) -> dict[str, Any]:
        """Return the load on this contender, unmeasured; what the load generator saw."""
        contender = self.everybody[name]
        return load(workload, port=contender.port, key=contender.key, cores=self.layout.load)


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """While a load ran: CPU seconds of the contender's processes, all seconds, and cores that were a stranger's."""

    cpu: float
    seconds: float
    disturbed: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One load on one contender. Microseconds of CPU are None for the engine itself.

    `p50`, `p99`, in ms: of streams from the engine's send to the client's receipt, else of the whole answer.
    """

    contender: str
    workload: str
    round: int
    good: int
    bad: int
    fault: str
    us_per_request: float | None
    us_per_token: float | None
    core: float | None  # how much of one it used
    p50: float
    p99: float
    peak_mb: float | None
    disturbed: float  # cores
    repeated: bool = False  # it was, and another row counts in its place


@contextmanager
def started(everybody: list[Contender], logs: Path, layout: Layout = APART) -> Iterator[Running]:
    """Provide the engine and all contenders, warmed up; everything is ended at the end."""
    with ExitStack() as stack:
        pids = {}
        for contender in everybody:
            direct = contender.name == "direct"
            pids[contender.name] = stack.enter_context(
                processes.running(
                    [str(BIN / "upstream"), "-p", str(contender.port)] if direct else contender.command,
                    cores=layout.load if direct else layout.gateway,
                    answers=partial(processes.http, contender.url),
                    log=logs / f"{contender.name}.log",
                    env=contender.env,
                )
            )
        running = Running(everybody={one.name: one for one in everybody}, pids=pids, layout=layout)
        for contender in everybody:
            for workload in WARM_UP:
                running.put(workload, contender.name)
        yield running


def costed(running: Running, name: str, workload: Workload) -> tuple[dict[str, Any], Used]:
    """Return what the load generator saw, and what it cost."""
    # The engine's part and the other contenders' are known as well: the rest is the work of other programs.
    own = list(dict.fromkeys((running.pids[name], *running.pids.values())))
    before, machine, begun = [processes.cost(pid).cpu for pid in own], processes.machine(), monotonic()
    seen = running.put(workload, name)
    seconds = monotonic() - begun
    after, machine_after = [processes.cost(pid).cpu for pid in own], processes.machine()
    used = [late - early for early, late in zip(before, after, strict=True)]
    everything = machine_after.busy - machine.busy + machine_after.stolen - machine.stolen
    disturbed = (everything - sum(used) - seen["loadgen_cpu_s"]) / seconds
    return seen, Used(cpu=used[0], seconds=seconds, disturbed=disturbed)


def measure(running: Running, name: str, workload: Workload, number: int = 1) -> list[Row]:
    """Put the load on it, once more if the machine was not quiet. `number` is that of the round."""
    rows = [_measure(running, name, workload, number)]
    if rows[0].disturbed >= QUIET:
        rows = [replace(rows[0], repeated=True), _measure(running, name, workload, number)]
    return rows


def _measure(running: Running, name: str, workload: Workload, number: int) -> Row:
    seen, used = costed(running, name, workload)
    times = seen["delay_ms"] if workload.tokens else seen["latency_ms"]
    gateway = name != "direct"
    row = Row(
        contender=name,
        workload=workload.name,
        round=number,
        good=seen["good"],
        bad=seen["bad"] + seen["unfinished"],
        fault=seen["first_fault"],
        us_per_request=1e6 * used.cpu / max(1, seen["good"]) if gateway else None,
        us_per_token=1e6 * used.cpu / seen["tokens"] if gateway and seen["tokens"] else None,
        core=used.cpu / used.seconds if gateway else None,
        p50=times.get("p50", float("inf")),
        p99=times.get("p99", float("inf")),
        peak_mb=processes.cost(running.pids[name]).peak_mb if gateway else None,
        disturbed=used.disturbed,
    )
    print(row, file=sys.stderr, flush=True)
    return row


def counted(rows: list[Row], contender: str, workload: str) -> list[Row]:
    """Return those that count, one for each round."""
    return [row for row in rows if (row.contender, row.workload, row.repeated) == (contender, workload, False)]


def middle(rows: list[Row], contender: str, workload: str, what: str) -> float:
    """Return the median of a figure over the rounds."""
    return median(getattr(row, what) for row in counted(rows, contender, workload))


def added(rows: list[Row], contender: str, workload: str, what: str) -> float:
    """Return the milliseconds more than the engine's own of the same round, `p50` or `p99`: the rounds' median."""
    direct = {row.round: getattr(row, what) for row in counted(rows, "direct", workload)}
    return median(getattr(row, what) - direct[row.round] for row in counted(rows, contender, workload))


def ratio(rows: list[Row], contender: str, other: str, workload: str, what: str) -> float:
    """Return how many times the other's figure of the same round; the median of the rounds."""
    others = {row.round: getattr(row, what) for row in counted(rows, other, workload)}
    return median(getattr(row, what) / others[row.round] for row in counted(rows, contender, workload))


def answered(rows: list[Row], contender: str, starts: int) -> int:
    """Return how many answers it gave, those included that warmed it up at each of its starts."""
    warm_up = starts * sum(workload.requests for workload in WARM_UP)
    return warm_up + sum(row.good for row in rows if row.contender == contender)


def metered(contender: Contender) -> int:
    """Return how many requests the gateway recorded. It has been stopped, which moves what was left in its spool."""
    usage = [sys.executable, "manage.py", "usage", "--json"]
    done = subprocess.run(usage, cwd=ROOT, env={**os.environ, **contender.env}, check=True, capture_output=True)
    return sum(row["requests"] for row in json.loads(done.stdout))


def default_settings() -> None:
    """Measured is the default configuration, whatever this shell is set up for."""
    for name in [name for name in os.environ if name.startswith(("LDAP_", "GATEWAY_", "DATABASE_URL", "REDIS_URL"))]:
        del os.environ[name]
