"""Connections to the engines: one pool for each address that the catalogue names."""

from collections.abc import Callable, Collection

from apiproxy.dataplane.catalogue import Model, Replica
from apiproxy.dataplane.host_watch import is_distant
from apiproxy.dataplane.upstream import Address, Connection, Pool, Unreachable

# Seconds that a connection to an engine of our own may take; a host that is there answers within a millisecond.
CONNECT_WITHIN = 0.8
# And once more: we may have been held up ourselves, or a packet was lost.
RECONNECT_WITHIN = 0.15


class EnginePools:
    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._pools: dict[str, Pool] = {}  # by address

    def of(self, replica: Replica) -> Pool:
        pool = self._pools.get(replica.url)
        if pool is None:
            pool = self._pools[replica.url] = Pool(Address.parse(replica.url), self._clock)
        return pool

    async def connect(self, pool: Pool, model: Model, is_silent: Callable[[str], bool]) -> Connection:
        """Return a fresh connection. A host that `is_silent` is not asked a second time. Raises Unreachable."""
        if model.external or model.timeouts.connect <= CONNECT_WITHIN:
            return await pool.connect(model.timeouts.connect)
        try:
            return await pool.connect(CONNECT_WITHIN)
        except Unreachable:
            if is_silent(pool.address.host) or not is_distant(pool.address.host):
                raise
            return await pool.connect(RECONNECT_WITHIN)

    def keep_only(self, urls: Collection[str]) -> None:
        """Close the connections to all other addresses."""
        for url in [url for url in self._pools if url not in urls]:
            self._pools.pop(url).close()

    def sweep(self, now: float) -> None:
        """Close what was idle for too long. Call it about once a second."""
        for pool in self._pools.values():
            pool.sweep(now)

    def close(self) -> None:
        for pool in self._pools.values():
            pool.close()
