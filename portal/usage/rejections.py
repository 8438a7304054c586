"""How many calls gateways refused, by hour and by why: written in sums, read for pages."""

from collections import defaultdict
from collections.abc import Mapping
from datetime import date, datetime, time, timedelta
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from django.db import connection, transaction
from django.db.models import QuerySet, Sum

from portal.usage.models import RefusalHour
from portal.usage.rollups import Calendar, Group, upsert


class RejectionTotals(NamedTuple):
    """A group of refused calls; `hour` aware, the beginning of a quarter of an hour. Else as RefusalHour."""

    hour: datetime
    tenant: int
    user: int | None
    key: int
    model: str
    code: str


def add_rejections(counts: Mapping[RejectionTotals, int]) -> None:
    """Add so many calls of each group to what is there, in one transaction."""
    calendar = Calendar()
    groups: dict[Group, list[int]] = defaultdict(lambda: [0])
    for group, requests in counts.items():
        piece = calendar.piece(group.hour)
        groups[group.key, piece, group.model, group.code, group.tenant, group.user][0] += requests
    unique, more = ("key_id", "hour", "model", "code"), ("tenant_id", "user_id")
    with transaction.atomic(), connection.cursor() as cursor:
        upsert(cursor, RefusalHour, unique, more, groups, ("requests",))


def rejections_within(rows: QuerySet[RefusalHour], first: date, last: date, zone: ZoneInfo) -> QuerySet[RefusalHour]:
    """Return those of these days of a calendar, both included.

    Where the day begins within an hour that was counted as one (no zone needed less then), it is the day before's.
    """
    begin = datetime.combine(first, time(), zone)
    end = datetime.combine(last + timedelta(days=1), time(), zone)
    return rows.filter(hour__gte=begin, hour__lt=end)


def rejections_by_code(rows: QuerySet[RefusalHour]) -> list[tuple[str, int]]:
    """Return codes and how many calls were refused for each, the most frequent first. One query."""
    found = rows.values("code").annotate(sum=Sum("requests")).order_by("-sum", "code")
    return [(row["code"], row["sum"]) for row in found]


def rejections_by(rows: QuerySet[RefusalHour], *fields: str) -> list[dict[str, Any]]:
    """`requests` by these fields. One query."""
    return [dict(row) for row in rows.values(*fields).annotate(requests=Sum("requests")).order_by(*fields)]
