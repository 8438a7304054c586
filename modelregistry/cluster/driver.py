"""A controller's way into the cluster: a process of Ray's environment that does what it is asked, line by line.

A process of its own because Ray's driver ends the process that it lives in when its cluster is gone for long, pins its
packages, and blocks where it should time out. `link.ClusterLink` starts it, in its own Python, and starts it again.

`python -m modelregistry.cluster.driver ADDRESS SERVER PATIENCE`, with Ray's variables in its environment. Each line of
its input is a request {"id", "do", "within", …}, each line of its output an answer {"id", "result"}, {"id", "silent"}
or {"id", "fault", "kind", "term"}; what an agent answered has "shown" as well, see `agent`. It writes {"ready": true}
first. A request is answered within its `within` seconds, or is silent. A line has
`limits.LONGEST_LINE` bytes at most.

It ends itself when an agent stays silent although its node is alive: after its head was away, Ray's driver was seen to
look for an agent, which had moved to a new process by then, at its old place for as long as it lived. A new driver
finds it.
"""

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
from ray.exceptions import RayError

from modelregistry.cluster import limits, placement_groups
from modelregistry.cluster.agent import HostAgent
from modelregistry.cluster.messages import UNREADABLE, encode_answer, read_answer
from modelregistry.cluster.node_directory import RESOURCE

NAMESPACE = "madoguchi"
PREFIX = "host-agent:"
# What methods of agents are called with.
ARGUMENTS = {
    "describe": (),
    "renew": ("term", "holder", "seconds", "boot", "since"),
    "exchange": ("term", "holder", "message"),
}
# A share of the host's one: enough to be put there, and others of ours may be as well.
SHARE = 0.001


