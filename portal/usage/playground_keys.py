"""Playground keys that nobody used."""

from datetime import datetime

from django.db.models import Exists, OuterRef

from portal.keys.models import ApiKey
from portal.keys.playground import SETTLED
from portal.usage.models import RejectionHour, UsageDay, UsageRecord


def delete_expired(now: datetime) -> int:
    """Delete the expired ones with which nobody ever called, and say how many. The others name what was used."""
    unused = ApiKey.objects.filter(is_playground=True, expires_at__lte=now - SETTLED)
    for told in (UsageRecord, UsageDay, RejectionHour):
        unused = unused.filter(~Exists(told.objects.filter(key=OuterRef("pk"))))
    found = list(unused)
    for key in found:
        key.delete()  # one by one: gateways are told of each
    return len(found)
