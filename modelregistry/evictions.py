"""Which models were unloaded for which others, and what that cost, for pages, the API and the terminal."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from django.db.models import Q

from modelregistry.models import EvictionRecord, Host, ServedModel

SHOWN = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class PastEviction:
    """As `EvictionRecord`, with names. Seconds that are None are not over, or not known."""

    at: datetime
    host: str
    model: str
    number: int
    successor: str
    calls: int
    waited_seconds: float
    drain_seconds: float | None
    load_seconds: float | None


def read_evictions(
    *, model: ServedModel | None = None, names: Collection[str] = (), host: Host | None = None, limit: int = SHOWN
) -> list[PastEviction]:
    """Return the last evictions, newest first: of a model or for it, of those of these names, on a host, or all.

    One query.
    """
    rows = EvictionRecord.objects.select_related("host", "model", "successor")
    if model is not None:
        rows = rows.filter(model=model) | rows.filter(successor=model)
    if names:
        rows = rows.filter(Q(model__name__in=names) | Q(successor__name__in=names))
    if host is not None:
        rows = rows.filter(host=host)
    return [
        PastEviction(
            at=row.at,
            host=row.host.name,
            model=row.model.name,
            number=row.index // row.model.nodes,
            successor=row.successor.name,
            calls=row.calls,
            waited_seconds=row.waited_seconds,
            drain_seconds=row.drain_seconds,
            load_seconds=row.load_seconds,
        )
        for row in rows[:limit]
    ]
