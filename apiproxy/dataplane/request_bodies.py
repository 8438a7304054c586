"""Request bodies of `/v1` on their way in: bounded, counted from the head on, decoded where they come compressed.

A body's bytes are taken from its caller's share of the memory budget before they are waited for, as far as its length
is given; what comes without a length, or grows when it is decompressed, is taken as it comes. So a caller who cannot be
served is refused before the body is sent. Where the whole budget is taken, the caller that holds most of it gives up
the body that has been coming for longest: otherwise three keys with a dozen bodies that never come would lock out all
others.
"""

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import Self

from apiproxy.dataplane.catalogue import Limit
from apiproxy.dataplane.content_encoding import decode_body
from apiproxy.dataplane.downstream import Message, Receive
from apiproxy.dataplane.errors import BodyTooLarge, BodyTooSlow, ClientDisconnected, Refusal, ServerBusy
from apiproxy.dataplane.limits.local import ReachedLimit
from apiproxy.dataplane.limits.local import refusal as over_limit
from apiproxy.dataplane.limits.units import CONCURRENT
from apiproxy.dataplane.memory_budget import MB, RETRY, BudgetShare, MemoryBudget

# Seconds between two pieces of a body, as nginx's client_body_timeout, and for all of it: as SDKs give up themselves.
PIECE_SECONDS = 60.0
WHOLE_SECONDS = 600.0
# Seconds during which a body is not given up for others.
SAFE_SECONDS = 5.0


class ArrivingBody:
    """A body of which more is awaited, as a context: `give_up` may end its task, and the context then raises why."""

    __slots__ = ("_all", "_clock", "begun_at", "heard_at", "refusal", "share", "task")

    def __init__(self, arrivals: "set[ArrivingBody]", share: BudgetShare, clock: Callable[[], float]) -> None:
        self._all = arrivals
        self._clock = clock
        self.share = share
        self.task = asyncio.current_task()
        self.begun_at = self.heard_at = clock()
        self.refusal: Refusal | None = None

    def __enter__(self) -> Self:
        self._all.add(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._all.discard(self)
        if kind is asyncio.CancelledError and self.refusal is not None and self.task is not None:
            self.task.uncancel()
            raise self.refusal from None

    def note_progress(self) -> None:
        """Note that some of it came."""
        self.heard_at = self._clock()

    def give_up(self, refusal: Refusal) -> None:
        """End the task that waits for the body, with this refusal."""
        if self.task is not None and self.refusal is None:
            self.refusal = refusal
            self.task.cancel()


class RequestBodies:
    """Reads bodies of at most `most` bytes, decompressed. Call `sweep` about once a second: it ends stalled ones."""

    def __init__(self, *, most: int, budget: MemoryBudget, clock: Callable[[], float]) -> None:
        self._most = most
        self._clock = clock
        self._arrivals: set[ArrivingBody] = set()
        budget.make_room = self._make_room

    def arrival(self, share: BudgetShare) -> ArrivingBody:
        return ArrivingBody(self._arrivals, share, self._clock)

    async def read(
        self, headers: dict[bytes, bytes], receive: Receive, share: BudgetShare, limits: Sequence[Limit]
    ) -> bytes:
        """Return the whole body; its bytes are in the share.

        `limits` of the caller: as many of its bodies may arrive at a time as calls may run at a time. Raises
        BodyTooLarge and OverMemory (both before reading, where the length is given), OverRate, UnknownCoding,
        BadRequest for what cannot be decoded, BodyTooSlow and ClientDisconnected.
        """
        length = headers.get(b"content-length", b"0")
        size = int(length) if length.isdigit() else 0
        if size > self._most:
            raise self._too_large()
        share.take(size)
        if b"content-encoding" in headers:
            receive = decode_body(receive, headers[b"content-encoding"])
        owner = share.owner
        if owner.arriving:
            check_arriving(limits, owner.arriving)
        owner.arriving += 1
        try:
            with self.arrival(share) as arrival:
                body, more = read_piece(await receive())
                if more or len(body) > share.held:
                    body = await self._read_rest(body, more, receive, share, arrival)
                return body
        finally:
            owner.arriving -= 1

    def take(self, body: bytes, share: BudgetShare) -> None:
        """Count a body that is here already. Raises BodyTooLarge and OverMemory."""
        if len(body) > self._most:
            raise self._too_large()
        share.take(len(body))

    async def _read_rest(
        self, first: bytes, more: bool, receive: Receive, share: BudgetShare, arrival: ArrivingBody
    ) -> bytes:
        # Grown in place: the system moves large blocks without copying them. Joining pieces would need twice the memory
        # of every body that is complete, this only of the one that has just become so.
        body = bytearray(first)
        while True:
            if len(body) > self._most:
                raise self._too_large()
            if len(body) > share.held:
                share.take(len(body) - share.held)
            if not more:
                return bytes(body)
            piece, more = read_piece(await receive())
            arrival.note_progress()
            body += piece

    def sweep(self) -> None:
        """Give up bodies that have stalled or take too long."""
        now = self._clock()
        for arrival in list(self._arrivals):
            if now - arrival.heard_at > PIECE_SECONDS or now - arrival.begun_at > WHOLE_SECONDS:
                arrival.give_up(BodyTooSlow("request_timeout", seconds=math.ceil(PIECE_SECONDS)))

    def _make_room(self, owned: int) -> bool:
        """Give up a body for a caller who would hold this many bytes; return whether there was one."""
        oldest = self._clock() - SAFE_SECONDS
        slow = [one for one in self._arrivals if one.begun_at < oldest and one.share.held and one.refusal is None]
        given_up = max(slow, key=lambda one: (one.share.owner.held, -one.begun_at), default=None)
        if given_up is None or given_up.share.owner.held <= owned:
            return False
        given_up.give_up(ServerBusy("server_busy", headers={"retry-after": str(RETRY)}, seconds=RETRY))
        given_up.share.close()
        return True

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge("request_too_large", limit=self._most // MB)


def check_arriving(limits: Sequence[Limit], arriving: int) -> None:
    """Raise OverRate if one more than these may not be under way at the same time."""
    for limit in limits:
        counter = limit.counter
        if counter.unit is CONCURRENT and counter.model is None and arriving >= limit.amount:
            raise over_limit([ReachedLimit(limit, math.inf, 0, arriving)], 0.0)


def read_piece(message: Message) -> tuple[bytes, bool]:
    """Return a piece of a request's body, and whether there is more. Raises ClientDisconnected."""
    if message["type"] == "http.disconnect":
        raise ClientDisconnected
    return message.get("body", b""), message.get("more_body", False)
