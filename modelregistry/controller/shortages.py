"""Why a model does not have one replica more although its calls wait, as `scaler` finds and `placer` explains it."""

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
class PlacementAttempt:
    """What became of a try to place one replica more. Neither: it is not known yet, and may be tried again at once."""

    placed: bool = False
    shortage: Shortage | None = None
