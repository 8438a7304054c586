"""A controller's way to hosts that are processes of this machine, in the place of Ray's."""

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from modelregistry.cluster import limits
from modelregistry.cluster.bookings import BookingTable
from modelregistry.cluster.link import ClusterNode, ClusterSilent, Renewal
from tests.modelregistry.tcp_channel import TcpChannel


class TcpLink:
    """As `modelregistry.cluster.link.ClusterLink`. `ports`: of the hosts, by name. They keep no leases."""

    def __init__(self, ports: Mapping[str, int]) -> None:
        self.ports = ports

    async def open(self) -> None:
        return

    async def close(self) -> None:
        return

    async def list_nodes(self, *, within: float = limits.NODES) -> list[ClusterNode]:
        return [ClusterNode(node=name, address="127.0.0.1", alive=True, host=name, resources={}) for name in self.ports]

    async def list_bookings(self, *, within: float = limits.NODES) -> BookingTable:
        raise ClusterSilent("there is no Ray")

    async def open_host(self, host: str, *, within: float = limits.OPEN) -> dict[str, Any]:
        return await self.describe(host)

    async def describe(self, host: str, *, within: float = limits.CALL) -> dict[str, Any]:
        return {"name": host, "address": "127.0.0.1", "clock": time.time()}

    async def renew(self, host: str, renewal: Renewal, *, within: float = limits.CALL) -> float:
        return renewal.seconds

    async def exchange(self, host: str, term: int, holder: str, message: str, *, within: float) -> str:
        try:
            async with asyncio.timeout(within):
                answer = await TcpChannel(self.ports[host]).send(message.encode("utf-8", "surrogatepass"))
        except (OSError, TimeoutError) as error:
            raise ClusterSilent(str(error)) from error
        return answer.decode("utf-8", "surrogatepass")
