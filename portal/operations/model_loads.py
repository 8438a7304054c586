"""What gateways report of their queues, as the controller has to know it to scale models. See `controller.loads`."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

from modelregistry.controller.loads import ModelLoad
from modelregistry.database_clock import database_now
from modelregistry.models import ServedModel
from portal.operations.models import QueueReport
from portal.operations.queue import GONE_AFTER, widen

INTERACTIVE = "interactive"


def read_model_loads(**_: Any) -> dict[int, ModelLoad] | None:
    """Return the loads of models, by their ids, as a receiver of `loads_wanted`. Two queries."""
    recent = QueueReport.objects.filter(at__gte=database_now() - timedelta(seconds=GONE_AFTER))
    snapshots = list(recent.values_list("snapshot", flat=True))
    if not snapshots:
        return None
    loads = sum_loads(snapshots)
    ids = dict(ServedModel.objects.filter(name__in=loads).values_list("name", "pk"))
    return {ids[name]: load for name, load in loads.items() if name in ids}


def sum_loads(snapshots: Iterable[Mapping[str, Any]]) -> dict[str, ModelLoad]:
    """Return the loads of models over all workers, by name."""
    waits: dict[str, list[float | None]] = defaultdict(list)
    waiting: Counter[str] = Counter()
    running: Counter[int] = Counter()
    rooms: dict[int, float | None] = {}
    models: dict[int, str] = {}
    for snapshot in snapshots:
        for one in snapshot["models"]:
            if calls := one["waiting"].get(INTERACTIVE, 0):
                waiting[one["model"]] += calls
                # Gateways of an earlier release do not report it.
                waits[one["model"]].append(one.get("expected"))
        for one in snapshot["replicas"]:
            number = one["replica"]
            models[number] = one["model"]
            running[number] += one["running"]
            rooms[number] = one["room"] if number not in rooms else widen(rooms[number], one["room"])
    return {
        name: ModelLoad(
            wait=_longest(waits[name]) if waiting[name] else 0.0,
            waiting=waiting[name],
            running=sum(running[number] for number, model in models.items() if model == name),
            room=_add([rooms[number] for number, model in models.items() if model == name]),
        )
        for name in {*waiting, *models.values()}
    }


def _longest(waits: list[float | None]) -> float | None:
    return max((wait for wait in waits if wait is not None), default=None)


def _add(rooms: list[float | None]) -> float | None:
    known = [room for room in rooms if room is not None]
    return sum(known) if rooms and len(known) == len(rooms) else None
