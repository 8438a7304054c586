"""Workers with one queue in Redis, in this process or (`python -m tests.apiproxy.dataplane.queue_workers`) in others.

A process takes JSON on stdin, one line {"url", "slots", "calls", "hold", "user"}, then begins so many calls of a
person, each of which is in flight for `hold` seconds. It writes "ready", "+" for each call that begins and "-" for each
that ends. It goes on until it is ended.
"""

import asyncio
import contextlib
import json
import sys
from collections.abc import Callable
from dataclasses import replace

from apiproxy.dataplane.balancer import Balancer
from apiproxy.dataplane.catalogue import Model, Replica
from apiproxy.dataplane.client_address import ClientAddress
from apiproxy.dataplane.context import RequestContext
from apiproxy.dataplane.downstream import Header, Listener
from apiproxy.dataplane.formats import requests
from apiproxy.dataplane.formats.requests import ENDPOINTS
from apiproxy.dataplane.room import EngineLoad
from apiproxy.dataplane.scheduler import Lease, Scheduler
from apiproxy.dataplane.shared_queue import SharedQueue
from modelregistry.supervisor.watchdog import Watchdog
from tests.apiproxy import served

SWEEP = 0.25  # seconds; the gateway's second would only make tests longer
BODY = requests.parse(b'{"model": "m", "messages": [], "stream": true}')


class QuietClient:
    """A client that takes everything, and may leave."""

    waiting = False

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.listener: Listener | None = None
        self.always: list[Header] = []

    def arrived(self) -> None: ...
    def answer(self, status: int, headers: list[Header], body: bytes) -> None: ...
    def begin(self, headers: list[Header]) -> None: ...

    def piece(self, body: bytes) -> None:
        self.pieces.append(body)

    def chunk(self, framed: bytes, start: int) -> bool:
        return False

    def last(self, body: bytes) -> None: ...
    async def sent(self) -> None: ...

    def listen(self, listener: Listener) -> None:
        self.listener = listener

    def unsubscribe(self) -> None:
        self.listener = None


class EngineCount:
    """How many calls of all workers an engine has, and had at most; and whose began, in their order."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self.began: list[int | None] = []

    def begin(self, user: int | None) -> None:
        self.began.append(user)
        self.now += 1
        self.most = max(self.most, self.now)

    def end(self) -> None:
        self.now -= 1


class QueueWorker:
    """`engine` counts the calls of all workers together."""

    def __init__(self, url: str, model: Model, engine: EngineCount, *, workers: int = 2) -> None:
        loop = asyncio.get_running_loop()
        self.model = model
        self.engine = engine
        self.balancer = Balancer()
        self.watchdog = Watchdog()
        self.queue = SharedQueue(url, prefix="test", workers=workers, keep=self.watchdog.keep_running, clock=loop.time)
        self.scheduler = Scheduler(
            self.balancer,
            find_model=lambda _: self.model,
            find_called_model=lambda _: self.model,
            request_wake_up=lambda _: None,
            is_gone=lambda _: False,
            is_looked_after=lambda *_: True,
            clock=loop.time,
            shared=self.queue,
        )
        self.leases: dict[Lease, RequestContext] = {}
        self._sweeping: asyncio.Task[None] | None = None

    async def start(self) -> "QueueWorker":
        await self.queue.start()
        self._sweeping = asyncio.create_task(self._sweep())
        return self

    async def close(self) -> None:
        if self._sweeping is not None:
            self._sweeping.cancel()
        await self.queue.close()
        await self.watchdog.close()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP)
            self.scheduler.sweep((), 15.0)

    def context(self, user: int | None, *, batch: bool = False) -> RequestContext:
        key = replace(served.KEY, user=user, batch=batch)
        made = RequestContext("req_1", ENDPOINTS["/v1/chat/completions"], key, ClientAddress("", ""), QuietClient())
        made.call, made.model = BODY, self.model
        return made

    async def acquire(self, user: int | None, *, batch: bool = False) -> Lease:
        return await self.acquire_for(self.context(user, batch=batch))

    async def acquire_for(self, context: RequestContext) -> Lease:
        lease = await self.scheduler.acquire(context)
        self.engine.begin(context.key.user)
        self.leases[lease] = context
        return lease

    def release(self, lease: Lease, cost: float = 0.0) -> None:
        del self.leases[lease]
        self.engine.end()
        if cost:
            lease.charge(cost)
        lease.release()

    async def call(self, user: int | None, seconds: float, *, cost: float = 0.0, batch: bool = False) -> None:
        lease = await self.acquire(user, batch=batch)
        await asyncio.sleep(seconds)
        self.release(lease, cost)

    def note_load(self, at: str, waiting: int, cache_used: float | None = None) -> None:
        self.scheduler.note_loads({replica.id: EngineLoad(at, waiting, cache_used) for replica in self.model.replicas})


def model_of(*slots: int | None) -> Model:
    """Return a model with a replica for each of these numbers of slots."""
    replicas = [
        Replica(id=number, url="http://127.0.0.1:1", api_key="", upstream_model="m", slots=one)
        for number, one in enumerate(slots, start=1)
    ]
    return replace(served.SERVED, replicas=tuple(replicas))


class Printing(EngineCount):
    def begin(self, user: int | None) -> None:
        super().begin(user)
        print("+", flush=True)

    def end(self) -> None:
        super().end()
        print("-", flush=True)


async def work(url: str, slots: int, calls: int, hold: float, user: int) -> None:
    worker = await QueueWorker(url, model_of(slots), Printing()).start()
    print("ready", flush=True)
    async with asyncio.TaskGroup() as tasks:
        for _ in range(calls):
            tasks.create_task(worker.call(user, hold))
        tasks.create_task(asyncio.sleep(3600))


class WorkerProcess:
    """One in another process. `in_flight`: its calls at the engine, as it said itself."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.in_flight = self.began = 0
        self.ready = asyncio.Event()
        self.changed: Callable[[], None] = lambda: None
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, **facts: object) -> "WorkerProcess":
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.apiproxy.dataplane.queue_workers",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps(facts).encode() + b"\n")
        worker = cls(process)
        await worker.ready.wait()
        return worker

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            if line == b"ready\n":
                self.ready.set()
            else:
                self.in_flight += 1 if line == b"+\n" else -1
                self.began += line == b"+\n"
                self.changed()

    async def kill(self) -> None:
        """End it without a word."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()
        await self._reading


if __name__ == "__main__":
    asyncio.run(work(**json.loads(sys.stdin.readline())))
