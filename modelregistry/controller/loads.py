"""What gateways report of models' loads, from who knows it: the controller does not read their reports itself.

A receiver of `loads_wanted` returns loads by the model's id, or None if no gateway has reported lately. It is called in
the controller's thread of the database: a few queries, nothing else that waits.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from django.dispatch import Signal

loads_wanted = Signal()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLoad:
    """What a model has to do now. `wait`: seconds that an interactive call would wait; None: not known.

    `waiting`: interactive calls that wait. `running`: calls that replicas work on; `room`: for how many they have room,
    None: without a bound.
    """

    wait: float | None = 0.0
    waiting: int = 0
    running: int = 0
    room: float | None = None


def read_loads() -> dict[int, ModelLoad] | None:
    """Return the loads of models that have any, by their ids; None: no gateway reports. Raises django.db.Error."""
    known: dict[int, ModelLoad] | None = None
    for _receiver, found in loads_wanted.send(sender=None):
        if isinstance(found, Mapping):
            known = (known or {}) | dict(found)
    return known
