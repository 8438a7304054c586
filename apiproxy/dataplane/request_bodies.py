"""Request bodies of `/v1` on their way in: bounded, counted from the head on, decoded where they come compressed.

A body's bytes are taken from its caller's share of the memory budget before they are waited for, as far as its length
is told; what comes without a length, or grows when it is decompressed, is taken as it comes. So a caller who cannot be
served is told so before the body is sent. Where all of the budget is taken, whoever holds most of it gives up what has
been coming for longest: else three keys with a dozen bodies that never come would keep everybody out.
"""

import asyncio
import math
from collections.abc import Callable, Sequence
from typing import Self

from apiproxy.dataplane.catalogue import Limit
from apiproxy.dataplane.content_encoding import decoding
from apiproxy.dataplane.downstream import Message, Receive
from apiproxy.dataplane.errors import BodyTooLarge, BodyTooSlow, ClientDisconnected, Refusal, ServerBusy
from apiproxy.dataplane.limits.local import refusal as over_limit
from apiproxy.dataplane.memory_budget import MB, RETRY, BudgetShare, MemoryBudget

# Seconds between two pieces of a body, as nginx's client_body_timeout, and for all of it: as SDKs give up themselves.
PIECE_SECONDS = 60.0
WHOLE_SECONDS = 600.0
# Seconds in which a body is not given up for others.
SAFE_SECONDS = 5.0


class ArrivingBody:
    """A body of which more is awaited, as a context: in it the task may be ended by `end`, which then raises why."""

    __slots__ = ("_all", "_clock", "begun_at", "ended", "heard_at", "share", "task")

    def __init__(self, arrivals: "set[ArrivingBody]", share: BudgetShare, clock: Callable[[], float]) -> None:
        self._all = arrivals
        self._clock = clock
        self.share = share
        self.task = asyncio.current_task()
        self.begun_at = self.heard_at = clock()
        self.ended: Refusal | None = None

    def __enter__(self) -> Self:
        self._all.add(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._all.discard(self)
        if kind is asyncio.CancelledError and self.ended is not None and self.task is not None:
            self.task.uncancel()
            raise self.ended from None

    def heard(self) -> None:
        """Some of it came."""
        self.heard_at = self._clock()

    def end(self, refusal: Refusal) -> None:
        if self.task is not None and self.ended is None:
            self.ended = refusal
            self.task.cancel()


class RequestBodies:
    """`most`: bytes of a body, decompressed. Call `sweep` about once a second: it ends those that do not come."""

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
        """The whole body; its bytes are in the share. `limits` of the caller: as many of its bodies arrive at a time
        as calls may run at a time.

        Raises BodyTooLarge and OverMemory (both before reading it, where its length is told), OverRate,
        UnknownCoding, BadRequest for what cannot be decoded, BodyTooSlow and ClientLeft.
        """
        length = headers.get(b"content-length", b"0")
        told = int(length) if length.isdigit() else 0
        if told > self._most:
            raise self._too_large()
        share.take(told)
        if b"content-encoding" in headers:
            receive = decoding(receive, headers[b"content-encoding"])
        owner = share.owner
        if owner.arriving:
            check_arriving(limits, owner.arriving)
        owner.arriving += 1
        try:
            with self.arrival(share) as arrival:
                body, more = piece_of(await receive())
                if more or len(body) > share.held:
                    body = await self._rest(body, more, receive, share, arrival)
                return body
        finally:
            owner.arriving -= 1

    def take(self, body: bytes, share: BudgetShare) -> None:
        """Count a body that is here already. Raises BodyTooLarge and OverMemory."""
        if len(body) > self._most:
            raise self._too_large()
        share.take(len(body))

    async def _rest(
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
            piece, more = piece_of(await receive())
            arrival.heard()
            body += piece

    def sweep(self) -> None:
        now = self._clock()
        for arrival in list(self._arrivals):
            if now - arrival.heard_at > PIECE_SECONDS or now - arrival.begun_at > WHOLE_SECONDS:
                arrival.end(BodyTooSlow("request_timeout", seconds=math.ceil(PIECE_SECONDS)))

    def _make_room(self, owned: int) -> bool:
        """Give up a body for somebody who would hold so many bytes with all that is theirs; whether there was one."""
        oldest = self._clock() - SAFE_SECONDS
        slow = [one for one in self._arrivals if one.begun_at < oldest and one.share.held and one.ended is None]
        given_up = max(slow, key=lambda one: (one.share.owner.held, -one.begun_at), default=None)
        if given_up is None or given_up.share.owner.held <= owned:
            return False
        given_up.end(ServerBusy("server_busy", headers={"retry-after": str(RETRY)}, seconds=RETRY))
        given_up.share.close()
        return True

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge("request_too_large", limit=self._most // MB)


def check_arriving(limits: Sequence[Limit], arriving: int) -> None:
    """Raise OverRate if one more than these may not be under way at the same time."""
    for limit in limits:
        counter = limit.counter
        if counter.unit == "concurrent" and counter.model is None and arriving >= limit.amount:
            raise over_limit(limit, math.inf, 0.0)


def piece_of(message: Message) -> tuple[bytes, bool]:
    """Return some of a request's body, and whether there is more. Raises ClientLeft."""
    if message["type"] == "http.disconnect":
        raise ClientDisconnected
    return message.get("body", b""), message.get("more_body", False)
