from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class KeysConfig(AppConfig):
    name = "portal.keys"
    verbose_name = _("API keys")

    def ready(self) -> None:
        from portal.audit import tracking
        from portal.keys.models import ApiKey, ClassWeight, ManagementKey
        from portal.keys.search import KIND
        from portal.web import search

        search.register(KIND)
        tracking.track(
            ApiKey,
            "key",
            secret={"digest", "end_user_nonce"},
            ignored={"last_used_at", "last_used_from", "last_used_with", "digest_under"},
            tenant=lambda key: key.tenant,
            verb=lambda before, after: "revoke" if "revoked_at" in after else "change",
            # `playground` records its own events, and the canary's key has a new text for each session; a revocation is
            # recorded as with any key.
            is_skipped=lambda key: key.is_of_portal and key.revoked_at is None,
        )
        tracking.track(ClassWeight, "class-weight")
        tracking.track(
            ManagementKey,
            "management-key",
            secret={"digest"},
            ignored={"last_used_at", "digest_under"},
            verb=lambda before, after: "revoke" if "revoked_at" in after else "change",
        )
