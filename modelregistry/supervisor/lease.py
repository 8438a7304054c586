"""One supervisor for a host, also if two machines (or two state directories) were given the same host name.

Who supervises a host has written a number of its own on the host's row, its claim, and renews `seen_at` every BEAT
seconds. Another one that finds a claim watches the row: if `seen_at` changes, somebody lives there; if it stays as it
is for STALE_AFTER seconds of the watcher's own monotonic clock, nobody does. Instants are only compared for
being equal, so it does not matter how far the clocks of two machines are apart, or whether one of them jumps.

The claim is kept in the state directory as well, whose lock the caller holds: a supervisor that follows a killed one
knows the claim as its own and need not wait.
"""

import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

log = logging.getLogger(__name__)

BEAT = 2.0  # gateways doubt the engines of a host that has missed two of them, see `routes.QUIET`
STALE_AFTER = 30.0  # many beats may be lost, to a slow database or a busy machine


class HeldElsewhere(Exception):
    """Another supervisor looks after this host; the message says which."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What a host's row says: whose it is (empty: nobody's), who that is in words, and when it was renewed."""

    number: str
    holder: str
    seen_at: datetime | None


class Lease:
    """The wish for one host's claim. Decides only; the rows are the caller's."""

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        self.path = path
        self.clock = clock
        self.number = secrets.token_hex(8)
        self.before = path.read_text() if path.exists() else ""
        self.watched: Claim | None = None
        self.since = 0.0

    def may_take(self, found: Claim) -> bool:
        """False: look again soon. Raises HeldElsewhere when its holder gave a sign of life."""
        if found.number in ("", self.before, self.number):
            return True
        if self.watched is None or self.watched.number != found.number:
            self.watched, self.since = found, self.clock()
            log.warning("this host is claimed by %s: waiting for a sign of life", found.holder)
        elif found.seen_at != self.watched.seen_at:
            raise HeldElsewhere(f"This host has a supervisor already: {found.holder}.")
        return self.clock() - self.since >= STALE_AFTER

    def taken(self) -> None:
        """Remember the claim for who comes after us in this state directory."""
        try:
            self.path.write_text(self.number)
        except OSError as error:  # a full disk: the next one waits for STALE_AFTER
            log.warning("cannot keep the claim: %s", error)
