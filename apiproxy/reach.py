"""Hosts that cannot be reached: found out by asking, so that no caller has to wait to learn it.

A host whose power or network is gone says nothing at all: who connects waits for as long as patience lasts, and calls
that are open there wait for minutes. So every host of our engines is asked twice a second whether it takes (or refuses)
a connection. A supervisor's sign of life would tell less: it is away as well while it is started again, and its engines
go on. Hosts on loopback need not be asked, and servers of others have ways and times of their own.
"""

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from apiproxy.upstream import Pool

EVERY = 0.5  # seconds between two questions
# Seconds for an answer, which takes a millisecond in one building. A lost packet is sent again after a second, so
# several go out at once: where one in a hundred is lost, it takes three years until four of a question are.
PATIENCE = 0.4
AT_ONCE = 4
# Unanswered questions in a row after which calls that had begun before are given up too. One may be a pause of the
# host; new calls go elsewhere from the first on.
CERTAIN = 3


@dataclass(slots=True)
class _Silence:
    since: float
    questions: int = 1


class Reach:
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
        """Ask each host once, through one of its pools. Takes at most PATIENCE."""
        asked = {pool.address.host: pool for pool in pools if distant(pool.address.host)}
        began = self._clock()
        answers = await asyncio.gather(*(answered(pool) for pool in asked.values()))
        for host, answer in zip(asked, answers, strict=True):
            if answer:
                self._silent.pop(host, None)
            elif host in self._silent:
                self._silent[host].questions += 1
            else:
                self._silent[host] = _Silence(began)
        for host in self._silent.keys() - asked.keys():  # it serves nothing any more
            del self._silent[host]


def distant(host: str) -> bool:
    """Whether this is another machine, as far as its name tells."""
    with contextlib.suppress(ValueError):
        return not ipaddress.ip_address(host).is_loopback
    return host != "localhost"


async def answered(pool: Pool) -> bool:
    """Whether the host takes a connection, or refuses it. True as well if nobody knows the name's address now."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(PATIENCE):
            addresses = await pool.addresses(loop.time())
    except (OSError, TimeoutError):
        return True
    tries = [
        asyncio.ensure_future(_connects(address, pool.address.port)) for address in addresses for _ in range(AT_ONCE)
    ]
    try:
        for first in asyncio.as_completed(tries, timeout=PATIENCE):
            if await first:
                return True
    except TimeoutError:
        return False
    finally:
        for one in tries:
            one.cancel()
    return not tries


async def _connects(address: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as connection:
        connection.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(connection, (address, port))
        except ConnectionError:
            return True  # refused: the engine is away, not its host
        except OSError:  # no way there
            return False
        return True
