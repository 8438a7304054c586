"""2,000 streams through two workers that share both cores with the engine and the load; limits are counted in Redis."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

from tests.bench import processes, report
from tests.bench.contenders import Contender, free_port, madoguchi
from tests.bench.measuring import TOGETHER, Row, added, answered, counted, measure, metered, middle, started
from tests.bench.report import Goal, Part
from tests.bench.workloads import paced

OURS = "madoguchi-2"
# A start each 3 ms: a call costs ten times what a token does, and the ramp is not what is measured here.
STREAMS = paced(2000, tokens=400, ramp=6000)
LATEST = 60.0  # ms


def part(rounds: int) -> Part:
    """Return half a minute for a round."""
    rows: list[Row] = []
    shares = []
    with tempfile.TemporaryDirectory(prefix="madoguchi-bench-") as name:
        directory = Path(name)
        with redis(directory) as (url, redis_pid):
            direct = Contender(name="direct", port=free_port())
            ours = madoguchi(directory / OURS, direct.port, options=["--workers", "2"], REDIS_URL=url)
            for number in range(1, rounds + 1):
                with started([direct, ours], directory, TOGETHER) as alone:
                    running = replace(alone, pids={**alone.pids, "redis": redis_pid})  # no stranger
                    rows += measure(running, "direct", STREAMS, number)
                    before = processes.cost(redis_pid).cpu
                    own = measure(running, OURS, STREAMS, number)
                    rows += own
                    calls = sum(row.good for row in own)
                    shares.append(1e6 * (processes.cost(redis_pid).cpu - before) / max(1, calls))
        late, bad = added(rows, OURS, STREAMS.name, "p99"), sum(row.bad for row in counted(rows, OURS, STREAMS.name))
        return Part(
            name="workers",
            markdown=table(rows, median(shares)),
            goals=(
                Goal(
                    text="2,000 streams on two workers beside the load: p99 added, streams not whole",
                    wanted=f"≤ {LATEST:.0f} ms, 0",
                    reached=f"{late:.1f} ms, {bad}",
                    met=late <= LATEST and not bad,
                ),
            ),
            answered=answered(rows, OURS, rounds),
            recorded=metered(ours),
        )


@contextmanager
def redis(directory: Path) -> Iterator[tuple[str, int]]:
    """Provide a Redis that keeps nothing on disk: its URL and its pid."""
    port = free_port()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with processes.running(
        [*command, "--dir", str(directory)],
        cores=TOGETHER.gateway,
        answers=partial(processes.tcp, port),
        log=directory / "redis.log",
        env={},
    ) as pid:
        yield f"redis://127.0.0.1:{port}/0", pid


def table(rows: list[Row], redis_us: float) -> str:
    lines = []
    for name in ("direct", OURS):
        same = counted(rows, name, STREAMS.name)
        figures = [f"{middle(rows, name, STREAMS.name, what):.1f}" for what in ("p50", "p99")]
        more = ["–", "–"] if name == "direct" else [f"{added(rows, name, STREAMS.name, p):.1f}" for p in ("p50", "p99")]
        cpu = ["–", "–"]
        if name != "direct":
            cpu = [f"{middle(rows, name, STREAMS.name, what):.1f}" for what in ("us_per_token", "core")]
        lines.append(
            [name, *cpu, *figures, *more, str(sum(row.good for row in same)), str(sum(row.bad for row in same))]
        )
    columns = ["", "CPU µs per token", "cores", "p50 ms", "p99 ms", "added p50", "added p99", "good", "bad"]
    return f"{report.table(columns, lines)}\n\nRedis used {redis_us:.0f} µs of CPU for each call besides."
