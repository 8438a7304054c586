"""Whose call is next: one of the caller who was served least. No clock and no I/O.

The rule is that of the Virtual Token Counter (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024):
what a flow is served is added to its counter, divided by its weight, and the least counter goes first. A flow that
comes back is lifted to the least counter of those that wait: it has no claim to what it did not ask for. So among flows
that always wait, counters differ by a few calls at most, whatever each asks for.

What was served before the first call had to wait is forgotten, for it cost no caller anything.
"""

import heapq
from collections import OrderedDict
from collections.abc import Collection, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Generic, Literal, NamedTuple, TypeVar

from apiproxy.dataplane.turns import Turns

# Flows that are remembered; those above it are forgotten which were served least.
MAX_FLOWS = 10_000
# Entries of a heap that are out of date are dropped when they are more than half of it, and more than this.
SLACK = 64


@dataclass(frozen=True, slots=True)
class CallFlow:
    """Calls that share one turn: those of a person, of a service key, or of a person behind a service key.

    Who has keys of several tenants is still one, and is charged for each call by the weight of its key.
    """

    scope: Literal["user", "key"]
    owner: int
    end_user: str = ""
    weight: float = field(default=1.0, compare=False)  # one of weight 2 is served twice as much as one of weight 1

    @property
    def caller(self) -> tuple[str, int]:
        """The person or the key, with all of its end users."""
        return self.scope, self.owner


class Head(NamedTuple):
    """The flow whose turn it is."""

    flow: CallFlow
    counter: float
    since: float  # it has waited, or was last served while it waited
    is_aged: bool  # it goes first for that, whatever its counter is


T = TypeVar("T", bound=Hashable)


class _Account(Generic[T]):
    """What a flow was served, and its calls that wait, in the order in which they go."""

    __slots__ = ("counter", "flow", "turn", "waiting")

    def __init__(self, flow: CallFlow, counter: float) -> None:
        self.flow = flow
        self.counter = counter
        self.turn = 0  # of its entry in a heap: of equal counters the least turn goes first
        self.waiting: Turns[T] = Turns()


# Of a counter, with the turn of its account when it was made: with another turn it is out of date.
_Entry = tuple[float, int, CallFlow]


