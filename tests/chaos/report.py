"""What a storm left: a table."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from statistics import median

from tests.bench.report import table
from tests.chaos.storm import Report

TOGETHER = "two or more at once"
FAULTS = "orphans, wrong rows, wrong answers, late recoveries, calls that failed without a cause, tracebacks"


def markdown(report: Report) -> str:
    outcomes = Counter(call.outcome for call in report.calls)
    kinds = Counter(call.kind for call in report.calls if call.outcome == "finished")
    finished = {call.request_id for call in report.calls if call.outcome == "finished"}
    metered = [row for row in report.rows if row["request_id"] in finished]
    others = Counter(row["status"] for row in report.rows if row["request_id"] not in finished)
    whys = Counter(f"{call.outcome}: {call.why}" for call in report.calls if call.outcome in ("broken", "refused"))
    hurt = Counter(trouble.kind for batch in report.troubles for trouble in batch)
    starts = ", ".join(f"{model or 'portal'} {seconds:.1f} s" for model, seconds in report.starts.items())
    lines = [
        table(["trouble", "times", "recovered: median", "p95", "longest", "of what is allowed"], _recoveries(report)),
        "",
        table(
            ["", ""],
            [
                ["calls", f"{len(report.calls):,}"],
                ["finished", f"{outcomes['finished']:,} ({_told(kinds)})"],
                ["broken, refused", f"{outcomes['broken']:,}, {outcomes['refused']:,} ({_told(whys)})"],
                ["left by their callers", f"{outcomes['left']:,}"],
                ["finished answers with one row and the tokens that were reported", f"{len(metered):,}"],
                ["other rows", f"{len(report.rows) - len(metered):,} ({_told(others)})"],
                [FAULTS, f"{len(report.faults)}"],
            ],
        ),
        "",
        f"All in all: {_told(hurt)}.",
        f"{report.seconds:.0f} s, seed {report.seed}. First start, all at once: {starts}.",
    ]
    return "\n".join(lines)


def _recoveries(report: Report) -> list[list[str]]:
    """Return one line for each kind; troubles that came together are one of their own.

    Measured from the first of them.
    """
    times: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for batch in report.troubles:
        allowed = sum(trouble.bound for trouble in batch)
        of = f" of {batch[0].model}" if batch[0].model else ""
        kind = f"{batch[0].kind}{of}" if len(batch) == 1 else TOGETHER
        times[kind].append((batch[0].took, batch[0].took / allowed))
    return [
        [kind, str(len(of_kind)), *_figures([took for took, _ in of_kind]), f"{max(part for _, part in of_kind):.0%}"]
        for kind, of_kind in sorted(times.items(), key=lambda item: (item[0] == TOGETHER, item[0]))
    ]


def _figures(seconds: Sequence[float]) -> list[str]:
    ordered = sorted(seconds)
    p95 = ordered[min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))]
    return [f"{each:.1f} s" for each in (median(ordered), p95, ordered[-1])]


def _told(counts: Counter[str] | Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in Counter(counts).most_common()) or "none"
