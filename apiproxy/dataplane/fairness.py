"""What each caller was served while calls waited, minute by minute: from it operators see whether the queue is fair.

A caller is *backlogged* in a minute if it had a call waiting nearly all of the time in which any call waited. Only of
those can it be said that they got too little: who asks for less gets less. No I/O.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from apiproxy.dataplane.fair_queue import CallFlow

MINUTE = 60.0
# Minutes that are kept while they cannot be written, as when the database is away.
MAX_MINUTES = 60
# Callers of a model and class that are kept of a minute: those that waited longest.
MAX_FLOWS = 200
# Callers that are counted until then; further ones of the same minute are not.
MAX_COUNTED = 2000


class FlowMinute(NamedTuple):
    """What one caller had of a minute."""

    flow: str  # distinguishes it from others, the same in all workers
    waited: int  # seconds in which it had a call waiting
    served: float  # tokens, divided by its weight


@dataclass(frozen=True, slots=True, kw_only=True)
class ContendedMinute:
    """A minute in which calls of a model and class waited, in one worker."""

    number: int  # of the minute, counted as Unix seconds are
    model: str
    call_class: str
    contended: int  # seconds in which any call waited
    flows: tuple[FlowMinute, ...]


class _Minute:
    def __init__(self) -> None:
        self.contended: Counter[tuple[str, str]] = Counter()
        self.waited: dict[tuple[str, str], Counter[CallFlow]] = defaultdict(Counter)
        self.served: dict[tuple[str, str], dict[CallFlow, float]] = defaultdict(dict)

    def describe(self, number: int) -> list[ContendedMinute]:
        return [
            ContendedMinute(
                number=number,
                model=key[0],
                call_class=key[1],
                contended=self.contended[key],
                flows=tuple(
                    FlowMinute(name_of(flow), waited, round(served, 1)) for waited, served, flow in self._longest(key)
                ),
            )
            for key in self.waited.keys() | self.served.keys()
        ]

    def _longest(self, key: tuple[str, str]) -> list[tuple[int, float, CallFlow]]:
        """Return how long each caller waited and what it was served, for those that waited longest."""
        waited, served = self.waited[key], self.served[key]
        found = [(waited[flow], served.get(flow, 0.0), flow) for flow in waited.keys() | served.keys()]
        return heapq.nlargest(MAX_FLOWS, found, key=lambda one: one[:2])


class FairnessLog:
    """The minutes of one worker, of which only those take any memory in which calls waited.

    `wall` returns Unix seconds; all workers number the minutes alike.
    """

    def __init__(self, wall: Callable[[], float]) -> None:
        self._wall = wall
        self._minutes: dict[int, _Minute] = {}  # by their number; the last is not over yet

    def note_waiting(self, model: str, call_class: str, flows: Iterable[CallFlow]) -> None:
        """Note that these callers wait now. Call it once a second for each class of a model of which calls wait."""
        minute, key = self._minute(), (model, call_class)
        minute.contended[key] += 1
        waited = minute.waited[key]
        waited.update(flow for flow in flows if flow in waited or len(waited) < MAX_COUNTED)

    def note_served(self, model: str, call_class: str, flow: CallFlow, tokens: float) -> None:
        """Note what a caller was served while calls of the model wait, be it those of other workers."""
        served = self._minute().served[model, call_class]
        if flow in served or len(served) < MAX_COUNTED:
            served[flow] = served.get(flow, 0.0) + tokens / flow.weight

    def finished(self) -> list[ContendedMinute]:
        """Return the minutes that are over. They are kept until `forget`."""
        now = self._number()
        return [one for number, minute in self._minutes.items() if number < now for one in minute.describe(number)]

    def forget(self, minutes: Iterable[ContendedMinute]) -> None:
        """Forget these minutes, which are written."""
        for number in {one.number for one in minutes}:
            self._minutes.pop(number, None)

    def _minute(self) -> _Minute:
        number = self._number()
        minute = self._minutes.get(number)
        if minute is None:
            minute = self._minutes[number] = _Minute()
            while len(self._minutes) > MAX_MINUTES:
                del self._minutes[min(self._minutes)]
        return minute

    def _number(self) -> int:
        return int(self._wall() // MINUTE)


def name_of(flow: CallFlow) -> str:
    return f"{flow.scope}:{flow.owner}:{flow.end_user}"
