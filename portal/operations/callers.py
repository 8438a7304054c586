"""Who called a model of late: whom a stop would hit."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db.models import Count

from portal.metering.models import UsageRecord

DAY = timedelta(hours=24)


@dataclass(frozen=True, slots=True, kw_only=True)
class Callers:
    """Of the last 24 hours. `people`: owners of personal keys; service keys have none."""

    requests: int
    keys: int
    people: int
    tenants: int


def callers(model: str, now: datetime) -> Callers:
    """One query."""
    found = UsageRecord.objects.filter(model=model, started_at__gt=now - DAY).aggregate(
        requests=Count("pk"),
        keys=Count("key", distinct=True),
        people=Count("user", distinct=True),
        tenants=Count("tenant", distinct=True),
    )
    return Callers(**found)
