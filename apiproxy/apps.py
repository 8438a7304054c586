"""Bumps the catalogue's revision with every change that gateways must know."""

from typing import Any

from django.apps import AppConfig
from django.db.models import F
from django.db.models.signals import m2m_changed, post_delete, post_save

# What a catalogue is made of. `QuerySet.update()` on these sends no signal: save rows, or call `bump()`.
WATCHED = (
    "accounts.Tenant",
    "accounts.User",
    "accounts.Membership",
    "keys.ApiKey",
    "keys.ModelAccess",
    "metering.Quota",
    "modelregistry.ServedModel",
    "modelregistry.Replica",
)


# A sign-in saves only this, and no catalogue holds it.
NO_NEWS = frozenset({"last_login"})


def bump(update_fields: frozenset[str] | None = None, **_: Any) -> None:
    """Tells every gateway to look again; part of the caller's transaction, so nobody looks before it commits."""
    if update_fields is not None and update_fields <= NO_NEWS:
        return
    from apiproxy.models import CatalogueRevision

    if not CatalogueRevision.objects.filter(pk=1).update(number=F("number") + 1):
        CatalogueRevision.objects.get_or_create(pk=1, defaults={"number": 1})


class ApiProxyConfig(AppConfig):
    name = "apiproxy"

    def ready(self) -> None:
        for label in WATCHED:
            post_save.connect(bump, sender=label, dispatch_uid=f"bump-save-{label}")
            post_delete.connect(bump, sender=label, dispatch_uid=f"bump-delete-{label}")
        from portal.keys.models import ApiKey

        m2m_changed.connect(bump, sender=ApiKey.allowed_models.through, dispatch_uid="bump-key-models")
