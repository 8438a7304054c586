"""The commands that start Ray on a machine, always secured, always as small as it gets. Starts nothing itself.

A GPU host's node offers no CPUs to Ray unless it is given some: engines are no tasks of Ray's. What memory they take is
booked (`bookings`), of what the node offers.
"""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from modelregistry.cluster import bookings, node_directory
from modelregistry.cluster.access import ClusterAccess, ray_environment
from modelregistry.cluster.node_directory import NodeDirectory
from modelregistry.host_port import split_host_port

CODE = Path(__file__).resolve().parent.parent.parent  # where `modelregistry` is, for Ray's workers
OBJECT_STORE = 78_643_200  # bytes: the least that Ray takes; nothing of ours goes through it
PORT = 6377  # of the head, unless another one is chosen; 6379 is that of a Redis on the same machine
# For firewalls: all that Ray listens on beside the head's port is in this range.
PORTS = range(6380, 6480)
NODE_PORTS = ("--node-manager-port", "--object-manager-port", "--runtime-env-agent-port")
WORKER_PORTS = range(6480, 6580)


@dataclass(frozen=True, slots=True)
class NodeCommand:
    """What to execute: it runs until Ray ends, and TERM ends Ray."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)


def head_command(
    python: Path, *, address: str, access: ClusterAccess, directory: Path, redis: str = "", namespace: str = ""
) -> NodeCommand:
    """Return the command of a cluster's head, which runs nothing but Ray's own.

    `redis`: HOST:PORT where the cluster's state is kept, under `namespace`; without it the state ends with the head.
    """
    env = ray_environment(access, CODE)
    if redis:
        env |= {"RAY_REDIS_ADDRESS": redis, "RAY_external_storage_namespace": namespace or "madoguchi"}
    _, port = split_host_port(access.address)
    begin = ("--head", f"--port={port}", f"--node-ip-address={address}", "--num-gpus=0", "--include-dashboard=false")
    return NodeCommand((*_ray(python), *begin, *_common(directory, cpus=0)), env)


def forget_last_start(directory: Path) -> None:
    """Let a head start where one was killed, beside a GPU host's node on the same machine.

    Ray notes the address of the last start here, and would take that node for the head that still runs.
    """
    (directory / "ray_current_cluster").unlink(missing_ok=True)


def host_command(
    python: Path, directory: NodeDirectory, *, cpus: int = 0, resources: Mapping[str, float] | None = None
) -> NodeCommand:
    """Return the command of a GPU host's node, which offers Ray these resources. Raises NotSecured."""
    access = ClusterAccess(address=directory.cluster, secrets=directory.secrets)
    env = {**ray_environment(access, CODE), node_directory.VARIABLE: str(directory.path)}
    offered = {f"{node_directory.RESOURCE}{directory.name}": 1, **(resources or {})}
    ram = offered.pop(bookings.RAM_RESOURCE, None)  # one of Ray's own has an option of its own
    begin = (
        f"--address={directory.cluster}",
        f"--node-ip-address={directory.address}",
        f"--resources={json.dumps(offered)}",
        "--num-gpus=0",  # Ray would count the cards by itself, and give away those that engines fill
        *([] if ram is None else [f"--memory={int(ram)}"]),
    )
    return NodeCommand((*_ray(python), *begin, *_common(directory.ray, cpus=cpus)), env)


def _ray(python: Path) -> tuple[str, ...]:
    # Not the script `ray`: that holds the path where it was installed.
    return (str(python), "-m", "ray.scripts.scripts", "start", "--block")


def _common(directory: Path, *, cpus: int) -> tuple[str, ...]:
    # Others at each start: a head that comes back while a node was started again checks the old one's port. If the new
    # one answered there, the old node and its agent would be alive for ever.
    chosen = random.SystemRandom().sample(PORTS, len(NODE_PORTS))
    ports = tuple(f"{name}={port}" for name, port in zip(NODE_PORTS, chosen, strict=True))
    return (
        f"--temp-dir={directory}",
        f"--num-cpus={cpus}",
        f"--object-store-memory={OBJECT_STORE}",
        "--include-log-monitor=false",
        "--disable-usage-stats",
        *ports,
        f"--min-worker-port={WORKER_PORTS[0]}",
        f"--max-worker-port={WORKER_PORTS[-1]}",
    )
