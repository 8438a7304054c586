"""Whether a catalogue of 100,000 keys and 1,000 models costs anything, and how soon a changed key is live then."""

import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.bench import report
from tests.bench.contenders import LARGE, Contender, contenders
from tests.bench.measuring import Row, Running, added, answered, measure, metered, middle, ratio, started
from tests.bench.processes import ROOT
from tests.bench.report import Goal, Part
from tests.bench.workloads import UNARY, Workload, paced

SMALL_NAME, LARGE_NAME = "madoguchi", "madoguchi-large"
FIGURES = ((UNARY, "us_per_request", "CPU µs per request"), (paced(500), "us_per_token", "CPU µs per token"))
MOST = 1.1
WHILE = Workload(name="meanwhile", clients=100, tokens=600, pace=33, ramp=1000)  # 21 s
CHANGES = 8
LIVE = 2.0  # seconds


def part(rounds: int) -> Part:
    """Run both at once, so that each load goes to one right after the other.

    Takes a minute, and half a minute for each round.
    """
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="madoguchi-bench-") as directory:
        everybody = contenders(Path(directory), [SMALL_NAME, LARGE_NAME])
        with started(everybody, Path(directory)) as running:
            for number in range(1, rounds + 1):
                for workload, _, _ in FIGURES:
                    for contender in everybody:
                        rows += measure(running, contender.name, workload, number)
            live = changes(running, everybody[2])
        return Part(
            name="large",
            markdown=table(rows, live),
            goals=goals(rows, live),
            answered=answered(rows, SMALL_NAME, 1) + answered(rows, LARGE_NAME, 1) + WHILE.clients,
            # The commands' own calls ask for the list of models, which is not metered.
            recorded=metered(everybody[1]) + metered(everybody[2]),
        )


def changes(running: Running, contender: Contender) -> dict[str, list[float]]:
    """Return seconds from a change to the first answer that knows it, while 100 streams run."""
    with ThreadPoolExecutor(1) as pool:
        streams = pool.submit(running.put, WHILE, contender.name)
        done = subprocess.run(
            [sys.executable, "-m", "tests.bench.changes", f"http://127.0.0.1:{contender.port}", str(CHANGES)],
            cwd=ROOT,
            env={**os.environ, **contender.env},
            check=True,
            stdout=subprocess.PIPE,
        )
        seen = streams.result()
    if seen["good"] != WHILE.clients:
        raise SystemExit(f"{WHILE.name}: {seen['first_fault']}")
    return json.loads(done.stdout)


def table(rows: list[Row], live: dict[str, list[float]]) -> str:
    lines = []
    for workload, what, name in FIGURES:
        figures = [middle(rows, one, workload.name, what) for one in (SMALL_NAME, LARGE_NAME)]
        times = ratio(rows, LARGE_NAME, SMALL_NAME, workload.name, what)
        lines.append([workload.name, name, *(f"{figure:.1f}" for figure in figures), f"{times:.2f}"])
        for quantile in ("p50", "p99"):
            late = [added(rows, one, workload.name, quantile) for one in (SMALL_NAME, LARGE_NAME)]
            lines.append([workload.name, f"added {quantile} ms", *(f"{ms:.2f}" for ms in late), "–"])
    columns = ["load", "", "1 key, 1 model", f"{LARGE.keys:,} keys, {LARGE.models:,} models", "times"]
    live_times = [f"{kind}: {', '.join(f'{seconds:.2f}' for seconds in many)} s" for kind, many in live.items()]
    return f"{report.table(columns, lines)}\n\nLive at that size, while 100 streams run: {'; '.join(live_times)}."


def goals(rows: list[Row], live: dict[str, list[float]]) -> tuple[Goal, ...]:
    ratios = [ratio(rows, LARGE_NAME, SMALL_NAME, workload.name, what) for workload, what, _ in FIGURES]
    latest = max(max(many) for many in live.values())
    return (
        Goal(
            text=f"CPU with {LARGE.keys:,} keys and {LARGE.models:,} models, times that with one: request, token",
            wanted=f"≤ {MOST:g}",
            reached=", ".join(f"{times:.2f}" for times in ratios),
            met=max(ratios) <= MOST,
        ),
        Goal(
            text="a changed key is live at that size",
            wanted=f"≤ {LIVE:g} s",
            reached=f"{latest:.2f} s at most of {sum(map(len, live.values()))}",
            met=latest <= LIVE,
        ),
    )
