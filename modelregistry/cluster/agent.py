"""`HostAgent`: the actor that a cluster has on each GPU host, through which a controller acts there.

It holds nothing: engines hang on shims, what is known of them is on the host's disk, and the fence beside them stops
them when no controller renews the lease. So an agent that dies is started again by Ray and goes on where it was.

Each call carries the controller's term; see `lease`. What goes to and fro is JSON and text, so that a host may run
another version of ours than the site for as long as an upgrade takes.
"""

import asyncio
import os
import platform
import time
from collections.abc import Awaitable, Callable
from typing import Any

from modelregistry.cluster import fence, host_home
from modelregistry.cluster.host_home import HostHome
from modelregistry.cluster.lease import FencingLease
from modelregistry.process import shim

# Answers one message of the controller's; see `modelregistry.hostside`.
Serve = Callable[[str], Awaitable[str]]


class HostAgent:
    """One host's. `make_server` returns what answers the controller's messages about engines."""

    def __init__(self, make_server: Callable[[HostHome], Serve]) -> None:
        self.home = host_home.of_environment(os.environ)
        self.lease = FencingLease(self.home.lease)
        self.home.runs.mkdir(mode=0o700, parents=True, exist_ok=True)
        fence.start(self.home.lease, self.home.runs)
        drop_variables()
        os.environ.update(self.home.environment)
        self.serve = make_server(self.home)

    async def describe(self) -> dict[str, Any]:
        """Return who this is, and what its clock shows; needs no lease."""
        claim = self.lease.read()
        return {
            "name": self.home.name,
            "address": self.home.address,
            "pid": os.getpid(),
            "boot": shim.boot_id(),
            "python": platform.python_version(),
            "clock": time.time(),
            "term": claim.term if claim else 0,
            "lease": self.lease.remaining(claim),
        }

    async def renew(self, term: int, holder: str, seconds: float) -> float:
        """Extend the lease; see `FencingLease.renew`."""
        # Also a fence that was killed comes back with the next renewal.
        await asyncio.to_thread(fence.start, self.home.lease, self.home.runs)
        return await asyncio.to_thread(self.lease.renew, term=term, holder=holder, seconds=seconds)

    async def exchange(self, term: int, message: str) -> str:
        """Answer one message about engines. Raises LeaseRefused."""
        self.lease.check(term)
        return await self.serve(message)


def drop_variables() -> None:
    """Remove from this process's environment what Ray put there: engines get theirs from it.

    Above all what opens the cluster; but OMP_NUM_THREADS too, which is 1 for a worker without CPUs.
    """
    for name in [name for name in os.environ if name.startswith("RAY_") or name == "OMP_NUM_THREADS"]:
        del os.environ[name]
