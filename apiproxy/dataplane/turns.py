"""The calls of one caller that wait: the oldest first, or in turns of those who share its part. No clock and no I/O."""

from collections import OrderedDict, deque
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class Turns(Generic[T]):
    """Calls by who they are for, such as the people behind a service key: of each one call, then of each the next.

    Who they are for is what the key says. It only divides the key's own part, so making up names gains it nothing.
    """

    __slots__ = ("_calls", "_shares")

    def __init__(self) -> None:
        self._shares: OrderedDict[str, OrderedDict[T, None]] = OrderedDict()  # the one whose turn it is first
        self._calls: dict[T, str] = {}  # who each is for

    def __len__(self) -> int:
        return len(self._calls)

    def __iter__(self) -> Iterator[T]:
        """Yield the calls in the order in which they will go."""
        rest = deque(iter(calls) for calls in self._shares.values())
        while rest:
            calls = rest.popleft()
            call = next(calls, None)
            if call is not None:
                yield call
                rest.append(calls)

    def of(self, share: str) -> int:
        """Return how many are for this one."""
        return len(self._shares.get(share, ()))

    def add(self, call: T, share: str = "") -> None:
        """Let it wait behind the others of its share."""
        self._calls[call] = share
        self._shares.setdefault(share, OrderedDict())[call] = None

    def remove(self, call: T) -> None:
        """Forget one that was not served."""
        share = self._calls.pop(call)
        del self._shares[share][call]
        if not self._shares[share]:
            del self._shares[share]

    def pass_turn(self, call: T) -> None:
        """Let all others go before the next call of the same share. Call it before one that is served is removed."""
        self._shares.move_to_end(self._calls[call])
