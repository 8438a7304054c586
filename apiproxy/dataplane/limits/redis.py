"""The limits of `local`, counted in Redis for all workers; `redis.lua` does the counting.

A call is admitted in one round trip: the script reserves under every limit or under none. Settling is told in batches
for which nobody waits, before any later admission of this worker. What keeps the counters true:

- **A worker dies** (or hangs): its reservations stand under a lease that it renews every BEAT. LEASE after the last
  time they no longer count, and every counter is read from the recorded usage again when it is next needed: what was
  open at the dead worker is recorded there as interrupted.
- **A connection breaks**, and with it the knowledge of what became of the last questions: the worker comes back with
  a new lease, under which it enters what it still holds; everything under the old one is void at once. Settlements
  are numbered, so a batch that is sent again counts once.
- **Redis loses counters** (emptied, restarted, evicted): they are read from the recorded usage when they are next
  needed, by whoever comes first. What other workers finished less than `asgi.MOVE` (0.25 s) before that may be
  missed, because it is not recorded yet; what ended in the second before it may be counted twice. Open calls are
  entered again within BEAT.
- **Redis is away** (refused, or no answer for 0.3 s): each worker counts alone, in memory, from what it last saw, and
  may use its share (1/workers) of what was left of each limit; of concurrent calls, its share of the limit. So a
  restart of Redis stops nobody's work, and together the workers exceed a limit by no more than what the others
  reserved in the last moment, and one call per worker. A person whose connections all go to one worker may be refused
  too early; refusing everybody with 503 would be worse, and so would be letting everybody through. What was used
  meanwhile is told when Redis is back (the last KEPT settlements; if there were more, all counters are read from the
  records again).
"""

import asyncio
import contextlib
import logging
import math
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from apiproxy.dataplane.catalogue import Counter, Limit
from apiproxy.dataplane.limits.local import (
    ApplicableLimits,
    Bounds,
    CounterState,
    Counting,
    Headers,
    HeldReservation,
    Limits,
    Spending,
    Spent,
    applicable_limits,
    headers,
    refusal,
)
from apiproxy.dataplane.limits.redis_connection import RedisConnection, RedisUnavailable, connect
from apiproxy.dataplane.limits.units import Consumption

log = logging.getLogger("madoguchi.limits")

SCRIPT = (Path(__file__).parent / "admission.lua").read_text()
ADMITTED, REFUSED, UNKNOWN = 0, 1, 2  # else: the lease has run out
BEAT = 1.0
LEASE = 5.0  # seconds; five beats, so that a worker that is busy for a moment keeps it
RETRY = 0.5  # seconds between two attempts to reach Redis
BATCH = 200  # settlements of one message: 0.4 ms of Redis's time
KEPT = 200_000  # settlements that wait for Redis; 40 MB
MOST = 2**53 - 1  # Lua counts in doubles: beyond it they are not exact, and beyond 10**17 no number to Redis
TRIES = 6  # to admit one call; each but the first follows an answer that needed something of us first


KeepConnected = Callable[[str, Callable[[], Awaitable[None]]], asyncio.Task[None]]


class CounterSlot(NamedTuple):
    """Where a reservation stands: the counter's key in Redis and the window in which it was made."""

    key: str
    window: str


class Settlement(NamedTuple):
    """A settlement of one counter that Redis has to hear of. `at` in loop time."""

    place: CounterSlot
    lease: str
    used: int
    reserved: int
    at: float


class LastKnown:
    """What this worker last knew of a counter."""

    __slots__ = ("spent", "window")

    def __init__(self, window: str, spent: int) -> None:
        self.window, self.spent = window, spent


class SharedReservation:
    """A reservation that all workers see. `alone`: the same in this worker's own counters, while Redis is away."""

    __slots__ = ("_owner", "_state", "alone", "lease", "limits", "most", "open", "places")

    def __init__(
        self,
        owner: "SharedLimits",
        limits: Sequence[Limit],
        places: Sequence[CounterSlot],
        most: Consumption,
        lease: str,
        state: Sequence[tuple[Limit, int, float]],
        alone: HeldReservation | None = None,
    ) -> None:
        """`most`: what the call may use."""
        self._owner = owner
        self._state = state
        self.limits = limits
        self.places = places
        self.most = most
        self.lease = lease
        self.alone = alone
        self.open = True

    def settle(self, used: Consumption) -> None:
        try:
            if self.alone is not None:
                self.alone.settle(used)
        finally:
            self._owner.ended(self, used)

    def release(self) -> None:
        try:
            if self.alone is not None:
                self.alone.release()
        finally:
            self._owner.ended(self, None)

    def reserved(self, limit: Limit) -> int:
        return countable(limit.counter.unit.reserve(self.most))

    def headers(self, now: float) -> Headers:
        return self.alone.headers(now) if self.alone is not None else headers(self._state, now)


