"""Who may use an engine, and when: every call acquires a lease here before it goes to one.

What an engine has begun it finishes, and what waits inside it is in no order of ours: llama.cpp works on its requests
in the order in which they came, and so does vLLM, but for the two priorities of `requests.BATCH_PRIORITY`. One program
that calls 200 times at once would make everyone else wait for all of that. So an engine is sent what it works on at a
time, and the rest waits here, by these rules:

- While there is room and no call of the model waits, a call goes at once: that costs one comparison.
- Calls of people and services go before those of batch keys, no person looks at the answer of which while it is made,
  and those before Madoguchi's own checks, for which what is said here of batch calls holds as well.
- Of one class the caller goes first who was served least, see `fair_queue`; of one caller's calls the oldest.
- Calls under way are charged each second while others wait, so an answer of minutes counts before its end.
- Of several replicas a call goes to the one where it costs least, see `prefix_routing`, or to the one with the fewest
  calls.
- There is room on a replica while it works on fewer calls than it has slots. Where these are unknown it is learned from
  what the engine reports, see `room`; an external server reports nothing and is sent everything. Of calls that are
  SHORT twice as many are sent.
- A batch call goes to a replica where it leaves a slot free: the next interactive call finds it at once. Of a single
  slot it takes the only one when that is idle. Where the slots are unknown it goes, unless an interactive stream of
  that model has waited longer than BACKLOGGED_AFTER for its first byte: then the engine has a queue.
- A batch call that has waited for STARVED_AFTER goes although there is no room, but only one at a time for each
  replica: so batch never starves, and takes one slot of a busy engine at most.
- A call that has waited for MAX_WAIT, that is sure to wait longer, or that would be one of more than MAX_QUEUED of
  its caller, MAX_OF_KEY of its key or MAX_WAITING of all of its class and those before it, is refused and may come back
  later. So is one more call of a caller whose waiting calls hold more than a part of the memory, for all models
  together. Of a class that is full the newest call goes of the caller who has most of them.

A call that waits reserves nothing of any limit: a tenant's batch must not use up what its people need now. But who has
nothing left of a day or a month neither waits nor has a model loaded, in the place of others' perhaps. Several workers,
of one host or more, have one queue by Redis: see `shared_queue`.

A call for a model that is asleep or being started has it loaded, and waits for it, up to MAX_WAIT. When no host will
load it any more it is refused. So is a call for one more than MAX_LOADING models of one caller at a time, and within
LOADED_WITHIN seconds if its calls leave: each may take the place of others' models. See `wake_ups`.

A caller who leaves, whose key is revoked or whose model is retired is out of the queue at once. A model whose engines
do not answer keeps its calls while a supervisor starts them again. They are refused when the last replica is gone, or
its host is silent. A server that stops goes on answering them while it waits for open calls, and refuses those that are
left then.
"""

import asyncio
import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence

from apiproxy.dataplane.balancer import Balancer
from apiproxy.dataplane.catalogue import Model, Replica
from apiproxy.dataplane.context import RequestContext
from apiproxy.dataplane.errors import BatchBusy, ClientDisconnected, ModelBusy, ModelUnavailable, Refusal
from apiproxy.dataplane.fair_queue import CallFlow, FairQueue
from apiproxy.dataplane.fairness import FairnessLog
from apiproxy.dataplane.model_queue import (
    USUAL_COST,
    CallAverages,
    CallClass,
    ModelQueue,
    WaitingOwners,
    class_of,
    flow_of,
    share_of,
)
from apiproxy.dataplane.prefix_routing import ExpectedCost, PrefixRouter, has_prefixes, read_prefix
from apiproxy.dataplane.queue_sharing import QueueSharing, UnsharedQueue, WaitingClass
from apiproxy.dataplane.queue_snapshot import MAX_SHOWN, QueueSnapshot, ReplicaRoom, WaitingCall, WaitingModel
from apiproxy.dataplane.relay import STREAM_HEADERS
from apiproxy.dataplane.room import EngineLoad, Rooms
from apiproxy.dataplane.wake_ups import MAX_LOADING, RefusedWakeUps, WakeUp

