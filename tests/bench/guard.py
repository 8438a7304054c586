"""What the guard against word loops adds to a stream in the running gateway: the same streams with it and without."""

import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import median

from tests.bench import report
from tests.bench.contenders import contenders
from tests.bench.measuring import Row, answered, counted, measure, metered, started
from tests.bench.report import Goal, Part
from tests.bench.workloads import Workload, paced

OURS = "madoguchi"
STREAMS = 1000
TURNS = 3  # of both, in each round: the difference is a fiftieth of what is measured
MOST = 0.5  # µs per token


def workload(loops: str) -> Workload:
    """Return a thousand streams of words, at 30 tokens a second, whose callers ask for this policy."""
    common = paced(STREAMS)
    return replace(common, name=f"loops {loops}", each=10, headers=(f"x-madoguchi-loops: {loops}",))


def part(rounds: int) -> Part:
    """Return two minutes for each round."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="madoguchi-bench-") as directory:
        everybody = contenders(Path(directory), [OURS])
        with started(everybody, Path(directory)) as running:
            for turn in range(rounds * TURNS):
                for loops in ("off", "count") if turn % 2 else ("count", "off"):
                    rows += measure(running, OURS, workload(loops), turn)
        recorded = metered(everybody[1])
    without, watched = (counted(rows, OURS, f"loops {loops}") for loops in ("off", "count"))
    more = [(one.us_per_token or 0) - (other.us_per_token or 0) for one, other in zip(watched, without, strict=True)]
    lines = [
        [
            name,
            f"{median(row.us_per_token or 0 for row in found):.2f}",
            f"{median(row.core or 0 for row in found):.0%}",
            f"{median(row.p50 for row in found):.2f} / {median(row.p99 for row in found):.1f}",
            f"{sum(row.bad for row in found)}",
        ]
        for name, found in (("without", without), ("with", watched))
    ]
    lines.append(
        ["more, median of the pairs", f"{median(more):+.2f} ({min(more):+.2f} to {max(more):+.2f})", "", "", ""]
    )
    table = report.table(["guard", "CPU µs per token", "of a core", "delay p50 / p99, ms", "bad"], lines)
    goal = Goal(
        text=f"guard, CPU per token at {STREAMS:,} streams",
        wanted=f"≤ {MOST} µs",
        reached=f"{median(more):.2f} µs",
        met=median(more) <= MOST,
    )
    return Part(name="guard", markdown=table, goals=(goal,), answered=answered(rows, OURS, 1), recorded=recorded)
