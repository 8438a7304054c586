"""For which models callers wait, as gateways renew it in the database, by this machine's own monotonic clock.

Gateways renew a request every few seconds while calls wait, and leave it when the last caller does. Instants that
other machines wrote are compared only with one another, as their clocks may differ from ours.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

ALIVE = 15.0  # seconds since it was last renewed, which a gateway does every 5 s (`apiproxy.server.asgi.WAKE_AGAIN`)
LONGEST = 3600.0  # seconds; that a clock was set is no reason to believe in a longer wait


@dataclass(frozen=True, slots=True, kw_only=True)
class WakeDemand:
    """As `WakeRequest`. `calls`: how many waited, 0: not known. `interactive_at`: None: only calls of batches wait."""

    at: datetime
    since: datetime
    calls: int = 0
    interactive_at: datetime | None = None


@dataclass(slots=True)
class _Seen:
    demand: WakeDemand
    renewed_at: float
    since: float
    most_calls: int
    interactive_renewed_at: float = -math.inf
    interactive_since: float = math.inf


class WakeDemands:
    """What is requested of this host now, by the model's id."""

    def __init__(self) -> None:
        self._seen: dict[int, _Seen] = {}

    def update(self, found: Mapping[int, WakeDemand], now: float) -> None:
        """Take what was read from the database at this time."""
        for model in self._seen.keys() - found.keys():
            del self._seen[model]
        for model, demand in found.items():
            seen = self._seen.get(model)
            if seen is None:
                age = min(max((demand.at - demand.since).total_seconds(), 0.0), LONGEST)
                seen = self._seen[model] = _Seen(demand, now, now - age, demand.calls)
                if demand.interactive_at is not None:
                    # Before this supervisor looked it may have been calls of batches that waited at first.
                    seen.interactive_renewed_at, seen.interactive_since = now, seen.since
            elif seen.demand != demand:
                if seen.demand.interactive_at != demand.interactive_at:
                    if now - seen.interactive_renewed_at >= ALIVE:
                        seen.interactive_since = now
                    seen.interactive_renewed_at = now
                seen.demand, seen.renewed_at = demand, now
                seen.most_calls = max(seen.most_calls, demand.calls)

    def since(self, model: int, now: float) -> float | None:
        """Return when callers began to wait for the model; None: none wait now."""
        seen = self._seen.get(model)
        return seen.since if seen and now - seen.renewed_at < ALIVE else None

    def interactive_since(self, model: int, now: float) -> float | None:
        """Return when calls that are not of a batch began to wait for it; None: none wait now."""
        seen = self._seen.get(model)
        return seen.interactive_since if seen and now - seen.interactive_renewed_at < ALIVE else None

    def calls(self, model: int) -> int:
        """Return the most calls that were seen to wait for it at a time."""
        seen = self._seen.get(model)
        return seen.most_calls if seen else 0
