"""Whom to tell that a key ends, and that nobody is responsible for one any more. What was told is not told again, so
this may run as often as one likes."""

import math
from datetime import datetime, timedelta

from django.db.models import Q, QuerySet

from portal.accounts.permissions import admins_of, operators
from portal.keys.lifecycle import recipients
from portal.keys.models import ApiKey
from portal.keys.queries import responsible_is_here
from portal.web.notify import notify
from portal.web.templatetags.formatting import person

# Days before its end, and until when the next one will do. Of a key that lives no longer than twice so many days it
# would be no news.
WARNINGS = ((7, timedelta(days=1)), (1, timedelta()))
# Whoever has not noticed in this time does not need the key.
LATE = timedelta(days=7)


def notify_expiring(now: datetime) -> None:
    """Tell of keys that will end, and of those that have ended since a while. Not of those that were replaced."""
    for days, until in WARNINGS:
        soon = timedelta(days=days)
        ending = ApiKey.objects.usable().filter(expires_at__gt=now + until, expires_at__lte=now + soon)
        for key in unreplaced(ending):
            assert key.expires_at
            if key.expires_at - key.created_at > 2 * soon:
                left = math.ceil((key.expires_at - now) / timedelta(days=1))
                _tell(key, "key-expires", f"{days} days", days=left)
    ended = ApiKey.objects.filter(
        Q(user=None) | Q(user__is_active=True), revoked_at=None, expires_at__gt=now - LATE, expires_at__lte=now
    )
    for key in unreplaced(ended):
        _tell(key, "key-expired", "end")


def unreplaced(keys: QuerySet[ApiKey]) -> QuerySet[ApiKey]:
    """Who has a successor that works has heard of the end, and decided on it."""
    successors = ApiKey.objects.filter(replaces__isnull=False, revoked_at=None).values("replaces")
    return keys.filter(is_playground=False).exclude(pk__in=successors).select_related("tenant", "user", "responsible")


def notify_responsible_left() -> None:
    """Tell a tenant's admins of service keys whose responsible person is no longer there; operators if none is."""
    keys = ApiKey.objects.usable().filter(~responsible_is_here(), user=None, responsible__isnull=False)
    for key in keys.select_related("tenant", "responsible"):
        notify(
            list(admins_of(key.tenant)) or operators(),
            "responsible-left",
            f"{key.prefix} {key.responsible_id}",
            path=f"/keys/{key.prefix}/",
            key=key.name,
            prefix=key.prefix,
            tenant=key.tenant.name,
            person=person(key.responsible) if key.responsible else "",
        )


def _tell(key: ApiKey, kind: str, what: str, **facts: object) -> None:
    assert key.expires_at
    notify(
        recipients(key),
        kind,
        # Its end is part of it: whoever moves it is told anew.
        f"{key.prefix} {what} {key.expires_at:%Y-%m-%dT%H:%M}",
        path=f"/keys/{key.prefix}/",
        key=key.name,
        prefix=key.prefix,
        tenant=key.tenant.name,
        # The last moment of it, so that a key that ends at midnight ends on the day before
        at=(key.expires_at - timedelta(seconds=1)).astimezone(key.tenant.zone),
        **facts,
    )
