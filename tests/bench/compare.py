"""python -m tests.bench.compare: the gateway beside nginx, a Rust router and no gateway.

    --rounds 3
    --only unary,burst,paced100,paced500,paced1000
    --contenders nginx,vllm-router,vllm-router-rr,madoguchi

Each load is put on one after the other before the next load, three rounds of that: a machine that gets slower or faster
does so for all. Figures are medians of the rounds; ratios are made within a round. The contender has one core, the load
and the engine the other. A load during which strangers or the machine's own host took more than a quarter of a core is
repeated once. At the end the usage that the gateway recorded is compared with the answers that the load generator got.
"""

import argparse
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tests.bench.contenders import NAMES, contenders
from tests.bench.measuring import Row, added, counted, measure, metered, ratio, started
from tests.bench.workloads import COMPARED, WARM_UP, Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """`answered` and `recorded` requests of our own gateway; both 0 if it did not take part."""

    rows: list[Row]
    answered: int = 0
    recorded: int = 0


def compare(workloads: list[Workload], names: list[str], rounds: int) -> Comparison:
    """Blocks for about 15 s for each load, contender and round."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="madoguchi-bench-") as directory:
        everybody = contenders(Path(directory), names)
        for number in range(1, rounds + 1):
            with started(everybody, Path(directory)) as running:
                for workload in workloads:
                    for contender in everybody:
                        rows += measure(running, contender.name, workload, number)
        for contender in everybody:
            if contender.name == "madoguchi":
                warm_up = rounds * sum(workload.requests for workload in WARM_UP)
                answered = warm_up + sum(row.good for row in rows if row.contender == contender.name)
                return Comparison(rows=rows, answered=answered, recorded=metered(contender))
    return Comparison(rows=rows)


def table(rows: list[Row]) -> str:
    """Markdown: one line for each workload and contender, medians of the rounds.

    `others`: of a core, at most, what strangers and the machine's own host used meanwhile. Distrust much above 25 %.
    """
    figures = ["CPU µs per request", "per token", "p50 ms", "p99 ms", "added p50", "added p99", "peak MB"]
    columns = ["load", "", *figures, "good", "bad", "others"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for workload, contender in dict.fromkeys((row.workload, row.contender) for row in rows):
        same = counted(rows, contender, workload)
        streams = same[0].us_per_token is not None
        direct = contender == "direct"
        cells = [
            workload,
            contender,
            "–" if streams else _median([row.us_per_request for row in same], 0),
            _median([row.us_per_token for row in same], 1),
            _median([row.p50 for row in same], 2),
            _median([row.p99 for row in same], 1),
            "–" if direct else f"{added(rows, contender, workload, 'p50'):.2f}",
            "–" if direct else f"{added(rows, contender, workload, 'p99'):.1f}",
            _median([row.peak_mb for row in same], 0),
            str(sum(row.good for row in same)),
            str(sum(row.bad for row in same)),
            f"{max(row.disturbed for row in same):.0%}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def ratios(rows: list[Row]) -> str:
    """Markdown: our CPU as a multiple of the others' in the same round, medians of the rounds."""
    others = [name for name in NAMES if name != "madoguchi" and any(row.contender == name for row in rows)]
    lines = [f"| CPU of madoguchi, times that of | {' | '.join(others)} |", f"|---|{'---|' * len(others)}"]
    for workload in dict.fromkeys(row.workload for row in rows if row.contender == "madoguchi"):
        what = "us_per_token" if counted(rows, "madoguchi", workload)[0].us_per_token is not None else "us_per_request"
        cells = [f"{ratio(rows, 'madoguchi', other, workload, what):.2f}" for other in others]
        lines.append(f"| {workload} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _median(values: list[float | None], digits: int) -> str:
    known = [value for value in values if value is not None]
    return f"{median(known):.{digits}f}" if known else "–"


def default_settings() -> None:
    """Measured is the default configuration, whatever this shell is set up for."""
    for name in [name for name in os.environ if name.startswith(("LDAP_", "GATEWAY_", "DATABASE_URL", "REDIS_URL"))]:
        del os.environ[name]


def main() -> None:
    known = {workload.name: workload for workload in COMPARED}
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--only", default=",".join(known))
    arguments.add_argument("--contenders", default=",".join(NAMES))
    options = arguments.parse_args()
    default_settings()
    done = compare([known[name] for name in options.only.split(",")], options.contenders.split(","), options.rounds)
    print(table(done.rows))
    if done.answered:
        print(f"\n{ratios(done.rows)}\n\nmadoguchi answered {done.answered:,} requests and recorded {done.recorded:,}.")
    if done.answered != done.recorded:
        raise SystemExit("Usage is not exact.")
    if any(row.bad for row in done.rows):
        raise SystemExit("Some answers were not as they should be; see `fault` above.")


if __name__ == "__main__":
    main()
