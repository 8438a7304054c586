"""The limits of `local`, counted in Redis for all workers; `admission.lua` does the counting.

A call is admitted in one round trip: the script reserves under every limit or under none. Settlements are sent in
batches, for whose answers no call waits, before any later admission of this worker. What keeps the counters true:

- **A worker dies** (or hangs): its reservations are under a lease that it renews every BEAT. LEASE after the last
  time they no longer count, and every counter is read from the recorded usage again when it is next needed: what was
  open at the dead worker is recorded there as interrupted.
- **A connection breaks**, and it is unknown what became of the last commands: the worker comes back with a new lease,
  under which it enters what it still has reserved; everything under the old one is void at once. Settlements are
  numbered, so a batch that is sent again counts once.
- **Redis loses counters** (emptied, restarted, evicted): they are read from the recorded usage when a worker next needs
  them. What other workers finished less than `asgi.MOVE` (0.25 s) before that may be missed, because it is not
  recorded yet; what ended in the second before it may be counted twice. Open calls are entered again within BEAT.
- **Redis is unavailable** (refused, or no answer for 0.3 s): each worker counts locally, in memory, from what it last
  knew, and may use its share (1/workers) of what was left of each limit; of concurrent calls, its share of the limit.
  So a restart of Redis stops no call, and together the workers exceed a limit by no more than what the others reserved
  in the last moment, and one call per worker. A person whose connections all go to one worker may be refused too early;
  refusing every call with 503 would be worse, and so would be admitting every call. What was used meanwhile is sent
  when Redis is back (the last MAX_UNSENT settlements; if there were more, all counters are read from the records
  again).
"""

import asyncio
import logging
import math
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from apiproxy.dataplane.catalogue import Counter, Limit
from apiproxy.dataplane.limits.kept_connection import KeepConnected, KeptConnection
from apiproxy.dataplane.limits.local import (
    ApplicableLimits,
    Bounds,
    CounterState,
    Counting,
    Headers,
    HeldReservation,
    Limits,
    ReachedLimit,
    Spending,
    Spent,
    applicable_limits,
    headers,
    refusal,
)
from apiproxy.dataplane.limits.redis_connection import RedisConnection
from apiproxy.dataplane.limits.units import Consumption

log = logging.getLogger("madoguchi.limits")
REDIS_AWAY = "Redis is away (%s): this worker counts limits alone, with 1/%d of what is left"

SCRIPT = (Path(__file__).parent / "admission.lua").read_text()
ADMITTED, REFUSED, UNKNOWN = 0, 1, 2  # else: the lease has run out
LEASE = 5.0  # seconds; five beats, so that a worker that is busy for a moment keeps it
BATCH = 200  # settlements of one message: 0.4 ms of Redis's time
MAX_UNSENT = 200_000  # settlements that wait for Redis; 40 MB
MAX_COUNT = 2**53 - 1  # Lua counts in doubles: beyond it they are not exact, and beyond 10**17 no number to Redis
ATTEMPTS = 6  # to admit one call; each but the first follows an answer that this worker had to act on


class CounterSlot(NamedTuple):
    """Where a reservation is kept: the counter's key in Redis and the window in which it was made."""

    key: str
    window: str


class Settlement(NamedTuple):
    """A settlement of one counter that Redis has not confirmed. `at` in loop time."""

    slot: CounterSlot
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
    """A reservation that all workers see. `local`: the same in this worker's counters, while Redis is unavailable."""

    __slots__ = ("_owner", "_state", "lease", "limits", "local", "most", "open", "slots")

    def __init__(
        self,
        owner: "SharedLimits",
        limits: Sequence[Limit],
        slots: Sequence[CounterSlot],
        most: Consumption,
        lease: str,
        state: Sequence[tuple[Limit, int, float]],
        local: HeldReservation | None = None,
    ) -> None:
        """`most`: what the call may use."""
        self._owner = owner
        self._state = state
        self.limits = limits
        self.slots = slots
        self.most = most
        self.lease = lease
        self.local = local
        self.open = True

    def settle(self, used: Consumption) -> None:
        try:
            if self.local is not None:
                self.local.settle(used)
        finally:
            self._owner.settle(self, used)

    def release(self) -> None:
        try:
            if self.local is not None:
                self.local.release()
        finally:
            self._owner.settle(self, None)

    def reserved(self, limit: Limit) -> int:
        return countable(limit.counter.unit.reserve(self.most))

    def headers(self, now: float) -> Headers:
        return self.local.headers(now) if self.local is not None else headers(self._state, now)


