"""Hosts that cannot be reached: found out by asking, so that no caller has to wait to learn it.

A host whose power or network is gone says nothing at all: who connects waits for as long as patience lasts, and calls
that are open there wait for minutes. So every host of our engines is asked twice a second whether it takes (or refuses)
a connection. A supervisor's sign of life would tell less: it is away as well while it is started again, and its engines
go on. Hosts on loopback need not be asked, and servers of others have ways and times of their own.
"""

import asyncio
import contextlib
import errno
import ipaddress
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from apiproxy.dataplane.upstream import NO_WAY, Pool

EVERY = 0.5  # seconds between two questions
# Seconds for an answer, which takes a millisecond in one building. A lost packet is sent again after a second, so
# more go out after a moment: where one in a hundred is lost, it takes a year and a half until four of a question are.
WAITS = (0.002, 0.008, 0.04, 0.1, 0.25)  # between looks for it
PATIENCE = sum(WAITS)
AGAIN, MORE = 2, 3  # before which look, and how many
# Unanswered questions in a row after which calls that had begun before are given up too. One may be a pause of the
# host; new calls go elsewhere from the first on.
CERTAIN = 3


@dataclass(slots=True)
class _Silence:
    since: float
    questions: int = 1


class HostWatch:
    """Which hosts are silent, by the host part of their engines' addresses."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._silent: dict[str, _Silence] = {}

    @property
    def silent(self) -> Mapping[str, float]:
        """Hosts that do not answer, and since when (by the clock)."""
        return {host: silence.since for host, silence in self._silent.items()}

    def certain(self, host: str) -> bool:
        """Whether it has been silent for several questions."""
        silence = self._silent.get(host)
        return silence is not None and silence.questions >= CERTAIN

    async def ask(self, pools: Iterable[Pool]) -> None:
        """Ask each host once. Takes at most twice PATIENCE."""
        hosts: dict[str, list[Pool]] = {}
        for pool in pools:
            if distant_hosts(pool.address.host):
                hosts.setdefault(pool.address.host, []).append(pool)
        began = self._clock()
        answers = await asyncio.gather(*(self._answers(host, pools) for host, pools in hosts.items()))
        for host, answer in zip(hosts, answers, strict=True):
            if answer:
                self._silent.pop(host, None)
            elif host in self._silent:
                self._silent[host].questions += 1
            else:
                self._silent[host] = _Silence(began)
        for host in self._silent.keys() - hosts.keys():  # it serves nothing any more
            del self._silent[host]

    async def _answers(self, host: str, pools: list[Pool]) -> bool:
        """Whether any of its ports answers: one whose engine takes no connections any more says nothing either."""
        if host in self._silent:
            return any(await asyncio.gather(*map(answers, pools)))
        return await answers(pools[0]) or (len(pools) > 1 and any(await asyncio.gather(*map(answers, pools[1:]))))


def distant_hosts(host: str) -> bool:
    """Whether this is another machine, as far as its name tells."""
    with contextlib.suppress(ValueError):
        return not ipaddress.ip_address(host).is_loopback
    return host != "localhost"


async def answers(pool: Pool) -> bool:
    """Whether the host takes a connection, or refuses it. True as well if nobody knows the name's address now."""
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
            # The kernel is asked, which goes on when we do not: a process that was held up for a second must not take
            # a host for silent that answered meanwhile.
            if any(one.is_answered() for one in tries):
                return True
    return False


class Attempt:
    """A connection that is being made, until the stack is closed."""

    def __init__(self, stack: contextlib.ExitStack, address: str, port: int) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._socket = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
        self._socket.setblocking(False)
        self._told = self._socket.connect_ex((address, port))

    def is_answered(self) -> bool:
        """Whether the other side took it, or refused or broke it: then its engine is away, but not its host. What is
        wrong with us (no descriptor, no port) says nothing of it either."""
        if self._told == errno.EINPROGRESS:
            self._told = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or self._connected()
        return self._told != errno.EINPROGRESS and self._told not in NO_WAY

    def _connected(self) -> int:
        try:
            self._socket.getpeername()
        except OSError:
            return errno.EINPROGRESS
        return 0
