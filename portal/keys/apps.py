from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class KeysConfig(AppConfig):
    name = "portal.keys"
    verbose_name = _("API keys")

    def ready(self) -> None:
        from portal.accounts import audit
        from portal.keys.models import ApiKey, ManagementKey

        audit.watch(
            ApiKey,
            "key",
            secret={"digest"},
            silent={"last_used_at"},
            tenant=lambda key: key.tenant,
            verb=lambda before, after: "revoke" if "revoked_at" in after else "change",
        )
        audit.watch(
            ManagementKey,
            "management-key",
            secret={"digest"},
            silent={"last_used_at"},
            verb=lambda before, after: "revoke" if "revoked_at" in after else "change",
        )
