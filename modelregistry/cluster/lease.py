"""The lease by which a host keeps its engines: a controller renews it, and without it they are stopped (`fence`).

It is a file of the host, so that a host agent that dies takes nothing with it, and two agents of one host, an old and a
new one, see the same. Its two slots are written when it is created and overwritten in turn from then on: a full disk
keeps no lease from being renewed, and a write that is cut short leaves the slot before it.

**Time** is that of the host since it booted (`CLOCK_BOOTTIME`): setting a clock moves nothing. A lease counts from a
time that the host has shown to the controller, and that the controller sends back with its renewal. So a renewal that
waited in a queue prolongs no lease beyond what its sender reckons with: `seconds` after it last heard from the host.

**Terms.** A controller's term grows with each election, and belongs to one holder. A host obeys the holder of its
latest term only: a lower term is refused, and so is an equal one of another holder (two databases, or one that was
restored from a backup, may have given the same term twice). Hosts answer with their term: a controller that is refused
although it was elected takes a term above the highest of all hosts.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from modelregistry.process import shim

FILE, LOCK = "lease", "lease.lock"
SLOT = 4096  # bytes, a block of the disk
SLOTS = 2
LONGEST = 3600.0  # seconds
LONGEST_HOLDER = 200  # characters


class LeaseRefused(Exception):
    """The controller may not act on this host; `str()` says why."""


class NewerController(LeaseRefused):
    """A controller of a later term has been here, or another one of the same term."""


class NotRenewed(LeaseRefused):
    """The lease is over, or there was none since the host booted: renew it first."""


class StaleRenewal(LeaseRefused):
    """The renewal counts from a time that is too long ago, or of another boot: ask the host for its clock again."""


class HostClock(NamedTuple):
    """What a host's own clock shows: seconds since it booted, and which boot that was."""

    boot: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HostClaim:
    """What the file says. `since`, `until`: seconds since the host booted; the term outlives a boot, they do not."""

    term: int
    holder: str
    boot: str
    since: float
    until: float


def seconds_since_boot() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class FencingLease:
    """The lease of one host, in `directory`. Each method reads the file: another process may have written it."""

    def __init__(self, directory: Path, *, clock: Callable[[], float] = seconds_since_boot) -> None:
        self.directory = directory
        self.clock = clock

    def prepare(self) -> None:
        """Create the file, with all the room that it will ever need. Raises OSError on a full disk."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self.directory / LOCK).touch(mode=0o600)
        path = self.directory / FILE
        if path.exists() and path.stat().st_size == SLOT * SLOTS:
            return
        draft = path.with_name(f".{FILE}.{os.getpid()}")
        try:
            with draft.open("wb") as file:
                file.write(b" " * SLOT * SLOTS)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            draft.unlink(missing_ok=True)
            raise
        draft.replace(path)

    def show_clock(self) -> HostClock:
        """Return what a controller sends back with its next renewal."""
        return HostClock(shim.boot_id(), self.clock())

    def renew(self, *, term: int, holder: str, seconds: float, since: HostClock) -> float:
        """Make the lease good until so many seconds after `since`, and return for how long that is from now.

        Raises NewerController, StaleRenewal; OSError when the disk fails.
        """
        if not 0 < seconds <= LONGEST:
            raise ValueError(f"a lease is for up to {LONGEST:g} s, not for {seconds!r}")
        if not 0 < len(holder) <= LONGEST_HOLDER:
            raise ValueError("a lease has a holder, with a name of ordinary length")
        with self._locked():
            number, before = self._read_latest()
            if before and before.term > term:
                raise NewerController(f"term {before.term} of {before.holder} is newer than term {term} of {holder}")
            if before and before.term == term and before.holder != holder:
                raise NewerController(f"term {term} is that of {before.holder}, not of {holder}: take a later one")
            now = self.show_clock()
            until = since.seconds + seconds
            if since.boot != now.boot:
                raise StaleRenewal("the renewal counts from a time before this host was started again")
            if not now.seconds - seconds < since.seconds <= now.seconds:
                raise StaleRenewal(f"the renewal counts from {now.seconds - since.seconds:.1f} s ago")
            own = before if before and (before.term, before.boot) == (term, now.boot) else None
            if own and own.since > since.seconds:  # it was overtaken by a later one
                return max(0.0, own.until - now.seconds)
            claim = HostClaim(term=term, holder=holder, boot=now.boot, since=since.seconds, until=until)
            self._write(number + 1, claim, lasting=own is None)
        return until - now.seconds

    def check(self, term: int, holder: str) -> None:
        """Raise LeaseRefused unless this holder's term has the lease now."""
        claim = self.read()
        if claim is None or self.remaining(claim) <= 0:
            raise NotRenewed("the lease of this host is over: renew it first")
        if claim.term < term:
            raise NotRenewed(f"the lease is of term {claim.term}: renew it first")
        if (claim.term, claim.holder) != (term, holder):
            raise NewerController(f"term {claim.term} of {claim.holder} holds this host, not term {term} of {holder}")

    def remaining(self, claim: HostClaim | None) -> float:
        """Return for how many seconds a claim is still good; 0.0: it is not."""
        if claim is None or claim.boot != shim.boot_id():
            return 0.0
        return max(0.0, claim.until - self.clock())

    def read(self) -> HostClaim | None:
        """Return what was last written; None: nothing, or the file is damaged."""
        return self._read_latest()[1]

    def find_state(self) -> tuple[int, int] | None:
        """Return what changes when the file is written, without reading it; None: it is not there."""
        try:
            found = (self.directory / FILE).stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns

    def _read_latest(self) -> tuple[int, HostClaim | None]:
        """Return the number of the last write, and what it wrote."""
        try:
            content = (self.directory / FILE).read_bytes()
        except OSError:
            return 0, None
        slots = [_read_slot(content[at : at + SLOT]) for at in range(0, SLOT * SLOTS, SLOT)]
        found: list[tuple[int, HostClaim]] = [each for each in slots if each]
        return max(found, key=lambda each: each[0], default=(0, None))

    def _write(self, number: int, claim: HostClaim, *, lasting: bool) -> None:
        """Overwrite the older slot. `lasting`: it is to outlive a loss of power, as terms are."""
        text = json.dumps({"number": number, **asdict(claim)}).encode()
        line = hashlib.sha256(text).hexdigest().encode() + b" " + text
        descriptor = os.open(self.directory / FILE, os.O_WRONLY)
        try:
            os.pwrite(descriptor, line.ljust(SLOT), SLOT * (number % SLOTS))
            if lasting:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self.prepare()
        descriptor = os.open(self.directory / LOCK, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _read_slot(content: bytes) -> tuple[int, HostClaim] | None:
    """Return a slot's number and claim; None: it was never written, or not completely."""
    digest, _, text = content.rstrip(b" ").partition(b" ")
    if hashlib.sha256(text).hexdigest().encode() != digest:
        return None
    try:
        found: dict[str, Any] = json.loads(text)
        claim = HostClaim(
            term=int(found["term"]),
            holder=str(found["holder"]),
            boot=str(found["boot"]),
            since=float(found["since"]),
            until=float(found["until"]),
        )
        return int(found["number"]), claim
    except (ValueError, KeyError, TypeError):  # of another release
        return None
