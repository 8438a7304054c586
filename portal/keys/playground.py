"""The key with which the playground calls the gateway in a person's name.

Each person has one in each of their tenants: one permanent row, so that its usage stays one sum. Only its text
changes: each visit of the page gets a new one, which the browser holds in the page's memory and which replaces the one
before. Such keys are not listed among a person's keys. Quotas and usage are the person's, as with any other key.
"""

from datetime import datetime, timedelta

from django.db import transaction
from django.utils.translation import gettext as _

from portal.accounts.models import Membership, Tenant, User
from portal.audit import tracking
from portal.keys.lifecycle import NotAMember
from portal.keys.models import ApiKey
from portal.keys.signals import playground_key_renewed

NAME = "playground"
# As long as a person may talk with a model in one session; after that the page requests another text by itself.
LIFE = timedelta(hours=4)
# A call may outlive the key that it came with, and its usage waits in a gateway's spool while the database is away.
SETTLED = timedelta(days=1)


def renew_key(user: User, tenant: Tenant, now: datetime) -> tuple[str, datetime]:
    """Return the key's new text and when it expires. The text before stops working within one catalogue poll.

    Recorded in the audit once a session: not while the text before would still work. Raises NotAMember.
    """
    with transaction.atomic():
        # Two windows of one person queue here, or both would make a row.
        if not list(Membership.objects.select_for_update().filter(user=user, tenant=tenant, tenant__is_active=True)):
            raise NotAMember(_("You do not belong to %(tenant)s.") % {"tenant": tenant.name})
        mine = {"user": user, "tenant": tenant, "is_playground": True}
        # One that was revoked, because its text leaked, is never used again. What was used with it counts on.
        key = ApiKey.objects.filter(**mine, revoked_at=None).first()
        if key is None:
            revoked = ApiKey.objects.filter(**mine, replaced_by=None).order_by("pk").last()
            key = ApiKey(**mine, name=NAME, created_by=user, replaces=revoked)
        is_new_session = key.expires_at is None or key.expires_at <= now
        text = key.assign_text()
        key.expires_at = now + LIFE
        key.save()
        playground_key_renewed.send(sender=None, key=key)
        if is_new_session:
            tracking.record_event("key.playground", key, "key", tenant=tenant, after={"expires_at": key.expires_at})
    return text, key.expires_at
