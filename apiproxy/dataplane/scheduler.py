"""Who may use an engine, and when: every call acquires a lease here before it goes to one.

Calls of batch keys wait while interactive calls need the engines. No person looks at a batch call's answer while it is
made, and one waits for each interactive answer. Engines know no such difference: llama.cpp works on its requests in the
order in which they came, and one that has begun keeps its slot until it is done, minutes perhaps. (vLLM can sort
requests that wait, see `requests.BATCH_PRIORITY`, but interrupts none that has begun either.) So what is not urgent is
held back here, before it takes a slot, by these rules:

- An interactive call never waits here, and costs nothing while no batch call waits.
- A batch call goes to a replica where it leaves a slot free: the next interactive call finds it at once. Of a single
  slot it takes the only one when that is idle.
- Where the slots are unknown (external servers, vLLM that takes what its memory holds) it goes, unless an interactive
  stream of that model has waited longer than BACKLOGGED_AFTER for its first byte: then the engine has a queue.
- Batch calls of a model go in the order in which they came. One that has waited for STARVED_AFTER goes although there
  is no room, but only one at a time for each replica: so batch never starves, and takes one slot of a busy engine at
  most.
- A call that has waited for MAX_WAIT, or would be one of more than MAX_QUEUED, is refused and may come back later.

A call that waits reserves nothing of any limit: a tenant's batch must not use up what its people need now. Each worker
knows its own calls only, and counts on its share of the slots.
"""

import asyncio
import math
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Sequence

from apiproxy.dataplane.balancer import Balancer
from apiproxy.dataplane.catalogue import Model, Replica
from apiproxy.dataplane.context import RequestContext
from apiproxy.dataplane.errors import BatchBusy, ClientDisconnected, ModelUnavailable
from apiproxy.dataplane.relay import STREAM_HEADERS

BACKLOGGED_AFTER = 1.0  # seconds; a prompt that takes longer to be read is a reason as well: batch would make it slower
STARVED_AFTER = 60.0
MAX_WAIT = 240.0  # seconds; below the 300 after which Dify gives up, and the SDKs' 600
MAX_QUEUED = 200  # of a model, in one worker; each holds its request in our memory
RETRY_AFTER = 30  # seconds after which a refused batch call is asked to come back; SDKs heed up to 60
# Seconds after which a caller is asked to come back for a model that is being loaded: SDKs give up above 60 s.
LOADING_RETRY = 10


