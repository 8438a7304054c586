"""How long every page takes with a company's usage of years: 10 million records on PostgreSQL, 1 million on SQLite.

PostgreSQL as Debian configures it, on this machine, with the two cores that the pages have as well. Also the plain
demonstration data on SQLite. Six minutes and 7 GB of disk in all: the company is made up once, and copied; one core
fills PostgreSQL while the other opens each page of the other two `FEW` times, which can only make pages look slower.
What takes more than half of its goal is then opened `rounds` times with nothing beside it. Of a file that is sent while
it is made, the time is that of its first part, and the processor's that of all of it.
"""

import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench import report
from tests.bench.processes import ROOT
from tests.bench.report import Goal, Part
from tests.postgres import postgres

LEAST = 9  # times that a page is opened that may be slow
FEW = 3
SHOWN = 30  # the slowest pages of the table; all are in LIST
LIST = Path(__file__).with_name("pages.csv")
KEPT = 700, 230  # days of usage that stay on PostgreSQL and on SQLite, when the rest is pruned


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """`rows`: usage records over `periods` times thirteen weeks. `goal`: seconds that a page may take."""

    name: str
    rows: int
    audit: int
    periods: int
    goal: float


POSTGRES = Load(name="PostgreSQL", rows=10_000_000, audit=400_000, periods=9, goal=0.3)
SQLITE = Load(name="SQLite", rows=1_000_000, audit=100_000, periods=4, goal=1.0)
DEMO = Load(name="SQLite, demonstration data", rows=0, audit=0, periods=1, goal=0.1)
Times = dict[tuple[str, str], Any]  # what each page took, by (who, pattern)


def part(rounds: int) -> Part:
    """Fill and measure the three databases; write LIST."""
    rounds = max(rounds, LEAST)
    with (
        tempfile.TemporaryDirectory(prefix="madoguchi-bench-") as directory,
        postgres() as cluster,
        ThreadPoolExecutor() as beside,
    ):
        demo, sqlite, large = (Path(directory) / name for name in ("demo", "sqlite", "large"))
        envs = {DEMO: environment(demo), SQLITE: environment(sqlite), POSTGRES: environment(large, cluster.url)}
        demo.mkdir()
        work(envs[DEMO], "fill")
        for copy in (sqlite, large):
            shutil.copytree(demo, copy)
        filling = beside.submit(fill_postgresql, envs[POSTGRES], large)
        found = {DEMO: looked_at(envs[DEMO])}
        multiply(envs[SQLITE], SQLITE)
        found[SQLITE] = looked_at(envs[SQLITE])
        filling.result()
        found[POSTGRES] = looked_at(envs[POSTGRES])
        for load, times in found.items():
            times.update(looked_at(envs[load], rounds, near_goal(load, times)))
        pruned = {load: work(envs[load], "prune", days) for load, days in zip((POSTGRES, SQLITE), KEPT, strict=True)}
    found = {load: found[load] for load in (POSTGRES, SQLITE, DEMO)}
    write_list(found)
    lines = [f"{load.name}: {rows:,} records pruned in {seconds:.0f} s" for load, (rows, seconds) in pruned.items()]
    return Part(
        name="pages",
        markdown=f"{table(found)}\n\n{'; '.join(lines)}.",
        goals=tuple(goal(load, times) for load, times in found.items()),
    )


def environment(var: Path, url: str = "") -> dict[str, str]:
    return {"MADOGUCHI_VAR": str(var), **({"DATABASE_URL": url} if url else {})}


def fill_postgresql(env: dict[str, str], var: Path) -> None:
    work(env, "copy", var / "madoguchi.sqlite3")
    multiply(env, POSTGRES)


def multiply(env: dict[str, str], load: Load) -> None:
    work(env, "multiply", load.rows, load.audit, load.periods)


def looked_at(env: dict[str, str], rounds: int = FEW, pages: list[Any] | None = None) -> Times:
    """Return what these pages took, or all."""
    if pages == []:
        return {}
    again = ("--again",) if pages else ()
    return {(page["who"], page["pattern"]): page for page in work(env, "time", rounds, *again, given=pages)}


def near_goal(load: Load, times: Times) -> list[Any]:
    return [page for page in times.values() if max(page["median"], page["cpu"]) > load.goal / 2]


def work(env: dict[str, str], *words: object, given: object = None) -> Any:
    """Return what `paging` prints as JSON; None if it prints nothing."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.paging", *map(str, words)],
        cwd=ROOT,
        env={**os.environ, **env},
        input=json.dumps(given).encode(),
        check=True,
        stdout=subprocess.PIPE,
    )
    return json.loads(done.stdout) if done.stdout else None


def table(found: dict[Load, Times]) -> str:
    """Return the slowest pages by their goals, and how many of each database reach them."""
    worst = {
        page: max(times[page]["median"] / load.goal for load, times in found.items() if page in times)
        for times in found.values()
        for page in times
    }
    lines = []
    for who, pattern in sorted(worst, key=lambda page: -worst[page])[:SHOWN]:
        cells = [_cell(times.get((who, pattern))) for times in found.values()]
        queries = max(times[who, pattern]["queries"] for times in found.values() if (who, pattern) in times)
        lines.append([who, f"`{pattern}`", *cells, str(queries)])
    columns = ["who", "page", *(f"{load.name}: ms, p95, processor" for load in found), "queries"]
    counts = [_count(load, times) for load, times in found.items()]
    return f"{report.table(columns, lines)}\n\n{' '.join(counts)}"


def _cell(page: Any) -> str:
    return ", ".join(f"{1000 * page[what]:.0f}" for what in ("median", "p95", "cpu")) if page else "–"


def _count(load: Load, times: Times) -> str:
    reached = [page for page in times.values() if page["median"] <= load.goal]
    middle = sorted(page["median"] for page in times.values())[len(times) // 2]
    text = f"{len(reached)} of {len(times)} addresses take {1000 * load.goal:.0f} ms or less"
    return f"{load.name}: {text}, the middle one {1000 * middle:.0f} ms."


def write_list(found: dict[Load, Times]) -> None:
    """Write every page with what it took in each database, in ms."""
    with LIST.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            ["who", "page", "queries"]
            + [f"{load.name} {what}" for load in found for what in ("median", "p95", "goal", "looks")]
        )
        for who, pattern in sorted({page for times in found.values() for page in times}):
            rows = {load: times.get((who, pattern)) for load, times in found.items()}
            queries = max(row["queries"] for row in rows.values() if row)
            cells = [cell for load, row in rows.items() for cell in _cells(load, row)]
            writer.writerow([who, pattern, queries, *cells])


def _cells(load: Load, page: Any) -> list[object]:
    if not page:
        return [""] * 4
    return [*(round(1000 * page[what]) for what in ("median", "p95")), round(1000 * load.goal), page["looks"]]


def goal(load: Load, times: Times) -> Goal:
    (who, pattern), worst = max(times.items(), key=lambda item: item[1]["median"])
    rows = f"{load.rows:,} usage records on {load.name}" if load.rows else load.name
    return Goal(
        text=f"every page, median: {rows}",
        wanted=f"≤ {1000 * load.goal:.0f} ms",
        reached=f"{1000 * worst['median']:.0f} ms at most ({who}, `{pattern}`)",
        met=worst["median"] <= load.goal,
    )
