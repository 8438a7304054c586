from typing import Any

from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class QuotasConfig(AppConfig):
    name = "portal.quotas"
    verbose_name = _("Quotas")

    def ready(self) -> None:
        from portal.audit import tracking
        from portal.keys.signals import key_replaced
        from portal.quotas.models import Quota, QuotaRequest
        from portal.quotas.receivers import copy_quotas
        from portal.quotas.search import KIND
        from portal.web import search

        search.register(KIND)
        key_replaced.connect(copy_quotas, dispatch_uid="copy quotas")

        tracking.track(Quota, "quota", tenant=tenant_of, name=quota_name)
        tracking.track(QuotaRequest, "request", tenant=tenant_of, name=quota_name, verb=verb_of_change)


def tenant_of(quota: Any) -> Any:
    """Return the tenant whose admins may read of it; None: operators set it, for a person or for each tenant."""
    return quota.key.tenant if quota.key else quota.tenant


def quota_name(quota: Any) -> str:
    """Return it as "sales · tanaka: tokens / day, qwen": codes, because events are read in either language."""
    owners = [quota.tenant and quota.tenant.slug, quota.user and quota.user.get_username(), quota.key]
    owners.append(f"each {quota.default_for}" if getattr(quota, "default_for", "") else "")
    what = f"{quota.unit} / {quota.window}" if quota.window else quota.unit
    return f"{' · '.join(str(owner) for owner in owners if owner)}: {what}{f', {quota.model}' if quota.model else ''}"


def verb_of_change(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Return the verb of a change: "granted", "refused", "withdrawn" or "change"."""
    return str(after.get("state", "change"))