def capacity_for_batch(slots: int | None, workers: int) -> float:
    """Return how many calls a replica may have in flight in this worker, one more of batch included."""
    return math.inf if slots is None else max(1, (slots - 1) // workers)


def replicas_for_batch(
    replicas: Sequence[Replica],
    running: Callable[[Replica], int],
    *,
    backlogged: bool,
    starved: bool,
    in_flight: int,
    workers: int,
) -> Sequence[Replica]:
    """Return the replicas to which the next batch call may go now; none: it has to wait.

    `backlogged`: interactive calls wait in the engines. `starved`: it has waited so long that it may go anyway.
    `in_flight`: batch calls of this model that are in flight.
    """
    if starved and in_flight < len(replicas):
        return replicas
    if backlogged:
        return ()
    return [replica for replica in replicas if running(replica) < capacity_for_batch(replica.slots, workers)]


class Lease:
    """Permission to use a replica, from `Scheduler.acquire` to `release`. The call counts as in flight there."""

    __slots__ = ("_batch", "_model", "_replica", "_scheduler")

    def __init__(self, scheduler: "Scheduler", model: str, replica: Replica | None, *, batch: bool) -> None:
        """`replica`: None if the model has none any more; then it gets one with `move`, or is released."""
        self._scheduler = scheduler
        self._model = model
        self._replica = replica
        self._batch = batch
        scheduler.on_start(model, replica, batch=batch)

    @property
    def replica(self) -> Replica:
        assert self._replica is not None
        return self._replica

    @property
    def has_replica(self) -> bool:
        return self._replica is not None

    @property
    def waited(self) -> bool:
        """Whether the call may have waited, so that what was checked before may no longer hold."""
        return self._batch

    def move(self, replica: Replica) -> None:
        """Use another replica from now on."""
        before, self._replica = self._replica, replica
        self._scheduler.on_move(self._model, before, replica)

    def release(self) -> None:
        """Let others go in its place. Call it once, when the call is over."""
        replica, self._replica = self._replica, None
        self._scheduler.on_end(self._model, replica, batch=self._batch)


class QueuedRequest:
    """A batch call that waits. A `downstream.Listener`."""

    def __init__(self, context: RequestContext, now: float) -> None:
        self.context = context
        self.model = context.model.name
        self.since = self._beat_at = now
        self.lease: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()

    def client_left(self) -> None:
        self.fail(ClientDisconnected())

    def client_ready(self) -> None:
        pass

    def fail(self, error: Exception) -> None:
        if not self.lease.done():
            self.lease.set_exception(error)

    @property
    def is_leased(self) -> bool:
        lease = self.lease
        return lease.done() and not lease.cancelled() and lease.exception() is None

    def heartbeat(self, now: float, every: float) -> None:
        """Send the client of a stream a comment when it has waited for `every` seconds, and again after as many."""
        context = self.context
        client = context.client
        if context.upload is not None or not context.streams or client.waiting or now - self._beat_at < every:
            return
        self._beat_at = now
        if not context.head_sent:
            context.head_sent = True
            client.begin([*STREAM_HEADERS, (b"x-request-id", context.request_id.encode())])
        client.piece(context.endpoint.api_format.heartbeat)


class Scheduler:
    """The queues of one of `workers` workers.

    `find_model` returns the model of this name as it is now, `find_called_model` the one that a call asks for; it
    raises UnknownModel if its caller may not use it any more. `request_wake_up` is called with the id of a sleeping
    model that a call asks for. `is_quiet`: whether the supervisor of this host is quiet, so that it loads nothing now.
    """

    def __init__(
        self,
        balancer: Balancer,
        *,
        find_model: Callable[[str], Model | None],
        find_called_model: Callable[[RequestContext], Model],
        request_wake_up: Callable[[int], None],
        is_quiet: Callable[[int], bool],
        workers: int,
        clock: Callable[[], float],
    ) -> None:
        self._balancer = balancer
        self._find_model = find_model
        self._find_called_model = find_called_model
        self._request_wake_up = request_wake_up
        self._is_quiet = is_quiet
        self._workers = workers
        self._clock = clock
        self._in_flight: dict[str, int] = defaultdict(int)  # batch calls, by the model's name
        self._backlogged: Collection[str] = ()
        self._queues: dict[str, deque[QueuedRequest]] = {}  # none of them is empty for longer than a moment

    @property
    def queued(self) -> int:
        return sum(len(queue) for queue in self._queues.values())

    async def acquire(self, context: RequestContext) -> Lease:
        """Wait until the call may go, and return the lease of a replica. `release` it when the call is over.

        Raises ModelUnavailable (no replica answers now, the model is being loaded, or the server stops), BatchBusy (too
        many wait, or it has waited too long), ClientDisconnected, or UnknownModel for one that went meanwhile.
        """
        if context.key.batch:
            return await self._wait(context)
        return Lease(self, context.model.name, self._choose(context.model), batch=False)

    def _choose(self, model: Model) -> Replica:
        replica = self._balancer.choose(model.replicas, self._clock())
        if replica is not None:
            return replica
        if model.loading_on:
            self._request_wake_up(model.id)
        # A host whose supervisor is quiet starts and wakes nothing now.
        if any(not self._is_quiet(host) for host in model.loading_on):
            retry = {"retry-after": str(LOADING_RETRY)}
            raise ModelUnavailable("model_loading", headers=retry, model=model.name, seconds=LOADING_RETRY)
        raise ModelUnavailable("model_unavailable", headers={"retry-after": "30"}, model=model.name)

    # --- batch

    async def _wait(self, context: RequestContext) -> Lease:
        context.call.drop_values()  # it may wait for minutes
        request = QueuedRequest(context, self._clock())
        client = context.client
        if context.upload is None:  # else its body is still being read, which shows that its client disconnects
            client.listen(request)
        try:
            lease = await self._queue(request)
        finally:
            client.unsubscribe()
        try:
            context.model = self._find_called_model(context)
            if not lease.has_replica:
                lease.move(self._choose(context.model))
        except BaseException:
            lease.release()
            raise
        return lease

    async def _queue(self, request: QueuedRequest) -> Lease:
        queue = self._queues.setdefault(request.model, deque())
        if len(queue) >= MAX_QUEUED:
            raise batch_busy(request.model)
        queue.append(request)
        self.advance(request.model)
        try:
            return await request.lease
        except asyncio.CancelledError:  # by the server, which does not wait for open calls any longer
            if request.is_leased:
                request.lease.result().release()
            raise ModelUnavailable("shutting_down", headers={"retry-after": "5"}) from None
        finally:
            if not request.is_leased:
                self._forget(request)

    def advance(self, name: str) -> None:
        """Let those calls of this model go whose turn it is."""
        queue = self._queues.get(name)
        if queue is None:
            return
        model = self._find_model(name)
        while queue:
            request = queue[0]
            replicas = self._balancer.keep_reachable(model.replicas) if model is not None else ()
            replica = self._place(model, replicas, request) if model is not None and replicas else None
            if replica is None and model is not None and model.replicas:
                return  # also when none can be reached now: these calls can wait
            queue.popleft()
            if not request.lease.done():
                request.lease.set_result(Lease(self, name, replica, batch=True))
        self._queues.pop(name, None)

    def sweep(self, backlogged: Collection[str], heartbeat: float) -> None:
        """Call it about once a second. `backlogged`: models of which interactive calls wait for their first byte."""
        self._backlogged = backlogged
        now = self._clock()
        for name, queue in list(self._queues.items()):
            for request in list(queue):
                if now - request.since > MAX_WAIT:
                    request.fail(batch_busy(name))
                else:
                    request.heartbeat(now, heartbeat)
            self.advance(name)

    def _place(self, model: Model, replicas: Sequence[Replica], request: QueuedRequest) -> Replica | None:
        found = replicas_for_batch(
            replicas,
            self._balancer.running,
            backlogged=model.name in self._backlogged,
            starved=self._clock() - request.since >= STARVED_AFTER,
            in_flight=self._in_flight.get(model.name, 0),
            workers=self._workers,
        )
        return self._balancer.choose(found, self._clock())

    def _forget(self, request: QueuedRequest) -> None:
        queue = self._queues.get(request.model)
        if queue is None:
            return
        if request in queue:
            queue.remove(request)
        if not queue:
            del self._queues[request.model]
        else:
            self.advance(request.model)

    # --- for Lease

    def on_start(self, model: str, replica: Replica | None, *, batch: bool) -> None:
        if batch:
            self._in_flight[model] += 1
        if replica is not None:
            self._balancer.add_call(replica)

    def on_move(self, model: str, before: Replica | None, replica: Replica) -> None:
        self._balancer.add_call(replica)
        if before is not None:
            self._balancer.remove_call(before)
            if self._queues:
                self.advance(model)

    def on_end(self, model: str, replica: Replica | None, *, batch: bool) -> None:
        if replica is not None:
            self._balancer.remove_call(replica)
        if batch:
            self._in_flight[model] -= 1
            if not self._in_flight[model]:
                del self._in_flight[model]
        if self._queues:
            self.advance(model)


def batch_busy(model: str) -> BatchBusy:
    return BatchBusy("batch_held_back", headers={"retry-after": str(RETRY_AFTER)}, model=model, seconds=RETRY_AFTER)
