"""What a host offers for a replica that may run on any host."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """Whether it fits there now, and the free bytes where it would go.

    `need`: where it does not fit, the least bytes that it takes; None: not known, or it is too large for the host.
    `cost`: where it does not fit, what it would cost to make room for it (`eviction.cost_of`); None: there cannot be.
    """

    fits: bool
    free: int
    need: int | None = None
    cost: float | None = None

    @property
    def possible(self) -> bool:
        """Whether it fits, or could if others made room."""
        return self.fits or self.cost is not None


def rank_offer(host: int, offer: Offer, neighbours: Mapping[int, int]) -> tuple[bool, bool, float, int, int, int]:
    """Return what is larger for a better place. `neighbours`: other replicas of the model, by host."""
    cost = 0.0 if offer.fits or offer.cost is None else -offer.cost
    return offer.fits, offer.possible, cost, -neighbours.get(host, 0), offer.free, -host
