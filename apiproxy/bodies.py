"""Request bodies of `/v1` on their way in: bounded, counted from the head on, decoded where they come compressed.

A body's bytes are taken from its caller's share of the memory budget before they are waited for, as far as its length
is told; what comes without a length, or grows when it is decompressed, is taken as it comes. So a caller who cannot be
served is told so before the body is sent.
"""

import asyncio
import math
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from typing import Any

from apiproxy.budget import MB, Share
from apiproxy.catalogue import Limit
from apiproxy.client import Message, Receive
from apiproxy.coding import decoding
from apiproxy.errors import BodyTooLarge, BodyTooSlow, ClientLeft
from apiproxy.limits import refusal as over_limit

# Seconds between two pieces of a body, as nginx's client_body_timeout, and for all of it: as SDKs give up themselves.
PIECE_SECONDS = 60.0
WHOLE_SECONDS = 600.0


class Arrival:
    """A body of which more is awaited."""

    __slots__ = ("begun_at", "heard_at", "late", "task")

    def __init__(self, task: "asyncio.Task[None] | None", now: float) -> None:
        self.task = task
        self.begun_at = self.heard_at = now
        self.late = False


class Bodies:
    """`most`: bytes of a body, decompressed. Call `sweep` about once a second: it ends those that do not come."""

    def __init__(self, *, most: int, clock: Callable[[], float]) -> None:
        self._most = most
        self._clock = clock
        self._arrivals: set[Arrival] = set()

    async def read(self, headers: dict[bytes, bytes], receive: Receive, share: Share, limits: Sequence[Limit]) -> bytes:
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
            first, arrived = begun(receive())
            if arrived:  # as most bodies have: nobody needs to wait for it, or to see that it comes (2 µs)
                body, more = piece_of(first)
                if not more and len(body) <= share.held:
                    return body
            return await self._await(first, arrived, receive, share)
        finally:
            owner.arriving -= 1

    async def _await(self, first: Any, arrived: bool, receive: Receive, share: Share) -> bytes:
        """The whole body; of its first piece what `begun` gave."""
        arrival = Arrival(asyncio.current_task(), self._clock())
        self._arrivals.add(arrival)
        try:
            body, more = piece_of(first if arrived else await first)
            if more or len(body) > share.held:
                body = await self._rest(body, more, receive, share, arrival)
            return body
        except asyncio.CancelledError:
            if not arrival.late or arrival.task is None:
                raise
            arrival.task.uncancel()
            raise BodyTooSlow("request_timeout", seconds=math.ceil(PIECE_SECONDS)) from None
        finally:
            self._arrivals.discard(arrival)

    async def _rest(self, first: bytes, more: bool, receive: Receive, share: Share, arrival: Arrival) -> bytes:
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
            arrival.heard_at = self._clock()
            body += piece

    def sweep(self) -> None:
        now = self._clock()
        for arrival in list(self._arrivals):
            if arrival.task is None or arrival.late:
                continue
            if now - arrival.heard_at > PIECE_SECONDS or now - arrival.begun_at > WHOLE_SECONDS:
                arrival.late = True
                arrival.task.cancel()

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge("request_too_large", limit=self._most // MB)


def begun(receiving: Awaitable[Message]) -> tuple[Any, bool]:
    """Run a coroutine as far as it goes: its result and True, or something to await for the result and False."""
    assert isinstance(receiving, Coroutine)
    try:
        waits_for = receiving.send(None)
    except StopIteration as stop:
        return stop.value, True
    return resumed(receiving, waits_for), False


@types.coroutine
def resumed(coroutine: Coroutine[Any, Any, Message], waits_for: Any) -> Generator[Any, Any, Message]:
    """The rest of a coroutine that waits for this."""
    try:
        yield waits_for
    except BaseException as error:  # who waits is cancelled: the coroutine is told, as a task would
        coroutine.throw(error)
        raise
    result: Message = yield from coroutine
    return result


def check_arriving(limits: Sequence[Limit], arriving: int) -> None:
    """Raises OverRate if one more than these may not be under way at the same time."""
    for limit in limits:
        counter = limit.counter
        if counter.unit == "concurrent" and counter.model is None and arriving >= limit.amount:
            raise over_limit(limit, math.inf, 0.0)


def piece_of(message: Message) -> tuple[bytes, bool]:
    """Some of a request's body, and whether there is more. Raises ClientLeft."""
    if message["type"] == "http.disconnect":
        raise ClientLeft
    return message.get("body", b""), message.get("more_body", False)
