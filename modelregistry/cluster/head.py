"""Keeps the head of a cluster running, and its door: `python -m modelregistry.cluster.head DIRECTORY`.

DIRECTORY has `head.json` (`HeadHome`) and the head's secrets. The head is to be on a machine that is not a GPU host's
alone: while it is away nothing ends before its lease does, but nothing new is noticed either.
"""

import asyncio
import json
import platform
import signal
import sys
import threading
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from modelregistry.cluster import node
from modelregistry.cluster.access import ClusterAccess
from modelregistry.cluster.door import PORT, Door
from modelregistry.cluster.keeper import Keeper
from modelregistry.cluster.link import ClusterLink
from modelregistry.cluster.node import NodeCommand
from modelregistry.process import shim

FILE = "head.json"
NO_SERVER = "modelregistry.cluster.agent:HostAgent"  # the door's link creates no agents


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadHome:
    """`address`: of this machine, as hosts reach it; `redis`: HOST:PORT of what keeps the cluster's state."""

    directory: Path
    address: str
    redis: str

    @property
    def access(self) -> ClusterAccess:
        return ClusterAccess(address=f"{self.address}:{node.PORT}", secrets=self.directory / "secrets")

    def save(self) -> None:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        values = {name: value for name, value in asdict(self).items() if name != "directory"}
        shim.write_atomically(self.directory / FILE, values)

    def command(self, python: Path) -> NodeCommand:
        """Return what starts the head, again if it ran before. Raises NotSecured."""
        ray = self.directory / "ray"
        node.forget_last_start(ray)
        return node.head_command(python, address=self.address, access=self.access, directory=ray, redis=self.redis)


def load(directory: Path) -> HeadHome:
    """Return the head of a directory. Raises ValueError when there is none."""
    try:
        found = json.loads((directory / FILE).read_text())
        return HeadHome(directory=directory, address=str(found["address"]), redis=str(found["redis"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{directory} is not the directory of a cluster's head: {error!r}") from error


async def run(home: HeadHome) -> None:
    """Run the head and the door until TERM."""
    python = Path(sys.executable)
    keeper = Keeper(lambda: home.command(python))
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    thread = threading.Thread(target=keeper.run, name="keeper")
    thread.start()
    link = ClusterLink(python, access=home.access, server=NO_SERVER)
    await link.open()
    try:
        door = Door(
            home.access.secrets, ray=version("ray"), python=platform.python_version(), list_nodes=link.list_nodes
        )
        async with await door.listen(home.address, PORT):
            await ended.wait()
    finally:
        await link.close()
        keeper.stop()
        await asyncio.to_thread(thread.join)


def main(directory: Path) -> int:
    asyncio.run(run(load(directory.absolute())))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
