"""How many calls gateways rejected, by hour and by reason: written as sums; pages read them through `report`."""

from collections import defaultdict
from collections.abc import Mapping
from datetime import datetime
from typing import NamedTuple

from django.db import connection, transaction

from portal.usage.models import RejectionHour
from portal.usage.rollups import Calendar, Group, upsert


class RejectionTotals(NamedTuple):
    """A group of rejected calls. `hour`: aware, the beginning of a quarter of an hour; the rest as in RejectionHour."""

    hour: datetime
    tenant: int
    user: int | None
    key: int
    model: str
    code: str


def add_rejections(counts: Mapping[RejectionTotals, int]) -> None:
    """Add the number of calls of each group to the sums, in one transaction."""
    calendar = Calendar()
    groups: dict[Group, list[int]] = defaultdict(lambda: [0])
    for group, requests in counts.items():
        hour = calendar.find_interval(group.hour)
        groups[group.key, hour, group.model, group.code, group.tenant, group.user][0] += requests
    unique, further = ("key_id", "hour", "model", "code"), ("tenant_id", "user_id")
    with transaction.atomic(), connection.cursor() as cursor:
        upsert(cursor, RejectionHour, groups, unique=unique, further=further, counters=("requests",))
