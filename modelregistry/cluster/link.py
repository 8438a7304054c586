"""`ClusterLink`: a controller's side of `driver`. Knows no Ray: it starts a Python that has it, and again when it ends.

Every request has a limit. What does not answer within it is silent, which says nothing about what was done.
"""

import asyncio
import contextlib
import itertools
import json
import logging
import os
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from modelregistry.cluster import limits, messages
from modelregistry.cluster.access import ClusterAccess, ray_environment
from modelregistry.cluster.bookings import Booking, BookingTable, FoundBooking
from modelregistry.cluster.lease import StaleRenewal
from modelregistry.cluster.node import CODE

log = logging.getLogger(__name__)


class ClusterSilent(Exception):
    """The host, or all of the cluster, did not answer in time; what was asked may have been done, or be done later."""


class HostRefused(Exception):
    """The host's agent answered that it will not. `kind`: the class of what it raised, see `lease.LeaseRefused`.

    `term`: the latest that the host has seen. A controller that was elected, and is refused as NewerController, takes
    one above it.
    """

    def __init__(self, sentence: str, kind: str, term: int = 0) -> None:
        super().__init__(sentence)
        self.kind = kind
        self.term = term


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterNode:
    """A node as the cluster's head knows it. `host`: its name, "" if it is not one of ours."""

    node: str
    address: str
    alive: bool
    host: str
    resources: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Renewal:
    """Who renews the lease of a host, and for how long; see `modelregistry.cluster.lease`."""

    term: int
    holder: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownClock:
    """What a host's clock showed, at `heard_at` of this machine's monotonic clock at the latest."""

    boot: str
    seconds: float
    heard_at: float


