"""A host with room for some of its models, in virtual seconds: how long callers wait, how often models swap.

`Planned` decides by `eviction.evict`; `serve_first_come` serves calls strictly in their order, as servers do that
unload the model which was loaded, or used, longest ago.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from modelregistry.hostside.replicas import ReplicaKey
from modelregistry.memory.placement import Space
from modelregistry.supervisor.eviction import HeldShare, RoomDemand, RoomOutcome, Standing, evict

STEP = 0.5  # seconds, as the supervisor's


@dataclass
class Call:
    model: str
    at: float
    seconds: float  # how long its answer takes
    begun: float | None = None

    @property
    def waited(self) -> float:
        assert self.begun is not None
        return self.begun - self.at


@dataclass
class Engine:
    model: str
    loaded_at: float  # when it is ready
    running: list[float] = field(default_factory=list)  # when each answer is over
    used_at: float = 0.0
    leaving: bool = False
    calls: float = 0.0


class Planned:
    """Models that give their place as `evict` says. All are of the same size."""

    def __init__(self, *, room: int, load: float, slots: int) -> None:
        self.room, self.load, self.slots = room, load, slots
        self.engines: dict[str, Engine] = {}
        self.queues: dict[str, deque[Call]] = {}
        self.swaps = 0
        self.number: dict[str, int] = {}

    def run(self, calls: Iterable[Call], until: float) -> list[Call]:
        """Serve the calls; return those that were begun."""
        coming = deque(sorted(calls, key=lambda call: call.at))
        begun: list[Call] = []
        now = 0.0
        while now < until:
            while coming and coming[0].at <= now:
                call = coming.popleft()
                self.number.setdefault(call.model, len(self.number))
                self.queues.setdefault(call.model, deque()).append(call)
            for engine in list(self.engines.values()):
                engine.running = [end for end in engine.running if end > now]
                if engine.leaving and not engine.running:
                    del self.engines[engine.model]
            self._make_room(now)
            for name, engine in self.engines.items():
                queue = self.queues.get(name, deque())
                while queue and engine.loaded_at <= now and not engine.leaving and len(engine.running) < self.slots:
                    call = queue.popleft()
                    call.begun = now
                    engine.running.append(now + call.seconds)
                    engine.used_at, engine.calls = now, engine.calls + 1
                    begun.append(call)
            now += STEP
        return begun

    def _make_room(self, now: float) -> None:
        names = {number: name for name, number in self.number.items()}
        waiting = [
            name
            for name, queue in self.queues.items()
            if queue and (name not in self.engines or self.engines[name].leaving)
        ]
        shares = [
            HeldShare(
                key=ReplicaKey(self.number[one.model], 0),
                held={0: 1},
                standing=Standing.LEAVING
                if one.leaving
                else Standing.READY
                if one.loaded_at <= now
                else Standing.FIXED,
                ready_at=one.loaded_at,
                active_at=one.used_at,
                busy=bool(one.running),
                reload_seconds=self.load,
                calls_per_hour=one.calls,
            )
            for one in self.engines.values()
        ]
        demands = [
            RoomDemand(
                key=ReplicaKey(self.number[name], 0), spaces=[Space(needs={0: 1})], since=self.queues[name][0].at
            )
            for name in waiting
            if name not in self.engines
        ]
        for decision in evict(shares, demands, now, free={0: self.room - len(self.engines)}):
            name = names[decision.demand.key.model]
            if decision.outcome is RoomOutcome.FITS:
                self.engines[name] = Engine(model=name, loaded_at=now + self.load)
            for victim in decision.victims:
                self.engines[names[victim.model]].leaving = True
                self.swaps += 1


def serve_first_come(
    calls: Sequence[Call], *, room: int, load: float, choose: Callable[[dict[str, tuple[float, float]]], str]
) -> int:
    """Serve calls strictly in their order and return the number of swaps.

    `choose` names the model to unload, from when each was loaded and last used.
    """
    resident: dict[str, tuple[float, float]] = {}
    swaps, now = 0, 0.0
    for call in sorted(calls, key=lambda call: call.at):
        now = max(now, call.at)
        if call.model not in resident:
            if len(resident) == room:
                del resident[choose(resident)]
                swaps += 1
            now += load
            resident[call.model] = (now, now)
        resident[call.model] = (resident[call.model][0], now)
        now += call.seconds
    return swaps


def loaded_longest_ago(resident: dict[str, tuple[float, float]]) -> str:
    return min(resident, key=lambda name: resident[name][0])


def used_longest_ago(resident: dict[str, tuple[float, float]]) -> str:
    return min(resident, key=lambda name: resident[name][1])


def count_by_model(calls: Iterable[Call]) -> Counter[str]:
    return Counter(call.model for call in calls)
