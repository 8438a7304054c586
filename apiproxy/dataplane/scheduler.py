"""Whose turn it is: calls of batch keys wait while interactive calls need the engines.

Nobody looks at a batch call's answer while it is made; somebody waits for each interactive one. Engines know no such
difference: llama.cpp works on its requests in the order in which they came, and one that has begun keeps its slot to
its end, minutes perhaps. (vLLM can put requests that wait into another order, see `requests.BATCH_PRIORITY`, but ends
none that has begun either.) So what is not urgent is held back here, before it takes a slot, by these rules:

- An interactive call never waits here, and costs nothing while no batch call waits.
- A batch call goes to a replica where it leaves a slot free: the next interactive call finds it at once. Of a single
  slot it takes the only one when that is idle.
- Where nobody knows the slots (servers of others, vLLM that takes what its memory holds) it goes, unless an
  interactive stream of that model has waited longer than LATE for its first byte: then the engine has a queue.
- Batch calls of a model go in the order in which they came. One that has waited for AGED goes although there is no
  room, but only one at a time for each replica: so batch never starves, and takes one slot of a busy engine at most.
- Who has waited for PATIENCE, or would be one of more than MOST, is told to come back later.

What waits reserves nothing of any limit: a tenant's batch must not use up what its people need now. Each worker knows
its own calls alone; of the slots it counts on its share.
"""

import asyncio
import math
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Sequence

from apiproxy.dataplane.balancer import Balancer
from apiproxy.dataplane.catalogue import Model, Replica
from apiproxy.dataplane.downstream import Client, Header
from apiproxy.dataplane.errors import BatchBusy, ClientDisconnected, ModelUnavailable

BACKLOGGED_AFTER = 1.0  # seconds; a prompt that takes longer to be read is a reason as well: batch would make it slower
STARVED_AFTER = 60.0
MAX_WAIT = 240.0  # seconds; below the 300 after which Dify gives up, and the SDKs' 600
MAX_QUEUED = 200  # of a model, in one worker; each holds its request in our memory
RETRY_AFTER = 30  # seconds after which who was sent away is asked to come back; SDKs heed up to 60


