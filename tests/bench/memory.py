"""Memory: what an open stream takes, and whether a million requests leave anything behind."""

import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic, sleep

from tests.bench import processes, report
from tests.bench.contenders import NAMES, Contender, contenders
from tests.bench.measuring import Running, metered, started
from tests.bench.report import Goal, Part
from tests.bench.workloads import UNARY, WARM_UP, Workload, paced

OURS = "madoguchi"
STREAMS = 1000
KB_PER_STREAM = 40
STEPS, STEP = 10, 100_000
# Of what is resident after the first hundred thousand: what malloc keeps comes and goes by a few percent.
GROWTH = 0.05
CATCH_UP = 240  # seconds


def streams(rounds: int) -> Part:
    """Growth of the resident size from just before 1,000 streams to its highest while they are open, for all.

    A fresh process after a warm-up of 6,000 answers, so that what it needs anyway is there. Once: a second time what
    malloc kept of the first would be used again, and the growth be smaller.
    """
    with tempfile.TemporaryDirectory(prefix="madoguchi-bench-") as directory:
        everybody = contenders(Path(directory), list(NAMES))
        with started(everybody, Path(directory)) as running:
            growth = {name: _growth(running, name) for name in NAMES}
        lines = [[name, f"{kb:.0f}"] for name, kb in growth.items()]
        return Part(
            name="streams",
            markdown=report.table(["", f"KB for each of {STREAMS:,} open streams"], lines),
            goals=(
                Goal(
                    text="memory of an open stream",
                    wanted=f"≤ {KB_PER_STREAM} KB",
                    reached=f"{growth[OURS]:.0f} KB",
                    met=growth[OURS] <= KB_PER_STREAM,
                ),
            ),
            answered=STREAMS + UNARY.requests + sum(workload.requests for workload in WARM_UP),
            recorded=sum(metered(contender) for contender in everybody if contender.name == OURS),
        )


def _growth(running: Running, name: str) -> float:
    """Return the KB for each stream."""
    running.put(UNARY, name)
    before = processes.cost(running.pids[name]).rss_mb
    highest = before
    with ThreadPoolExecutor(1) as pool:
        open_streams = pool.submit(running.put, paced(STREAMS), name)
        while not open_streams.done():
            highest = max(highest, processes.cost(running.pids[name]).rss_mb)
            sleep(0.25)
    seen = open_streams.result()
    print(f"{name}: {before:.1f} → {highest:.1f} MB, {seen['good']} good", file=sys.stderr, flush=True)
    return (highest - before) * 1024 / STREAMS


def million(rounds: int) -> Part:
    """Send requests as fast as they go by 32 clients; yield the resident size after each 100,000. 4 to 6 minutes."""
    workload = Workload(name="steady", clients=UNARY.clients, requests=STEP)
    with tempfile.TemporaryDirectory(prefix="madoguchi-bench-") as directory:
        everybody = contenders(Path(directory), [OURS])
        sizes, good = [], sum(workload.requests for workload in WARM_UP)
        with started(everybody, Path(directory)) as running:
            for step in range(STEPS):
                seen = running.put(workload, OURS)
                good += seen["good"]
                sizes.append(processes.cost(running.pids[OURS]).rss_mb)
                print(f"{step}: {sizes[-1]:.1f} MB, {seen['rps']:.0f}/s", file=sys.stderr, flush=True)
            late = caught_up(everybody[1], good)
        growth = max(sizes) / sizes[0] - 1
        after = [f"{STEP * (step + 1) // 1000}k" for step in range(STEPS)]
        table = report.table(["requests", *after], [["resident MB", *(f"{size:.0f}" for size in sizes)]])
        return Part(
            name="million",
            markdown=f"{table}\n\nThe last usage row was in the database {late:.0f} s after the last answer.",
            goals=(
                Goal(
                    text=f"memory from the {STEP:,}th to the {STEPS * STEP:,}th request",
                    wanted=f"≤ + {GROWTH:.0%}",
                    reached=f"{growth:+.1%} ({sizes[0]:.0f} MB, at most {max(sizes):.0f})",
                    met=growth <= GROWTH,
                ),
            ),
            answered=good,
            recorded=metered(everybody[1]),
        )


def caught_up(contender: Contender, requests: int) -> float:
    """Return seconds until so many are in the database, the gateway running; gives up after CATCH_UP.

    While it is busy all the time its spool grows: what moves the rows to the database is a thread beside it.
    """
    begun = monotonic()
    while metered(contender) < requests and monotonic() - begun < CATCH_UP:
        sleep(1)
    return monotonic() - begun