class FairQueue(Generic[T]):
    """Waiting calls of one class. Each operation takes O(log n), averaged over many of them; `order` takes longer."""

    def __init__(self, *, aged_after: float) -> None:
        """`aged_after`: seconds after which a flow that waits and was not served goes first, whatever its counter is.

        Without that a flow could wait for ever, behind ever new ones that come for one call each.
        """
        self._aged_after = aged_after
        self._floor = 0.0  # the least counter of those that wait, or waited last; it only rises
        self._turn = 0
        self._accounts: dict[CallFlow, _Account[T]] = {}
        self._waiters: OrderedDict[T, _Account[T]] = OrderedDict()  # in the order in which they came
        self._unserved: OrderedDict[CallFlow, float] = OrderedDict()  # flows that wait: since when, longest first
        self._heap: list[_Entry] = []  # of flows that wait
        self._idle: list[_Entry] = []  # of the others, which were served more than the floor

    def __len__(self) -> int:
        return len(self._waiters)

    def __iter__(self) -> Iterator[T]:
        """Return what waits, in the order in which it came."""
        return iter(self._waiters)

    def __contains__(self, waiter: T) -> bool:
        return waiter in self._waiters

    @property
    def flows(self) -> int:
        """How many flows are remembered."""
        return len(self._accounts)

    def waiting(self, flow: CallFlow) -> int:
        """Return how many calls of this flow wait."""
        account = self._accounts.get(flow)
        return 0 if account is None else len(account.waiting)

    def waiting_of(self, flow: CallFlow, share: str) -> int:
        """Return how many of them are for this one."""
        account = self._accounts.get(flow)
        return 0 if account is None else account.waiting.of(share)

    def served(self, flow: CallFlow) -> float:
        """Return the counter of this flow."""
        account = self._accounts.get(flow)
        return self._floor if account is None else account.counter

    def add(self, waiter: T, flow: CallFlow, now: float, share: str = "") -> None:
        """Let it wait behind the others of its flow and, of those, of the one who shares in it (see `turns`)."""
        self._raise_floor()
        account = self._account(flow)
        account.waiting.add(waiter, share)
        self._waiters[waiter] = account
        if len(account.waiting) == 1:
            account.counter = max(account.counter, self._floor)
            self._unserved[flow] = now
            self._push(account)

    def remove(self, waiter: T) -> None:
        """Forget one that was not served. Do nothing if it does not wait."""
        account = self._take(waiter)
        if account is None:
            return
        if not account.waiting:
            del self._unserved[account.flow]
            self._push(account)
        self._forget_all_if_empty()

    def serve(self, waiter: T, now: float) -> None:
        """Forget one whose turn has come. Do nothing if it does not wait."""
        if waiter in self._waiters:
            self._waiters[waiter].waiting.pass_turn(waiter)
        account = self._take(waiter)
        if account is None:
            return
        del self._unserved[account.flow]
        if account.waiting:
            self._unserved[account.flow] = now
        self._push(account)
        self._forget_all_if_empty()

    def charge(self, flow: CallFlow, tokens: float) -> None:
        """Add what the flow was served; less than zero if it was less than had been assumed."""
        if not self._waiters:
            return
        account = self._account(flow)
        account.counter += tokens / flow.weight
        self._push(account)
        self._raise_floor()

    def first(self, now: float) -> T | None:
        """Return the call whose turn it is; None if none waits."""
        head = self.head(now)
        return None if head is None else next(iter(self._accounts[head.flow].waiting))

    def head(self, now: float) -> Head | None:
        """Return the flow whose turn it is; None if none waits."""
        if not self._waiters:
            return None
        flow, since = next(iter(self._unserved.items()))
        if is_aged := now - since >= self._aged_after:
            account = self._accounts[flow]
        else:
            account = self._least()
            since = self._unserved[account.flow]
        return Head(account.flow, account.counter, since, is_aged)

    @property
    def waiting_flows(self) -> Collection[CallFlow]:
        """The flows that wait; the one that was not served for longest comes first."""
        return self._unserved.keys()

    def adopt(self, flow: CallFlow, counter: float) -> None:
        """Take over the counter of a flow that waits, as it is where more is known of it."""
        account = self._accounts.get(flow)
        if account is not None and account.waiting and account.counter != counter:
            account.counter = counter
            self._push(account)

    def oldest(self) -> T | None:
        """Return the call that has waited longest; None if none waits."""
        return next(iter(self._waiters), None)

    def order(self, cost: float) -> Iterator[T]:
        """Return what waits in the order in which it will go if each call is served so many tokens."""
        heap = [
            (account.counter, account.turn, flow, iter(account.waiting))
            for flow in self._unserved
            for account in (self._accounts[flow],)
        ]
        heapq.heapify(heap)
        turn = self._turn
        while heap:
            counter, _, flow, waiting = heap[0]
            waiter = next(waiting, None)
            if waiter is None:
                heapq.heappop(heap)
                continue
            yield waiter
            turn += 1
            heapq.heapreplace(heap, (counter + cost / flow.weight, turn, flow, waiting))

    def _account(self, flow: CallFlow) -> _Account[T]:
        account = self._accounts.get(flow)
        if account is None:
            account = self._accounts[flow] = _Account(flow, self._floor)
        return account

    def _take(self, waiter: T) -> _Account[T] | None:
        account = self._waiters.get(waiter)
        if account is not None:
            self._raise_floor()
            del self._waiters[waiter]
            account.waiting.remove(waiter)
        return account

    def _push(self, account: _Account[T]) -> None:
        """Note its counter in the heap that it belongs to now: call it after every change of what it waits for."""
        waits = bool(account.waiting)
        self._turn += 1
        account.turn = self._turn
        heapq.heappush(self._heap if waits else self._idle, (account.counter, account.turn, account.flow))
        if waits and len(self._heap) > 2 * len(self._unserved) + SLACK:
            self._heap = self._entries(waits=True)
        elif not waits and len(self._idle) > 2 * len(self._accounts) + SLACK:
            self._idle = self._entries(waits=False)

    def _entries(self, *, waits: bool) -> list[_Entry]:
        found = [
            (account.counter, account.turn, account.flow)
            for account in self._accounts.values()
            if bool(account.waiting) is waits
        ]
        heapq.heapify(found)
        return found

    def _is_current(self, entry: _Entry) -> bool:
        account = self._accounts.get(entry[2])
        return account is not None and account.turn == entry[1]

    def _least(self) -> _Account[T]:
        """Return the account with the least counter of those that wait, of which there must be one."""
        while not self._is_current(self._heap[0]):
            heapq.heappop(self._heap)
        return self._accounts[self._heap[0][2]]

    def _raise_floor(self) -> None:
        """Lift the floor to the least counter, and forget flows that would start from it as well if they were new."""
        if self._waiters:
            self._floor = max(self._floor, self._least().counter)
        while self._idle and (
            self._idle[0][0] <= self._floor or len(self._accounts) > MAX_FLOWS or not self._is_current(self._idle[0])
        ):
            entry = heapq.heappop(self._idle)
            if self._is_current(entry):
                del self._accounts[entry[2]]

    def _forget_all_if_empty(self) -> None:
        if not self._waiters:
            self._accounts.clear()
            self._heap.clear()
            self._idle.clear()