class SharedLimits:
    """`workers`: how many share the limits at least; Redis knows if there are more.

    `prefix` keeps apart what shares one Redis. `keep` runs a step again and again whatever becomes of it, under a name.
    """

    def __init__(
        self, url: str, *, prefix: str, bounds: Bounds, spent: Spent, workers: int, keep: KeepConnected
    ) -> None:
        self._url = url
        self._bounds = bounds
        self._spent = spent
        self._keep = keep
        self._expected = self._workers = workers
        self._worker = uuid.uuid4().hex[:12]
        # In braces: keys of one script must be on one node of a cluster.
        self._prefix = f"{{{prefix}}}:"
        self._fixed = [f"{self._prefix}{name}" for name in ("leases", "epoch", f"done:{self._worker}")]
        self._keys: dict[Counter, str] = {}
        self._windows: dict[tuple[str, Any], tuple[float, float]] = {}
        self._leases = 0
        self._lease = ""
        self._link: RedisConnection | None = None
        self._alone: Limits | None = Limits(bounds, spent, share=workers)
        self._holds: set[SharedReservation] = set()
        self._seen: dict[Counter, LastKnown] = {}
        self._ended: deque[Settlement] = deque(maxlen=KEPT)
        self._batches: deque[tuple[int, list[Settlement]]] = deque()  # sent, not confirmed
        self._batch = 0
        self._forgotten = False
        self._waking = False
        self._admitted_alone = 0
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Return when Redis has answered, or could not be reached for CONNECT seconds: then this worker is alone."""
        self._loop = asyncio.get_running_loop()
        await self._reach(first=True)
        self._task = self._keep("redis", self._look_after)

    async def close(self) -> None:
        """Tell Redis what it has not heard, and give the lease back."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if (link := self._link) is None:
            return
        self._send()
        with contextlib.suppress(RedisUnavailable):
            await link.result(self._fixed, ["leave", self._lease])
        self._link = None
        link.close("this worker has ended")

    @property
    def counting(self) -> Counting:
        unsent = len(self._ended) + sum(len(items) for _, items in self._batches)
        return Counting(alone=self._link is None, unsent=unsent, admitted_alone=self._admitted_alone)

    # --- admit

    async def admit(
        self, limits: Sequence[Limit], model: int, most: Consumption, now: float
    ) -> SharedReservation | HeldReservation:
        mine = applicable_limits(limits, model)
        if not mine:
            return HeldReservation(ApplicableLimits(mine, (), ()), most)
        windows = [self._window(limit, now) for limit in mine]
        for _ in range(TRIES):
            if (link := self._link) is None:
                if (hold := await self._admit_alone(mine, model, most, now)) is not None:
                    return hold
                continue
            lease = self._lease
            answer = await self._reserve(link, mine, windows, most, now)
            if isinstance(answer, SharedReservation):
                return answer
            if answer is None:
                self._lost(link)
                continue
            if answer[0] == REFUSED:
                raise refusal(mine[answer[1]], windows[answer[1]][1], now)
            if answer[0] == UNKNOWN:
                await asyncio.gather(*(self._seed(mine[place], answer[1], now) for place in answer[2:]))
            elif self._lease == lease:
                self._enter()
        if (link := self._link) is not None:
            link.close("it does not keep counters")
            self._lost(link)
        return await self.admit(limits, model, most, now)

    async def _reserve(
        self,
        link: RedisConnection,
        mine: list[Limit],
        windows: list[tuple[float, float]],
        most: Consumption,
        now: float,
    ) -> SharedReservation | list[Any] | None:
        """Return the hold, or why there is none; None: Redis is away."""
        if self._ended:
            self._send()
        keys, lease = [self._key(limit.counter) for limit in mine], self._lease
        words: list[Any] = ["admit", lease]
        for limit, (begin, end) in zip(mine, windows, strict=True):
            windowed = limit.counter.window != ""
            words += (countable(limit.counter.unit.reserve(most)), limit.amount, int(begin) if windowed else "")
            words.append(math.ceil(end - now) if windowed else 0)
        future: asyncio.Future[SharedReservation | list[Any] | None] = self._loop.create_future()

        def heard(reply: Any) -> None:
            # Here and not after the `await`: what is held must be known before the next message is written.
            if reply is not None and reply[0] == ADMITTED:
                reply = self._held(mine, windows, keys, most, lease, reply)
                if future.cancelled():  # the caller has left
                    reply.release()
            if not future.done():
                future.set_result(reply)

        link.run([*self._fixed, *keys], words, heard)
        return await future

    def _held(
        self,
        mine: list[Limit],
        windows: list[tuple[float, float]],
        keys: list[str],
        most: Consumption,
        lease: str,
        reply: list[Any],
    ) -> SharedReservation:
        places, state = [], []
        for number, limit in enumerate(mine):
            window, spent = reply[2 * number + 1].decode(), reply[2 * number + 2]
            places.append(CounterSlot(keys[number], window))
            state.append((limit, limit.amount - spent, windows[number][1]))
            if (seen := self._seen.get(limit.counter)) is None:
                self._seen[limit.counter] = LastKnown(window, spent)
            else:
                seen.window, seen.spent = window, spent
        hold = SharedReservation(self, mine, places, most, lease, state)
        self._holds.add(hold)
        return hold

    async def _seed(self, limit: Limit, epoch: bytes, now: float) -> None:
        """Tell Redis what is recorded of this limit; if that cannot be known now, it begins at zero for a while."""
        begun = self._loop.time()
        spending = await self._spent(limit, now)
        begin, end = self._window(limit, now)
        told = spending or Spending(0, 0.0)
        latest, _ = self._bounds(limit.counter.window, max(now, told.newest), limit.zone)
        age = round((self._loop.time() - (begun if told.read_at is None else told.read_at)) * 1000)
        words = [
            "seed",
            self._lease,
            int(begin),
            min(MOST, told.used),
            int(latest),
            int(spending is not None),
            epoch,
            age,
        ]
        if (link := self._link) is not None:
            keys = [*self._fixed, self._key(limit.counter)]
            link.run(keys, [*words, math.ceil(end - now)], lambda reply: None)

    def _key(self, counter: Counter) -> str:
        key = self._keys.get(counter)
        if key is None:
            model = "" if counter.model is None else counter.model
            words: tuple[object, ...] = (counter.scope, counter.owner, model, counter.unit.name, counter.window)
            if counter.tenant is not None:
                words += (counter.tenant,)
            key = self._keys[counter] = self._prefix + ":".join(map(str, words))
        return key

    def _window(self, limit: Limit, now: float) -> tuple[float, float]:
        window = limit.counter.window
        if not window:
            return 0.0, math.inf
        found = self._windows.get((window, limit.zone))
        if found is None or not found[0] <= now < found[1]:
            found = self._windows[window, limit.zone] = self._bounds(window, now, limit.zone)
        return found

    # --- settle

    def ended(self, hold: SharedReservation, used: Consumption | None) -> None:
        """Settle a reservation; `used` None: it has reached no engine."""
        if not hold.open:
            return
        hold.open = False
        self._holds.discard(hold)
        now = self._loop.time()
        for limit, place in zip(hold.limits, hold.places, strict=True):
            reserved = hold.reserved(limit)
            amount = countable(limit.counter.unit.settle(used)) if used is not None else 0
            seen = self._seen.get(limit.counter)
            if seen is not None and seen.window == place.window:
                seen.spent += amount - reserved
            if hold.lease or amount:
                self._forgotten = self._forgotten or len(self._ended) == KEPT
                self._ended.append(Settlement(place, hold.lease, amount, reserved, now))
        if self._link is not None and not self._waking:
            self._waking = True
            self._loop.call_soon(self._wake)

    def _wake(self) -> None:
        self._waking = False
        self._send()

    def _send(self) -> None:
        """Write down all settlements for Redis. Nobody waits for its answer; without one they are sent again."""
        while self._ended and self._link is not None:
            items = [self._ended.popleft() for _ in range(min(BATCH, len(self._ended)))]
            self._batch += 1
            self._batches.append((self._batch, items))
            self._tell(self._link, self._batch, items)

    def _tell(self, link: RedisConnection, number: int, items: list[Settlement]) -> None:
        now = self._loop.time()
        words: list[Any] = ["settle", self._lease, number]
        for item in items:
            words += (item.place.window, item.lease, item.used, item.reserved, round((now - item.at) * 1000))
        link.run([*self._fixed, *(item.place.key for item in items)], words, self._told)

    def _told(self, reply: Any) -> None:
        if reply is not None:
            self._batches.popleft()

    # --- Redis comes and goes

    async def _look_after(self) -> None:
        """Keep the lease for a beat while Redis is there, look for Redis once while it is not."""
        if (link := self._link) is None:
            await asyncio.sleep(RETRY)
            await self._reach()
            return
        await asyncio.wait([link.lost], timeout=BEAT)
        if not link.lost.done():
            link.run(self._fixed, ["beat", self._lease, round(LEASE * 1000)], self._beaten)

    def _beaten(self, reply: Any) -> None:
        if reply == 0:
            self._enter()
        elif reply is not None:
            self._workers = reply

    async def _reach(self, *, first: bool = False) -> None:
        try:
            link = await connect(self._url, SCRIPT)
            run = run_id(await link.answer("INFO", "server"))
            # A trial: a server that takes no writes would be found away again at once.
            trial = f"{self._worker}.0"
            await link.result(self._fixed, ["enter", trial, round(LEASE * 1000), self._lease, run, 0])
        except RedisUnavailable as error:
            if first:
                self._away(str(error))
            return
        self._run, self._lease, self._link = run, trial, link
        link.lost.add_done_callback(lambda _: self._lost(link))
        self._enter()
        for number, items in self._batches:
            self._tell(link, number, items)
        self._send()
        self._alone = None
        log.info("limits are counted in Redis")

    def _lost(self, link: RedisConnection) -> None:
        if self._link is link:
            self._link = None
            self._away(link.lost.result())

    def _away(self, why: str) -> None:
        share = max(self._workers, self._expected)
        log.warning("Redis is away (%s): this worker counts limits alone, with 1/%d of what is left", why, share)
        alone = self._alone = Limits(self._bounds, self._spent, share=share)
        for hold in self._holds:
            hold.alone = self._taken_along(alone, hold)

    def _enter(self) -> None:
        """A new lease, under which stands whatever this worker holds; the last one is void."""
        last, self._leases = self._lease, self._leases + 1
        self._lease = f"{self._worker}.{self._leases}"
        held: dict[CounterSlot, int] = {}
        for hold in self._holds:
            hold.lease, hold.alone = self._lease, None
            for limit, place in zip(hold.limits, hold.places, strict=True):
                held[place] = held.get(place, 0) + hold.reserved(limit)
        words = ["enter", self._lease, round(LEASE * 1000), last, self._run, int(self._forgotten)]
        for place, amount in held.items():
            words += (place.window, min(MOST, amount))
        assert self._link is not None
        self._link.run([*self._fixed, *(place.key for place in held)], words, self._beaten)
        self._forgotten = False

    # --- alone

    async def _admit_alone(
        self, mine: list[Limit], model: int, most: Consumption, now: float
    ) -> SharedReservation | None:
        """None: Redis has come back meanwhile."""
        alone = self._alone
        if alone is None:
            return None
        windows = [self._window(limit, now) for limit in mine]
        places = [
            CounterSlot(self._key(limit.counter), str(int(begin)))
            for limit, (begin, _) in zip(mine, windows, strict=True)
        ]
        for limit, place, (begin, _) in zip(mine, places, windows, strict=True):
            seen = self._seen.get(limit.counter)
            if limit.counter.window and seen is not None and seen.window == place.window:
                alone.adopt(limit, begin, seen.spent)
        inner = await alone.admit(mine, model, most, now)
        if alone is not self._alone:
            return None
        self._admitted_alone += 1
        hold = SharedReservation(self, mine, places, most, "", (), inner)
        self._holds.add(hold)
        return hold

    def _taken_along(self, alone: Limits, hold: SharedReservation) -> HeldReservation:
        """Return the same reservation in this worker's own counters."""
        states = []
        for limit, place in zip(hold.limits, hold.places, strict=True):
            seen, reserved = self._seen.get(limit.counter), hold.reserved(limit)
            if not limit.counter.window:  # what the others hold is not known for long: each keeps to its share
                state = alone.adopt(limit, 0.0, 0)
            elif seen is not None and seen.window == place.window:
                state = alone.adopt(limit, float(place.window), seen.spent)
                state.used -= reserved  # it is part of what was seen as spent
            else:  # of a window that is over
                state = CounterState(0.0, 0.0, high=0.0, doubtful=False)
            state.reserved += reserved
            states.append(state)
        plan = ApplicableLimits(hold.limits, hold.limits, states)
        return HeldReservation(plan, hold.most)


def countable(amount: int) -> int:
    """Return the amount within what Redis's script can count."""
    return max(0, min(MOST, amount))


def run_id(info: bytes) -> str:
    """Which server this is; a restarted one is another."""
    for line in info.decode().splitlines():
        if line.startswith("run_id:"):
            return line.partition(":")[2]
    return ""
