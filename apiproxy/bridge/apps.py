"""Records every change that gateways' catalogues must follow."""

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
# A sign-in saves only this field, and no catalogue holds it.
IGNORED_FIELDS = frozenset({"last_login"})


def quota_change(quota: Any) -> Change:
    """Return whose keys a quota may bind.

    A member's is recorded as the person's: a few keys, where the tenant has thousands.
    """
    if quota.default_for == "tenant":
        return "all", 0
    if quota.user_id:
        return "user", quota.user_id
    return ("tenant", quota.tenant_id) if quota.tenant_id else ("key", quota.key_id)


# The models of which a catalogue is made. `QuerySet.update()` on these sends no signal: save rows one by one.
WATCHED: dict[str, Callable[[Any], Change]] = {
    "accounts.Tenant": lambda tenant: ("tenant", tenant.pk),
    "accounts.User": lambda user: ("user", user.pk),
    "accounts.Membership": lambda membership: ("user", membership.user_id),
    "keys.ApiKey": lambda key: ("key", key.pk),
    "keys.ClassWeight": lambda _: ("all", 0),
    "keys.ModelAccess": lambda _: ("models", 0),
    "quotas.Quota": quota_change,
    "modelregistry.Alias": lambda _: ("models", 0),
    "modelregistry.ServedModel": lambda _: ("models", 0),
    "modelregistry.Replica": lambda _: ("models", 0),
}


def record_change(instance: models.Model, update_fields: frozenset[str] | None = None, **_: Any) -> None:
    """Write a new revision (a signal receiver).

    It is part of the sender's transaction, so that no gateway looks before that commits. Its row is locked until then,
    so revisions become visible in their order and none is ever missed.
    """
    if update_fields is not None and update_fields <= IGNORED_FIELDS:
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
        from apiproxy.bridge.checks import check_gateway_settings

        register(check_gateway_settings)
        for label in WATCHED:
            post_save.connect(record_change, sender=label, dispatch_uid=f"catalogue-save-{label}")
            post_delete.connect(record_change, sender=label, dispatch_uid=f"catalogue-delete-{label}")
        from apiproxy.bridge.machines import report_controller
        from modelregistry.controller.reporting import controller_runs
        from portal.keys.models import ApiKey

        controller_runs.connect(report_controller, dispatch_uid="controller-machine")
        m2m_changed.connect(record_change, sender=ApiKey.allowed_models.through, dispatch_uid="catalogue-key-models")
