"""How much memory callers may make this process hold: a bound for each of them and one for all together.

Whoever keeps what somebody else decides the size of (a request's body, an upload whose model is not known, an answer
that has to be whole before it goes out) opens a `BudgetShare` for its caller, takes from it before a piece is kept, and
closes it when the memory is free again. Over a bound nothing is kept: the one who asks for more is refused.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Self

from apiproxy.dataplane.errors import OverMemory, ServerBusy, TooManyAtOnce

MB = 1024 * 1024
# A share of up to so many bytes may use all of the budget, larger ones leave an eighth of it: long documents of some
# never turn away the short questions of others. A conversation of 15,000 tokens has about 64 KB.
SMALL = 64 * 1024
# Of larger blocks no more than the pieces in which they came lies among others.
SCATTERED = 128 * 1024
# Seconds after which those who were refused are asked to come back; SDKs do so by themselves.
RETRY = 2


@dataclass(slots=True)
class BudgetOwner:
    """What one caller holds: bytes, and how many bodies that have not arrived whole."""

    held: int = 0
    arriving: int = 0


class MemoryBudget:
    """`total`: bytes of all owners together, `each`: of one. An owner is whatever tells callers apart: a key's id."""

    def __init__(self, total: int, each: int) -> None:
        self.total = total
        self.each = each
        self.held = 0
        self.scattered = 0  # bytes given back so far that may still lie among others, see `memory`
        self.for_large = total - total // 8
        # Asked for room by somebody who would hold so many bytes; gives whether there is more of it now (see
        # `request_bodies`).
        self.make_room: Callable[[int], bool] = lambda owned: False
        self._owners: dict[Hashable, BudgetOwner] = {}

    def share(self, owner: Hashable) -> "BudgetShare":
        """Return an empty share of this owner. Close it in any case: it is a context manager too."""
        found = self._owners.get(owner)
        if found is None:
            # Kept: making it anew for each call would take longer, and there are no more than keys.
            found = self._owners[owner] = BudgetOwner()
        return BudgetShare(self, found)

    def held_by(self, owner: Hashable) -> int:
        found = self._owners.get(owner)
        return found.held if found else 0

    def refusal(self, owned: int) -> OverMemory:
        """Of one who would hold so many bytes."""
        headers = {"retry-after": str(RETRY)}
        if owned > self.each:
            return TooManyAtOnce("too_many_bytes", headers=headers, amount=self.each // MB)
        return ServerBusy("server_busy", headers=headers, seconds=RETRY)


class BudgetShare:
    """What one call holds of the budget."""

    __slots__ = ("_budget", "held", "owner")

    def __init__(self, budget: MemoryBudget, owner: BudgetOwner) -> None:
        self._budget = budget
        self.owner = owner
        self.held = 0

    def take(self, size: int) -> None:
        """So many bytes more, before they are kept. Raises OverMemory, and then nothing was taken."""
        budget, owner = self._budget, self.owner
        held, owned, total = self.held + size, owner.held + size, budget.held + size
        while owned > budget.each or total > (budget.total if held <= SMALL else budget.for_large):
            if owned > budget.each or not budget.make_room(owned):
                raise budget.refusal(owned)
            total = budget.held + size
        self.held, owner.held, budget.held = held, owned, total

    def give_back(self, size: int) -> None:
        """So many bytes of it are free again."""
        size = min(size, self.held)
        self.held -= size
        self.owner.held -= size
        self._budget.held -= size
        self._budget.scattered += min(size, SCATTERED)

    def close(self) -> None:
        """All of it is free again."""
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
