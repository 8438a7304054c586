"""A controller's way into the cluster: a process of Ray's environment that does what it is asked, line by line.

A process of its own because Ray's driver ends the process that it lives in when its cluster is gone for long, pins its
packages, and blocks where it should time out. `link.ClusterLink` starts it, in its own Python, and starts it again.

`python -m modelregistry.cluster.driver ADDRESS SERVER PATIENCE`, with Ray's variables in its environment. Each line of
its input is a request {"id", "do", "within", …}, each line of its output an answer {"id", "result"}, {"id", "silent"}
or {"id", "fault", "kind"}. It writes {"ready": true} first. A request is answered within its `within` seconds, or is
silent.

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
from typing import Any

import ray
from ray.exceptions import RayError

from modelregistry.cluster import limits
from modelregistry.cluster.agent import HostAgent
from modelregistry.cluster.host_home import RESOURCE

NAMESPACE = "madoguchi"
PREFIX = "host-agent:"
LONGEST_LINE = limits.LONGEST_LINE
# A share of the host's one: enough to be put there, and others of ours may be as well.
SHARE = 0.001


class Driver:
    """`make_server`: see HostAgent. Handles are looked up again after every failure."""

    def __init__(self, make_server: Callable[..., Any]) -> None:
        self.make_server = make_server
        self.handles: dict[str, Any] = {}
        self.listing: asyncio.Future[list[dict[str, Any]]] | None = None
        self.silent: set[str] = set()  # hosts that have an agent which did not answer last

    async def do(self, request: dict[str, Any]) -> Any:
        """Carry out one request; raises what Ray and agents raise."""
        match request["do"]:
            case "ping":
                return True
            case "nodes":
                return await self._list_nodes()
            case "open":
                return await self._open(request["host"])
            case "describe":
                return await (await self._handle(request["host"])).describe.remote()
            case "renew":
                handle = await self._handle(request["host"])
                return await handle.renew.remote(request["term"], request["holder"], request["seconds"])
            case "exchange":
                handle = await self._handle(request["host"])
                return await handle.exchange.remote(request["term"], request["message"])
            case "dismiss":
                return await asyncio.to_thread(self._dismiss, request["host"])
            case unknown:
                raise ValueError(f"unknown request {unknown!r}")

    async def _list_nodes(self) -> list[dict[str, Any]]:
        """Ask the head once for all who want to know: while it is away the question blocks a thread."""
        if self.listing is None or self.listing.done():
            self.listing = asyncio.ensure_future(asyncio.to_thread(list_nodes))
        return await asyncio.shield(self.listing)

    async def _open(self, host: str) -> bool:
        """Create the agent of a host, unless it is there; return when it answers."""
        self.handles[host] = await asyncio.to_thread(self._create, host)
        await self.handles[host].describe.remote()
        return True

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
                max_concurrency=100,
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
                return {"result": await self.do(request)}
        except TimeoutError:
            return {"silent": f"no answer within {request['within']} s", "kind": "unreached"}
        except ray.exceptions.RayTaskError as error:  # raised by the agent itself
            cause = error.cause if isinstance(error.cause, BaseException) else error
            return {"fault": str(cause), "kind": type(cause).__name__}
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
    lines = asyncio.StreamReader(limit=LONGEST_LINE)
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
    os.write(OUTPUT, json.dumps(value).encode() + b"\n")


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
