"""`HostAgent`: the actor that a cluster has on each GPU host, through which a controller acts there.

It holds nothing: engines hang on shims, what is known of them is on the host's disk, and the fence beside them stops
them when no controller renews the lease. So an agent that dies is started again by Ray and goes on where it was. There
is one of a host that acts: see `agent_lock`.

Each call carries the controller's term and its holder; see `lease`. What comes back is JSON, as bytes, also of what
goes wrong: no exception and no pickle of an agent's own. So a host may run another version of ours than the site for as
long as an upgrade takes. Each answer shows the host's clock, from which the next renewal counts.
"""

import asyncio
import logging
import os
import platform
import subprocess
import time
from collections.abc import Awaitable, Callable
from typing import Any

from modelregistry.cluster import agent_lock, fence, limits, messages, node_directory
from modelregistry.cluster.access import CERTIFICATE
from modelregistry.cluster.certificates import read_end
from modelregistry.cluster.lease import FencingLease, HostClock, LeaseRefused
from modelregistry.cluster.node_directory import NodeDirectory
from modelregistry.process import shim
from modelregistry.version import VERSION

log = logging.getLogger(__name__)

# Answers one message of the controller's; see `modelregistry.hostside`.
Serve = Callable[[str], Awaitable[str]]
# Messages that are worked on at a time. Fewer than all calls of an agent that Ray lets run: were these all messages
# that wait for a disk, renewals would wait behind them, and the fence would stop the engines. No concurrency group of
# Ray's for renewals: an agent lives on with the options that it was created with, by an earlier release perhaps.
MOST_MESSAGES = limits.CONCURRENCY - 20


class TooManyMessages(Exception):
    """So many messages wait for this host that it takes no more."""


class HostAgent:
    """One host's. `make_server` returns what answers the controller's messages about engines."""

    def __init__(self, make_server: Callable[[NodeDirectory], Serve]) -> None:
        self.directory = node_directory.of_environment(os.environ)
        self.lock = agent_lock.take(self.directory.path)
        self.lease = FencingLease(self.directory.lease)
        self.directory.runs.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.fenced = self._start_fence()
        drop_variables()
        os.environ.update(self.directory.environment)
        self.serve = make_server(self.directory)
        self.messages = 0  # that are worked on

    async def describe(self) -> bytes:
        """Return who this is, and what its clock shows; needs no lease."""
        return await self._answer(self._describe())

    async def renew(self, term: int, holder: str, seconds: float, boot: str, since: float) -> bytes:
        """Extend the lease, from when this host's clock showed `since`; see `FencingLease.renew`."""
        return await self._answer(self._renew(term, holder, seconds, HostClock(boot, since)))

    async def exchange(self, term: int, holder: str, message: str) -> bytes:
        """Answer one message about engines, for the holder of the lease."""
        return await self._answer(self._exchange(term, holder, message))

    async def _describe(self) -> dict[str, Any]:
        claim = self.lease.read()
        return {
            "name": self.directory.name,
            "address": self.directory.address,
            "pid": os.getpid(),
            "boot": shim.boot_id(),
            "version": VERSION,
            "python": platform.python_version(),
            "clock": time.time(),
            "term": claim.term if claim else 0,
            "holder": claim.holder if claim else "",
            "lease": self.lease.remaining(claim),
            "fenced": self.fenced,
            "certificate_ends": await asyncio.to_thread(read_end, self.directory.secrets / CERTIFICATE),
        }

    async def _renew(self, term: int, holder: str, seconds: float, since: HostClock) -> float:
        # Also a fence that was killed comes back with the next renewal.
        self.fenced = await asyncio.to_thread(self._start_fence)
        return await asyncio.to_thread(self.lease.renew, term=term, holder=holder, seconds=seconds, since=since)

    def _start_fence(self) -> bool:
        """Have a fence run, and return whether one does: a host that has none for now serves on, and says so."""
        try:
            fence.prepare(self.directory.lease)
            self.lease.prepare()
        except OSError as error:  # a full disk; what was created before is enough
            log.warning("the files of the lease cannot be prepared: %s", error)
        try:
            fence.start(self.directory.lease, self.directory.runs)
        except (OSError, subprocess.SubprocessError) as error:
            log.error("no fence could be started: %s", error)
            return False
        return True

    async def _exchange(self, term: int, holder: str, message: str) -> str:
        self.lease.check(term, holder)
        if self.messages >= MOST_MESSAGES:
            raise TooManyMessages(f"{self.messages} messages wait for this host already: does one of its disks answer?")
        self.messages += 1
        try:
            return await self.serve(message)
        finally:
            self.messages -= 1

    async def _answer(self, work: Awaitable[Any]) -> bytes:
        try:
            found: dict[str, Any] = {"result": await work}
        except Exception as error:
            if not isinstance(error, LeaseRefused | TooManyMessages):
                log.exception("a request failed")
            claim = self.lease.read()
            found = {"fault": str(error)[:500], "kind": type(error).__name__, "term": claim.term if claim else 0}
        # The clock is read last: the controller takes it for that of when the answer arrived, or of before.
        return messages.encode({**found, "shown": self.lease.show_clock()})


def drop_variables() -> None:
    """Remove from this process's environment what Ray put there: engines get theirs from it.

    Above all what opens the cluster; but OMP_NUM_THREADS too, which is 1 for a worker without CPUs.
    """
    for name in [name for name in os.environ if name.startswith("RAY_") or name == "OMP_NUM_THREADS"]:
        del os.environ[name]
