"""Which replicas were moved from one host to another, and why, for pages, the API, the terminal and notices."""

from dataclasses import dataclass
from datetime import datetime

from django.db.models import F, Q
from django.utils import timezone

from modelregistry.models import ControllerClaim, Host, ReplicaMove, ServedModel

SHOWN = 20
MOST_MOVES = 500  # that are kept: a host that falls silent each hour moves a few models each time


@dataclass(frozen=True, slots=True, kw_only=True)
class PastMove:
    """As `ReplicaMove`, with the model's name. `cause`: a `ReplicaMove.Cause`."""

    at: datetime
    model: str
    number: int
    source: str
    target: str
    cause: str

    @property
    def reason(self) -> str:
        """The cause in words."""
        return str(ReplicaMove.Cause(self.cause).label)


def record_move(model_id: int, number: int, *, source: int, target: int) -> None:
    """Record that a replica was moved between these hosts, in the caller's transaction, and count it."""
    hosts = Host.objects.in_bulk([source, target])
    before, after = hosts.get(source), hosts.get(target)
    ReplicaMove.objects.create(
        model_id=model_id,
        number=number,
        source=before.name if before else "",
        target=after.name if after else "",
        cause=_find_cause(before),
        at=timezone.now(),
    )
    ControllerClaim.objects.update(moves=F("moves") + 1)
    _forget_oldest()


SCALING = (ReplicaMove.Cause.BUSY, ReplicaMove.Cause.QUIET, ReplicaMove.Cause.USELESS)


def record_scaling(model_id: int, number: int, *, host: int, cause: str) -> None:
    """Record that a model has one replica more or fewer, on this host. `cause`: one of SCALING. It makes no notice."""
    name = Host.objects.filter(pk=host).values_list("name", flat=True).first() or ""
    source, target = ("", name) if cause == ReplicaMove.Cause.BUSY else (name, "")
    now = timezone.now()
    where = {"source": source, "target": target}
    ReplicaMove.objects.create(model_id=model_id, number=number, cause=cause, at=now, notified_at=now, **where)
    _forget_oldest()


def _forget_oldest() -> None:
    old = list(ReplicaMove.objects.values_list("pk", flat=True)[MOST_MOVES:])
    if old:
        ReplicaMove.objects.filter(pk__in=old).delete()


def _find_cause(source: Host | None) -> str:
    if source is None or source.silent_since is not None:
        return ReplicaMove.Cause.SILENT
    return ReplicaMove.Cause.MAINTENANCE if source.maintenance else ReplicaMove.Cause.NO_PLACE


def read_moves(*, model: ServedModel | None = None, host: Host | None = None, limit: int = SHOWN) -> list[PastMove]:
    """Return the last moves, newest first: of a model, from or to a host, or all. One query."""
    rows = ReplicaMove.objects.select_related("model")
    if model is not None:
        rows = rows.filter(model=model)
    if host is not None:
        rows = rows.filter(Q(source=host.name) | Q(target=host.name))
    return [
        PastMove(
            at=row.at,
            model=row.model.name,
            number=row.number,
            source=row.source,
            target=row.target,
            cause=row.cause,
        )
        for row in rows[:limit]
    ]