BACKLOGGED_AFTER = 1.0  # seconds; a prompt that takes longer to be read is a reason as well: batch would make it slower
STARVED_AFTER = 60.0
MAX_WAIT = 240.0  # seconds; below the 300 after which Dify gives up, and the SDKs' 600
# Calls that wait for a model in one worker, of one caller and of all; each holds its request in our memory. Of all,
# those of later classes do not count: a crowd of batch calls keeps no person out.
MAX_QUEUED = 200
MAX_WAITING = 2000
# Of one key, whose end users are callers of their own: a key that makes them up leaves half of the queue to others.
MAX_OF_KEY = MAX_WAITING // 2
# Seconds after which a refused call is asked to come back, when it is unknown how long it would have to wait. SDKs heed
# up to 60, and ask again at once after more.
RETRY_AFTER = 30
MIN_RETRY_AFTER, MAX_RETRY_AFTER = 1, 60
MIN_LATE_RETRY = 10  # for a call that has waited for MAX_WAIT: what was expected was wrong
# Seconds after which a caller is asked to come back for a model that is being loaded: SDKs give up above 60 s.
LOADING_RETRY = 10
# Seconds of a call. From the end of one to the beginning of the next here pass one or two milliseconds: of embeddings
# that would be a part of the engine's time, so of calls this short the next ones wait in the engine, as long at most.
SHORT = 0.25
# Seconds between two comments that show a person's stream its place. The first makes its answer one of status 200.
PLACE_EVERY = 5.0


def replicas_for_batch(
    replicas: Sequence[Replica],
    running: Callable[[Replica], int],
    *,
    backlogged: bool,
    starved: bool,
    in_flight: int,
    capacity: Callable[[Replica], float],
) -> Sequence[Replica]:
    """Return the replicas to which the next batch call may go now; none: it has to wait.

    `backlogged`: interactive calls wait in the engines. `starved`: it has waited so long that it may go anyway.
    `in_flight`: batch calls of this model that are in flight. `capacity`: calls that a replica may have, a batch call
    included.
    """
    if starved and in_flight < len(replicas):
        return replicas
    if backlogged:
        return ()
    return [replica for replica in replicas if running(replica) < capacity(replica)]


class Lease:
    """Permission to use a replica, from `Scheduler.acquire` to `release`. The call counts as in flight there."""

    __slots__ = ("_charged", "_context", "_replica", "_scheduler", "_since", "call_class", "model", "unread", "waited")

    def __init__(
        self, scheduler: "Scheduler", context: RequestContext, replica: Replica | None, *, waited: bool = False
    ) -> None:
        """`replica`: None if the model has none any more; then it gets one with `move`, or is released.

        `waited`: whether the call had to wait, so that what was checked before may no longer hold.
        """
        self._scheduler = scheduler
        self._context = context
        self._replica = replica
        self._charged = 0.0
        expected = context.expected
        self.unread = 0 if expected is None or replica is None else expected.unread  # bytes of the prompt
        self.model = context.model.name
        self.call_class = class_of(context.key)
        self.waited = waited
        self._since = scheduler.on_start(self, replica)

    @property
    def replica(self) -> Replica:
        assert self._replica is not None
        return self._replica

    @property
    def has_replica(self) -> bool:
        return self._replica is not None

    @property
    def is_contended(self) -> bool:
        """Whether other calls wait for the model."""
        return self._scheduler.is_contended(self.model)

    def charge(self, cost: float) -> None:
        """Charge the caller, if others wait, with what the call was served so far (see `model_queue.cost_of`)."""
        more, self._charged = cost - self._charged, cost
        if self.is_contended:
            self._scheduler.on_charge(self, flow_of(self._context), more)

    def move(self, replica: Replica) -> None:
        """Use another replica from now on."""
        self.prompt_read()
        before, self._replica = self._replica, replica
        self._context.expected = None
        self._scheduler.on_move(self.model, before, replica)

    def prompt_read(self) -> None:
        """Note that the engine has read the prompt, or will not."""
        if self.unread and self._replica is not None:
            self._scheduler.on_prompt_read(self.model, self._replica.id, self.unread)
            self.unread = 0

    def note_first_token(self, seconds: float) -> None:
        """Learn from how long the engine took to the first token."""
        context = self._context
        if context.expected is not None and context.prefix is not None and context.prefix.is_whole:
            self._scheduler.on_first_token(self.model, context.expected, seconds)

    def release(self) -> None:
        """Let others go in its place. Call it once, when the call is over."""
        self.prompt_read()
        replica, self._replica = self._replica, None
        self._scheduler.on_end(self, replica, since=self._since, cost=self._charged)


class QueuedRequest:
    """A call that waits. A `downstream.Listener`."""

    def __init__(self, context: RequestContext, now: float) -> None:
        self.context = context
        self.model = context.model.name
        self.call_class = class_of(context.key)
        self.flow: CallFlow = flow_of(context)
        self.share = share_of(context)
        self.since = self._beat_at = now
        self.loading = 0.0  # seconds of the wait until the model was loaded
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

    def is_silent(self, now: float, every: float) -> bool:
        """Return whether it is time for a comment: the client of a stream had none for `every` seconds."""
        context = self.context
        if context.upload is not None or not context.streams or context.client.waiting or self.lease.done():
            return False
        return now - self._beat_at >= (every if context.key.batch else min(every, PLACE_EVERY))

    def send_place(self, now: float, place: int, wait: float | None) -> None:
        """Send a comment with its place in the queue and, if it is known, the expected wait in seconds."""
        self._comment(now, f"queue position={place}" + ("" if wait is None else f" eta={math.ceil(wait)}s"))

    def send_loading(self, now: float, usual: float | None) -> None:
        """Send a comment with how long it has waited for its model to be loaded, and how long that took before."""
        self._comment(now, f"loading {now - self.since:.0f}s" + ("" if usual is None else f" of ~{math.ceil(usual)}s"))

    def _comment(self, now: float, text: str) -> None:
        self._beat_at = now
        context, client = self.context, self.context.client
        if not context.head_sent:
            context.head_sent = True
            client.begin([*STREAM_HEADERS, (b"x-request-id", context.request_id.encode())])
        client.piece(f": {text}\n\n".encode())


