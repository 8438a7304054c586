"""How long every page takes with a company's usage of years: 10 million records on PostgreSQL, 1 million on SQLite.

PostgreSQL as it comes, on this machine, with the two cores that the pages have as well. Also the plain demonstration
data on SQLite. Some twelve minutes and 8 GB of disk in all.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from typing import Any

from tests.bench import report
from tests.bench.processes import ROOT
from tests.bench.report import Goal, Part
from tests.postgres import postgres

LEAST = 7  # times that each page is opened
SHOWN = 25  # the slowest pages of the table; all others are quicker
KEPT = 400  # days


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """`rows`: usage records over `periods` times twelve weeks. `goal`: seconds that a page may take."""

    name: str
    rows: int
    audit: int
    periods: int
    goal: float


POSTGRES = Load(name="PostgreSQL", rows=10_000_000, audit=400_000, periods=9, goal=0.3)
SQLITE = Load(name="SQLite", rows=1_000_000, audit=100_000, periods=4, goal=1.0)
DEMO = Load(name="SQLite, demonstration data", rows=0, audit=0, periods=1, goal=0.1)


def part(rounds: int) -> Part:
    """Return one database after the other: there is not disk enough for all of them everywhere."""
    rounds = max(rounds, LEAST)
    with tempfile.TemporaryDirectory(prefix="madoguchi-bench-") as var:
        demo = measured(DEMO, {"MADOGUCHI_VAR": var}, rounds)
    with tempfile.TemporaryDirectory(prefix="madoguchi-bench-") as var:
        sqlite = measured(SQLITE, {"MADOGUCHI_VAR": var}, rounds)
        pruned = {SQLITE.name: work({"MADOGUCHI_VAR": var}, "prune", KEPT - 150)}
    with tempfile.TemporaryDirectory(prefix="madoguchi-bench-") as var, postgres() as cluster:
        env = {"MADOGUCHI_VAR": var, "DATABASE_URL": cluster.url}
        large = measured(POSTGRES, env, rounds)
        pruned[POSTGRES.name] = work(env, "prune", KEPT)
    found = {POSTGRES: large, SQLITE: sqlite, DEMO: demo}
    lines = [f"{name}: {rows:,} records pruned in {seconds:.0f} s" for name, (rows, seconds) in pruned.items()]
    return Part(
        name="pages",
        markdown=f"{table(found)}\n\n{'; '.join(lines)}.",
        goals=tuple(goal(load, times) for load, times in found.items()),
    )


def measured(load: Load, env: dict[str, str], rounds: int) -> dict[tuple[str, str], Any]:
    """Return what each page took, by (who, pattern)."""
    work(env, "fill", load.rows, load.audit, load.periods)
    return {(page["who"], page["pattern"]): page for page in work(env, "time", rounds)}


def work(env: dict[str, str], *words: object) -> Any:
    command = [sys.executable, "-m", "tests.bench.paging", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **env}, check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout)


def table(found: dict[Load, dict[tuple[str, str], Any]]) -> str:
    """Return the slowest pages of each, beside what the others take for them."""
    slowest: dict[tuple[str, str], None] = {}
    for times in found.values():
        ordered = sorted(times, key=lambda page: -times[page]["median"])
        slowest.update(dict.fromkeys(ordered[: SHOWN // len(found) + 4]))
    pages = sorted(slowest, key=lambda page: -max(times[page]["median"] for times in found.values() if page in times))
    lines = []
    for who, pattern in pages:
        cells = [_cell(times.get((who, pattern))) for times in found.values()]
        queries = max(times[who, pattern]["queries"] for times in found.values() if (who, pattern) in times)
        lines.append([who, f"`{pattern}`", *cells, str(queries)])
    columns = ["who", "page", *(f"{load.name}: ms, p95, processor" for load in found), "queries"]
    every = next(iter(found.values()))
    return f"{report.table(columns, lines)}\n\nThe slowest of {len(every)} pages; the others are quicker."


def _cell(page: Any) -> str:
    return ", ".join(f"{1000 * page[what]:.0f}" for what in ("median", "p95", "cpu")) if page else "–"


def goal(load: Load, times: dict[tuple[str, str], Any]) -> Goal:
    (who, pattern), worst = max(times.items(), key=lambda item: item[1]["median"])
    rows = f"{load.rows:,} usage records on {load.name}" if load.rows else load.name
    return Goal(
        text=f"every page, median: {rows}",
        wanted=f"≤ {1000 * load.goal:.0f} ms",
        reached=f"{1000 * worst['median']:.0f} ms at most ({who}, `{pattern}`)",
        met=worst["median"] <= load.goal,
    )
