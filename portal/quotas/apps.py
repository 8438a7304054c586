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

        key_replaced.connect(copy_quotas, dispatch_uid="copy quotas")

        tracking.track(Quota, "quota", tenant=tenant_of, name=quota_name)
        tracking.track(QuotaRequest, "request", tenant=tenant_of, name=quota_name, verb=decided)


def tenant_of(quota: Any) -> Any:
    """Whose admins read of it. None: of a person wherever, or of each tenant, which operators give."""
    return quota.key.tenant if quota.key else quota.tenant


def quota_name(quota: Any) -> str:
    """As "sales · tanaka: tokens / day, qwen"; codes, for events are read in either language."""
    owners = [quota.tenant and quota.tenant.slug, quota.user and quota.user.get_username(), quota.key]
    owners.append(f"each {quota.default_for}" if getattr(quota, "default_for", "") else "")
    what = f"{quota.unit} / {quota.window}" if quota.window else quota.unit
    return f"{' · '.join(str(owner) for owner in owners if owner)}: {what}{f', {quota.model}' if quota.model else ''}"


def decided(before: dict[str, Any], after: dict[str, Any]) -> str:
    """ "granted", "refused" or "withdrawn"."""
    return str(after.get("state", "change"))
