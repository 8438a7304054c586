"""The queue as operators see it: what all workers report, with the names of people and keys, and how fair it was.

Values are plain: pages, the API, sockets and the command show the same.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from django.db.models import F

from modelregistry.database_clock import database_now
from modelregistry.models import Replica, ServedModel
from portal.accounts.models import Tenant, User
from portal.keys.models import ApiKey
from portal.operations.models import FairnessMinute, QueueReport

# Seconds after which a worker that reported nothing is gone: three of its reports without anyone waiting.
GONE_AFTER = 30
HOUR = 60  # minutes
# The part of the time in which calls waited that a caller must have waited itself, and in how many seconds at least.
BACKLOGGED, LEAST_SECONDS = 0.8, 20
FAIR = 0.9  # Jain's index below which operators should look
MAX_SHOWN = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuedCall:
    """A call that waits: who for what, how long and where."""

    model: str
    call_class: str
    waited: float
    place: int  # in its worker
    expected: float | None  # seconds; None: unknown
    tenant: str
    tenant_name: str
    user: str | None  # user name; None: of a service key
    name: str  # of the person, or of the service
    key: str  # prefix
    end_user: str
    worker: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Fairness:
    """Jain's index of the tokens of those who always waited, in the last hour: 1 is all alike."""

    call_class: str
    index: float
    callers: int
    minutes: int

    @property
    def is_fair(self) -> bool:
        return self.index >= FAIR


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuedReplica:
    """A replica that works on calls, or whose model calls wait for. `room`: None: without a bound."""

    replica: int
    host: str
    running: int
    room: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuedModel:
    """A model that calls wait for, that works on calls, or that was fair or not in the last hour."""

    model: str
    is_registered: bool  # it has a page
    waiting: dict[str, int]  # by class
    longest: float  # seconds
    loading: float | None  # seconds since it is being loaded; None: it is not
    usual_loading: float | None
    replicas: tuple[QueuedReplica, ...]
    fairness: tuple[Fairness, ...]

    @property
    def total(self) -> int:
        return sum(self.waiting.values())

    @property
    def held_back(self) -> int:
        """How many of them go after the interactive ones."""
        return self.total - self.waiting.get("interactive", 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueWorker:
    """A worker that reports. `age`: seconds since it did."""

    worker: str
    age: float
    waiting: int


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueNow:
    """The queue of all workers. `calls`: at most MAX_SHOWN, those that have waited longest first."""

    waiting: int
    calls: tuple[QueuedCall, ...]
    models: tuple[QueuedModel, ...]
    workers: tuple[QueueWorker, ...]

    @property
    def callers(self) -> int:
        """How many people, services and people behind services the calls that are shown are of."""
        return len({(call.user, "" if call.user else call.key, call.end_user) for call in self.calls})

    @property
    def longest(self) -> "QueuedModel | None":
        """The model whose first call has waited longest."""
        return max((one for one in self.models if one.total), key=lambda one: one.longest, default=None)

    @property
    def waiting_callers(self) -> list["WaitingCaller"]:
        return group_by_caller(self.calls)

    def waiting_for(self, name: str) -> int:
        """Return how many calls wait for this model, or for all if it is ""."""
        return sum(one.total for one in self.models if name in ("", one.model))

    @property
    def running(self) -> int:
        return sum(one.running for model in self.models for one in model.replicas)

    @property
    def least_fair(self) -> tuple[str, Fairness] | None:
        """The model whose queue was least fair in the last hour."""
        found = [(model.model, one) for model in self.models for one in model.fairness]
        return min(found, key=lambda one: one[1].index, default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingCaller:
    """A caller's calls of one class for one model. `first`: the one that has waited longest.

    `key`: "" if they are of several keys.
    """

    first: QueuedCall
    calls: int
    key: str


def group_by_caller(calls: Iterable[QueuedCall]) -> list[WaitingCaller]:
    """Return who the calls are of, in the order of the first call of each."""
    groups: dict[tuple[str, ...], list[QueuedCall]] = defaultdict(list)
    for call in calls:
        who = ("user", call.user) if call.user is not None else ("key", call.key)
        groups[*who, call.tenant, call.end_user, call.model, call.call_class].append(call)
    return [
        WaitingCaller(first=some[0], calls=len(some), key=some[0].key if len({one.key for one in some}) == 1 else "")
        for some in groups.values()
    ]


class QueueReader:
    """Reads the queue; fairness only once a minute. Blocks on the database; raises django.db.Error."""

    def __init__(self) -> None:
        self._fairness: dict[str, tuple[Fairness, ...]] = {}
        self._minute = -1

    def __call__(self, now: datetime, model: str = "") -> QueueNow:
        """Read it. `model`: list the calls for this one alone."""
        minute = int(now.timestamp() // 60)
        if minute != self._minute:
            self._fairness, self._minute = read_fairness(minute), minute
        return read_queue(self._fairness, model)


def read_queue(fairness: dict[str, tuple[Fairness, ...]], model: str = "") -> QueueNow:
    """Return what workers report; with a model, of the calls those for this one alone.

    Six queries, three while no call waits or runs.
    """
    reports = list(
        QueueReport.objects.annotate(age=database_now() - F("at"))
        .filter(at__gte=database_now() - timedelta(seconds=GONE_AFTER))
        .order_by("worker")
    )
    calls = sorted(
        (
            (call, report.worker)
            for report in reports
            for call in report.snapshot["calls"]
            if model in ("", call["model"])
        ),
        key=lambda found: -found[0]["waited"],
    )[:MAX_SHOWN]
    models = _merge_models(reports, fairness)
    return QueueNow(
        waiting=sum(model.total for model in models),
        calls=tuple(_name_calls(calls)),
        models=tuple(models),
        workers=tuple(
            QueueWorker(
                worker=report.worker,
                age=round(report.age.total_seconds(), 1),
                waiting=sum(sum(one["waiting"].values()) for one in report.snapshot["models"]),
            )
            for report in reports
        ),
    )


def _name_calls(calls: list[tuple[dict[str, Any], str]]) -> Iterable[QueuedCall]:
    tenants = Tenant.objects.in_bulk({call["tenant"] for call, _ in calls})
    users = User.objects.in_bulk({call["user"] for call, _ in calls} - {None})
    keys = ApiKey.objects.in_bulk({call["key"] for call, _ in calls})
    for call, worker in calls:
        tenant, user, key = tenants.get(call["tenant"]), users.get(call["user"]), keys.get(call["key"])
        yield QueuedCall(
            **{name: call[name] for name in ("model", "call_class", "waited", "place", "expected", "end_user")},
            tenant=tenant.slug if tenant else "",
            tenant_name=tenant.name if tenant else "",
            user=user.get_username() if user else None,
            name=str(user) if user else key.service if key else "",
            key=key.prefix if key else "",
            worker=worker,
        )


def _merge_models(reports: Sequence[QueueReport], fairness: dict[str, tuple[Fairness, ...]]) -> list[QueuedModel]:
    found = {name: _no_calls(name, fairness.get(name, ())) for name in fairness}
    for report in reports:
        for one in report.snapshot["models"]:
            model = found.get(one["model"]) or _no_calls(one["model"])
            found[model.model] = replace(
                model,
                waiting=dict(Counter(model.waiting) + Counter(one["waiting"])),
                longest=max(model.longest, one["longest"]),
                loading=max((age for age in (model.loading, one["loading"]) if age is not None), default=None),
                usual_loading=model.usual_loading if one["usual_loading"] is None else one["usual_loading"],
            )
    for name, replicas in _merge_replicas(reports, found).items():
        found[name] = replace(found.get(name) or _no_calls(name), replicas=tuple(replicas))
    for name in ServedModel.objects.filter(name__in=found).values_list("name", flat=True):
        found[name] = replace(found[name], is_registered=True)
    return sorted(found.values(), key=lambda model: (-model.total, model.model))


def _no_calls(model: str, fairness: tuple[Fairness, ...] = ()) -> QueuedModel:
    none: dict[str, Any] = {"longest": 0.0, "loading": None, "usual_loading": None}
    return QueuedModel(model=model, is_registered=False, waiting={}, replicas=(), fairness=fairness, **none)


def _merge_replicas(reports: Sequence[QueueReport], models: dict[str, QueuedModel]) -> dict[str, list[QueuedReplica]]:
    """Return the replicas that work on calls or whose model calls wait for, by the model's name."""
    running: Counter[int] = Counter()
    rooms: dict[int, float | None] = {}
    names: dict[int, str] = {}
    for report in reports:
        for one in report.snapshot["replicas"]:
            number = one["replica"]
            names[number] = one["model"]
            running[number] += one["running"]
            # Slots are the same everywhere; of what is learned, the worker with most of the calls knows most.
            rooms[number] = one["room"] if number not in rooms else widen(rooms[number], one["room"])
    shown = [number for number, name in names.items() if running[number] or (name in models and models[name].total)]
    hosts = dict(Replica.objects.filter(pk__in=shown).values_list("pk", "host__name")) if shown else {}
    found: dict[str, list[QueuedReplica]] = defaultdict(list)
    for number in sorted(shown):
        found[names[number]].append(
            QueuedReplica(replica=number, host=hosts.get(number, ""), running=running[number], room=rooms[number])
        )
    return found


def widen(one: float | None, other: float | None) -> float | None:
    """Return the wider of two rooms; None: without a bound."""
    return None if one is None or other is None else max(one, other)


def read_fairness(minute: int) -> dict[str, tuple[Fairness, ...]]:
    """Return how fair the queue of each model was in the hour before this minute. One query."""
    minutes: dict[tuple[str, str], dict[int, list[FairnessMinute]]] = defaultdict(lambda: defaultdict(list))
    for row in FairnessMinute.objects.filter(number__gte=minute - HOUR).order_by("call_class", "model"):
        minutes[row.call_class, row.model][row.number].append(row)
    found: dict[str, tuple[Fairness, ...]] = {}
    for (call_class, model), by_number in minutes.items():
        shares = [served_to_backlogged((row.contended, row.flows) for row in rows) for rows in by_number.values()]
        known = [share for share in shares if len(share) > 1]
        if (index := fairness_index(known)) is not None:
            callers = len({flow for share in known for flow in share})
            one = Fairness(call_class=call_class, index=round(index, 3), callers=callers, minutes=len(known))
            found[model] = (*found.get(model, ()), one)
    return found


def served_to_backlogged(workers: Iterable[tuple[int, list[list[Any]]]]) -> dict[str, float]:
    """Return what each caller who always waited was served in a minute, by all workers together.

    `workers`: of each the seconds in which calls waited, and the callers: name, seconds that they waited, tokens.
    """
    served: dict[str, float] = defaultdict(float)
    backlogged: set[str] = set()
    for contended, flows in workers:
        for name, waited, tokens in flows:
            served[name] += tokens
            if waited >= max(LEAST_SECONDS, BACKLOGGED * contended):
                backlogged.add(name)
    return {name: served[name] for name in backlogged}


def fairness_index(minutes: Iterable[dict[str, float]]) -> float | None:
    """Return Jain's index of what callers were served in these minutes against their fair shares; None: unknown.

    A caller's fair share of a minute is the mean of those who waited all of it, so the index of several minutes does
    not fall because one of them had fewer callers. Callers count by their fair shares: of a single minute it is
    (sum of x)² / (n · sum of x²).
    """
    got: dict[str, float] = defaultdict(float)
    fair: dict[str, float] = defaultdict(float)
    for served in minutes:
        mean = sum(served.values()) / len(served)
        for name, tokens in served.items():
            got[name] += tokens
            fair[name] += mean
    total = sum(fair.values())
    if not total:
        return None
    return total / sum(got[name] ** 2 / fair[name] for name in got if fair[name])
