"""How much memory callers may make this process hold: a bound for each of them and one for all together.

Code that keeps something whose size a client or an engine decides (a request's body, an upload whose model is not
known, an answer that has to be whole before it goes out) opens a `BudgetShare` for its caller, takes from it before a
piece is kept, and closes it when the memory is free again. Over a bound nothing is kept: the caller who asks for more
is refused.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Self

from apiproxy.dataplane.errors import OverMemory, ServerBusy, TooManyAtOnce

MB = 1024 * 1024
# A share of up to this many bytes may use all of the budget, larger ones leave an eighth of it: long documents of some
# callers never keep out short questions of others. A conversation of 15,000 tokens has about 64 KB.
SMALL = 64 * 1024
# Of a larger block, no more than this lies among other blocks: the size of the pieces in which it came.
SCATTERED = 128 * 1024
# Seconds after which those who were refused are asked to come back; SDKs do so by themselves.
RETRY = 2


@dataclass(slots=True)
class BudgetOwner:
    """What one caller holds."""

    held: int = 0  # bytes
    arriving: int = 0  # bodies that have not arrived whole


class MemoryBudget:
    """`total`: bytes of all owners together, `per_owner`: of one. Owners are callers, by their keys' ids."""

    def __init__(self, total: int, per_owner: int) -> None:
        self.total = total
        self.per_owner = per_owner
        self.held = 0
        self.scattered = 0  # bytes given back so far that may still lie among others, see `memory`
        self.for_large = total - total // 8
        # Called for an owner who would hold this many bytes; returns whether there is more room now (see
        # `request_bodies`).
        self.make_room: Callable[[int], bool] = lambda owned: False
        self._owners: dict[Hashable, BudgetOwner] = {}

    def share(self, owner: Hashable) -> "BudgetShare":
        """Return an empty share of this owner. Close it in any case: it is a context manager too."""
        found = self._owners.get(owner)
        if found is None:
            # Kept: making one for each call would take longer, and there are no more of them than keys.
            found = self._owners[owner] = BudgetOwner()
        return BudgetShare(self, found)

    def held_by(self, owner: Hashable) -> int:
        found = self._owners.get(owner)
        return found.held if found else 0

    def refusal(self, owned: int) -> OverMemory:
        """Make the refusal of an owner who would hold this many bytes."""
        headers = {"retry-after": str(RETRY)}
        if owned > self.per_owner:
            return TooManyAtOnce("too_many_bytes", headers=headers, amount=self.per_owner // MB)
        return ServerBusy("server_busy", headers=headers, seconds=RETRY)


class BudgetShare:
    """What one call holds of the budget."""

    __slots__ = ("_budget", "held", "owner")

    def __init__(self, budget: MemoryBudget, owner: BudgetOwner) -> None:
        self._budget = budget
        self.owner = owner
        self.held = 0

    def take(self, size: int) -> None:
        """Take this many bytes more, before they are kept. Raises OverMemory; nothing was taken then."""
        budget, owner = self._budget, self.owner
        held, owned, total = self.held + size, owner.held + size, budget.held + size
        while owned > budget.per_owner or total > (budget.total if held <= SMALL else budget.for_large):
            if owned > budget.per_owner or not budget.make_room(owned):
                raise budget.refusal(owned)
            total = budget.held + size
        self.held, owner.held, budget.held = held, owned, total

    def give_back(self, size: int) -> None:
        """Give back this many bytes."""
        size = min(size, self.held)
        self.held -= size
        self.owner.held -= size
        self._budget.held -= size
        self._budget.scattered += min(size, SCATTERED)

    def close(self) -> None:
        """Give back all that is held."""
        if held := self.held:
            budget = self._budget
            self.held = 0
            self.owner.held -= held
            budget.held -= held
            budget.scattered += held if held < SCATTERED else SCATTERED

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
