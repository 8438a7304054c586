"""How many calls an engine works on at a time: stated, or learned from what it reports. No I/O.

vLLM without a bound works on as many calls as its memory holds, which depends on their lengths. So its room is learned
(additive increase, multiplicative decrease, as TCP learns a network's): it grows while the engine takes whatever it is
sent, and shrinks when calls wait inside the engine, where they are in no order of ours. One or two may wait there, so
that the next is at hand when one ends.

What an engine reports is read by its supervisor every five seconds. While nothing is reported, as when the supervisor
or the database is away, and of engines that report nothing, the room is unbounded: better no order than an idle engine.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from apiproxy.dataplane.catalogue import Replica

# Calls. Until calls wait in the engine for the first time the room doubles, so it is found within two
# minutes from either side.
START = 64.0
LEAST = 4.0
INCREASE = 2.0
DECREASE = 0.8
LOOK_AHEAD = 2  # calls that may wait in the engine
FULL_CACHE = 0.9  # of the memory for contexts; above it a longer answer may push another one out
# Seconds after which a report that is not followed by another says nothing any more.
STALE_AFTER = 20.0


class EngineLoad(NamedTuple):
    """What an engine reported."""

    at: str  # when; only to distinguish it from another
    waiting: int  # calls
    cache_used: float | None  # of the memory for contexts, 0 to 1; None: not reported


class LearnedRoom:
    """That of one replica."""

    def __init__(self, running: int) -> None:
        """Begin with what the engine was sent before anything was known of it."""
        self.calls = max(START, float(running))
        self._is_found = False

    def learn(self, load: EngineLoad, running: int) -> None:
        """Take a new report into account. `running`: calls that the engine has."""
        if load.waiting > LOOK_AHEAD:
            self._is_found = True
            # Where the room is not used, it is bounded by what is. Nothing that the engine works on is given up.
            used = min(self.calls, 2.0 * running)
            self.calls = max(LEAST, used * DECREASE, used - load.waiting + LOOK_AHEAD)
        elif load.waiting == 0 and (load.cache_used or 0.0) < FULL_CACHE and running >= self.calls:
            self.calls = math.floor(self.calls + INCREASE) if self._is_found else 2 * self.calls


class Rooms:
    """Those of all replicas."""

    def __init__(self) -> None:
        self._learned: dict[int, LearnedRoom] = {}  # by the replica's id
        self._reports: dict[int, tuple[str, float]] = {}  # when an engine last reported, and when that came here

    def calls(self, replica: Replica) -> float:
        """Return how many calls it may have in flight."""
        if replica.slots is not None:
            return replica.slots
        learned = self._learned.get(replica.id)
        return math.inf if learned is None else learned.calls

    def note(self, loads: Mapping[int, EngineLoad], running: Callable[[int], int], now: float) -> None:
        """Learn from the reports of engines, by their replicas' ids. `running`: how many calls one of them has."""
        for replica, load in loads.items():
            known = self._reports.get(replica)
            if known is None or known[0] != load.at:
                self._reports[replica] = (load.at, now)
                calls = running(replica)
                self._learned.setdefault(replica, LearnedRoom(calls)).learn(load, calls)
        for replica in self._reports.keys() - loads.keys():
            del self._reports[replica]
            self._learned.pop(replica, None)

    def report_of(self, replica: int) -> str:
        """Return when the engine of the replica with this id reported last; empty: it has not."""
        found = self._reports.get(replica)
        return "" if found is None else found[0]

    def is_learned(self, replica: int) -> bool:
        """Return whether something was learned of the replica with this id."""
        return replica in self._learned

    def adopt(self, replica: int, calls: int) -> None:
        """Take over another worker's estimate. Do nothing where the room is stated, or unknown here."""
        found = self._learned.get(replica)
        if found is not None and math.ceil(found.calls) != calls:
            found.calls = float(calls)

    def forget(self, now: float) -> None:
        """Forget what was learned from reports that none follows. Call it about once a second."""
        for replica, (_, came) in self._reports.items():
            if now - came > STALE_AFTER:
                self._learned.pop(replica, None)
