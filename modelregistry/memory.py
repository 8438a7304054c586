"""How much memory an engine takes."""

from collections.abc import Iterable
from pathlib import Path

from modelregistry.shim import Identity


def resident(processes: Iterable[Identity]) -> int:
    """Bytes of RAM that these processes hold, what they share counted once. Those that are gone hold nothing.

    Blocks for some milliseconds per 10 GB: the kernel walks their page tables.
    """
    return sum(_proportional(who.pid) for who in processes)


def _proportional(pid: int) -> int:
    # Pss and not Rss: processes of one engine share their libraries and (vLLM) their weights.
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
