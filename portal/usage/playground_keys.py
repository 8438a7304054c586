"""Playground keys that were never used."""

from datetime import datetime

from django.db.models import Exists, OuterRef

from portal.keys.models import ApiKey
from portal.keys.playground import SETTLED
from portal.usage.models import RejectionHour, UsageDay, UsageRecord


def delete_unused(now: datetime) -> int:
    """Delete the expired keys without any call and return how many; usage refers to the others."""
    unused = ApiKey.objects.filter(is_playground=True, expires_at__lte=now - SETTLED)
    for model in (UsageRecord, UsageDay, RejectionHour):
        unused = unused.filter(~Exists(model.objects.filter(key=OuterRef("pk"))))
    found = list(unused)
    for key in found:
        key.delete()  # one by one: gateways are notified of each
    return len(found)
