from datetime import timedelta
from types import ModuleType
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.utils.translation import gettext_lazy as _


class AuditConfig(AppConfig):
    name = "portal.audit"
    verbose_name = _("Audit log")

    def __init__(self, app_name: str, app_module: ModuleType | None) -> None:
        super().__init__(app_name, app_module)
        self.tracked_models: dict[str, Any] = {}  # filled by `tracking.track`

    def ready(self) -> None:
        from modelregistry.supervisor import tasks
        from portal.audit import tracking
        from portal.audit.accounts import track_accounts

        if settings.AUDIT_KEPT_DAYS is not None:
            tasks.register("pruneaudit", timedelta(days=1), ("pruneaudit",))
        tracking.track_sessions()
        track_accounts()
