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
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from tests.bench import report
from tests.bench.contenders import NAMES, contenders
from tests.bench.measuring import (
    Row,
    added,
    answered,
    counted,
    default_settings,
    measure,
    metered,
    middle,
    ratio,
    started,
)
from tests.bench.report import Goal, Part
from tests.bench.workloads import COMPARED, Workload

OURS = "madoguchi"


def part(rounds: int) -> Part:
    """Return everything, and the goals that follow from it."""
    return compare(list(COMPARED), list(NAMES), rounds, goals=goals)


def compare(
    workloads: list[Workload],
    names: list[str],
    rounds: int,
    goals: Callable[[list[Row]], Sequence[Goal]] = lambda rows: (),
) -> Part:
    """Block for about 15 s for each load, contender and round."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="madoguchi-bench-") as directory:
        everybody = contenders(Path(directory), names)
        for number in range(1, rounds + 1):
            with started(everybody, Path(directory)) as running:
                for workload in workloads:
                    for contender in everybody:
                        rows += measure(running, contender.name, workload, number)
        ours = [contender for contender in everybody if contender.name == OURS]
        return Part(
            name="comparison",
            markdown="\n\n".join([table(rows), ratios(rows)] if ours else [table(rows)]),
            goals=tuple(goals(rows)),
            answered=answered(rows, OURS, rounds) if ours else 0,
            recorded=sum(map(metered, ours)),
        )


def table(rows: list[Row]) -> str:
    """Markdown: one line for each workload and contender, medians of the rounds.

    `others`: of a core, at most, what strangers and the machine's own host used meanwhile. Distrust much above 25 %.
    """
    figures = ["CPU µs per request", "per token", "p50 ms", "p99 ms", "added p50", "added p99", "peak MB"]
    lines = []
    for workload, contender in dict.fromkeys((row.workload, row.contender) for row in rows):
        same = counted(rows, contender, workload)
        streams = same[0].us_per_token is not None
        direct = contender == "direct"
        lines.append(
            [
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
        )
    return report.table(["load", "", *figures, "good", "bad", "others"], lines)


def ratios(rows: list[Row]) -> str:
    """Markdown: our CPU as a multiple of the others' in the same round, medians of the rounds."""
    others = [name for name in NAMES if name != OURS and any(row.contender == name for row in rows)]
    lines = []
    for workload in dict.fromkeys(row.workload for row in rows if row.contender == OURS):
        what = "us_per_token" if counted(rows, OURS, workload)[0].us_per_token is not None else "us_per_request"
        lines.append([workload, *(f"{ratio(rows, OURS, other, workload, what):.2f}" for other in others)])
    return report.table([f"CPU of {OURS}, times that of", *others], lines)


def goals(rows: list[Row]) -> list[Goal]:
    late, bad = added(rows, OURS, "paced1000", "p99"), sum(row.bad for row in counted(rows, OURS, "paced1000"))
    return [
        _cpu(rows, "unary", "us_per_request", "vllm-router"),
        _cpu(rows, "unary", "us_per_request", "vllm-router-rr"),
        _cpu(rows, "paced500", "us_per_token", "vllm-router"),
        _cpu(rows, "paced500", "us_per_token", "vllm-router-rr"),
        _cpu(rows, "paced500", "us_per_token", "nginx", most=1.6),
        Goal(
            text="1,000 streams on one core: p99 added, streams not whole",
            wanted="≤ 20 ms, 0",
            reached=f"{late:.1f} ms, {bad}",
            met=late <= 20 and not bad,
        ),
    ]


def _cpu(rows: list[Row], workload: str, what: str, other: str, most: float = 1.0) -> Goal:
    times = ratio(rows, OURS, other, workload, what)
    mine, others = (middle(rows, name, workload, what) for name in (OURS, other))
    kind = "request" if what == "us_per_request" else "token at 500 streams"
    return Goal(
        text=f"CPU per {kind}, times {other}'s",
        wanted=f"≤ {most:g}",
        reached=f"{times:.2f} ({mine:.0f} and {others:.0f} µs)",
        met=times <= most,
    )


def _median(values: list[float | None], digits: int) -> str:
    known = [value for value in values if value is not None]
    return f"{median(known):.{digits}f}" if known else "–"


def main() -> None:
    known = {workload.name: workload for workload in COMPARED}
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--only", default=",".join(known))
    arguments.add_argument("--contenders", default=",".join(NAMES))
    options = arguments.parse_args()
    default_settings()
    done = compare([known[name] for name in options.only.split(",")], options.contenders.split(","), options.rounds)
    print(done.markdown)
    print(f"\n{OURS} answered {done.answered:,} requests and recorded {done.recorded:,}.")
    if done.answered != done.recorded:
        raise SystemExit("Usage is not exact.")


if __name__ == "__main__":
    main()
