"""One controller for a site, however many wait to be it.

A controller writes a number of its own on the site's row, its claim, and renews `seen_at` every BEAT seconds. Another
one that finds a claim watches the row: if `seen_at` changes, the holder is alive, and it waits on; if it does not
change for STALE_AFTER seconds of the watcher's own monotonic clock, the holder is dead. Instants are only compared for
equality, so it does not matter how far the clocks of two machines are apart, or whether one of them jumps.

Each election has a term, one more than the last: hosts of a cluster refuse a controller of an earlier term than they
have seen (`modelregistry.cluster.lease`). So one that is cut off from the database, and was replaced, does no harm.

The claim is kept in the state directory as well, whose lock the caller holds: a controller that follows a killed one
recognises the claim as its own and need not wait.
"""

import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from modelregistry.supervisor.office import BEAT

log = logging.getLogger(__name__)

# Another one takes over 15 s after the death of a controller at the latest, and adopts what runs. One that was only
# slow loses no engine by it.
STALE_AFTER = 10.0
# Two beats were missed: one that waits prepares what takes seconds, as a driver of Ray does.
EXPECTED_AFTER = 2 * BEAT
LOOKED_WITHIN = 2 * BEAT + 1  # seconds between two looks at a claim, after which it is watched from the start


@dataclass(frozen=True, slots=True)
class Claim:
    """What the site's row says: the holder's number (empty: none), its description, and when it was renewed."""

    number: str
    holder: str
    seen_at: datetime | None


class Election:
    """One process's part in elections. Only decides; the caller reads and writes the row."""

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        self.path = path
        self.clock = clock
        self.number = secrets.token_hex(8)
        self.before = path.read_text() if path.exists() else ""
        self.watched: Claim | None = None
        self.since = self.looked_at = 0.0

    def may_take(self, found: Claim) -> bool:
        """Return whether to become the controller; if not, look again soon."""
        if found.number in ("", self.before, self.number):
            return True
        if self.watched is None or self.watched.number != found.number:
            log.warning("%s is the site's controller: this one waits until that is gone", found.holder)
        now = self.clock()
        # While the database is away no holder can renew: such time does not count.
        if self.watched != found or now - self.looked_at > LOOKED_WITHIN:
            self.watched, self.since = found, now
        self.looked_at = now
        return now - self.since >= STALE_AFTER

    def is_expected(self) -> bool:
        """Return whether the claim that is watched was not renewed for so long that it may be taken soon."""
        return self.watched is not None and self.looked_at - self.since >= EXPECTED_AFTER

    def keep_claim(self) -> None:
        """Keep the claim for the next controller of this state directory."""
        try:
            self.path.write_text(self.number)
        except OSError as error:  # a full disk: the next controller waits for STALE_AFTER
            log.warning("cannot keep the claim: %s", error)
