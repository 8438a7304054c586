"""The key with which the page for trying models calls the gateway in a person's name.

Each person has one in each of their tenants: one row for good, so that what was used through it stays one sum. Only
its text changes: each visit of the page gets a new one, which the browser holds in the page's memory and which ends the
one before. Such keys are not listed among a person's keys; quotas and usage are the person's, as with any other.
"""

from datetime import datetime, timedelta

from django.conf import settings
from django.db import transaction

from portal.accounts.models import Membership, Tenant, User
from portal.audit import tracking
from portal.keys import secret
from portal.keys.lifecycle import NotAMember
from portal.keys.models import ApiKey

NAME = "playground"
# As long as somebody may talk with a model at one sitting; after that the page asks for another by itself.
LIFE = timedelta(hours=4)
# A call may outlive the key that it came with, and its usage waits in a gateway's spool while the database is away.
SETTLED = timedelta(days=1)


def renew_key(user: User, tenant: Tenant, now: datetime) -> tuple[str, datetime]:
    """Return the key's new text and when it expires. The text before stops working within one catalogue poll.

    Audited once for a sitting: not while the text before would still work. Raises NotAMember.
    """
    text = secret.make_secret()
    with transaction.atomic():
        # Two windows of one person queue here, or both would make a row.
        if not list(Membership.objects.select_for_update().filter(user=user, tenant=tenant, tenant__is_active=True)):
            raise NotAMember(f"{user.get_username()} is not a member of {tenant.slug}")
        mine = {"user": user, "tenant": tenant, "is_playground": True}
        # One that was revoked, because somebody found its text, is never used again.
        key = ApiKey.objects.filter(**mine, revoked_at=None).first() or ApiKey(**mine, name=NAME, created_by=user)
        begins = key.expires_at is None or key.expires_at <= now
        key.prefix, key.digest = text[: secret.PREFIX_LENGTH], secret.digest_of(text, settings.API_KEY_SECRET)
        key.expires_at = now + LIFE
        key.save()
        if begins:
            tracking.record_event("key.playground", key, "key", tenant=tenant, after={"expires_at": key.expires_at})
    return text, key.expires_at
