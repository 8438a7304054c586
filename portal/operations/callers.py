"""Who called models of late: whom a stop would hit."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db.models import Count

from portal.usage.models import UsageRecord

DAY = timedelta(hours=24)


@dataclass(frozen=True, slots=True, kw_only=True)
class Callers:
    """Of the last 24 hours. `people`: owners of personal keys; service keys have none."""

    requests: int
    keys: int
    people: int
    tenants: int


NOBODY = Callers(requests=0, keys=0, people=0, tenants=0)


def callers(model: str, now: datetime) -> Callers:
    """Of one model. One query."""
    return callers_of([model], now)[model]


def callers_of(models: Collection[str], now: datetime) -> dict[str, Callers]:
    """By the model's name, also of those that nobody called. One query."""
    rows = UsageRecord.objects.filter(model__in=models, started_at__gt=now - DAY).values("model")
    found = rows.annotate(
        requests=Count("pk"),
        keys=Count("key", distinct=True),
        people=Count("user", distinct=True),
        tenants=Count("tenant", distinct=True),
    )
    known = {
        model: Callers(requests=requests, keys=keys, people=people, tenants=tenants)
        for model, requests, keys, people, tenants in found.order_by().values_list(
            "model", "requests", "keys", "people", "tenants"
        )
    }
    return {name: known.get(name, NOBODY) for name in models}