class Driver:
    """`make_server`: see HostAgent. Handles are looked up again after every failure."""

    def __init__(self, make_server: Callable[..., Any]) -> None:
        self.make_server = make_server
        self.handles: dict[str, Any] = {}
        self.listing: asyncio.Future[list[dict[str, Any]]] | None = None
        # One: while the head is away a request about bookings blocks its thread, and the others of this process are
        # for agents. Those behind it are silent after their limit, and are then not carried out any more.
        self.booking = ThreadPoolExecutor(1, "bookings")
        self.silent: set[str] = set()  # hosts that have an agent which did not answer last

    async def do(self, request: dict[str, Any]) -> dict[str, Any]:
        """Carry out one request and return its answer; raises what Ray raises."""
        match request["do"]:
            case "ping":
                return {"result": True}
            case "nodes":
                return {"result": await self._list_nodes()}
            case "list-bookings" | "book" | "unbook":
                work = asyncio.get_running_loop().run_in_executor(self.booking, placement_groups.carry_out, request)
                return {"result": await work}
            case "open":
                return await self._open(request["host"])
            case "describe" | "renew" | "exchange" as method:
                return await self._ask(request, method)
            case "dismiss":
                return {"result": await asyncio.to_thread(self._dismiss, request["host"])}
            case unknown:
                raise ValueError(f"unknown request {unknown!r}")

    async def _ask(self, request: dict[str, Any], method: str) -> dict[str, Any]:
        handle = await self._handle(request["host"])
        return read_answer(await getattr(handle, method).remote(*(request[name] for name in ARGUMENTS[method])))

    async def _list_nodes(self) -> list[dict[str, Any]]:
        """Ask the head once for all who want to know: while it is away the question blocks a thread."""
        if self.listing is None or self.listing.done():
            self.listing = asyncio.ensure_future(asyncio.to_thread(list_nodes))
        return await asyncio.shield(self.listing)

    async def _open(self, host: str) -> dict[str, Any]:
        """Create the agent of a host, unless it is there; return how it describes itself."""
        self.handles[host] = await asyncio.to_thread(self._create, host)
        return read_answer(await self.handles[host].describe.remote())

    def _create(self, host: str) -> Any:
        return (
            ray.remote(HostAgent)
            .options(
                name=f"{PREFIX}{host}",
                namespace=NAMESPACE,
                lifetime="detached",
                get_if_exists=True,
                num_cpus=0,
                resources={f"{RESOURCE}{host}": SHARE},
                max_restarts=-1,
                max_task_retries=0,
                max_concurrency=limits.CONCURRENCY,
            )
            .remote(self.make_server)
        )

    async def _handle(self, host: str) -> Any:
        if host not in self.handles:
            self.handles[host] = await asyncio.to_thread(ray.get_actor, f"{PREFIX}{host}", NAMESPACE)
        return self.handles[host]

    def _dismiss(self, host: str) -> bool:
        self.handles.pop(host, None)
        with contextlib.suppress(ValueError):  # there is none
            ray.kill(ray.get_actor(f"{PREFIX}{host}", NAMESPACE), no_restart=True)
        return True

    async def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a request: what it gave, why nothing came, or what the agent raised."""
        found = await self._answer(request)
        if host := request.get("host"):
            (self.silent.add if found.get("kind") == "unreached" else self.silent.discard)(host)
        return {"id": request.get("id"), **found}

    async def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            async with asyncio.timeout(float(request["within"])):
                return await self.do(request)
        except TimeoutError:
            return {"silent": f"no answer within {request['within']} s", "kind": "unreached"}
        except ray.exceptions.RayTaskError as error:  # raised by the agent, which has none to raise
            return {"fault": (str(error).splitlines() or [""])[-1][:500], "kind": UNREADABLE}
        except (RayError, OSError) as error:
            self.handles.pop(request.get("host", ""), None)
            sentence = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:500]}"
            return {"silent": sentence, "kind": "unreached"}
        except (ValueError, KeyError, TypeError) as error:  # no such actor; a request that is none
            self.handles.pop(request.get("host", ""), None)
            return {"silent": f"{type(error).__name__}: {str(error)[:500]}"}

    async def watch(self, patience: float) -> None:
        """Return when an agent was silent for so many seconds while its node was alive."""
        since: dict[str, float] = {}  # when a host was first both
        while True:
            await asyncio.sleep(1.0)
            both = self.silent & await self._find_alive() if self.silent else set()
            now = time.monotonic()
            since = {host: since.get(host, now) for host in both}
            if any(now - began > patience for began in since.values()):
                return

    async def _find_alive(self) -> set[str]:
        try:
            async with asyncio.timeout(limits.NODES):
                return {node["host"] for node in await self._list_nodes() if node["alive"]}
        except (TimeoutError, RayError, OSError):  # the head is away
            return set()


def list_nodes() -> list[dict[str, Any]]:
    """Return the cluster's nodes, dead ones too: `host` is "" for nodes that are not ours."""
    return [
        {
            "node": node["NodeID"],
            "address": node["NodeManagerAddress"],
            "alive": node["Alive"],
            "host": next((name.removeprefix(RESOURCE) for name in node["Resources"] if name.startswith(RESOURCE)), ""),
            "resources": node["Resources"],
        }
        for node in ray.nodes()
    ]


async def serve(driver: Driver, patience: float) -> None:
    """Answer requests until standard input ends, or this driver is of no more use."""
    lines = asyncio.StreamReader(limit=limits.LONGEST_LINE)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    tasks: set[asyncio.Task[None]] = set()
    write({"ready": True})

    async def handle(line: bytes) -> None:
        write(await driver.answer(json.loads(line)))

    async def read() -> None:
        while line := await lines.readline():
            task = asyncio.ensure_future(handle(line))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    ends = [asyncio.ensure_future(read()), asyncio.ensure_future(driver.watch(patience))]
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)


def write(value: dict[str, Any]) -> None:
    """Write one answer, all of it."""
    line = encode_answer(value)
    while line:
        line = line[os.write(OUTPUT, line) :]


def load_server(path: str) -> Callable[..., Any]:
    """Return what `module:name` names."""
    module, _, name = path.partition(":")
    __import__(module)
    found: Callable[..., Any] = getattr(sys.modules[module], name)
    return found


OUTPUT = 1


def main(address: str, server: str, patience: str) -> None:
    global OUTPUT
    # Ray prints on standard output; answers go through a descriptor of their own.
    OUTPUT = os.dup(1)
    os.dup2(2, 1)
    ray.init(address, namespace=NAMESPACE, log_to_driver=False, configure_logging=False)
    asyncio.run(serve(Driver(load_server(server)), float(patience)))
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
