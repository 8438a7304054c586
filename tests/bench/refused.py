"""What a bad key costs, beside a good request."""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import sleep

from portal.keys import secret
from tests.bench import processes, report
from tests.bench.contenders import contenders
from tests.bench.measuring import QUIET, Row, Running, answered, costed, measure, metered, started
from tests.bench.report import Goal, Part
from tests.bench.workloads import UNARY, Workload

OURS = "madoguchi"
MANY = 12_000
SOME = 1500  # a well-formed key that is unknown is answered 150 times a second: the database is asked first
IDLE = 5.0  # seconds
KINDS: dict[str, tuple[int, Callable[[], str] | None]] = {
    "no key of ours": (MANY, lambda: f"sk-{secret.make_secret()[3:]}"),
    "mistyped: its checksum is wrong": (MANY, lambda: secret.make_secret()[:-1] + "!"),
    "well formed, one and the same": (SOME, None),
    "well formed, each another": (SOME, secret.make_secret),
}


def part(rounds: int) -> Part:
    """Return half a minute for a round."""
    with tempfile.TemporaryDirectory(prefix="madoguchi-bench-") as name:
        directory = Path(name)
        everybody = contenders(directory, [OURS])
        bad = [_workload(directory, kind) for kind in KINDS]
        rows: list[Row] = []
        costs: dict[str, list[float]] = {kind: [] for kind in KINDS}
        with started(everybody, directory) as running:
            idle = _idle(running)
            for number in range(1, rounds + 1):
                rows += measure(running, OURS, UNARY, number)
                for workload in bad:
                    costs[workload.name].append(_refused(running, workload, idle))
        good = median(row.us_per_request for row in rows if row.us_per_request is not None and not row.repeated)
        dearest = max(map(median, costs.values()))
        lines = [[kind, f"{median(cost):.0f}", f"{median(cost) / good:.2f}"] for kind, cost in costs.items()]
        return Part(
            name="refused",
            markdown=report.table(["401 for a key that is", "CPU µs", f"of a good request's {good:.0f}"], lines),
            goals=(
                Goal(
                    text="CPU of a 401, of a good request's",
                    wanted="≤ 0.33",
                    reached=f"{dearest / good:.2f} ({dearest:.0f} and {good:.0f} µs)",
                    met=dearest <= good / 3,
                ),
            ),
            answered=answered(rows, OURS, 1),
            recorded=metered(everybody[1]),
        )


def _workload(directory: Path, kind: str) -> Workload:
    path = directory / f"{list(KINDS).index(kind)}.keys"
    calls, make = KINDS[kind]
    path.write_text("".join(f"{make()}\n" for _ in range(calls)) if make else f"{secret.make_secret()}\n")
    return Workload(name=kind, clients=UNARY.clients, requests=calls, keys=path)


def _idle(running: Running) -> float:
    """Return the cores that it uses without calls."""
    before = processes.cost(running.pids[OURS]).cpu
    sleep(IDLE)
    return (processes.cost(running.pids[OURS]).cpu - before) / IDLE


def _refused(running: Running, workload: Workload, idle: float) -> float:
    """Return the microseconds of CPU for one; measure again if the machine was not quiet.

    Ends the run if one was let through.

    What it uses without calls is not counted, for these answers may take their time.
    """
    for _ in range(2):
        seen, used = costed(running, OURS, workload)
        if seen["status"] != {"401": workload.requests}:
            raise SystemExit(f"{workload.name}: {seen['status']}, {seen['first_fault']}")
        cost = 1e6 * (used.cpu - idle * used.seconds) / workload.requests
        print(f"{workload.name}: {cost:.0f} µs, others {used.disturbed:.0%}", file=sys.stderr, flush=True)
        if used.disturbed < QUIET:
            break
    return cost
