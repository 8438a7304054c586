"""Hosts and engines that do not answer: asked about regularly, so that no caller has to wait to learn it.

A host whose power or network is gone says nothing at all: a new connection waits for its time-out, and calls that are
open there wait for minutes. So every host of our engines is asked twice a second whether it takes (or refuses) a
connection. A supervisor's heartbeat would say less: it is also missing while the supervisor restarts and its engines
keep running. Hosts on loopback need not be asked, and external servers have ways and times of their own.

A machine whose processes are all frozen or gone still takes (or refuses) connections, though. So when a supervisor
stops reporting, its engines are asked directly; while it reports, it asks them, and nothing is asked here. An engine
that does not answer either gets no calls until it does.
"""

import asyncio
import contextlib
import errno
import ipaddress
import socket
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from apiproxy.dataplane.catalogue import Replica
from apiproxy.dataplane.upstream import UNREACHABLE_ERRNOS, Header, Pool, Unreachable, UpstreamError

K = TypeVar("K")
EVERY = 0.5  # seconds between two questions
# Seconds for an answer, which takes a millisecond in one building. A lost packet is sent again after a second, so
# more go out after a moment: where one in a hundred is lost, it takes a year and a half until four of a question are.
WAITS = (0.002, 0.008, 0.04, 0.1, 0.25)  # between looks for it
PATIENCE = sum(WAITS)
AGAIN, MORE = 2, 3  # before which look, and how many
# Unanswered questions in a row after which calls that had begun before are given up too. One may be a pause of the
# host; new calls go elsewhere from the first on.
CERTAIN = 3
# Seconds within which an engine must answer. It takes milliseconds, beside its other work.
HEALTH_WITHIN = 1.0
# Unanswered questions in a row before an engine gets no calls, and before those are given up that it was at: its
# threads may all be busy with calls, on which it will send something sooner or later.
DOUBTFUL, HOPELESS = 2, 6


@dataclass(frozen=True, slots=True)
class _Silence:
    since: float
    questions: int = 0


def _count_silence(before: Mapping[K, _Silence], asked: float, silent: Iterable[K]) -> dict[K, _Silence]:
    """Count the question asked at that time for those who did not answer, and forget all others."""
    known = {one: before.get(one) or _Silence(asked) for one in silent}
    return {one: _Silence(silence.since, silence.questions + 1) for one, silence in known.items()}


class Heartbeat(NamedTuple):
    """Of a host's supervisor: who that is, and whether it has been quiet for a while, or longer than it restarts."""

    claim: str
    quiet: bool
    gone: bool


class HostWatch:
    """Which hosts are silent, by the host part of their engines' addresses."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._silent: dict[str, _Silence] = {}

    @property
    def silent(self) -> Mapping[str, float]:
        """Hosts that do not answer, and since when (by the clock)."""
        return {host: silence.since for host, silence in self._silent.items()}

    def is_certain(self, host: str) -> bool:
        """Return whether it has been silent for several questions."""
        silence = self._silent.get(host)
        return silence is not None and silence.questions >= CERTAIN

    async def ask(self, pools: Iterable[Pool]) -> None:
        """Ask each host once. Takes at most twice PATIENCE."""
        hosts: dict[str, list[Pool]] = {}
        for pool in pools:
            if is_distant(pool.address.host):
                hosts.setdefault(pool.address.host, []).append(pool)
        began = self._clock()
        answers = await asyncio.gather(*(self._answers(host, pools) for host, pools in hosts.items()))
        silent = [host for host, answer in zip(hosts, answers, strict=True) if not answer]
        self._silent = _count_silence(self._silent, began, silent)

    async def _answers(self, host: str, pools: list[Pool]) -> bool:
        """Return whether any of its ports answers. An engine that takes no more connections is silent as well."""
        if host in self._silent:
            return any(await asyncio.gather(*map(answers, pools)))
        return await answers(pools[0]) or (len(pools) > 1 and any(await asyncio.gather(*map(answers, pools[1:]))))


class EngineWatch:
    """Which engines do not answer, of those that are to be asked, by their replicas' ids."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._silent: dict[int, _Silence] = {}

    @property
    def silent(self) -> Mapping[int, float]:
        """Engines that get no calls, and since when they have not answered (by the clock)."""
        return {id: one.since for id, one in self._silent.items() if one.questions >= DOUBTFUL}

    def is_certain(self, replica: int) -> bool:
        """Return whether the calls that it was working on are lost."""
        silence = self._silent.get(replica)
        return silence is not None and silence.questions >= HOPELESS

    async def ask(
        self, engines: Iterable[tuple[Replica, Pool]], heard_since: Callable[[float], Collection[int]]
    ) -> None:
        """Ask each once, and forget all others. Takes at most twice HEALTH_WITHIN.

        `heard_since`: the engines that have sent something since then; they are not silent.
        """
        asked = list(engines)
        began = self._clock()
        answers = await asyncio.gather(*(is_healthy(replica, pool) for replica, pool in asked))
        heard = heard_since(began) if asked else ()
        silent = {replica.id for (replica, _), answer in zip(asked, answers, strict=True) if not answer}
        self._silent = _count_silence(self._silent, began, silent - set(heard))


