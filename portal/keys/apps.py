from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class KeysConfig(AppConfig):
    name = "portal.keys"
    verbose_name = _("API keys")

    def ready(self) -> None:
        from portal.audit import tracking
        from portal.keys.models import ApiKey, ManagementKey

        tracking.track(
            ApiKey,
            "key",
            secret={"digest"},
            ignored={"last_used_at", "last_used_from", "last_used_with"},
            tenant=lambda key: key.tenant,
            verb=lambda before, after: "revoke" if "revoked_at" in after else "change",
            # `playground` records its own events; a revocation is recorded as with any key.
            is_skipped=lambda key: key.is_playground and key.revoked_at is None,
        )
        tracking.track(
            ManagementKey,
            "management-key",
            secret={"digest"},
            ignored={"last_used_at"},
            verb=lambda before, after: "revoke" if "revoked_at" in after else "change",
        )
