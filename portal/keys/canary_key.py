"""The key with which the canary calls the gateway, of a tenant of its own: no other one's totals contain its calls.

One permanent row, so that its usage stays one sum. Its text is never stored: each session of the canary gets a new one,
which replaces the one before, and ends with a text that no one knows.
"""

from django.db import transaction

from portal.accounts.models import INTERNAL_TENANTS, Tenant
from portal.keys.models import ApiKey

(TENANT,) = INTERNAL_TENANTS
NAME = "canary"


def own_tenant() -> Tenant:
    tenant, _ = Tenant.objects.get_or_create(slug=TENANT, defaults={"name": "Madoguchi (canary)", "key_days": None})
    return tenant


def lock_key() -> None:
    """Let others that would renew the key wait for the end of this transaction."""
    Tenant.objects.select_for_update().get(pk=own_tenant().pk)


def renew_key(name: str = NAME) -> str:
    """Return the new text of the key of this name; the text before stops working within one catalogue poll.

    Each kind of check has a key of its own, so that none takes another's away. One that operators revoked is never used
    again: there is a new one then. An inactive tenant keeps all from working.
    """
    with transaction.atomic():
        mine = {"tenant": own_tenant(), "key_class": ApiKey.Class.CANARY}
        key = ApiKey.objects.filter(**mine, name=name, revoked_at=None).first()
        key = key or ApiKey(**mine, name=name, service=name, loop_guard=False)
        text = key.assign_text()
        key.save()
    return text
