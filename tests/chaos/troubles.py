"""What can happen to an installation, which calls it may hurt, and how soon all must be well again.

The bound of a recovery is a sum: the product's own pauses (back-off, drain: they do not depend on the machine) and the
machine's part (starts and looks, as measured before the first trouble) times `SPARE` times how many processes wanted
each core meanwhile.
"""

import contextlib
import os
import random
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from apiproxy.bridge.management.commands.up import LIVED_WELL, MAX_PAUSE
from modelregistry.process import shim
from modelregistry.supervisor import loop, plan, state_sync

SPARE = 2.0  # of the machine's part: single starts vary, and disks are not counted in processes
# The machine's part of an engine's recovery beside its start: plan, books, the gateway's look, a front that ends after
# its worker, what a dead front left behind.
NOTICED = plan.ASK_EVERY + loop.TICK + state_sync.EVERY + 1.0 + 1.0 + shim.SURVIVORS_GRACE
ANSWERED = 3.0  # until each model has answered a call once more
RESTART_SEC = 2.0  # as in deploy/*.service
MOST_IN_A_ROW = plan.FUTILE_STARTS - 1
EVERYBODY = ""  # instead of a model's name


@dataclass(slots=True, kw_only=True)
class Trouble:
    """`hurts`: models whose calls may fail (EVERYBODY: all; empty: none). `restarts`: models that get a new engine.

    `may_restart`: those that get one or keep theirs. `pauses` in seconds, of the product; `work` in seconds, of an idle
    machine. `began` and `over` are monotonic.
    """

    kind: str
    model: str  # whose part was hurt, or ""
    victim: str  # its pid, or ""
    hurts: frozenset[str]
    restarts: frozenset[str]
    pauses: float
    work: float
    began: float
    wall: float
    may_restart: frozenset[str] = frozenset()
    over: float = 0.0
    slowness: float = 1.0

    def __str__(self) -> str:
        return " ".join(filter(None, [self.kind, self.model, self.victim]))

    @property
    def bound(self) -> float:
        return self.pauses + SPARE * self.slowness * self.work

    @property
    def took(self) -> float:
        return self.over - self.began


@dataclass(slots=True)
class Backoff:
    """Of one thing that is started again after each death: how long the next pause is. A life ends its memory."""

    pause: Callable[[int], float]
    forgotten_after: float
    deaths: int = 0
    well_since: float = field(default_factory=time.monotonic)

    def tired(self, now: float) -> bool:
        """Return whether one more death soon would be the end of a crash loop, which waits for an operator."""
        return self.deaths >= MOST_IN_A_ROW and now - self.well_since < self.forgotten_after

    def died(self, now: float) -> float:
        """Return the longest pause that follows: a process that was well for long enough begins again."""
        self.deaths = 1 if now - self.well_since >= self.forgotten_after else self.deaths + 1
        self.well_since = float("inf")
        return self.pause(self.deaths)

    def well(self, now: float) -> None:
        self.well_since = min(self.well_since, now)


def of_engine() -> Backoff:
    return Backoff(plan.backoff, plan.LIVED_WELL)


def of_program() -> Backoff:
    return Backoff(lambda deaths: min(MAX_PAUSE, 2.0 ** (deaths - 1)), LIVED_WELL)


@contextlib.contextmanager
def stopped(who: shim.Identity) -> Iterator[None]:
    """Stop a process that is then neither dead nor alive, as on a host that swaps."""
    shim.send_signal(who, signal.SIGSTOP)
    try:
        yield
    finally:
        shim.send_signal(who, signal.SIGCONT)


@contextlib.contextmanager
def locked(database: Path) -> Iterator[None]:
    """Hold SQLite's write lock, as a slow writer does."""
    with contextlib.closing(sqlite3.connect(database, timeout=30, isolation_level=None)) as connection:
        connection.execute("begin immediate")
        try:
            yield
        finally:
            connection.execute("rollback")


class Deck:
    """Kinds of trouble, each once before any comes again by chance."""

    def __init__(self, kinds: Sequence[tuple[str, str]], dice: random.Random) -> None:
        self._kinds = sorted(set(kinds))
        self._dice = dice
        self._unplayed = set(self._kinds)

    @property
    def played(self) -> bool:
        """Whether each kind has been there."""
        return not self._unplayed

    def order(self) -> list[tuple[str, str]]:
        """Return the order in which they are to be tried now: not everything can be hurt at any time."""
        shuffled = self._dice.sample(self._kinds, len(self._kinds))
        return sorted(shuffled, key=lambda kind: kind not in self._unplayed)

    def play(self, kind: tuple[str, str]) -> None:
        self._unplayed.discard(kind)


class Pace:
    """Return how many processes want each core: 1.0 when none waits."""

    def __init__(self) -> None:
        self._cores = len(os.sched_getaffinity(0))
        self._seen: list[tuple[float, int]] = []

    def look(self) -> None:
        for line in Path("/proc/stat").read_text().splitlines():
            if line.startswith("procs_running "):
                self._seen.append((time.monotonic(), int(line.split()[1])))

    def slowness(self, since: float) -> float:
        counts = [count for at, count in self._seen if at >= since]
        return max(1.0, sum(counts) / len(counts) / self._cores) if counts else 1.0