class SharedLimits(KeptConnection):
    """`workers`: how many share the limits at least; Redis knows if there are more.

    `prefix` keeps apart what shares one Redis. `clock`: by default the event loop's.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str,
        bounds: Bounds,
        spent: Spent,
        workers: int,
        keep: KeepConnected,
        clock: Callable[[], float] | None = None,
    ) -> None:
        super().__init__(url, SCRIPT, name="redis", keep=keep)
        self._bounds = bounds
        self._spent = spent
        self._clock = clock
        self._expected = self._workers = workers
        self._worker = uuid.uuid4().hex[:12]
        # In braces: keys of one script must be on one node of a cluster.
        self._prefix = f"{{{prefix}}}:"
        self._fixed = [f"{self._prefix}{name}" for name in ("leases", "epoch", f"done:{self._worker}")]
        self._keys: dict[Counter, str] = {}
        self._windows: dict[tuple[str, Any], tuple[float, float]] = {}
        self._lease_count = 0
        self._lease = ""
        self._local_fallback: Limits | None = Limits(bounds, spent, share=workers)
        self._reservations: set[SharedReservation] = set()
        self._last_known: dict[Counter, LastKnown] = {}
        self._unsent: deque[Settlement] = deque(maxlen=MAX_UNSENT)
        self._unconfirmed: deque[tuple[int, list[Settlement]]] = deque()  # sent, not confirmed
        self._batch_number = 0
        self._dropped_settlements = False
        self._send_scheduled = False
        self._admitted_locally = 0

    async def start(self) -> None:
        self._now = self._clock or asyncio.get_running_loop().time
        await super().start()

    async def _leave(self, connection: RedisConnection) -> None:
        """Send the last settlements, and give the lease back."""
        self._send_settlements()
        await connection.run_script(self._fixed, ["leave", self._lease])

    @property
    def counting(self) -> Counting:
        unsent = len(self._unsent) + sum(len(settlements) for _, settlements in self._unconfirmed)
        return Counting(local_fallback=self._connection is None, unsent=unsent, admitted_locally=self._admitted_locally)

    # --- admit

    async def admit(
        self, limits: Sequence[Limit], model: int, most: Consumption, now: float
    ) -> SharedReservation | HeldReservation:
        applicable = applicable_limits(limits, model)
        if not applicable:
            return HeldReservation(ApplicableLimits(applicable, (), ()), most)
        windows = [self._window(limit, now) for limit in applicable]
        for _ in range(ATTEMPTS):
            if (connection := self._connection) is None:
                reservation = await self._admit_locally(applicable, model, most, now)
            else:
                reservation = await self._admit_by_redis(connection, applicable, windows, most, now)
            if reservation is not None:
                return reservation
        if (connection := self._connection) is not None:
            connection.close("it does not keep counters")
            self._on_connection_lost(connection)
        return await self.admit(limits, model, most, now)

    async def _admit_by_redis(
        self,
        connection: RedisConnection,
        applicable: list[Limit],
        windows: list[tuple[float, float]],
        most: Consumption,
        now: float,
    ) -> SharedReservation | None:
        """Admit a call by the counters in Redis; None: try again. Raises OverRate and OverQuota."""
        lease = self._lease
        answer = await self._reserve(connection, applicable, windows, most, now)
        if isinstance(answer, SharedReservation):
            return answer
        if answer is None:
            self._on_connection_lost(connection)
        elif answer[0] == REFUSED:
            reached = [
                ReachedLimit(applicable[place], windows[place][1], applicable[place].amount - used, reserved)
                for place, used, reserved in zip(answer[1::3], answer[2::3], answer[3::3], strict=True)
            ]
            raise refusal(reached, now)
        elif answer[0] == UNKNOWN:
            await asyncio.gather(*(self._seed(applicable[index], answer[1], now) for index in answer[2:]))
        elif self._lease == lease:
            self._renew_lease()
        return None

    async def _reserve(
        self,
        connection: RedisConnection,
        applicable: list[Limit],
        windows: list[tuple[float, float]],
        most: Consumption,
        now: float,
    ) -> SharedReservation | list[Any] | None:
        """Return the reservation, or the answer that there is none; None: Redis is unavailable."""
        if self._unsent:
            self._send_settlements()
        keys, lease = [self._key(limit.counter) for limit in applicable], self._lease
        words: list[Any] = ["admit", lease]
        for limit, (begin, end) in zip(applicable, windows, strict=True):
            windowed = limit.counter.window != ""
            words += (countable(limit.counter.unit.reserve(most)), limit.amount, int(begin) if windowed else "")
            words.append(math.ceil(end - now) if windowed else 0)
        future: asyncio.Future[SharedReservation | list[Any] | None] = self._loop.create_future()

        def on_reply(reply: Any) -> None:
            # Here and not after the `await`: what is held must be known before the next message is written.
            if reply is not None and reply[0] == ADMITTED:
                reply = self._record_reservation(applicable, windows, keys, most, lease, reply)
                if future.cancelled():  # the caller has left
                    reply.release()
            if not future.done():
                future.set_result(reply)

        connection.send_script([*self._fixed, *keys], words, on_reply)
        return await future

    def _record_reservation(
        self,
        applicable: list[Limit],
        windows: list[tuple[float, float]],
        keys: list[str],
        most: Consumption,
        lease: str,
        reply: list[Any],
    ) -> SharedReservation:
        slots, state = [], []
        for number, limit in enumerate(applicable):
            window, spent = reply[2 * number + 1].decode(), reply[2 * number + 2]
            slots.append(CounterSlot(keys[number], window))
            state.append((limit, limit.amount - spent, windows[number][1]))
            if (known := self._last_known.get(limit.counter)) is None:
                self._last_known[limit.counter] = LastKnown(window, spent)
            else:
                known.window, known.spent = window, spent
        reservation = SharedReservation(self, applicable, slots, most, lease, state)
        self._reservations.add(reservation)
        return reservation

    async def _seed(self, limit: Limit, epoch: bytes, now: float) -> None:
        """Send Redis what is recorded of this limit; if that is unknown now, the counter begins at zero for a while."""
        begun = self._now()
        spending = await self._spent(limit, now)
        begin, end = self._window(limit, now)
        recorded = spending or Spending(0, 0.0)
        latest, _ = self._bounds(limit.counter.window, max(now, recorded.newest), limit.zone)
        age = round((self._now() - (begun if recorded.read_at is None else recorded.read_at)) * 1000)
        words = [
            "seed",
            self._lease,
            int(begin),
            min(MAX_COUNT, recorded.used),
            int(latest),
            int(spending is not None),
            epoch,
            age,
        ]
        if (connection := self._connection) is not None:
            keys = [*self._fixed, self._key(limit.counter)]
            connection.send_script(keys, [*words, math.ceil(end - now)], lambda reply: None)

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

    def settle(self, reservation: SharedReservation, used: Consumption | None) -> None:
        """Settle a reservation; `used` None: it has reached no engine."""
        if not reservation.open:
            return
        reservation.open = False
        self._reservations.discard(reservation)
        now = self._now()
        for limit, slot in zip(reservation.limits, reservation.slots, strict=True):
            reserved = reservation.reserved(limit)
            amount = countable(limit.counter.unit.settle(used)) if used is not None else 0
            known = self._last_known.get(limit.counter)
            if known is not None and known.window == slot.window:
                known.spent += amount - reserved
            if reservation.lease or amount:
                self._dropped_settlements = self._dropped_settlements or len(self._unsent) == MAX_UNSENT
                self._unsent.append(Settlement(slot, reservation.lease, amount, reserved, now))
        if self._connection is not None and not self._send_scheduled:
            self._send_scheduled = True
            self._loop.call_soon(self._send_as_scheduled)

    def _send_as_scheduled(self) -> None:
        self._send_scheduled = False
        self._send_settlements()

    def _send_settlements(self) -> None:
        """Send Redis all settlements. No call waits for its answer; without one they are sent again."""
        while self._unsent and self._connection is not None:
            settlements = [self._unsent.popleft() for _ in range(min(BATCH, len(self._unsent)))]
            self._batch_number += 1
            self._unconfirmed.append((self._batch_number, settlements))
            self._send_batch(self._connection, self._batch_number, settlements)

    def _send_batch(self, connection: RedisConnection, number: int, settlements: list[Settlement]) -> None:
        now = self._now()
        words: list[Any] = ["settle", self._lease, number]
        for settlement in settlements:
            words += (
                settlement.slot.window,
                settlement.lease,
                settlement.used,
                settlement.reserved,
                round((now - settlement.at) * 1000),
            )
        connection.send_script(
            [*self._fixed, *(settlement.slot.key for settlement in settlements)], words, self._on_settled
        )

    def _on_settled(self, reply: Any) -> None:
        if reply is not None:
            self._unconfirmed.popleft()

    # --- Redis comes and goes

    def _beat(self, connection: RedisConnection) -> None:
        connection.send_script(self._fixed, ["beat", self._lease, round(LEASE * 1000)], self._on_heartbeat)

    def _on_heartbeat(self, reply: Any) -> None:
        if reply == 0:
            self._renew_lease()
        elif reply is not None:
            self._workers = reply

    async def _try(self, connection: RedisConnection) -> None:
        run = run_id(await connection.request("INFO", "server"))
        trial = f"{self._worker}.0"
        await connection.run_script(self._fixed, ["enter", trial, round(LEASE * 1000), self._lease, run, 0])
        self._run, self._lease = run, trial

    def _on_connected(self, connection: RedisConnection) -> None:
        self._renew_lease()
        for number, settlements in self._unconfirmed:
            self._send_batch(connection, number, settlements)
        self._send_settlements()
        self._local_fallback = None
        log.info("limits are counted in Redis")

    def _on_away(self, why: str) -> None:
        share = max(self._workers, self._expected)
        log.warning(REDIS_AWAY, why, share)
        local = self._local_fallback = Limits(self._bounds, self._spent, share=share)
        for reservation in self._reservations:
            reservation.local = self._reserve_locally(local, reservation)

    def _renew_lease(self) -> None:
        """Take a new lease and enter under it what this worker has reserved; the last one is void."""
        last, self._lease_count = self._lease, self._lease_count + 1
        self._lease = f"{self._worker}.{self._lease_count}"
        held: dict[CounterSlot, int] = {}
        for reservation in self._reservations:
            reservation.lease, reservation.local = self._lease, None
            for limit, slot in zip(reservation.limits, reservation.slots, strict=True):
                held[slot] = held.get(slot, 0) + reservation.reserved(limit)
        words = ["enter", self._lease, round(LEASE * 1000), last, self._run, int(self._dropped_settlements)]
        for slot, amount in held.items():
            words += (slot.window, min(MAX_COUNT, amount))
        assert self._connection is not None
        self._connection.send_script([*self._fixed, *(slot.key for slot in held)], words, self._on_heartbeat)
        self._dropped_settlements = False

    # --- while Redis is unavailable

    async def _admit_locally(
        self, applicable: list[Limit], model: int, most: Consumption, now: float
    ) -> SharedReservation | None:
        """Admit a call by this worker's own counters; None: Redis has come back meanwhile."""
        local = self._local_fallback
        if local is None:
            return None
        windows = [self._window(limit, now) for limit in applicable]
        slots = [
            CounterSlot(self._key(limit.counter), str(int(begin)))
            for limit, (begin, _) in zip(applicable, windows, strict=True)
        ]
        for limit, slot, (begin, _) in zip(applicable, slots, windows, strict=True):
            known = self._last_known.get(limit.counter)
            if limit.counter.window and known is not None and known.window == slot.window:
                local.adopt(limit, begin, known.spent)
        inner = await local.admit(applicable, model, most, now)
        if local is not self._local_fallback:
            return None
        self._admitted_locally += 1
        reservation = SharedReservation(self, applicable, slots, most, "", (), inner)
        self._reservations.add(reservation)
        return reservation

    def _reserve_locally(self, local: Limits, reservation: SharedReservation) -> HeldReservation:
        """Return the same reservation in this worker's own counters."""
        states = []
        for limit, slot in zip(reservation.limits, reservation.slots, strict=True):
            known, reserved = self._last_known.get(limit.counter), reservation.reserved(limit)
            if not limit.counter.window:  # what others reserve is soon unknown: each keeps to its share
                state = local.adopt(limit, 0.0, 0)
            elif known is not None and known.window == slot.window:
                state = local.adopt(limit, float(slot.window), known.spent)
                state.used -= reserved  # it is part of what was spent
            else:  # of a window that is over
                state = CounterState(0.0, 0.0, high=0.0, unseeded=False)
            state.reserved += reserved
            states.append(state)
        plan = ApplicableLimits(reservation.limits, reservation.limits, states)
        return HeldReservation(plan, reservation.most)


def countable(amount: int) -> int:
    """Return the amount within what Redis's script can count."""
    return max(0, min(MAX_COUNT, amount))


def run_id(info: bytes) -> str:
    """Return the id of a server's run from its INFO; it changes when the server restarts."""
    for line in info.decode().splitlines():
        if line.startswith("run_id:"):
            return line.partition(":")[2]
    return ""
