"""The lease by which a host keeps its engines: a controller renews it, and without it they are stopped (`fence`).

It is a file of the host, so that a host agent that dies takes nothing with it, and two agents of one host, an old and a
new one, see the same. Time is that of the host since it booted (`CLOCK_BOOTTIME`): setting a clock moves nothing.

A controller's term grows with each election. One with an older term than the host has seen was replaced by another, and
is refused everything.
"""

import contextlib
import fcntl
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from modelregistry.process import shim

FILE, LOCK = "lease.json", "lease.lock"
LONGEST = 3600.0  # seconds


class LeaseRefused(Exception):
    """The controller may not act on this host; `str()` says why."""


class NewerController(LeaseRefused):
    """A controller of a later term has been here."""


class NotRenewed(LeaseRefused):
    """The lease is over, or there was none since the host booted: renew it first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostClaim:
    """What the file says. `until`: seconds since the host booted; the term outlives a boot, the time does not."""

    term: int
    holder: str
    boot: str
    until: float


def seconds_since_boot() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class FencingLease:
    """The lease of one host, in `directory`. Each method reads the file: another process may have written it."""

    def __init__(self, directory: Path, *, clock: Callable[[], float] = seconds_since_boot) -> None:
        self.directory = directory
        self.clock = clock

    def renew(self, *, term: int, holder: str, seconds: float) -> float:
        """Extend the lease from now, and return for how long it is good. Raises NewerController."""
        if not 0 < seconds <= LONGEST:
            raise ValueError(f"a lease is for up to {LONGEST:g} s, not for {seconds!r}")
        with self._locked():
            before = self.read()
            if before and before.term > term:
                raise NewerController(f"term {before.term} of {before.holder} is newer than term {term} of {holder}")
            claim = {"term": term, "holder": holder, "boot": shim.boot_id(), "until": self.clock() + seconds}
            shim.write_atomically(self.directory / FILE, claim)
        return seconds

    def check(self, term: int) -> None:
        """Raise LeaseRefused unless this term holds the lease now."""
        claim = self.read()
        if claim is None or self.remaining(claim) <= 0:
            raise NotRenewed("the lease of this host is over: renew it first")
        if claim.term < term:
            raise NotRenewed(f"the lease is of term {claim.term}: renew it first")
        if claim.term > term:
            raise NewerController(f"term {claim.term} of {claim.holder} holds this host, not term {term}")

    def remaining(self, claim: HostClaim | None) -> float:
        """Return for how many seconds a claim is still good; 0.0: it is not."""
        if claim is None or claim.boot != shim.boot_id():
            return 0.0
        return max(0.0, claim.until - self.clock())

    def read(self) -> HostClaim | None:
        """Return what was last written; None: nothing, or the file is damaged."""
        try:
            found = json.loads((self.directory / FILE).read_text())
            return HostClaim(
                term=int(found["term"]),
                holder=str(found["holder"]),
                boot=str(found["boot"]),
                until=float(found["until"]),
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self.directory / LOCK).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
