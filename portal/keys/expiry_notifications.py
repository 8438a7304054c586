"""Notify people of keys that expire, and of service keys without a responsible person.

No notice is sent twice, so this may run as often as one likes.
"""

import math
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import TypeVar

from django.db.models import Q, QuerySet

from portal.accounts.permissions import admins_of, operators
from portal.accounts.timezones import zone_of
from portal.keys import management_keys
from portal.keys.lifecycle import recipients
from portal.keys.models import ApiKey, ManagementKey
from portal.keys.queries import responsible_is_member
from portal.web.notify import notify
from portal.web.templatetags.formatting import person

AnyKey = TypeVar("AnyKey", ApiKey, ManagementKey)

# Days before the expiry, and until when before it: then the next warning is due. A key that lives no longer than twice
# so many days needs no warning.
WARNINGS = ((7, timedelta(days=1)), (1, timedelta()))
# A person who has not noticed in this time does not need the key.
LATE = timedelta(days=7)


def notify_expiring(now: datetime) -> None:
    """Notify people of API keys that will expire and that expired lately, except replaced ones."""
    for key, warning, days in _warnings(without_successor(ApiKey.objects.usable()), now):
        _notify_of_expiry(key, "key-expires", warning, days=days)
    expired = ApiKey.objects.filter(
        Q(user=None) | Q(user__is_active=True), revoked_at=None, expires_at__gt=now - LATE, expires_at__lte=now
    )
    for key in without_successor(expired):
        _notify_of_expiry(key, "key-expired", "end")


def notify_expiring_management_keys(now: datetime) -> None:
    """Notify people of their management keys that will expire."""
    keys = management_keys.usable(ManagementKey.objects.select_related("user"), now)
    for key, warning, days in _warnings(keys, now):
        assert key.expires_at
        notify(
            [key.user],
            "management-key-expires",
            f"{key.prefix} {warning}",
            path="/keys/management/",
            key=key.name,
            prefix=key.prefix,
            days=days,
            at=key.expires_at.astimezone(zone_of(key.user)),
        )


def _warnings(keys: QuerySet[AnyKey], now: datetime) -> Iterator[tuple[AnyKey, str, int]]:
    """Yield the keys to warn of, each with the name of the warning and the days until it expires."""
    for days, until in WARNINGS:
        soon = timedelta(days=days)
        for key in keys.filter(expires_at__gt=now + until, expires_at__lte=now + soon):
            assert key.expires_at
            if key.expires_at - key.created_at > 2 * soon:
                yield key, f"{days} days", math.ceil((key.expires_at - now) / timedelta(days=1))


def without_successor(keys: QuerySet[ApiKey]) -> QuerySet[ApiKey]:
    """Return the keys without a working successor: people with one were notified of the expiry, and acted on it."""
    successors = ApiKey.objects.filter(replaces__isnull=False, revoked_at=None).values("replaces")
    return keys.filter(is_playground=False).exclude(pk__in=successors).select_related("tenant", "user", "responsible")


def notify_responsible_left() -> None:
    """Notify a tenant's admins, else operators, of service keys whose responsible person has left the tenant."""
    keys = ApiKey.objects.usable().filter(~responsible_is_member(), user=None, responsible__isnull=False)
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


def _notify_of_expiry(key: ApiKey, kind: str, warning: str, **facts: object) -> None:
    assert key.expires_at
    notify(
        recipients(key),
        kind,
        # The expiry is part of it: once it is changed, the notice is sent again.
        f"{key.prefix} {warning} {key.expires_at:%Y-%m-%dT%H:%M}",
        path=f"/keys/{key.prefix}/",
        key=key.name,
        prefix=key.prefix,
        tenant=key.tenant.name,
        # The last moment of its life, so that a key that expires at midnight expires on the day before.
        at=(key.expires_at - timedelta(seconds=1)).astimezone(key.tenant.zone),
        **facts,
    )
