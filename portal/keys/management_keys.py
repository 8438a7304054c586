"""Management keys: a person's keys for `/api/v1/`. Issue, find and revoke them.

Their texts are made and stored like those of API keys (see `secret`), with a prefix of their own. Neither kind can be
used in place of the other.
"""

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
from portal.keys import lifecycle, secret, site_secrets
from portal.keys.models import ManagementKey
from portal.web.notify import notify
from portal.web.rest import scopes
from portal.web.row_locks import lock_row

LONGEST = timedelta(days=366)  # a year, also a leap year
# How exact `last_used_at` is: a program that calls all day costs one write a minute.
USE_RECORDED_EVERY = timedelta(minutes=1)


def issue_management_key(
    *, user: User, name: str, scopes_: Collection[str], expires_at: datetime
) -> tuple[ManagementKey, str]:
    """Return a new key and its text, which exists nowhere else: show it once.

    Raises ValidationError for scopes that the person could not use, for an expiry that is past or too far, and if there
    are as many keys as one person may have.
    """
    problems = {}
    if not scopes_ or not set(scopes_) <= {scope.name for scope in usable_scopes(user)}:
        problems["scopes"] = [_("Choose at least one of the scopes that you may use yourself.")]
    if not timezone.now() < expires_at <= timezone.now() + LONGEST:
        problems["expires_at"] = [_("Choose a time within a year from now.")]
    if problems:
        raise ValidationError(problems)
    with transaction.atomic():
        lock_row(User, user.pk)
        if keys_of(user).filter(lifecycle.counts_against_limit(timezone.now())).count() >= settings.KEYS_PER_PERSON:
            raise ValidationError(lifecycle.limit_sentence(settings.KEYS_PER_PERSON))
        chosen = [name for name in scopes.SCOPES if name in scopes_]
        key = ManagementKey(user=user, name=name, scopes=chosen, expires_at=expires_at)
        text = key.assign_text()
        key.full_clean(exclude=["scopes", "expires_at"])
        key.save()
        return key, text


def revoke_management_key(by: User, key: ManagementKey) -> None:
    """Revoke a key for good and at once; one's own, or as an operator. Revoking twice changes nothing."""
    if by != key.user:
        permissions.check_access(by)
    _revoke(key)


def _revoke(key: ManagementKey) -> None:
    if key.revoked_at is None:
        key.revoked_at = timezone.now()
        key.save(update_fields=["revoked_at"])


def revoke_leaked_management_key(key: ManagementKey) -> None:
    """Revoke a key that was found in the wrong place, and notify its person."""
    with transaction.atomic():
        _revoke(key)
        notify(
            [key.user], "management-key-found", key.prefix, path="/keys/management/", key=key.name, prefix=key.prefix
        )


def keys_of(user: User) -> QuerySet[ManagementKey]:
    """Return the keys of this person, newest first, including expired and revoked ones."""
    return ManagementKey.objects.filter(user=user)


def usable(keys: QuerySet[ManagementKey], now: datetime) -> QuerySet[ManagementKey]:
    """Return those of the keys that work now: neither expired nor revoked, and of an active person."""
    unexpired = Q(expires_at__isnull=True) | Q(expires_at__gt=now)
    return keys.filter(unexpired, revoked_at__isnull=True, user__is_active=True)


def find_management_key(text: str) -> ManagementKey | None:
    """Return the key with this text if it works now, with its person, and record its use at most once a minute."""
    if not secret.is_well_formed(text, secret.MANAGEMENT_PREFIX):
        return None
    now = timezone.now()
    digests = site_secrets.digests_of(text)
    key = usable(ManagementKey.objects.filter(digest__in=digests), now).select_related("user").first()
    if key is not None and key.digest != digests[0]:
        site_secrets.renew_digest(ManagementKey, key.pk, digests)
    if key is not None and (key.last_used_at is None or key.last_used_at <= now - USE_RECORDED_EVERY):
        # .update(): use is not a change that a person decided on, so it is no audit event.
        ManagementKey.objects.filter(pk=key.pk).update(last_used_at=now)
    return key


def usable_scopes(user: User) -> list[scopes.Scope]:
    """Return the scopes with which this person's key could do something. One query."""
    reach = scopes.Audience.EVERYBODY
    if permissions.may_operate(user):
        reach = scopes.Audience.OPERATORS
    elif permissions.administered_tenants(user).exists():
        reach = scopes.Audience.TENANT_ADMINS
    return [scope for scope in scopes.SCOPES.values() if scope.audience.value <= reach.value]
