"""Notices when usage waits on this worker's disk for long, so that operators can be notified of it."""

import time
from collections.abc import Callable
from dataclasses import dataclass

MUCH = 1_000_000  # bytes: some 1,600 calls; a database that is slow for a moment leaves less
LONG = 600.0  # seconds
AGAIN = 60.0  # seconds between two reports of one backlog


@dataclass(frozen=True, slots=True, kw_only=True)
class BacklogReport:
    """How many bytes of usage wait, and for how many seconds there has been much. 0 bytes: it is over."""

    bytes: int
    seconds: float


class BacklogWatch:
    """Looks at the size of one worker's backlog."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: float | None = None
        self._reported: float | None = None

    def look(self, size: int) -> BacklogReport | None:
        """Return what is to be reported now; None: nothing."""
        now = self._clock()
        if size < MUCH:
            was_reported, self._since, self._reported = self._reported is not None, None, None
            return BacklogReport(bytes=0, seconds=0.0) if was_reported else None
        if self._since is None:
            self._since = now
        if now - self._since < LONG or (self._reported is not None and now - self._reported < AGAIN):
            return None
        self._reported = now
        return BacklogReport(bytes=size, seconds=now - self._since)
