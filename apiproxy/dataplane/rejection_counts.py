"""How many calls of each key were refused, by hour and reason, on the way to the database. No I/O.

A refused call costs no row of its own. What was counted since the last flush is lost if the process is killed; what a
database took without being able to confirm it is counted twice: these sums are for information, no charge depends on
them.
"""

from collections.abc import Mapping
from typing import NamedTuple

from apiproxy.dataplane.catalogue import Key

QUARTER = 900  # seconds: what hours of any time zone consist of
# Groups that wait for the database, about 300 bytes each: 2,000 people who are refused in each quarter of an hour of
# six hours without it. Beyond that, only /metrics counts them.
MAX_GROUPS = 50_000


class RejectionGroup(NamedTuple):
    """The calls that are counted together."""

    hour: int  # Unix seconds at which a quarter of an hour begins
    tenant: int
    user: int | None
    key: int
    model: str  # its own name; "" if none that the key may use
    code: str


class RejectionCounts:
    def __init__(self) -> None:
        self._counts: dict[RejectionGroup, int] = {}

    def count(self, key: Key, model: str, code: str, now: float) -> None:
        """Count one call of this key, at `now` (Unix seconds)."""
        self._add(RejectionGroup(int(now) // QUARTER * QUARTER, key.tenant, key.user, key.id, model, code), 1)

    def take(self) -> Mapping[RejectionGroup, int]:
        """Return all that was counted since the last time."""
        counts, self._counts = self._counts, {}
        return counts

    def give_back(self, counts: Mapping[RejectionGroup, int]) -> None:
        """Take back counts that could not be written; `take` returns them again, with what came meanwhile."""
        for group, requests in counts.items():
            self._add(group, requests)

    def _add(self, group: RejectionGroup, requests: int) -> None:
        before = self._counts.get(group)
        if before is not None:
            self._counts[group] = before + requests
        elif len(self._counts) < MAX_GROUPS:
            self._counts[group] = requests