class _Health:
    """Waits for the head of an answer, whatever it says: an engine that refuses is there. An `upstream.Receiver`."""

    def __init__(self) -> None:
        self.answered: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def head(self, status: int, headers: list[Header]) -> None:
        self._answer(True)

    def data(self, piece: bytes) -> None: ...
    def chunk(self, framed: bytes, start: int) -> None: ...

    def end(self) -> None:
        self._answer(True)

    def failed(self, error: UpstreamError) -> None:
        self._answer(False)

    def _answer(self, answered: bool) -> None:
        if not self.answered.done():
            self.answered.set_result(answered)


async def is_healthy(replica: Replica, pool: Pool) -> bool:
    """Return whether the engine answers a health request, on a connection of its own."""
    address = pool.address
    request = (
        f"GET {address.prefix}{replica.health} HTTP/1.1\r\nhost: {address.host_header}\r\n"
        f"authorization: Bearer {replica.api_key}\r\nconnection: close\r\n\r\n"
    )
    try:
        connection = await pool.connect(HEALTH_WITHIN)
    except Unreachable:
        return False
    health = _Health()
    try:
        async with asyncio.timeout(HEALTH_WITHIN):
            connection.request(request.encode("latin-1"), health)
            return await health.answered
    except TimeoutError:
        return False
    finally:
        connection.abort()


def is_distant(host: str) -> bool:
    """Return whether this is another machine, as far as its name shows."""
    with contextlib.suppress(ValueError):
        return not ipaddress.ip_address(host).is_loopback
    return host != "localhost"


async def answers(pool: Pool) -> bool:
    """Return whether the host takes a connection, or refuses it. True also if its name cannot be resolved now."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(PATIENCE):
            addresses = await pool.addresses(loop.time())
    except (OSError, TimeoutError):
        return True
    with contextlib.ExitStack() as stack:
        tries: list[Attempt] = []
        for number, wait in enumerate(WAITS):
            more = {0: 1, AGAIN: MORE}.get(number, 0)
            tries += [Attempt(stack, address, pool.address.port) for address in addresses for _ in range(more)]
            await asyncio.sleep(wait)
            # The kernel is asked, which goes on when we do not: a process that was frozen for a second must not call
            # a host silent that answered meanwhile.
            if any(one.is_answered() for one in tries):
                return True
    return False


class Attempt:
    """A connection that is being made, until the stack is closed."""

    def __init__(self, stack: contextlib.ExitStack, address: str, port: int) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._socket = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
        self._socket.setblocking(False)
        self._error = self._socket.connect_ex((address, port))

    def is_answered(self) -> bool:
        """Return whether the host took the connection, or refused or broke it: then only the engine is away."""
        if self._error == errno.EINPROGRESS:
            self._error = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or self._connected()
        return is_answer(self._error)

    def _connected(self) -> int:
        try:
            self._socket.getpeername()
        except OSError:
            return errno.EINPROGRESS
        return 0


def is_answer(error: int) -> bool:
    """Return whether an attempt that has come to this error (0: it is connected) was answered by the host.

    What is wrong on our side (no descriptor, no port) counts as an answer too: it says nothing about the host.
    """
    return error != errno.EINPROGRESS and error not in UNREACHABLE_ERRNOS
