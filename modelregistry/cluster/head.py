"""Keeps the head of a cluster running, and its join server: `python -m modelregistry.cluster.head DIRECTORY`.

DIRECTORY has `head.json` (`HeadDirectory`) and the head's secrets. The head is to be on a machine that is not only a
GPU host: while it is away nothing ends before its lease does, but nothing new is noticed either.
"""

import asyncio
import json
import platform
import signal
import sys
import threading
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

from modelregistry.cluster import node
from modelregistry.cluster.access import ClusterAccess
from modelregistry.cluster.join_server import PORT, JoinServer
from modelregistry.cluster.link import ClusterLink, ClusterNode
from modelregistry.cluster.node import NodeCommand
from modelregistry.cluster.node_service import NodeService
from modelregistry.host_port import join_host_port
from modelregistry.process import shim

FILE, REMOVED = "head.json", "removed.json"
BEFORE_IT_COULD_BE_CHOSEN = 6379
LINK_WITHIN = 7.0  # seconds: it takes 2 to 4, and a request to join has 15
NO_SERVER = "modelregistry.cluster.agent:HostAgent"  # the join server's link creates no agents


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadDirectory:
    """`address`: of this machine, as hosts reach it; `redis`: HOST:PORT of what keeps the cluster's state.

    `port`: on which Ray's head listens.
    """

    path: Path
    address: str
    redis: str
    port: int = node.PORT

    @property
    def access(self) -> ClusterAccess:
        return ClusterAccess(address=join_host_port(self.address, self.port), secrets=self.path / "secrets")

    def removed(self) -> dict[str, float]:
        """Return when hosts were removed, by their names: in seconds since 1970."""
        try:
            found = json.loads((self.path / REMOVED).read_text())
            return {str(name): float(at) for name, at in found.items()}
        except FileNotFoundError:
            return {}

    def remove(self, name: str, at: float) -> None:
        """Refuse the certificates that a host had until then."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        shim.write_atomically(self.path / REMOVED, {**self.removed(), name: at})

    def save(self) -> None:
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        values = {name: value for name, value in asdict(self).items() if name != "path"}
        shim.write_atomically(self.path / FILE, values)

    def command(self, python: Path) -> NodeCommand:
        """Return what starts the head, again if it ran before. Raises NotSecured."""
        ray = self.path / "ray"
        node.forget_last_start(ray)
        return node.head_command(python, address=self.address, access=self.access, directory=ray, redis=self.redis)


def load(path: Path) -> HeadDirectory:
    """Return the head of a directory. Raises ValueError when there is none."""
    try:
        found = json.loads((path / FILE).read_text())
        return HeadDirectory(
            path=path,
            address=str(found["address"]),
            redis=str(found["redis"]),
            port=int(found.get("port", BEFORE_IT_COULD_BE_CHOSEN)),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not the directory of a cluster's head: {error!r}") from error


async def run(directory: HeadDirectory) -> None:
    """Run the head and the join server until TERM."""
    python = Path(sys.executable)
    service = NodeService(lambda: directory.command(python))
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    thread = threading.Thread(target=service.run, name="node")
    thread.start()
    link = ClusterLink(python, access=directory.access, server=NO_SERVER)
    await link.open()
    try:
        server = JoinServer(
            directory.access.secrets,
            ray=version("ray"),
            python=platform.python_version(),
            list_nodes=partial(list_nodes, link),
            find_removed=directory.removed,
        )
        async with await server.listen(directory.address, PORT):
            await ended.wait()
    finally:
        await link.close()
        service.stop()
        await asyncio.to_thread(thread.join)


async def list_nodes(link: ClusterLink) -> list[ClusterNode]:
    """Return the nodes, after a start as soon as the link is there: machines join then. Raises ClusterSilent."""
    await link.wait_until_ready(LINK_WITHIN)
    return await link.list_nodes()


def main(path: Path) -> int:
    asyncio.run(run(load(path.absolute())))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
