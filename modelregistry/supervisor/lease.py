"""One supervisor for a host, also if two machines (or two state directories) were given the same host name.

A supervisor writes a number of its own on the host's row, its claim, and renews `seen_at` every BEAT seconds. Another
one that finds a claim watches the row: if `seen_at` changes, the holder is alive; if it does not change for STALE_AFTER
seconds of the watcher's own monotonic clock, the holder is dead. Instants are only compared for equality, so it does
not matter how far the clocks of two machines are apart, or whether one of them jumps.

The claim is kept in the state directory as well, whose lock the caller holds: a supervisor that follows a killed one
recognises the claim as its own and need not wait.
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
    """Another supervisor holds this host; the message says which."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What a host's row says: the holder's number (empty: no holder), its description, and when it was renewed."""

    number: str
    holder: str
    seen_at: datetime | None


class HostLease:
    """A supervisor's claim on one host. Only decides; the caller reads and writes the rows."""

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        self.path = path
        self.clock = clock
        self.number = secrets.token_hex(8)
        self.before = path.read_text() if path.exists() else ""
        self.watched: Claim | None = None
        self.since = 0.0

    def may_take(self, found: Claim) -> bool:
        """Return whether to take the host; if not, look again soon. Raises HeldElsewhere when its holder is alive."""
        if found.number in ("", self.before, self.number):
            return True
        if self.watched is None or self.watched.number != found.number:
            self.watched, self.since = found, self.clock()
            log.warning("this host is claimed by %s: waiting for its next heartbeat", found.holder)
        elif found.seen_at != self.watched.seen_at:
            raise HeldElsewhere(f"This host has a supervisor already: {found.holder}.")
        return self.clock() - self.since >= STALE_AFTER

    def keep_claim(self) -> None:
        """Keep the claim for the next supervisor of this state directory."""
        try:
            self.path.write_text(self.number)
        except OSError as error:  # a full disk: the next supervisor waits for STALE_AFTER
            log.warning("cannot keep the claim: %s", error)