class Scheduler:
    """The queues of this worker; `shared`: with those of others.

    `find_model` returns the model of this name as it is now, `find_called_model` the one that a call asks for; it
    raises UnknownModel or InvalidKey if its caller may not use it any more. `request_wake_up` has a sleeping model
    loaded; `refuse_wake_up` is called if it is not, as its caller had too many loaded. `is_gone`: whether the
    supervisor of this host has been quiet for longer than its restart takes, so that it loads nothing.
    `is_looked_after`: whether a replica that does not answer is started again. `check_quota` raises the refusal of a
    call whose limits will not let it run in time, however long it waits.
    """

    def __init__(
        self,
        balancer: Balancer,
        *,
        find_model: Callable[[str], Model | None],
        find_called_model: Callable[[RequestContext], Model],
        request_wake_up: Callable[[WakeUp], None],
        is_gone: Callable[[int], bool],
        is_looked_after: Callable[[Model, Replica], bool],
        clock: Callable[[], float],
        check_quota: Callable[[RequestContext], Awaitable[None]] | None = None,
        memory: float = math.inf,
        fairness: FairnessLog | None = None,
        shared: QueueSharing | None = None,
    ) -> None:
        """Begin with empty queues.

        `memory`: how many bytes the waiting calls of one caller may hold before no more of them may wait. `fairness`:
        where what callers are served is noted.
        """
        self._balancer = balancer
        self._find_model = find_model
        self._find_called_model = find_called_model
        self._request_wake_up = request_wake_up
        self._is_gone = is_gone
        self._is_looked_after = is_looked_after
        self._check_quota = check_quota
        self._prefixes = PrefixRouter()
        self._rooms = Rooms()
        self._shared = UnsharedQueue() if shared is None else shared
        self._shared.attach(self, find_model, self._rooms)
        self._calls = self._shared.calls  # how many calls a replica may have of this worker
        self._clock = clock
        self._in_flight: dict[str, int] = defaultdict(int)  # batch calls, by the model's name
        self._backlogged: Collection[str] = ()
        self._queues: dict[str, ModelQueue[QueuedRequest]] = {}  # none of them is empty for longer than a moment
        self._memory = memory
        self._owners = WaitingOwners()
        self._refused_wake_ups = RefusedWakeUps()
        self._averages: dict[str, CallAverages] = {}  # by the model's name
        self._loading_seconds: dict[str, float] = {}  # how long calls last waited for a model to be loaded, by its name
        self._fairness = FairnessLog(clock) if fairness is None else fairness

    @property
    def queued(self) -> int:
        """How many calls wait."""
        return sum(map(len, self._queues.values()))

    @property
    def queued_batch(self) -> int:
        """How many of them are not interactive."""
        return sum(len(queue) - len(queue[CallClass.INTERACTIVE]) for queue in self._queues.values())

    def is_contended(self, model: str) -> bool:
        return model in self._queues or self._shared.is_wanted(model)

    def calls_waiting(self, model: str) -> int:
        """Return how many calls wait for the model of this name."""
        return len(self._queues[model]) if model in self._queues else 0

    async def acquire(self, context: RequestContext) -> Lease:
        """Wait until the call may go, and return the lease of a replica. `release` it when the call is over.

        Raises ModelUnavailable (no replica answers and none is being loaded, loading takes too long, or the server
        stops), ModelBusy or for a batch key BatchBusy (too many wait, or it would wait too long), ClientDisconnected,
        for what went meanwhile UnknownModel or InvalidKey, or what `check_quota` raises.
        """
        model = context.model
        if has_prefixes(model, context.endpoint):
            context.prefix = read_prefix(context.call, context.endpoint, context.key.tenant)
        if not context.key.batch and model.name not in self._queues:
            replica = self._find_free(context)
            if replica is not None:
                return Lease(self, context, replica)
        if self._check_quota is not None and context.key.limits:
            await self._check_quota(context)
        if self._balancer.choose(model.replicas, self._clock()) is None:
            self._check_loading(context)
            if not context.key.batch:
                self._await_loading(context)
        return await self._wait(context)

    def _find_free(self, context: RequestContext) -> Replica | None:
        """Return the best replica for the call on which there is room; None: there is none."""
        balancer, replicas, now = self._balancer, context.model.replicas, self._clock()
        if context.prefix is None:
            replica = balancer.choose(replicas, now)
            return replica if replica is not None and balancer.running(replica) < self._calls(replica) else None
        willing = balancer.keep_willing(replicas, now)
        return self._pick(context, [one for one in willing if balancer.running(one) < self._calls(one)])

    def _pick(self, context: RequestContext, replicas: Sequence[Replica]) -> Replica | None:
        """Return the replica where the call costs least; None: there are none that can be reached."""
        if context.prefix is None:
            return self._balancer.choose(replicas, self._clock())
        reachable = self._balancer.keep_reachable(replicas)
        if not reachable:
            return None
        memory = self._prefixes.of(context.model.name)
        replica, context.expected = memory.place(context.prefix, reachable, self._running_anywhere)
        return replica

    def _check_loading(self, context: RequestContext) -> None:
        """Raise ModelUnavailable for a call that would have one model more loaded than its caller may."""
        wake, flow = wake_up_for(context), flow_of(context)
        if wake.most is None:
            return
        others = sum(
            queue.loading_since is not None and self._owners.calls(flow, name) > 0
            for name, queue in self._queues.items()
            if name != context.model.name
        )
        seconds = self._refused_wake_ups.seconds(wake, self._clock())
        if others >= wake.most or seconds:
            raise too_many_loading(wake.most, max(seconds, LOADING_RETRY))

    def _await_loading(self, context: RequestContext) -> None:
        """Have a model loaded of which no replica can be reached. Raise ModelUnavailable if no host will do that."""
        model = context.model
        if model.loading_on:
            self._request_wake_up(wake_up_for(context))
        if not self._is_coming(model):
            code = "model_without_room" if model.no_room else "model_unavailable"
            raise ModelUnavailable(code, headers={"retry-after": "30"}, model=model.name)

    def refuse_wake_up(self, wake: WakeUp, seconds: float) -> None:
        """Refuse the caller's calls for a model, and those of the next seconds: it had too many others loaded."""
        self._refused_wake_ups.note(wake, self._clock() + seconds)
        for queue in self._queues.values():
            for request in queue:
                if request.context.model.id == wake.model and request.flow.caller == wake.caller:
                    request.fail(too_many_loading(wake.most or 0, seconds))

    def _is_coming(self, model: Model) -> bool:
        """Return whether a host will load it, or start an engine again that does not answer.

        One whose supervisor is being restarted will, when that is back.
        """
        if any(not self._is_gone(host) for host in model.loading_on):
            return True
        return any(self._is_looked_after(model, replica) for replica in model.replicas)

    def _choose(self, context: RequestContext) -> Replica:
        replica = self._pick(context, self._balancer.keep_willing(context.model.replicas, self._clock()))
        if replica is not None:
            return replica
        self._await_loading(context)
        raise loading(context.model.name)

    # --- calls that wait

    async def _wait(self, context: RequestContext) -> Lease:
        context.call.drop_values()  # it may wait for minutes
        request = QueuedRequest(context, self._clock())
        client = context.client
        if context.upload is None:  # else its body is still being read, which shows that its client disconnects
            client.listen(request)
        try:
            with self._owners.count(request.flow, request.model, context.request_bytes):
                lease = await self._queue(request)
        except Refusal:
            context.waited = self._clock() - request.since
            raise
        finally:
            client.unsubscribe()
        if not lease.waited and lease.has_replica:
            return lease
        context.waited, context.loading = self._clock() - request.since, request.loading
        return self._renew(context, lease)

    async def _queue(self, request: QueuedRequest) -> Lease:
        queue = self._queues.get(request.model)
        if queue is None:
            queue = self._queues[request.model] = ModelQueue(request.since)
        try:
            self._add(queue, request)
            self._check_length(queue, request)
            self.advance(request.model)
            waits = not request.lease.done()
            if waits:
                self._shared.tell(request.model)
            lease = await request.lease
            lease.waited = waits
            return lease
        except asyncio.CancelledError:  # by the server, which does not wait for open calls any longer
            if request.is_leased:
                request.lease.result().release()
            raise ModelUnavailable("shutting_down", headers={"retry-after": "5"}) from None
        finally:
            if not request.is_leased:
                self._forget(request)

    def _add(self, queue: ModelQueue[QueuedRequest], request: QueuedRequest) -> None:
        fair, flow = queue[request.call_class], request.flow
        if not fair.waiting(flow):
            self._shared.flow_waits(request.model, request.call_class, flow)
        fair.add(request, flow, request.since, request.share)

    def _check_length(self, queue: ModelQueue[QueuedRequest], request: QueuedRequest) -> None:
        """Raise ModelBusy or BatchBusy for a call that is one too many, or that would wait too long."""
        owners, flow = self._owners, request.flow
        is_full = queue.waiting_up_to(request.call_class) > MAX_WAITING
        if (
            queue[request.call_class].waiting_of(flow, request.share) > MAX_QUEUED
            or (is_full and not self._crowd_out(queue[request.call_class], request))
            or owners.calls(flow, request.model) > MAX_OF_KEY
            or owners.bytes(flow) - request.context.request_bytes > self._memory
        ):
            raise busy(request, self._expected_wait(request.model, self._length(request.model, queue)))
        least = self._least_wait(request.model, self._length(request.model, queue))
        if least > MAX_WAIT:
            least = self._least_wait(request.model, self._places(request.model, queue)[request])
            if least > MAX_WAIT:
                raise busy(request, least - MAX_WAIT)

    def _crowd_out(self, waiting: FairQueue[QueuedRequest], request: QueuedRequest) -> bool:
        """Refuse the newest call of the caller who has most of them, if that is not this one's; return whether."""
        calls = [one for one in waiting if not one.lease.done()]
        counts = Counter(one.flow.caller for one in calls)
        [(caller, most)] = counts.most_common(1)
        if most <= counts[request.flow.caller]:
            return False
        newest = next(one for one in reversed(calls) if one.flow.caller == caller)
        newest.fail(busy(newest, self._expected_wait(request.model, len(waiting))))
        return True

    def _renew(self, context: RequestContext, lease: Lease) -> Lease:
        """Look again at what the call asks for, after a wait, and return the lease of a replica that serves it now."""
        try:
            context.model = self._find_called_model(context)
            if lease.has_replica and any(one.id == lease.replica.id for one in context.model.replicas):
                return lease
            replica = self._choose(context)
        except BaseException:
            lease.release()
            raise
        lease.release()
        return Lease(self, context, replica, waited=True)

    def advance(self, name: str) -> None:
        """Let those calls of this model go whose turn it is."""
        queue = self._queues.get(name)
        if queue is None:
            return
        model, now = self._find_model(name), self._clock()
        if model is not None and self._is_loading(queue, model, now):
            return
        while queue:
            if model is None or not self._balancer.keep_reachable(model.replicas):
                request, replica = next(iter(queue)), None  # it is refused, or finds another model under its name
            else:
                found = self._next(queue, model, now)
                if found is None:
                    return
                request, replica = found
            queue[request.call_class].serve(request, now)
            queue.moved_at = now
            if not request.lease.done():
                request.lease.set_result(Lease(self, request.context, replica))
        self._remove_queue(name)

    def _remove_queue(self, name: str) -> None:
        self._queues.pop(name, None)
        self._shared.tell(name)

    def _is_loading(self, queue: ModelQueue[QueuedRequest], model: Model, now: float) -> bool:
        """Return whether no replica can be reached and a host will load one; note how long that takes."""
        if self._balancer.choose(model.replicas, now) is not None:
            if queue.loading_since is not None:
                self._loading_seconds[model.name] = now - queue.loading_since
                for request in queue:
                    request.loading += now - max(request.since, queue.loading_since)
                queue.loading_since = None
            return False
        if not self._is_coming(model):
            return False
        if queue.loading_since is None:
            queue.loading_since = now
        return True

    def _next(self, queue: ModelQueue[QueuedRequest], model: Model, now: float) -> tuple[QueuedRequest, Replica] | None:
        """Return the call that may go next, and where; None: all have to wait."""
        replicas = self._balancer.keep_willing(model.replicas, now)
        interactive = queue[CallClass.INTERACTIVE].first(now)
        if interactive is not None:
            ahead = self._look_ahead(model.name)
            free = [one for one in replicas if self._balancer.running(one) < ahead * self._calls(one)]
            replica = self._pick(interactive.context, free)
            if replica is not None:
                return interactive, replica
        crowded = (
            interactive is not None or model.name in self._backlogged or self._shared.foreign(model.name).calls[0] > 0
        )
        for one in (CallClass.BATCH, CallClass.CANARY):
            found = self._next_of_batch(queue[one], model, replicas, now, crowded=crowded)
            if found is not None:
                return found
            crowded = crowded or len(queue[one]) > 0
        return None

    def _look_ahead(self, name: str) -> int:
        """Return how many times as many calls an engine of this model is sent as it works on at a time."""
        if self._shared.is_shared:
            return 1  # there are as many credits
        return self._usual_ahead(name)

    def _usual_ahead(self, name: str) -> int:
        averages = self._averages.get(name)
        return 2 if averages is not None and averages.seconds < SHORT else 1

    def _next_of_batch(
        self,
        batch: FairQueue[QueuedRequest],
        model: Model,
        replicas: Sequence[Replica],
        now: float,
        *,
        crowded: bool,
    ) -> tuple[QueuedRequest, Replica] | None:
        request, oldest = batch.first(now), batch.oldest()
        if request is None or oldest is None:
            return None
        replica = self._place_batch(request, model, replicas, crowded=crowded, starved=False)
        if replica is not None:
            return request, replica
        if now - oldest.since < STARVED_AFTER or self._in_flight.get(model.name, 0) >= len(replicas):
            return None
        replica = self._place_batch(oldest, model, replicas, crowded=crowded, starved=True)
        return None if replica is None else (oldest, replica)

    def _place_batch(
        self, request: QueuedRequest, model: Model, replicas: Sequence[Replica], *, crowded: bool, starved: bool
    ) -> Replica | None:
        found = replicas_for_batch(
            replicas,
            self._balancer.running,
            backlogged=crowded,
            starved=starved,
            in_flight=self._in_flight.get(model.name, 0),
            capacity=self._shared.calls_with_batch,
        )
        return self._pick(request.context, found)

    def sweep(self, backlogged: Collection[str], heartbeat: float) -> None:
        """Call it about once a second. `backlogged`: models of which interactive calls wait for their first byte."""
        self._backlogged = backlogged
        now = self._clock()
        self._rooms.forget(now)
        self._refused_wake_ups.forget(now)
        for name, queue in list(self._queues.items()):
            self._note_waiting(name, queue)
            if queue.loading_since is None:
                self._tell_places(name, queue, now, heartbeat)
            else:
                self._tell_loading(name, queue, now, heartbeat)
            self.advance(name)
        self._shared.sweep(self._queues)

    def _note_waiting(self, name: str, queue: ModelQueue[QueuedRequest]) -> None:
        for one, waiting in queue.by_class.items():
            if waiting:
                self._fairness.note_waiting(name, one.label, waiting.waiting_flows)

    def _tell_places(self, name: str, queue: ModelQueue[QueuedRequest], now: float, heartbeat: float) -> None:
        """Refuse those that have waited too long, and send the others their places from time to time."""
        late = [request for request in queue if now - request.since > MAX_WAIT]
        silent = [request for request in queue if request.is_silent(now, heartbeat)]
        if not late and not silent:
            return
        places = self._places(name, queue)
        for request in late:
            wait = self._expected_wait(name, places[request])
            request.fail(busy(request, None if wait is None else max(wait, MIN_LATE_RETRY)))
        for request in silent:
            if not request.lease.done():
                place = places[request]
                request.send_place(now, place, self._expected_wait(name, place))

    def _tell_loading(self, name: str, queue: ModelQueue[QueuedRequest], now: float, heartbeat: float) -> None:
        """Refuse those that have waited too long for their model, and send the others how long it has been loading.

        And ask for it again: it may have fallen asleep between the last request to wake it and theirs.
        """
        for request in queue:
            if now - request.since > MAX_WAIT:
                request.fail(loading(name))
            elif request.is_silent(now, heartbeat):
                request.send_loading(now, self._loading_seconds.get(name))
        model = self._find_model(name)
        first = next((request for request in queue if not request.lease.done()), None)
        if model is not None and model.loading_on and first is not None:
            self._request_wake_up(wake_up_for(first.context)._replace(model=model.id))

    def note_loads(self, loads: Mapping[int, EngineLoad]) -> None:
        """Take what engines report, by their replicas' ids."""
        self._rooms.note(loads, self._running_anywhere, self._clock())
        self._shared.rooms_changed()
        self.advance_all()

    def recheck(self) -> None:
        """Refuse calls whose callers may not use the model any more, and let others go. Call it for a new catalogue."""
        self._prefixes.keep_only(self._find_model)
        for name, queue in list(self._queues.items()):
            for request in list(queue):
                try:
                    self._find_called_model(request.context)
                except Refusal as refusal:
                    request.fail(refusal)
            self.advance(name)
        if len(self._averages) > len(self._queues):
            self._averages = {name: one for name, one in self._averages.items() if self._find_model(name) is not None}
        if self._loading_seconds:
            known = self._loading_seconds.items()
            self._loading_seconds = {name: one for name, one in known if self._find_model(name) is not None}

    def _places(self, name: str, queue: ModelQueue[QueuedRequest]) -> dict[QueuedRequest, int]:
        averages = self._averages.get(name)
        return queue.places(USUAL_COST if averages is None else averages.cost, self._shared.foreign(name))

    def _length(self, name: str, queue: ModelQueue[QueuedRequest]) -> int:
        """Return how many calls wait for the model in all workers."""
        return len(queue) + sum(self._shared.foreign(name).calls)

    def _expected_wait(self, name: str, place: int) -> float | None:
        """Return the seconds until so many calls of the model have begun; None: it is unknown."""
        averages, running = self._averages.get(name), self._running(name)
        if averages is None or not running:
            return None
        wait = place * averages.seconds / running
        queue = self._queues.get(name)
        if queue is None:
            return wait
        # All calls under way are longer than usual; the longer they have been, the longer they may still be.
        return wait + max(0.0, self._clock() - queue.moved_at - averages.seconds)

    def _least_wait(self, name: str, place: int) -> float:
        """Return the seconds until so many calls have begun at the earliest, as far as that is known."""
        averages, running = self._averages.get(name), self._running(name)
        if averages is None or averages.least_seconds is None or not running:
            return 0.0
        return place * averages.least_seconds / running

    def _running(self, name: str) -> int:
        """Return how many calls of the model are in flight, one at least; 0 if no replica answers."""
        model = self._find_model(name)
        if model is None or not model.replicas:
            return 0
        return max(1, sum(self._running_anywhere(replica.id) for replica in model.replicas))

    def _running_anywhere(self, replica: int) -> int:
        return self._balancer.running_at(replica) + self._shared.others_running(replica)

    def _forget(self, request: QueuedRequest) -> None:
        queue = self._queues.get(request.model)
        if queue is None:
            return
        queue[request.call_class].remove(request)
        if not queue:
            self._remove_queue(request.model)
        else:
            self.advance(request.model)

    # --- for operators

    def snapshot(self, models: Iterable[Model]) -> QueueSnapshot:
        """Return who waits, and what the replicas of these models work on."""
        now = self._clock()
        waiting = [request for queue in self._queues.values() for request in queue]
        longest = heapq.nsmallest(MAX_SHOWN, waiting, key=lambda request: request.since)
        shown = {request.model for request in longest}
        places = {name: self._places(name, queue) for name, queue in self._queues.items() if name in shown}
        return QueueSnapshot(
            calls=tuple(self._describe_call(one, places[one.model][one], now) for one in longest),
            models=tuple(self._describe_model(name, queue, now) for name, queue in self._queues.items()),
            replicas=tuple(self._describe_replica(replica, model) for model in models for replica in model.replicas),
        )

    def _describe_call(self, request: QueuedRequest, place: int, now: float) -> WaitingCall:
        context, queue = request.context, self._queues[request.model]
        expected = None if queue.loading_since is not None else self._expected_wait(request.model, place)
        return WaitingCall(
            model=request.model,
            call_class=request.call_class.label,
            tenant=context.key.tenant,
            user=context.key.user,
            key=context.key.id,
            end_user=context.end_user,
            waited=round(now - request.since, 1),
            place=place,
            expected=None if expected is None else round(expected, 1),
        )

    def _describe_model(self, name: str, queue: ModelQueue[QueuedRequest], now: float) -> WaitingModel:
        since = queue.loading_since
        return WaitingModel(
            model=name,
            waiting={one.label: len(waiting) for one, waiting in queue.by_class.items() if waiting},
            longest=round(now - min((request.since for request in queue), default=now), 1),
            loading=None if since is None else round(now - since, 1),
            usual_loading=self._loading_seconds.get(name),
            expected=self._interactive_wait(name, queue),
        )

    def _interactive_wait(self, name: str, queue: ModelQueue[QueuedRequest]) -> float | None:
        """Return the seconds until the last interactive call for it has begun; None: unknown, or there is none."""
        mine = len(queue[CallClass.INTERACTIVE])
        if not mine or queue.loading_since is not None:
            return None
        wait = self._expected_wait(name, mine + self._shared.foreign(name).calls[CallClass.INTERACTIVE])
        return None if wait is None else round(wait, 1)

    def _describe_replica(self, replica: Replica, model: Model) -> ReplicaRoom:
        room = self._rooms.calls(replica)
        return ReplicaRoom(
            replica=replica.id,
            model=model.name,
            running=self._balancer.running(replica),
            room=None if math.isinf(room) else room,
        )

    # --- for SharedQueue

    def bounded_replicas(self, model: Model) -> Iterator[tuple[Replica, float, bool]]:
        """Return the replicas whose room is known, that room, and whether a call may go there now."""
        willing = self._balancer.keep_willing(model.replicas, self._clock())
        for replica in model.replicas:
            room = self._rooms.calls(replica)
            if room < math.inf:
                ahead = 1 if replica.slots is None else self._usual_ahead(model.name)
                yield replica, ahead * room, replica in willing

    def running_at(self, replica: int) -> int:
        return self._balancer.running_at(replica)

    def waiting(self, name: str) -> list[WaitingClass]:
        """Return what waits for a credit."""
        queue, now, rows = self._queues.get(name), self._clock(), []
        if queue is not None:
            for one, fair in queue.by_class.items():
                if one is not CallClass.INTERACTIVE and name in self._backlogged:
                    break
                if (head := fair.head(now)) is not None:
                    flows, unserved = len(fair.waiting_flows), now - head.since
                    rows.append(WaitingClass(one, len(fair), flows, head.flow, head.counter, head.is_aged, unserved))
        return rows

    def waiting_flows(self, name: str) -> Iterator[tuple[CallClass, CallFlow, float]]:
        """Return the flows that wait, with their counters."""
        queue = self._queues.get(name)
        if queue is not None:
            for one, fair in queue.by_class.items():
                for flow in fair.waiting_flows:
                    yield one, flow, fair.served(flow)

    def counter(self, name: str, call_class: CallClass, flow: CallFlow) -> float:
        queue = self._queues.get(name)
        return 0.0 if queue is None else queue[call_class].served(flow)

    def adopt(self, name: str, call_class: CallClass, flow: CallFlow, counter: float) -> None:
        """Take over what this flow was served by all workers."""
        queue = self._queues.get(name)
        if queue is not None:
            queue[call_class].adopt(flow, counter)

    def advance_all(self) -> None:
        for name in list(self._queues):
            self.advance(name)

    # --- for Lease

    def on_start(self, lease: Lease, replica: Replica | None) -> float:
        """Return the time."""
        if lease.call_class is not CallClass.INTERACTIVE:
            self._in_flight[lease.model] += 1
        if replica is not None:
            self._balancer.add_call(replica)
            if lease.unread:
                self._prefixes.of(lease.model).add_unread(replica.id, lease.unread)
            if replica.slots is None:
                self._shared.unbounded_used(lease.model, replica.id)
        return self._clock()

    def on_charge(self, lease: Lease, flow: CallFlow, cost: float) -> None:
        queue = self._queues.get(lease.model)
        if queue is not None:
            queue[lease.call_class].charge(flow, cost)
        self._fairness.note_served(lease.model, lease.call_class.label, flow, cost)
        self._shared.charge(lease.model, lease.call_class, flow, cost)

    def on_prompt_read(self, model: str, replica: int, size: int) -> None:
        self._prefixes.of(model).add_unread(replica, -size)

    def on_first_token(self, model: str, expected: ExpectedCost, seconds: float) -> None:
        self._prefixes.of(model).learn(expected, seconds)

    def on_move(self, model: str, before: Replica | None, replica: Replica) -> None:
        self._balancer.add_call(replica)
        if before is not None:
            self._balancer.remove_call(before)
            self._go_on(model)

    def on_end(self, lease: Lease, replica: Replica | None, *, since: float, cost: float) -> None:
        name = lease.model
        if cost:
            seconds = self._clock() - since
            averages = self._averages.get(name)
            if averages is None:
                self._averages[name] = CallAverages(seconds, cost)
            else:
                averages.observe(seconds, cost)
        if replica is not None:
            self._balancer.remove_call(replica)
        if lease.call_class is not CallClass.INTERACTIVE:
            self._in_flight[name] -= 1
            if not self._in_flight[name]:
                del self._in_flight[name]
        self._go_on(name)

    def _go_on(self, name: str) -> None:
        """Let the next call go, here or in another worker, where one has ended."""
        if not self._shared.is_calm:
            self._shared.call_ended(name)
        if self._queues:
            self.advance(name)


