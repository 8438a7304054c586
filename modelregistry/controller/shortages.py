"""Why a model has fewer replicas than it should: one more for calls that wait, or those that it is always to have.

The first is found by `scaler` and explained by `placer`, the second is found by `placer`.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortage:
    """As `ReplicaShortage`. `wanted`: how many replicas there are to be; `host`: the id of the one with most room."""

    cause: str
    wanted: int = 0
    host: int | None = None
    free: int | None = None
    need: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """As `PlacementGap`. `replicas`: how many have no place; `hosts`: how many could take one, or a part of it."""

    cause: str
    replicas: int
    hosts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementAttempt:
    """What became of a try to place one replica more. Neither: it is not known yet, and may be tried again at once."""

    placed: bool = False
    shortage: Shortage | None = None
