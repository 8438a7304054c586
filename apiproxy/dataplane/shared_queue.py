"""One queue for the workers of all hosts that share a Redis: how many calls each may send to which engine, and when.

Of each replica the room is divided into credits, each for one call. `shared_queue.lua` hands them out, in one step for
each message:

- A worker keeps the credits it has, so a call that finds one goes without a word to Redis. The first call of people at
  a replica gets the worker its share (room ÷ workers), further ones what they need and half of what is free.
- A worker whose calls wait says so for each class: how many, and the counter of the flow whose turn it is. Free credits
  go to the first of all workers: the highest class, then who was not served for a minute, then the least counter.
- All others hear that calls wait, and give back what they do not use, at once. Until no call of another worker waits
  they give back the credit of each call that ends, and get it again if their own next caller is the first of all.
- What flows are served while calls wait is sent with every message, and each second; the counters of all workers come
  back. A flow that begins to wait is lifted to the least counter of those that wait at any worker. In between a worker
  knows of its own calls only, so by a second's tokens of answers a caller may be ahead.
- A batch call gets a credit where another is left that no worker holds.

What is not shared: the bounds of how many calls may wait are each worker's, for they bound its memory, and so is "one
batch call that waited for a minute may go although there is no room": one for each replica of each worker. Each worker
knows only when it served a flow itself, so one that waits in several may go first after a minute in which others served
it. A place in the queue is an estimate: as many flows of others as of our own go in between. How long calls of a model
take is each worker's own average, how many are under way that of all.

A learned room (see `room`) is one estimate for all. Each engine reports how many calls wait inside it, whosesoever they
are, so a worker that has 3 of its 200 calls could learn nothing from its own; and a room of its own it could not lend.
So the worker that reads a report first counts the calls of all in, and its estimate holds for all until the next.

What keeps this true:

- **A worker dies**: its credits are under a lease that it renews every BEAT. They are free LEASE after the last time.
  Its calls ended with its connections. It gets none of others' for the calls that waited there.
- **A worker stalls** for longer: it starts nothing from then on until it has a lease again, under which what runs is
  counted. So at an engine there are no more than its room and what stalled workers still have there, and no other call
  goes until those are done.
- **A credit comes for a call whose client has left**: it is the next call's of this worker, or goes back at once.
- **Redis is away** (refused, or no answer for 0.3 s): each worker has its share of the room, one call at least, and its
  waiting calls go by that at once. What others have under way above their share ends, no more is added to it.
- **Redis comes back, or has lost everything**: workers enter what they hold. For SETTLE (1.5 s, see the script) each
  only gets what it gave back itself, until all have done so. Counters of flows that wait are entered from any worker.

With REDIS_URL a single worker does this as well, for another host may share the engines; without it nothing is sent.
"""

import hashlib
import logging
import math
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from apiproxy.dataplane.catalogue import Model, Replica
from apiproxy.dataplane.fair_queue import CallFlow
from apiproxy.dataplane.limits.kept_connection import KeepConnected, KeptConnection
from apiproxy.dataplane.limits.redis_connection import RedisConnection
from apiproxy.dataplane.model_queue import NOWHERE, CallClass, ForeignWaits
from apiproxy.dataplane.queue_sharing import LocalQueues, capacity_for_batch
from apiproxy.dataplane.room import Rooms

log = logging.getLogger("madoguchi.queue")
QUEUE_ALONE = "Redis is away (%s): this worker sends engines its share, 1/%d of their room"

SCRIPT = (Path(__file__).parent / "shared_queue.lua").read_text()
LEASE = 5.0  # seconds; five beats, so that a worker that is busy for a moment keeps it
MARGIN = 0.5  # seconds before the end of its lease from which a worker starts nothing
WANTED_FOR = 3.0  # seconds after which calls of another worker wait no more unless it says so again
MAX_SENT_FLOWS = 500  # whose counters are asked for in one message