def capacity_for_batch(slots: int | None, workers: int) -> float:
    """Return how many calls a replica may have under way in this worker, one more of batch included."""
    return math.inf if slots is None else max(1, (slots - 1) // workers)


def replicas_for_batch(
    replicas: Sequence[Replica], running: Callable[[Replica], int], *, late: bool, aged: bool, going: int, workers: int
) -> Sequence[Replica]:
    """Return the replicas to which the next batch call may go now; none: it has to wait.

    `late`: interactive calls wait in the engines. `aged`: it has waited so long that it may go anyway. `going`: batch
    calls of this model that are under way.
    """
    if aged and going < len(replicas):
        return replicas
    if late:
        return ()
    return [replica for replica in replicas if running(replica) < capacity_for_batch(replica.slots, workers)]


class Lease:
    """A batch call's leave to go, from now to its end. `replica`: where; None: the model has none any more."""

    def __init__(self, turns: "Scheduler", model: str, replica: Replica | None) -> None:
        self._turns = turns
        self._model = model
        self._place = replica  # counted there until the call is itself
        self.replica = replica
        turns.began(model, replica)

    def arrive(self) -> None:
        """The call is about to be counted at its replica by whoever sends it there."""
        place, self._place = self._place, None
        self._turns.arrived(place)

    def end(self) -> None:
        self.arrive()
        self._turns.ended(self._model)


class QueuedRequest:
    """A batch call that waits. A `downstream.Listener`."""

    def __init__(self, model: Model, client: Client, now: float, heartbeat: bytes, headers: list[Header]) -> None:
        """`heartbeat`: what the client may be sent meanwhile, b"" for nothing, after a head with these headers."""
        self.model = model.name
        self.since = self._beat_at = now
        self.turn: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        self.patient = False  # the client has been sent a stream's head
        self._client = client
        self._heartbeat = heartbeat
        self._headers = headers

    def client_left(self) -> None:
        self.fail(ClientDisconnected())

    def client_ready(self) -> None:
        pass

    def fail(self, error: Exception) -> None:
        if not self.turn.done():
            self.turn.set_exception(error)

    def beat(self, now: float, every: float) -> None:
        if not self._heartbeat or self._client.waiting or now - self._beat_at < every:
            return
        self._beat_at = now
        if not self.patient:
            self.patient = True
            self._client.begin(self._headers)
        self._client.piece(self._heartbeat)


class Scheduler:
    """Of one worker of `workers`. `model` gives the model of this name as it is now."""

    def __init__(
        self,
        balancer: Balancer,
        *,
        model: Callable[[str], Model | None],
        workers: int,
        clock: Callable[[], float],
    ) -> None:
        self._balancer = balancer
        self._model = model
        self._workers = workers
        self._clock = clock
        self._going: dict[str, int] = defaultdict(int)  # by the model's name
        self._late: Collection[str] = ()
        self.queues: dict[str, deque[QueuedRequest]] = {}  # none of them is empty for longer than a moment

    @property
    def waiting(self) -> int:
        return sum(len(queue) for queue in self.queues.values())

    async def wait(self, waiter: QueuedRequest) -> Lease:
        """Return when it is this call's turn; `end` the turn when the call has ended.

        Raises HeldBack (too many wait, or it has waited too long), ClientLeft, or NoReplica when the server ends.
        """
        queue = self.queues.setdefault(waiter.model, deque())
        if len(queue) >= MAX_QUEUED:
            raise batch_busy(waiter.model)
        queue.append(waiter)
        self.look(waiter.model)
        try:
            return await waiter.turn
        except asyncio.CancelledError:  # by the server, whose patience with open calls has ended
            if waiter.turn.done() and not waiter.turn.cancelled() and waiter.turn.exception() is None:
                waiter.turn.result().end()
            raise ModelUnavailable("shutting_down", headers={"retry-after": "5"}) from None
        finally:
            if not waiter.turn.done() or waiter.turn.cancelled() or waiter.turn.exception() is not None:
                self._forget(waiter)

    def look(self, name: str) -> None:
        """Let those go whose turn it is. Call it when a call of this model has ended."""
        queue = self.queues.get(name)
        if queue is None:
            return
        model = self._model(name)
        while queue:
            waiter = queue[0]
            replicas = self._balancer.reachable(model.replicas) if model is not None else ()
            replica = self._place(model, replicas, waiter) if model is not None and replicas else None
            if replica is None and model is not None and model.replicas:
                return  # also when none can be reached now: these calls can wait
            queue.popleft()
            if not waiter.turn.done():
                waiter.turn.set_result(Lease(self, name, replica))
        self.queues.pop(name, None)

    def sweep(self, late: Collection[str], heartbeat: float) -> None:
        """Call it about once a second. `late`: models of which interactive calls wait for their first byte."""
        self._late = late
        now = self._clock()
        for name, queue in list(self.queues.items()):
            for waiter in list(queue):
                if now - waiter.since > MAX_WAIT:
                    waiter.fail(batch_busy(name))
                else:
                    waiter.beat(now, heartbeat)
            self.look(name)

    def _place(self, model: Model, replicas: Sequence[Replica], waiter: QueuedRequest) -> Replica | None:
        found = replicas_for_batch(
            replicas,
            self._balancer.running,
            late=model.name in self._late,
            aged=self._clock() - waiter.since >= STARVED_AFTER,
            going=self._going.get(model.name, 0),
            workers=self._workers,
        )
        return self._balancer.choose(found, self._clock())

    def _forget(self, waiter: QueuedRequest) -> None:
        queue = self.queues.get(waiter.model)
        if queue is None:
            return
        if waiter in queue:
            queue.remove(waiter)
        if not queue:
            del self.queues[waiter.model]
        else:
            self.look(waiter.model)

    # --- for Turn

    def began(self, model: str, replica: Replica | None) -> None:
        self._going[model] += 1
        if replica is not None:
            self._balancer.began(replica)

    def arrived(self, place: Replica | None) -> None:
        if place is not None:
            self._balancer.ended(place)

    def ended(self, model: str) -> None:
        self._going[model] -= 1
        if not self._going[model]:
            del self._going[model]
        self.look(model)


def batch_busy(model: str) -> BatchBusy:
    return BatchBusy("batch_held_back", headers={"retry-after": str(RETRY_AFTER)}, model=model, seconds=RETRY_AFTER)
