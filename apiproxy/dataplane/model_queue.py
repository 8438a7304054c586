"""The calls that wait for one model, by their class; who their callers are, and what is expected of them. No I/O."""

from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from itertools import chain
from typing import Generic, NamedTuple

from apiproxy.dataplane.catalogue import Key
from apiproxy.dataplane.context import RequestContext
from apiproxy.dataplane.fair_queue import CallFlow, FairQueue, T
from apiproxy.dataplane.token_usage import Tokens

# Seconds after which a caller who waits and was not served goes before those who were served less.
AGED_AFTER = 60.0
# Tokens of a prompt that are as much work as one of an answer: engines read them hundreds at a time.
PROMPT_TOKENS = 8
# The weight of a new call against all before it; of the first few each has the same.
WEIGHT = 0.1
# Calls whose median is looked at, and how many have to have ended before a call is refused for what it would wait.
RECENT = 15
FEW = 8
# Tokens that a call is expected to be served while none of its model has ended yet.
USUAL_COST = 500.0


class CallClass(IntEnum):
    """The less goes first."""

    INTERACTIVE = 0
    BATCH = 1
    CANARY = 2  # Madoguchi's own checks

    @property
    def label(self) -> str:
        """Its name in reports."""
        return self.name.lower()


class ForeignWaits(NamedTuple):
    """What waits for a model in other workers, by class."""

    calls: tuple[int, int, int] = (0, 0, 0)
    flows: tuple[int, int, int] = (0, 0, 0)


NOWHERE = ForeignWaits()


def class_of(key: Key) -> CallClass:
    if key.canary:
        return CallClass.CANARY
    return CallClass.BATCH if key.batch else CallClass.INTERACTIVE


def flow_of(context: RequestContext) -> CallFlow:
    """Return whose turn the call takes.

    That is the person, with whichever of their keys; of a service key all of its calls, or, if operators let it name
    callers, those of each end user. A key that makes up end users without being let has one part like any other.
    """
    key = context.key
    if key.separates_users and (end_user := context.turn_name):
        return CallFlow("key", key.id, end_user, key.weight)
    if key.user is None:
        return CallFlow("key", key.id, weight=key.service_weight * key.weight)
    return CallFlow("user", key.user, weight=key.weight)


def share_of(context: RequestContext) -> str:
    """Return who shares in the part of the call's flow: of a service key's, the person behind it."""
    return "" if context.key.user is not None else context.turn_name


def cost_of(tokens: Tokens) -> float:
    """Return what a caller is charged for these, in tokens of an answer."""
    return tokens.completion + max(0, tokens.prompt - tokens.cached) / PROMPT_TOKENS


class WaitingOwners:
    """How many calls of each caller wait for each model, and how many bytes of bodies all of them hold.

    The end users of a shared key count as one caller here: it is the key that names them, and may make them up.
    """

    def __init__(self) -> None:
        self._calls: Counter[tuple[tuple[str, int], str]] = Counter()  # by caller and model
        self._bytes: Counter[tuple[str, int]] = Counter()

    def calls(self, flow: CallFlow, model: str) -> int:
        return self._calls[flow.caller, model]

    def bytes(self, flow: CallFlow) -> int:
        return self._bytes[flow.caller]

    @contextmanager
    def count(self, flow: CallFlow, model: str, size: int) -> Iterator[None]:
        """Count a call of this size while it waits."""
        self._add(flow, model, 1, size)
        try:
            yield
        finally:
            self._add(flow, model, -1, -size)

    def _add(self, flow: CallFlow, model: str, calls: int, size: int) -> None:
        self._calls[flow.caller, model] += calls
        if not self._calls[flow.caller, model]:
            del self._calls[flow.caller, model]
        self._bytes[flow.caller] += size
        if not self._bytes[flow.caller]:
            del self._bytes[flow.caller]


class CallAverages:
    """What calls of a model took lately, of which at least one has ended."""

    __slots__ = ("_count", "_recent", "cost", "least_seconds", "seconds")

    def __init__(self, seconds: float, cost: float) -> None:
        self.seconds = seconds  # at an engine
        self.cost = cost
        # What most of the last ones took at least, for the average rises tenfold by one call of minutes among many
        # short ones; none while too few are known.
        self.least_seconds: float | None = None
        self._count = 1
        self._recent = deque([seconds], maxlen=RECENT)

    def observe(self, seconds: float, cost: float) -> None:
        self._count += 1
        weight = max(WEIGHT, 1 / self._count)
        self.seconds += weight * (seconds - self.seconds)
        self.cost += weight * (cost - self.cost)
        self._recent.append(seconds)
        if self._count >= FEW:
            self.least_seconds = min(self.seconds, sorted(self._recent)[len(self._recent) // 2])


class ModelQueue(Generic[T]):
    def __init__(self, now: float) -> None:
        self.moved_at = now  # when a call left it for an engine, or the first came
        self.loading_since: float | None = None  # when it was seen first that no replica answers, and one is loaded
        self.by_class: dict[CallClass, FairQueue[T]] = {one: FairQueue(aged_after=AGED_AFTER) for one in CallClass}

    def __len__(self) -> int:
        return sum(map(len, self.by_class.values()))

    def __iter__(self) -> Iterator[T]:
        return chain.from_iterable(self.by_class.values())

    def __getitem__(self, one: CallClass) -> FairQueue[T]:
        return self.by_class[one]

    def waiting_up_to(self, last: CallClass) -> int:
        """Return how many wait of this class and of those that go before it."""
        return sum(len(queue) for one, queue in self.by_class.items() if one <= last)

    def places(self, cost: float, foreign: ForeignWaits = NOWHERE) -> dict[T, int]:
        """Return how many go up to each, itself included, if each call is served so many tokens.

        Of `foreign` ones of a class as many flows go in between as of ours: each has its turn.
        """
        places, before = {}, 0
        for one, queue in self.by_class.items():
            calls, flows = foreign.calls[one], foreign.flows[one]
            part = flows / len(queue.waiting_flows) if queue else 0.0
            for number, waiter in enumerate(queue.order(cost), start=1):
                places[waiter] = before + number + min(calls, int((number - 0.5) * part))
            before += len(queue) + calls
        return places
