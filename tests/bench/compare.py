"""python -m tests.bench.compare [--rounds 3] [--only nginx,madoguchi]: the gateway beside nginx and no gateway.

Three interleaved rounds, so that a machine that gets slower or faster does so for all; of each figure the median.
The contender has one core, the load and the engine the other. A load during which strangers or the machine's own host
took more than a quarter of a core is repeated once. At the end the usage that the gateway recorded is compared with the
answers that the load generator got. Prints a table for RESULTS.md.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from time import monotonic

from tests.bench import processes
from tests.bench.contenders import Contender, contenders
from tests.bench.processes import ROOT
from tests.bench.workloads import WARM_UP, WORKLOADS, Workload, load

CONTENDER_CORE, LOAD_CORE = 1, 0
QUIET = 0.25  # cores
BIN = Path(__file__).with_name("bin")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One load on one contender. Microseconds of CPU are None for the engine itself. `delay`: ms added per token."""

    contender: str
    workload: str
    good: int
    bad: int
    fault: str
    us_per_request: float | None
    us_per_token: float | None
    p50: float
    p99: float
    peak_mb: float | None
    disturbed: float  # cores
    repeated: bool = False  # it was, and another row counts in its place


def measure(contender: Contender, pid: int | None, upstream: int, workload: Workload) -> list[Row]:
    """Puts the load on it, once more if the machine was not quiet."""
    row = _measure(contender, pid, upstream, workload)
    if row.disturbed < QUIET:
        return [row]
    return [replace(row, repeated=True), _measure(contender, pid, upstream, workload)]


def _measure(contender: Contender, pid: int | None, upstream: int, workload: Workload) -> Row:
    own = [process for process in (pid, upstream) if process]
    before, machine, started = [processes.cost(process) for process in own], processes.machine(), monotonic()
    seen = load(workload, port=contender.port, key=contender.key, core=LOAD_CORE)
    seconds = monotonic() - started
    after, machine_after = [processes.cost(process) for process in own], processes.machine()
    used = [late.cpu - early.cpu for early, late in zip(before, after, strict=True)]
    everything = machine_after.busy - machine.busy + machine_after.stolen - machine.stolen
    times = seen["delay_ms"] if workload.tokens else seen["latency_ms"]
    return Row(
        contender=contender.name,
        workload=workload.name,
        good=seen["good"],
        bad=seen["bad"] + seen["unfinished"],
        fault=seen["first_fault"],
        us_per_request=1e6 * used[0] / max(1, seen["good"]) if pid else None,
        us_per_token=1e6 * used[0] / seen["tokens"] if pid and seen["tokens"] else None,
        p50=times["p50"],
        p99=times["p99"],
        peak_mb=after[0].peak_mb if pid else None,
        disturbed=(everything - sum(used) - seen["loadgen_cpu_s"]) / seconds,
    )


def one_round(contender: Contender, direct: Contender, logs: Path) -> Iterable[Row]:
    """Every load on one contender, with an engine and a gateway that are started for it."""
    engine, log = [str(BIN / "upstream"), "-p", str(direct.port)], logs / "upstream.log"
    with processes.running(engine, core=LOAD_CORE, url=direct.url, log=log, env={}) as upstream:
        if not contender.command:
            for workload in WORKLOADS:
                yield from measure(contender, None, upstream, workload)
            return
        log = logs / f"{contender.name}.log"
        with processes.running(
            contender.command, core=CONTENDER_CORE, url=contender.url, log=log, env=contender.env
        ) as pid:
            for workload in WARM_UP:
                load(workload, port=contender.port, key=contender.key, core=LOAD_CORE)
            for workload in WORKLOADS:
                yield from measure(contender, pid, upstream, workload)


def table(rows: list[Row]) -> str:
    """Markdown: one line for each contender and workload, medians of the rounds.

    `others`: of a core, at most, what strangers and the machine's own host used meanwhile. Distrust much above 25 %.
    """
    lines = [
        "| | load | CPU µs per request | per token | p50 ms | p99 ms | peak MB | good | bad | others |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for contender, workload in dict.fromkeys((row.contender, row.workload) for row in rows):
        same = [row for row in rows if (row.contender, row.workload) == (contender, workload) and not row.repeated]
        streams = same[0].us_per_token is not None
        cells = [
            contender,
            workload,
            "–" if streams else _median([row.us_per_request for row in same], 0),
            _median([row.us_per_token for row in same], 1),
            _median([row.p50 for row in same], 2),
            _median([row.p99 for row in same], 1),
            _median([row.peak_mb for row in same], 0),
            str(sum(row.good for row in same)),
            str(sum(row.bad for row in same)),
            f"{max(row.disturbed for row in same):.0%}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _median(values: list[float | None], digits: int) -> str:
    known = [value for value in values if value is not None]
    return f"{median(known):.{digits}f}" if known else "–"


def metered(contender: Contender) -> int:
    """How many requests the gateway recorded. It has been stopped, which moves what was left in its spool."""
    usage = [sys.executable, "manage.py", "usage", "--json"]
    done = subprocess.run(usage, cwd=ROOT, env={**os.environ, **contender.env}, check=True, capture_output=True)
    return sum(row["requests"] for row in json.loads(done.stdout))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--only", default="nginx,madoguchi", help="with commas; `direct` is always there")
    options = arguments.parse_args()
    # Measured is the default configuration, whatever this shell is set up for.
    for name in [name for name in os.environ if name.startswith(("LDAP_", "GATEWAY_", "DATABASE_URL"))]:
        del os.environ[name]
    rows = []
    with tempfile.TemporaryDirectory(prefix="madoguchi-bench-") as name:
        everybody = contenders(Path(name), options.only.split(","))
        for _ in range(options.rounds):
            for contender in everybody:
                for row in one_round(contender, everybody[0], Path(name)):
                    print(row, file=sys.stderr, flush=True)
                    rows.append(row)
        print(table(rows))
        warm_up = options.rounds * sum(workload.requests for workload in WARM_UP)
        for contender in everybody:
            if contender.name == "madoguchi":
                answered = warm_up + sum(row.good for row in rows if row.contender == contender.name)
                recorded = metered(contender)
                print(f"\nmadoguchi answered {answered} requests and recorded {recorded}.")
                if recorded != answered:
                    raise SystemExit("Usage is not exact.")
    if any(row.bad for row in rows):
        raise SystemExit("Some answers were not as they should be; see `fault` above.")


if __name__ == "__main__":
    main()
