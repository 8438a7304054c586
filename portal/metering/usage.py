"""Record usage and ask for it: batches in, sums and series out."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Literal

from django.db import transaction
from django.db.models import Count, F, QuerySet, Sum
from django.db.models.functions import TruncDate

from portal.accounts.models import User
from portal.keys.models import ApiKey
from portal.metering.models import UsageRecord

Grouping = Literal["tenant", "user", "key", "model", "day"]
SUMS = {
    "requests": Count("id"),
    "prompt_tokens": Sum("prompt_tokens", default=0),
    "completion_tokens": Sum("completion_tokens", default=0),
}


def record(rows: Iterable[UsageRecord]) -> None:
    """Writes a batch in one transaction. A request id that is already there is left as it is, so repeating is safe."""
    rows = list(rows)
    used: dict[int, datetime] = {}
    for row in rows:
        used[row.key_id] = max(row.started_at, used.get(row.key_id, row.started_at))
    with transaction.atomic():
        UsageRecord.objects.bulk_create(rows, ignore_conflicts=True)
        for key_id, at in used.items():
            # .update(): `last_used_at` is no part of the gateway's catalogue and must not bump its revision.
            ApiKey.objects.filter(pk=key_id).exclude(last_used_at__gte=at).update(last_used_at=at)


def visible_to(user: User) -> QuerySet[UsageRecord]:
    """The usage that belongs to this person: what their own keys used."""
    return UsageRecord.objects.filter(user=user)


def by(records: QuerySet[UsageRecord], *fields: str) -> list[dict[str, Any]]:
    """Requests and tokens of these records, grouped by fields, with `total_tokens` in each row."""
    rows = records.values(*fields).annotate(**SUMS).annotate(total_tokens=F("prompt_tokens") + F("completion_tokens"))
    return list(rows.order_by(*fields))


def by_day_and_model(records: QuerySet[UsageRecord], zone: Any) -> list[dict[str, Any]]:
    """As `by`, with `day` (a date in `zone`) and `model`."""
    return by(records.annotate(day=TruncDate("started_at", tzinfo=zone)), "day", "model")
