"""Management keys: a person's keys for `/api/v1/`. Issue, find, revoke.

Their texts are made and kept as those of API keys (see `keys.secret`), with a lead of their own: neither does what the
other is for.
"""

import math
import re
from collections.abc import Collection
from datetime import datetime, timedelta

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import Q, QuerySet
from django.utils import timezone
from django.utils.translation import gettext as _

from portal.accounts import permissions
from portal.accounts.models import User
from portal.accounts.timezones import zone_of
from portal.keys import lifecycle, secret
from portal.keys.models import ManagementKey
from portal.web.notify import notify
from portal.web.rest import scopes

PREFIX = "mdm_"
TEXT = re.compile(rf"{PREFIX}[0-9A-Za-z]{{{secret.LENGTH - len(PREFIX)}}}")
LONGEST = timedelta(days=366)  # a year, also a leap year
# How exactly `last_used_at` is kept: a program that calls all day costs one write a minute.
USE_NOTED = timedelta(minutes=1)

# Days before its end, and until when the next one will do.
WARNINGS = ((7, timedelta(days=1)), (1, timedelta()))


def issue_management_key(
    *, user: User, name: str, scopes_: Collection[str], expires_at: datetime
) -> tuple[ManagementKey, str]:
    """Return a new key and its text, which exists nowhere else: show it once.

    Raises ValidationError for scopes that the person could not use, for an expiry that is past or too far, and if there
    are as many keys as one person may have.
    """
    problems = {}
    if not scopes_ or not set(scopes_) <= {scope.name for scope in usable_scopes(user)}:
        problems["scopes"] = [_("Choose at least one of those that you may use yourself.")]
    if not timezone.now() < expires_at <= timezone.now() + LONGEST:
        problems["expires_at"] = [_("Choose a time within a year from now.")]
    if problems:
        raise ValidationError(problems)
    with transaction.atomic():
        list(User.objects.select_for_update().filter(pk=user.pk).values("pk"))  # one after the other
        if keys_of(user).filter(lifecycle.count_keys(timezone.now())).count() >= settings.KEYS_PER_PERSON:
            raise ValidationError(lifecycle.too_many(settings.KEYS_PER_PERSON))
        return _written(user, name, scopes_, expires_at)


def _written(user: User, name: str, scopes_: Collection[str], expires_at: datetime) -> tuple[ManagementKey, str]:
    text = secret.make_secret(PREFIX)
    key = ManagementKey(
        user=user,
        name=name,
        prefix=text[: secret.PREFIX_LENGTH],
        digest=secret.digest_of(text, settings.API_KEY_SECRET),
        scopes=[name for name in scopes.SCOPES if name in scopes_],
        expires_at=expires_at,
    )
    key.full_clean(exclude=["scopes", "expires_at"])
    key.save()
    return key, text


def revoke_management_key(by: User, key: ManagementKey) -> None:
    """End a key for good and at once; one's own, or as an operator. Revoking twice changes nothing."""
    if by != key.user:
        permissions.check_access(by)
    _end(key)


def _end(key: ManagementKey) -> None:
    if key.revoked_at is None:
        key.revoked_at = timezone.now()
        key.save(update_fields=["revoked_at"])


def revoke_leaked_management_key(key: ManagementKey) -> None:
    """End a key that somebody found where it must not be, and tell whose it is."""
    with transaction.atomic():
        _end(key)
        notify(
            [key.user], "management-key-found", key.prefix, path="/keys/management/", key=key.name, prefix=key.prefix
        )


def notify_expiring_management_keys(now: datetime) -> None:
    """Tell whose keys end within a week, and again within a day. Of short-lived ones it would be no news."""
    for days, until in WARNINGS:
        soon = timedelta(days=days)
        ending = ManagementKey.objects.filter(expires_at__gt=now + until, expires_at__lte=now + soon)
        for key in working(ending, now).select_related("user"):
            assert key.expires_at
            if key.expires_at - key.created_at > 2 * soon:
                notify(
                    [key.user],
                    "management-key-expires",
                    f"{key.prefix} {days} days",
                    path="/keys/management/",
                    key=key.name,
                    prefix=key.prefix,
                    days=math.ceil((key.expires_at - now) / timedelta(days=1)),
                    at=key.expires_at.astimezone(zone_of(key.user)),
                )


def keys_of(user: User) -> QuerySet[ManagementKey]:
    """This person's, newest first, with those that ended."""
    return ManagementKey.objects.filter(user=user)


def working(keys: QuerySet[ManagementKey], now: datetime) -> QuerySet[ManagementKey]:
    """Return those of the keys with which one could call now: not ended, and of an active person."""
    unexpired = Q(expires_at__isnull=True) | Q(expires_at__gt=now)
    return keys.filter(unexpired, revoked_at__isnull=True, user__is_active=True)


def find_management_key(text: str) -> ManagementKey | None:
    """Return the key of this text if it works now, with its person; notes its use. At most one write a minute."""
    if not secret.well_formed(text, PREFIX):
        return None
    now = timezone.now()
    held = ManagementKey.objects.filter(digest=secret.digest_of(text, settings.API_KEY_SECRET))
    key = working(held, now).select_related("user").first()
    if key is not None and (key.last_used_at is None or key.last_used_at <= now - USE_NOTED):
        # .update(): being used is no change that anybody decided, so it is no audit event.
        held.update(last_used_at=now)
    return key


def find_in_text(text: str) -> tuple[list[ManagementKey], int]:
    """Return our keys whose full text stands somewhere in this one.

    And how many more look like keys but are not ours.
    """
    texts = {word for word in TEXT.findall(text) if secret.well_formed(word, PREFIX)}
    digests = [secret.digest_of(word, settings.API_KEY_SECRET) for word in texts]
    keys = list(ManagementKey.objects.filter(digest__in=digests).select_related("user"))
    return keys, len(texts) - len(keys)


def usable_scopes(user: User) -> list[scopes.Scope]:
    """Return those with which this person's key could do something. One query."""
    reach = scopes.Audience.EVERYBODY
    if permissions.may_operate(user):
        reach = scopes.Audience.OPERATORS
    elif permissions.administered_tenants(user).exists():
        reach = scopes.Audience.TENANT_ADMINS
    return [scope for scope in scopes.SCOPES.values() if scope.audience.value <= reach.value]