class Credits:
    """Those of one replica that this worker may use."""

    __slots__ = ("calls", "free", "given_back", "model", "others", "room", "unanswered")

    def __init__(self, model: str, room: int) -> None:
        self.model = model
        self.calls = 0  # that it may have in flight
        self.room = room
        self.free = 0  # that no worker holds, when that was last heard; less than zero: so many too many are in flight
        self.others = 0  # calls of other workers, then
        self.given_back = 0  # which are not sent yet
        self.unanswered = 0  # given back, of which Redis has not said that it knows

    def give_back(self, count: int) -> None:
        self.calls -= count
        self.given_back += count
        self.unanswered += count


class _Sent(NamedTuple):
    """A message that has no answer yet."""

    model: str
    at: float
    entry: int  # after which it was sent
    replicas: Sequence[tuple[int, int]]  # ids, and how many credits were given back
    flows: Sequence[tuple[CallClass, CallFlow]]


class SharedQueue(KeptConnection):
    """`workers`: how many share the engines at least; Redis knows if there are more.

    `prefix` keeps apart what shares one Redis. Before `start` it is connected with this worker's queues by `attach`.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str,
        workers: int,
        keep: KeepConnected,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(url, SCRIPT, name="queue", keep=keep)
        self._clock = clock
        self._expected = self._workers = workers
        self._worker = uuid.uuid4().hex[:12]
        # In braces: keys of one script must be on one node of a cluster.
        self._prefix = f"{{{prefix}}}:queue:"
        self._channel = f"{self._prefix}to:"
        self._credits: dict[int, Credits] = {}  # by the replica's id
        self._uncounted: dict[int, str] = {}  # replicas used while their room was unknown: the names of their models
        self._lease_until = 0.0
        self._was_in = False
        self._entries = 0
        self._entering = False
        self.is_calm = True  # no other worker's call waits, and nowhere are too many in flight, as far as is known
        self._foreign: dict[str, tuple[float, ForeignWaits]] = {}  # by the model's name, and when that was heard
        self._charges: dict[str, dict[tuple[CallClass, CallFlow], float]] = defaultdict(dict)  # not sent yet
        self._new_flows: dict[str, set[tuple[CallClass, CallFlow]]] = defaultdict(set)  # the same
        self._dirty: dict[str, bool] = {}  # models of which there is something to say; whether all should hear it
        self._entered: set[str] = set()  # models for which calls of ours wait, as far as Redis knows
        self._useless: set[str] = set()  # models of which a credit came that no call could use; until the next sweep

    def attach(self, queues: LocalQueues, find_model: Callable[[str], Model | None], rooms: Rooms) -> None:
        self._queues = queues
        self._find_model = find_model
        self._rooms = rooms

    async def _leave(self, connection: RedisConnection) -> None:
        self._connection = None  # nothing is sent after it
        await connection.run_script(self._keys("", ()), self._words("leave"))

    @property
    def is_shared(self) -> bool:
        """Whether Redis hands out credits; else this worker has its share."""
        return self._connection is not None

    @property
    def workers(self) -> int:
        """How many workers there are, as far as that is known."""
        return max(self._workers, self._expected) if self._connection is None else max(1, self._workers)

    # --- what a call asks

    def calls(self, replica: Replica) -> float:
        """Return how many calls this worker may have in flight there."""
        if self._connection is None:
            return self._share(replica)
        found = self._credits.get(replica.id)
        if found is not None and self._clock() < self._lease_until:
            return found.calls
        return math.inf if self._rooms.calls(replica) == math.inf else 0

    def calls_with_batch(self, replica: Replica) -> float:
        """Return how many calls it may have there, one more of batch included: one credit is left for other calls."""
        if self._connection is None:
            return capacity_for_batch(self._share(replica))
        calls, found = self.calls(replica), self._credits.get(replica.id)
        return calls if found is None or found.free > 0 or found.room == 1 else calls - 1

    def _share(self, replica: Replica) -> float:
        room = self._rooms.calls(replica)
        return room if room == math.inf else max(1, room // self.workers)

    def foreign(self, model: str) -> ForeignWaits:
        """Return what waits for the model in other workers, as far as that is known."""
        found = self._foreign.get(model)
        return found[1] if found is not None and self._clock() - found[0] < WANTED_FOR else NOWHERE

    def is_wanted(self, model: str) -> bool:
        """Return whether calls of other workers wait for the model."""
        return bool(self._foreign) and any(self.foreign(model).calls)

    def others_running(self, replica: int) -> int:
        """Return how many calls other workers have there, as they last said."""
        found = self._credits.get(replica)
        return 0 if found is None or self._connection is None else found.others

    # --- what a scheduler reports

    def flow_waits(self, model: str, call_class: CallClass, flow: CallFlow) -> None:
        """Note that a flow of which no call waited begins to wait."""
        if self._connection is not None:
            self._new_flows[model].add((call_class, flow))

    def unbounded_used(self, model: str, replica: int) -> None:
        """Note a call at a replica without a stated room: when that is learned, the call counts."""
        if replica not in self._credits:
            self._uncounted[replica] = model

    def rooms_changed(self) -> None:
        """Enter calls at replicas of which the room has become known."""
        for replica, name in list(self._uncounted.items()):
            if not self._queues.running_at(replica):
                del self._uncounted[replica]
            elif self._rooms.is_learned(replica):
                self.tell(name, loud=True)

    def charge(self, model: str, call_class: CallClass, flow: CallFlow, cost: float) -> None:
        """Note what a flow was served, while calls wait."""
        if self._connection is not None:
            charges, key = self._charges[model], (call_class, flow)
            charges[key] = charges.get(key, 0.0) + cost / flow.weight

    def tell(self, model: str, *, loud: bool = False) -> None:
        """Send what has changed for this model, with all else of this turn of the event loop.

        `loud`: others hear of it if calls of ours are left without a credit; they do if that is new.
        """
        if self._connection is None:
            return
        if not self._dirty:
            self._loop.call_soon(self._send_dirty)
        self._dirty[model] = loud or self._dirty.get(model, False)

    def call_ended(self, name: str) -> None:
        """Give back what is idle, if others want it."""
        model = self._find_model(name)
        if model is not None and self._connection is not None:
            self._give_back_idle(model)

    def sweep(self, waiting: Iterable[str]) -> None:
        """Say again what waits, hear what others do. Call it about once a second with the models waited for here."""
        self._useless.clear()
        now = self._clock()
        self._foreign = {name: one for name, one in self._foreign.items() if now - one[0] < WANTED_FOR}
        self._look_around()
        for name in {*waiting, *self._foreign, *self._charges}:
            self.tell(name, loud=True)

    # --- messages

    def _keys(self, model: str, replicas: Iterable[int]) -> list[str]:
        prefix = self._prefix
        fixed = [f"{prefix}workers", f"{prefix}settling", f"{prefix}waits:{model}", f"{prefix}served:{model}"]
        return [*fixed, *(f"{prefix}credits:{replica}" for replica in replicas)]

    def _words(self, verb: str, **said: Any) -> list[Any]:
        return [verb, self._worker, round(LEASE * 1000), self._channel, orjson.dumps(said)]

    def _send_dirty(self) -> None:
        dirty, self._dirty = self._dirty, {}
        for name, loud in dirty.items():
            if self._connection is not None:
                self._send(self._connection, name, loud=loud)

    def _send(self, connection: RedisConnection, name: str, *, loud: bool) -> None:
        model = self._find_model(name)
        rows, sent = self._replica_rows(name, () if model is None else self._queues.bounded_replicas(model))
        may_wait = name not in self._useless and any(row[3] for row in rows)
        waiting = self._queues.waiting(name) if may_wait else ()
        charges, new = self._charges.pop(name, {}), self._new_flows.pop(name, set())
        has_news = waiting or charges or loud or any(given for _, given in sent)
        if name not in self._entered and not (rows and has_news):
            return
        (self._entered.add if waiting else self._entered.discard)(name)
        flows = self._flow_rows(name, charges, new, everything=loud)
        words = self._words(
            "turn",
            model=name,
            replicas=rows,
            waits=[
                [
                    one.call_class,
                    one.calls,
                    one.flows,
                    int(one.is_aged),
                    one.counter,
                    round(one.unserved * 1000),
                    field_of(one.call_class, one.first),
                ]
                for one in waiting
            ],
            flows=list(flows.values()),
            loud=loud,
        )
        message = _Sent(name, self._clock(), self._entries, sent, list(flows))
        keys = self._keys(name, (replica for replica, _ in sent))
        connection.send_script(keys, words, lambda reply: self._on_turn(connection, message, reply))

    def _replica_rows(
        self, name: str, replicas: Iterable[tuple[Replica, float, bool]]
    ) -> tuple[list[list[Any]], list[tuple[int, int]]]:
        rows, sent = [], []
        for replica, room, may_be_used in replicas:
            if room == math.inf:
                continue
            found = self._credits.get(replica.id)
            if found is None:
                found = self._credits[replica.id] = Credits(name, math.ceil(room))
                self._uncounted.pop(replica.id, None)
            given, found.given_back = found.given_back, 0
            running = self._queues.running_at(replica.id)
            report = "" if replica.slots is not None else self._rooms.report_of(replica.id)
            rows.append([replica.id, math.ceil(room), report, int(may_be_used), given, running, running])
            sent.append((replica.id, given))
        return rows, sent

    def _flow_rows(
        self,
        name: str,
        charges: Mapping[tuple[CallClass, CallFlow], float],
        new: set[tuple[CallClass, CallFlow]],
        *,
        everything: bool,
    ) -> dict[tuple[CallClass, CallFlow], list[Any]]:
        rows = {}
        for key in [*new, *charges][:MAX_SENT_FLOWS]:
            counter = self._queues.counter(name, *key)
            rows[key] = [field_of(*key), key[0], charges.get(key, 0.0), counter, int(key in new)]
        if everything:
            for one, flow, counter in self._queues.waiting_flows(name):
                if len(rows) >= MAX_SENT_FLOWS:
                    break
                rows.setdefault((one, flow), [field_of(one, flow), one, 0.0, counter, 0])
        return rows

    def _on_turn(self, connection: RedisConnection, sent: _Sent, reply: Any) -> None:
        if reply is None or connection is not self._connection:
            return
        if sent.entry == self._entries:
            for replica, given in sent.replicas:
                if (found := self._credits.get(replica)) is not None:
                    found.unanswered -= given
        if reply == 0:
            self._enter(connection)
            return
        self._lease_until = max(self._lease_until, sent.at + LEASE - MARGIN)
        said = orjson.loads(reply)
        self._workers = said["workers"]
        charges = self._charges.get(sent.model, {})
        for (one, flow), counter in zip(sent.flows, said["counters"] or (), strict=True):
            self._queues.adopt(sent.model, one, flow, counter + charges.get((one, flow), 0.0))
        self._take(sent.model, said)

    def _on_message(self, body: bytes) -> None:
        """Take what came of another worker's message."""
        if self._connection is not None and not self._entering:
            said = orjson.loads(body)
            self._take(said["model"], said)

    def _take(self, name: str, said: Mapping[str, Any]) -> None:
        gained = self._take_credits(said["replicas"] or ())
        if not name:
            self._look_for_excess()
            return
        calls, flows = [0, 0, 0], [0, 0, 0]
        for worker, rows in (said["waits"] or {}).items():
            if worker != self._worker:
                for one, count, many in rows:
                    calls[one] += count
                    flows[one] += many
        if any(calls):
            waits = ForeignWaits((calls[0], calls[1], calls[2]), (flows[0], flows[1], flows[2]))
            self._foreign[name] = self._clock(), waits
        else:
            self._foreign.pop(name, None)
        self._look_around()
        if gained:
            self._queues.advance(name)
            self.tell(name)  # whose turn it is here now
        model = self._find_model(name)
        if model is not None and self._give_back_idle(model) and gained and self._queues.waiting(name):
            # It would come again at once: this worker's call was the first, and cannot use it.
            self._useless.add(name)

    def _take_credits(self, rows: Sequence[Sequence[int]]) -> bool:
        """Note what this worker holds, and return whether it is more than before."""
        gained = False
        for replica, held, free, room, others in rows:
            found = self._credits.get(replica)
            if found is not None:
                calls = max(0, held - found.unanswered)
                gained = gained or calls > found.calls
                found.calls, found.free, found.others = calls, free, others
                found.room = room
                self._rooms.adopt(replica, room)
        self._look_around()
        return gained

    def _look_around(self) -> None:
        self.is_calm = not self._foreign and all(found.free >= 0 for found in self._credits.values())

    def _look_for_excess(self) -> None:
        for name in {found.model for found in self._credits.values() if found.free < 0}:
            self.call_ended(name)

    def _give_back_idle(self, model: Model) -> int:
        """Give back credits without a call that others want, or that are too many, and return how many."""
        wanted, count = self.is_wanted(model.name), 0
        for replica in model.replicas:
            found = self._credits.get(replica.id)
            if found is None or (not wanted and found.free >= 0):
                continue
            idle = found.calls - self._queues.running_at(replica.id)
            if not wanted:
                idle = min(idle, -found.free)
                found.free += max(0, idle)
            if idle > 0:
                found.give_back(idle)
                count += idle
        if count:
            self.tell(model.name)
        return count

    # --- Redis comes and goes

    def _beat(self, connection: RedisConnection) -> None:
        if self._entering:
            return
        self._drop_unused()
        rows, sent = [], []
        for replica, found in self._credits.items():
            given, found.given_back = found.given_back, 0
            running = self._queues.running_at(replica)
            rows.append([replica, 0, "", 1, given, running, running])
            sent.append((replica, given))
        message = _Sent("", self._clock(), self._entries, sent, ())
        words = self._words("turn", model="", replicas=rows, waits=[], flows=[], loud=False)
        keys = self._keys("", self._credits)
        connection.send_script(keys, words, lambda reply: self._on_turn(connection, message, reply))

    def _drop_unused(self) -> None:
        """Forget the credits of replicas that are gone, or whose room is unknown now."""
        for replica, found in list(self._credits.items()):
            model = self._find_model(found.model)
            rows = () if model is None else self._queues.bounded_replicas(model)
            if not any(one.id == replica and room < math.inf for one, room, _ in rows):
                idle = found.calls - self._queues.running_at(replica)
                if idle > 0:
                    found.give_back(idle)
                elif not found.unanswered:
                    del self._credits[replica]

    async def _try(self, connection: RedisConnection) -> None:
        await connection.subscribe(self._channel + self._worker, self._on_message)
        await connection.run_script(*self._entry())

    def _on_connected(self, connection: RedisConnection) -> None:
        self._enter(connection)
        log.info("the queue is shared by Redis")

    def _on_away(self, why: str) -> None:
        for found in self._credits.values():
            found.calls = max(1, found.room // self.workers)
        self._foreign.clear()
        self.is_calm = True
        self._charges.clear()
        self._new_flows.clear()
        self._dirty.clear()
        self._entered.clear()
        log.warning(QUEUE_ALONE, why, self.workers)
        self._queues.advance_all()

    def _entry(self) -> tuple[list[str], list[Any]]:
        """Return the message by which a worker enters what it holds."""
        rows = []
        self._entries += 1
        for replica, found in self._credits.items():
            found.given_back = found.unanswered = 0
            running = self._queues.running_at(replica)
            rows.append([replica, found.room, "", 1, 0, running, max(running, found.calls)])
        words = self._words("enter", model="", replicas=rows, waits=[], flows=[], loud=False, again=self._was_in)
        return self._keys("", self._credits), words

    def _enter(self, connection: RedisConnection) -> None:
        """Enter what this worker holds; it has no lease, or Redis has lost it."""
        if self._entering:
            return
        self._entering, at = True, self._clock()

        def on_reply(reply: Any) -> None:
            self._entering = False
            if reply is None or connection is not self._connection:
                return
            self._was_in = True
            self._lease_until = at + LEASE - MARGIN
            said = orjson.loads(reply)
            self._workers = said["workers"]
            self._take_credits(said["replicas"] or ())
            self._look_for_excess()
            self._queues.advance_all()

        connection.send_script(*self._entry(), on_reply)


def field_of(call_class: CallClass, flow: CallFlow) -> str:
    """Return the name of a flow in Redis; end users have names of people, which stay out of it."""
    end_user = hashlib.blake2b(flow.end_user.encode(), digest_size=9).hexdigest() if flow.end_user else ""
    return f"{call_class:d}:{flow.scope}:{flow.owner}:{end_user}"
