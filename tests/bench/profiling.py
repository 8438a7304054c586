"""Where the gateway's time goes: py-spy looks at its worker a hundred times a second, down to the C functions."""

import re
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from time import sleep

from tests.bench import processes, report, tools
from tests.bench.contenders import contenders
from tests.bench.measuring import Running, metered, started
from tests.bench.report import Part
from tests.bench.workloads import UNARY, WARM_UP, Workload, paced

OURS = "madoguchi"
SECONDS = 15
PER_SECOND = 100
LOADS = (
    # Half of what a core can: a gateway that is never idle is not what people run.
    (replace(UNARY, name="unary, 1,000 a second", rate=1000, requests=1000 * (SECONDS + 5)), 1),
    (replace(paced(500, tokens=30 * (SECONDS + 5)), name="500 streams of 30 tokens a second"), 30 * (SECONDS + 5)),
)
SHOWN = 0.01  # of all samples; what is below that is one line

SYSTEM_CALL = re.compile(
    r"^(p?read|p?write|p?readv|p?writev|recv|send|(recv|send)msg|epoll_\w+|accept4?|close|shutdown|socket|connect|"
    r"[gs]etsockopt|getpid|getrandom|f(data)?sync|fcntl|fstatat|ioctl)(64)? \(libc"
)
# What a C frame belongs to, by its function or its file; others belong to their callers.
NATIVE = (
    (re.compile(r"^gc_collect_main"), "garbage collector"),
    (re.compile(r"llhttp|\(parser\.c:"), "httptools"),
    (re.compile(r"\(_json\.c:|orjson"), "json"),
    (re.compile(r"libcrypto|\(_hashopenssl\.c:"), "hashes (OpenSSL)"),
    (re.compile(r"\(loop\.c:|^uv_|^loop___|^Loop__"), "uvloop"),
    (re.compile(r"\(_asynciomodule\.c:"), "asyncio (C)"),
    (re.compile(r"libsqlite3"), "SQLite"),
)
PYTHON = re.compile(r"^(?P<function>.+) \((?P<path>[\w./-]+)\.py:\d+\)$")
WAITING = re.compile(r"pthread_cond|sem_wait|sem_clockwait|PyThread_acquire_lock|take_gil|SimpleQueue_get")


@dataclass(frozen=True, slots=True)
class Sample:
    """`frames` from the outermost to the innermost, seen `count` times."""

    frames: tuple[str, ...]
    count: int


def part(rounds: int) -> Part:
    """Return a minute and a half."""
    tables = []
    with tempfile.TemporaryDirectory(prefix="madoguchi-bench-") as directory:
        everybody = contenders(Path(directory), [OURS])
        good = sum(workload.requests for workload in WARM_UP)
        with started(everybody, Path(directory)) as running:
            for load, units in LOADS:
                before = processes.cost(running.pids[OURS])
                seen = running.put(load, OURS)
                used = processes.cost(running.pids[OURS])
                cpu, kernel = used.cpu - before.cpu, used.kernel - before.kernel
                profiled, samples = _profiled(running, load, Path(directory) / "samples")
                good += seen["good"] + profiled
                cost = 1e6 * cpu / (seen["good"] * units)
                unit = "token" if load.tokens else "request"
                head = f"### {load.name}\n\n{cost:.0f} µs of CPU per {unit} without the profiler, "
                tables.append(
                    f"{head}{kernel / cpu:.0%} of it in the kernel (by /proc).\n\n{table(samples, cost, unit)}"
                )
        return Part(name="profile", markdown="\n\n".join(tables), answered=good, recorded=metered(everybody[1]))


def _profiled(running: Running, load: Workload, path: Path) -> tuple[int, list[Sample]]:
    """Return the good answers under this load, and what the profiler saw in the middle of it."""
    command = [str(tools.program("py-spy")), "record", "--pid", str(_worker(running.pids[OURS])), "--native"]
    options: list[str] = [
        "--duration",
        str(SECONDS),
        "--rate",
        str(PER_SECOND),
        "--format",
        "raw",
        "--output",
        str(path),
    ]
    with ThreadPoolExecutor(1) as pool:
        seen = pool.submit(running.put, load, OURS)
        sleep(load.ramp / 1000 + 1)
        subprocess.run([*command, *options], check=True, stdout=sys.stderr)
        good = seen.result()["good"]
    return good, parsed(path.read_text())


def _worker(root: int) -> int:
    """Return the process that serves: of all below `up` the one that used most."""
    return max(processes.tree(root)[1:], key=processes.own_cpu)


def parsed(raw: str) -> list[Sample]:
    """Return the samples without those of threads that wait: the profiler takes some of them for busy."""
    samples = []
    for line in raw.splitlines():
        stack, _, count = line.rpartition(" ")
        frames = tuple(stack.split(";"))
        if not any(WAITING.search(frame) for frame in frames[-4:]):
            samples.append(Sample(frames, int(count)))
    return samples


def place(frames: tuple[str, ...]) -> str:
    """Return the part of the program that a sample is attributed to: the innermost frame that says so."""
    if any("apiproxy/dataplane/executor.py" in frame for frame in frames):
        return "thread that moves usage to the database and follows the catalogue"
    if SYSTEM_CALL.search(frames[-1]):
        return f"kernel: {frames[-1].partition(' (')[0]}"
    for frame in reversed(frames):
        for pattern, name in NATIVE:
            if pattern.search(frame):
                return name
        if python := PYTHON.match(frame):
            package, _, rest = python["path"].partition("/")
            return f"{python['path']}.py" if package in ("apiproxy", "portal") and rest else package
    return "other"


def functions(samples: list[Sample]) -> Counter[str]:
    """Return how often each function of ours was at work, itself or in what it called."""
    found: Counter[str] = Counter()
    for sample in samples:
        names = {
            f"{python['path']}.py {python['function']}"
            for frame in sample.frames
            if (python := PYTHON.match(frame)) and python["path"].startswith(("apiproxy/", "portal/keys/"))
        }
        for name in names:
            found[name] += sample.count
    return found


def table(samples: list[Sample], cost: float, unit: str) -> str:
    """Markdown: by place, each sample once; then by function of ours with what it calls."""
    total = sum(sample.count for sample in samples)
    places: Counter[str] = Counter()
    for sample in samples:
        places[place(sample.frames)] += sample.count
    shown = [(name, count) for name, count in places.most_common() if count >= SHOWN * total]
    shown.append(("all others", total - sum(count for _, count in shown)))
    lines = [[name, f"{count / total:.0%}", f"{cost * count / total:.1f}"] for name, count in shown]
    by_place = report.table([f"where ({total:,} samples)", "of the time", f"µs per {unit}"], lines)
    lines = [
        [f"`{name}`", f"{count / total:.0%}", f"{cost * count / total:.1f}"]
        for name, count in functions(samples).most_common(18)
    ]
    by_function = report.table(["function of ours with what it calls", "of the time", f"µs per {unit}"], lines)
    return f"{by_place}\n\n{by_function}"
