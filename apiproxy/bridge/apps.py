"""Tells gateways of every change that their catalogue must follow."""

from collections.abc import Callable
from typing import Any

from django.apps import AppConfig
from django.core.checks import register
from django.db import models, transaction
from django.db.models import F
from django.db.models.signals import m2m_changed, post_delete, post_save

Change = tuple[str, int]  # CatalogueChange.kind and .object_id

# A gateway that is further behind loads everything.
CHANGES_KEPT = 1000
# A sign-in saves only this, and no catalogue holds it.
NO_NEWS = frozenset({"last_login"})


def affected_tenant(quota: Any) -> Change:
    """Whose keys a quota may bind. A member's is told as the person's: a few keys, where the tenant has thousands."""
    if quota.each == "tenant":
        return "all", 0
    if quota.user_id:
        return "user", quota.user_id
    return ("tenant", quota.tenant_id) if quota.tenant_id else ("key", quota.key_id)


# What a catalogue is made of. `QuerySet.update()` on these sends no signal: save rows one by one.
WATCHED: dict[str, Callable[[Any], Change]] = {
    "accounts.Tenant": lambda tenant: ("tenant", tenant.pk),
    "accounts.User": lambda user: ("user", user.pk),
    "accounts.Membership": lambda membership: ("user", membership.user_id),
    "keys.ApiKey": lambda key: ("key", key.pk),
    "keys.ModelAccess": lambda _: ("models", 0),
    "quotas.Quota": affected_tenant,
    "modelregistry.Alias": lambda _: ("models", 0),
    "modelregistry.ServedModel": lambda _: ("models", 0),
    "modelregistry.Replica": lambda _: ("models", 0),
}


def record_change(instance: models.Model, update_fields: frozenset[str] | None = None, **_: Any) -> None:
    """A receiver: a new revision, as part of the sender's transaction, so that nobody looks before it commits.

    Its row is locked until then, so revisions become visible in their order and none is ever missed.
    """
    if update_fields is not None and update_fields <= NO_NEWS:
        return
    from apiproxy.bridge.models import CatalogueChange, CatalogueRevision

    kind, object_id = WATCHED[instance._meta.label](instance)
    with transaction.atomic():
        if not CatalogueRevision.objects.filter(pk=1).update(number=F("number") + 1):
            CatalogueRevision.objects.get_or_create(pk=1, defaults={"number": 1})
        number = CatalogueRevision.objects.values_list("number", flat=True).get(pk=1)
        CatalogueChange.objects.create(revision=number, kind=kind, object_id=object_id)
        CatalogueChange.objects.filter(revision__lte=number - CHANGES_KEPT).delete()


class ApiProxyConfig(AppConfig):
    name = "apiproxy.bridge"
    label = "apiproxy"

    def ready(self) -> None:
        from apiproxy.bridge.checks import gateway_settings

        register(gateway_settings)
        for label in WATCHED:
            post_save.connect(record_change, sender=label, dispatch_uid=f"tell-save-{label}")
            post_delete.connect(record_change, sender=label, dispatch_uid=f"tell-delete-{label}")
        from portal.keys.models import ApiKey

        m2m_changed.connect(record_change, sender=ApiKey.allowed_models.through, dispatch_uid="tell-key-models")
