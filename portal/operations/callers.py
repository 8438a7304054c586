"""Who has called models recently, and would be affected by a stop."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db.models import Count

from portal.usage.models import UsageRecord

DAY = timedelta(hours=24)


@dataclass(frozen=True, slots=True, kw_only=True)
class Callers:
    """The callers of the last 24 hours. `people`: owners of personal keys; service keys have none."""

    requests: int
    keys: int
    people: int
    tenants: int


NO_CALLERS = Callers(requests=0, keys=0, people=0, tenants=0)


def count_callers(model: str, now: datetime) -> Callers:
    """Count the callers of one model. One query."""
    return count_callers_by_model([model], now)[model]


def count_callers_by_model(models: Collection[str], now: datetime) -> dict[str, Callers]:
    """Count callers by the model's name, also of models without calls. One query."""
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
    return {name: known.get(name, NO_CALLERS) for name in models}