class ClusterLink:
    """Start it, use it from one event loop, close it. Raises NotSecured where the cluster would be open to others.

    `python`: one that has Ray. `server`: `module:name` of what answers messages on hosts; see `host_server`. `log`:
    where the driver writes.
    """

    def __init__(self, python: Path, *, access: ClusterAccess, server: str, log: Path | None = None) -> None:
        self.argv: tuple[str, ...] = (str(python), "-m", "modelregistry.cluster.driver", access.address, server)
        self.environment = ray_environment(access, CODE)
        self.log = log
        self.numbers = itertools.count(1)
        self.waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.clocks: dict[str, ShownClock] = {}  # by host, as last heard
        self.leases: dict[str, float] = {}  # by host: see `leased_until`
        self.process: Process | None = None
        self.running: asyncio.Task[None] | None = None
        self.ready = asyncio.Event()

    async def open(self) -> None:
        """Begin to reach the cluster, unless it was begun; returns at once. No host is asked for anything by it."""
        self.running = self.running or asyncio.create_task(self._keep())

    async def wait_until_ready(self, within: float) -> None:
        """Wait for the driver to be in the cluster. Raises ClusterSilent."""
        try:
            async with asyncio.timeout(within):
                await self.ready.wait()
        except TimeoutError:
            raise ClusterSilent(f"the cluster did not let the controller in within {within:g} s") from None

    async def close(self) -> None:
        """End the driver. Agents and engines stay."""
        if self.running:
            self.running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.running
        await self._end()

    # --- Requests

    async def list_nodes(self, *, within: float = limits.NODES) -> list[ClusterNode]:
        """Return the cluster's nodes. Raises ClusterSilent."""
        return [ClusterNode(**found) for found in await self._ask({"do": "nodes"}, within)]

    async def open_host(self, host: str, *, within: float = limits.OPEN) -> dict[str, Any]:
        """Create the agent of a host unless it has one, and return what `describe` does. Raises ClusterSilent."""
        found: dict[str, Any] = await self._ask({"do": "open", "host": host}, within)
        return found

    async def describe(self, host: str, *, within: float = limits.CALL) -> dict[str, Any]:
        """Return what `HostAgent.describe` does."""
        found: dict[str, Any] = await self._ask({"do": "describe", "host": host}, within)
        return found

    async def renew(self, host: str, renewal: Renewal, *, within: float = limits.CALL) -> float:
        """Extend the lease of a host, and return for how many seconds it was good when the host answered.

        It counts from when the host was last heard: however late the renewal arrives, the host keeps its engines no
        longer than `leased_until`. Raises ClusterSilent, or HostRefused when a newer controller has it.
        """
        if host not in self.clocks:
            await self.describe(host, within=within)
        try:
            return await self._renew(host, renewal, within)
        except HostRefused as refused:
            if refused.kind != StaleRenewal.__name__:
                raise
        # It was away for long, or was started again; its refusal has shown its clock.
        return await self._renew(host, renewal, within)

    async def _renew(self, host: str, renewal: Renewal, within: float) -> float:
        since = self.clocks.get(host)
        if since is None:
            raise ClusterSilent("the host has shown no clock")
        # Before it is sent: one whose answer is lost may have been carried out.
        self.leases[host] = max(self.leases.get(host, 0.0), since.heard_at + renewal.seconds)
        request = {"do": "renew", "host": host, **asdict(renewal), "boot": since.boot, "since": since.seconds}
        left = await self._ask(request, within)
        if not isinstance(left, int | float):
            raise HostRefused("the host's agent answered no number", messages.UNREADABLE)
        return float(left)

    def leased_until(self, host: str) -> float:
        """Return until when, by this machine's monotonic clock, a host has its lease by renewals of this link at most.

        0.0: this link has sent none. From `fence.STOPPED_WITHIN` seconds later on none of its engines is left.
        """
        return self.leases.get(host, 0.0)

    async def exchange(self, host: str, term: int, holder: str, message: str, *, within: float) -> str:
        """Send a message to a host's agent and return its answer. Raises ClusterSilent or HostRefused."""
        request = {"do": "exchange", "host": host, "term": term, "holder": holder, "message": message}
        return str(await self._ask(request, within))

    async def dismiss(self, host: str, *, within: float = limits.CALL) -> None:
        """End the agent of a host for good; its engines run until its lease is over."""
        await self._ask({"do": "dismiss", "host": host}, within)

    # --- Bookings

    async def list_bookings(self, *, within: float = limits.BOOKING) -> BookingTable:
        """Return what of ours is booked, and what is left. Raises ClusterSilent."""
        found = await self._ask({"do": "list-bookings"}, within)
        return BookingTable(bookings=[FoundBooking(**one) for one in found["bookings"]], left=found["left"])

    async def book(self, booking: Booking, *, within: float = limits.BOOKING) -> None:
        """Ask Ray for a booking; it makes it when it can. Raises ClusterSilent."""
        await self._ask({"do": "book", "name": booking.name, "bundle": booking.bundle}, within)

    async def unbook(self, group: str, *, within: float = limits.BOOKING) -> None:
        """Give a booking up. Raises ClusterSilent."""
        await self._ask({"do": "unbook", "group": group}, within)

    async def _ask(self, request: dict[str, Any], within: float) -> Any:
        process, number = self.process, next(self.numbers)
        if not self.ready.is_set() or process is None or process.stdin is None:
            raise ClusterSilent("the controller is not in the cluster")
        try:
            line = messages.encode_line({**request, "id": number, "within": within})
        except messages.TooLong as error:
            raise HostRefused(str(error), type(error).__name__) from error
        answer = self.waiting[number] = asyncio.get_running_loop().create_future()
        try:
            process.stdin.write(line)
            async with asyncio.timeout(within + limits.DRIVER):
                found = await answer
        except (TimeoutError, OSError) as error:
            # The driver itself answers within its limit, unless it hangs.
            self._kill()
            raise ClusterSilent(f"the link to the cluster hangs: {error or 'no answer'}") from error
        finally:
            self.waiting.pop(number, None)
        if "shown" in found:
            self._note_clock(request["host"], found["shown"])
        if "silent" in found:
            raise ClusterSilent(found["silent"])
        if "fault" in found:
            raise HostRefused(found["fault"], found["kind"], int(found.get("term", 0)))
        return found["result"]

    def _note_clock(self, host: str, shown: Any) -> None:
        boot, seconds = shown
        before = self.clocks.get(host)
        # An answer that was overtaken shows an earlier time, and would count from now.
        if before is None or before.boot != boot or before.seconds <= seconds:
            self.clocks[host] = ShownClock(boot=str(boot), seconds=float(seconds), heard_at=time.monotonic())

    # --- The driver

    async def _keep(self) -> None:
        """Start the driver, and again whenever it ends."""
        failures = ended = 0
        while True:
            began = time.monotonic()
            try:
                lived = await self._run_driver(limits.PATIENCE[min(ended, len(limits.PATIENCE) - 1)])
            except OSError as error:  # no memory or no descriptor for a process; a log that cannot be written
                log.warning("the link to the cluster did not start: %s", error)
                lived = False
            except Exception:  # an answer that is none: without its driver all leases would end
                log.exception("the link to the cluster is started again")
                lived = True
            ended = 0 if time.monotonic() - began > limits.SETTLED else ended + lived
            failures = 0 if lived else failures + 1
            await asyncio.sleep(limits.PAUSES[min(failures, len(limits.PAUSES) - 1)])

    async def _run_driver(self, patience: float) -> bool:
        """Run one driver to its end, and return whether it was in the cluster."""
        with (self.log or Path(os.devnull)).open("wb") as errors:
            self.process = process = await asyncio.create_subprocess_exec(
                *self.argv,
                str(patience),
                env=self.environment,
                stdin=PIPE,
                stdout=PIPE,
                stderr=errors,
                limit=limits.LONGEST_LINE,
                start_new_session=True,
            )
        assert process.stdout
        lived = False
        watch = asyncio.create_task(self._watch())
        try:
            starting = asyncio.timeout(limits.START)
            async with starting:
                while line := await process.stdout.readline():
                    found = json.loads(line)
                    if not isinstance(found, dict):
                        raise ValueError("a line that is no answer")
                    if found.get("ready"):
                        lived = True
                        starting.reschedule(None)
                        self.ready.set()
                    elif (answer := self.waiting.get(found.get("id", 0))) and not answer.done():
                        answer.set_result(found)
        except (TimeoutError, ValueError) as error:
            log.warning("the link to the cluster is started again: %s", error or "it did not get in")
        finally:
            watch.cancel()
            self.ready.clear()
            await self._end()
            for answer in self.waiting.values():
                if not answer.done():
                    answer.set_result({"silent": "the link to the cluster ended"})
        return lived

    async def _watch(self) -> None:
        """Ask the driver itself every few seconds; `_ask` kills one that hangs."""
        await self.ready.wait()
        while True:
            with contextlib.suppress(ClusterSilent):
                await self._ask({"do": "ping"}, limits.PING)
            await asyncio.sleep(limits.PING_EVERY)

    def _kill(self) -> None:
        if self.process and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()

    async def _end(self) -> None:
        self._kill()
        if self.process:
            await self.process.wait()


class ClusterChannel:
    """Carries the messages of one host's `RemoteHost` to its agent: a `modelregistry.hostside.remote.Channel`.

    `term`, `holder`: of the controller, whose messages a host refuses once another one has a later term.
    """

    def __init__(self, link: ClusterLink, host: str, term: int, holder: str) -> None:
        self.link = link
        self.host = host
        self.term = term
        self.holder = holder

    async def send(self, request: bytes) -> bytes:
        """Return the answer. Raises ClusterSilent or HostRefused."""
        message = request.decode("utf-8", "surrogatepass")
        answer = await self.link.exchange(self.host, self.term, self.holder, message, within=limits.LONGEST)
        return answer.encode("utf-8", "surrogatepass")

    async def close(self) -> None:
        """Leave the link to the other hosts."""
