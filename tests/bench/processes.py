"""Processes under measurement: started on a core of their own, and what they cost by /proc."""

import os
import shutil
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep

ROOT = Path(__file__).resolve().parent.parent.parent
Cores = str  # as `taskset` reads them: "1", "0,1"
TICKS = os.sysconf("SC_CLK_TCK")  # a second


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of a process and all its descendants: CPU seconds so far, sums of their resident sizes now and at their peaks.

    `kernel` is the part of `cpu` that was spent in system calls and interrupts.
    """

    cpu: float
    kernel: float
    rss_mb: float
    peak_mb: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """CPU seconds since boot: spent by everything that runs here, and taken away by this machine's own host."""

    busy: float
    stolen: float


def cost(root: int) -> Cost:
    cpu = kernel = 0.0
    sizes = {"VmRSS": 0.0, "VmHWM": 0.0}
    for pid in tree(root):
        try:
            fields = _stat(pid)
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            continue  # it has just ended
        # Of the root also what its ended children used, else a short-lived worker would cost nothing.
        counted = (11, 13) if pid == root else (11,)
        cpu += sum(int(fields[index]) + int(fields[index + 1]) for index in counted) / TICKS
        kernel += sum(int(fields[index + 1]) for index in counted) / TICKS
        for line in status.splitlines():
            name, _, value = line.partition(":")
            if name in sizes:
                sizes[name] += int(value.split()[0]) / 1024
    return Cost(cpu=cpu, kernel=kernel, rss_mb=sizes["VmRSS"], peak_mb=sizes["VmHWM"])


def own_cpu(pid: int) -> float:
    """Return the CPU seconds of one process alone."""
    return sum(map(int, _stat(pid)[11:13])) / TICKS


def machine() -> Machine:
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return Machine(busy=(user + nice + system + irq + softirq) / TICKS, stolen=steal / TICKS)


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the third on; the second, the name, may hold anything."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def tree(root: int) -> list[int]:
    """Return the pids of a process and all its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                children.setdefault(int(_stat(int(entry.name))[1]), []).append(int(entry.name))
            except OSError:
                continue
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def pinned(command: Sequence[str], cores: Cores) -> list[str]:
    """Return the command on these cores and, where that is allowed, ahead of everything else that runs there.

    Real-time scheduling keeps strangers' work out of the latencies; it needs root.
    """
    ahead = ["chrt", "--rr", "5"]
    if not shutil.which("chrt") or subprocess.run([*ahead, "true"], capture_output=True).returncode:
        ahead = []
    return ["taskset", "--cpu-list", cores, *ahead, *command]


@contextmanager
def running(
    command: Sequence[str], *, cores: Cores, answers: Callable[[], bool], log: Path, env: Mapping[str, str]
) -> Iterator[int]:
    """Provide the pid of the command, once it answers (60 s at most); its whole group is ended at the end."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            pinned(command, cores),
            env={**os.environ, **env},
            stdout=output,
            stderr=output,
            cwd=ROOT,
            start_new_session=True,
        )
    try:
        until = monotonic() + 60
        while not answers():
            if monotonic() > until or process.poll() is not None:
                raise SystemExit(f"{command[0]} does not answer. Its log ends:\n{log.read_text()[-2000:]}")
            sleep(0.1)
        yield process.pid
    finally:
        _end(process)


def http(url: str) -> bool:
    """Return whether a server answers there with success."""
    try:
        urllib.request.urlopen(url, timeout=2).close()
    except OSError:
        return False
    return True


def tcp(port: int) -> bool:
    """Return whether a program listens there."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=2).close()
    except OSError:
        return False
    return True


def _end(process: subprocess.Popen[bytes]) -> None:
    # 60 s: a gateway that stops gives open answers 10 and then moves what is left in its spool.
    for kind, patience in ((signal.SIGTERM, 60), (signal.SIGKILL, 10)):
        try:
            os.killpg(process.pid, kind)
            process.wait(patience)
        except ProcessLookupError:
            break
        except subprocess.TimeoutExpired:
            continue
    process.wait()
