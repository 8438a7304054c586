"""Added delay and CPU against the number of streams: a table, and the plot beside RESULTS.md."""

import json
import subprocess
import tempfile
from pathlib import Path

from tests.bench import report, tools
from tests.bench.contenders import contenders
from tests.bench.measuring import Row, added, answered, counted, measure, metered, started
from tests.bench.report import Part
from tests.bench.workloads import paced

NAMES = ("nginx", "vllm-router", "madoguchi")
STREAMS = (50, 100, 200, 500, 700, 1000, 1200)
PLOT = Path(__file__).with_name("streams.svg")


def part(rounds: int) -> Part:
    """Five minutes: one round, for its points support each other."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="madoguchi-bench-") as directory:
        everybody = contenders(Path(directory), list(NAMES))
        with started(everybody, Path(directory)) as running:
            for workload in (paced(streams, tokens=200) for streams in STREAMS):
                for contender in everybody:
                    rows += measure(running, contender.name, workload)
        draw(rows)
        return Part(
            name="curve",
            markdown=table(rows),
            answered=answered(rows, "madoguchi", 1),
            recorded=sum(metered(contender) for contender in everybody if contender.name == "madoguchi"),
        )


def table(rows: list[Row]) -> str:
    lines = []
    for streams in STREAMS:
        cells = [f"{streams:,}"]
        for name in NAMES:
            (row,) = counted(rows, name, f"paced{streams}")
            late = [added(rows, name, row.workload, what) for what in ("p50", "p99")]
            lost = f", {row.bad} bad" if row.bad else ""
            cells.append(f"{late[0]:.1f} / {late[1]:.1f} ms, {row.core:.0%}{lost}")
        lines.append(cells)
    return report.table(["streams", *(f"{name}: added p50 / p99, core" for name in NAMES)], lines)


def draw(rows: list[Row]) -> None:
    """Draw with another Python, as what draws is not among the product's dependencies."""
    points = [
        {
            "contender": name,
            "streams": streams,
            "p50": added(rows, name, f"paced{streams}", "p50"),
            "p99": added(rows, name, f"paced{streams}", "p99"),
            "core": counted(rows, name, f"paced{streams}")[0].core,
        }
        for name in NAMES
        for streams in STREAMS
    ]
    script = Path(__file__).with_name("draw.py")
    subprocess.run([tools.python(), script, PLOT], input=json.dumps(points), text=True, check=True)