def wake_up_for(context: RequestContext) -> WakeUp:
    """Return the request to load the model of this call."""
    key = context.key
    most = MAX_LOADING if key.user is not None else max(1, round(MAX_LOADING * key.service_weight))
    interactive = class_of(key) is CallClass.INTERACTIVE
    return WakeUp(context.model.id, flow_of(context).caller, None if key.canary else most, interactive)


def too_many_loading(amount: int, seconds: float) -> ModelUnavailable:
    """Return the refusal of a call for one model more than its caller may have loaded, for so many seconds."""
    after = max(MIN_RETRY_AFTER, min(math.ceil(seconds), MAX_RETRY_AFTER))
    return ModelUnavailable("too_many_loading", headers={"retry-after": str(after)}, amount=amount, seconds=after)


def loading(model: str) -> ModelUnavailable:
    retry = {"retry-after": str(LOADING_RETRY)}
    return ModelUnavailable("model_loading", headers=retry, model=model, seconds=LOADING_RETRY)


def busy(request: QueuedRequest, wait: float | None) -> Refusal:
    """Return the refusal of a call that is asked to come back after so many seconds; None: it is unknown when."""
    seconds = RETRY_AFTER if wait is None else max(MIN_RETRY_AFTER, min(math.ceil(wait), MAX_RETRY_AFTER))
    headers = {"retry-after": str(seconds)}
    if request.call_class is not CallClass.INTERACTIVE:
        return BatchBusy("batch_held_back", headers=headers, model=request.model, seconds=seconds)
    return ModelBusy("model_busy", headers=headers, model=request.model, seconds=seconds)
