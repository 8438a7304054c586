from datetime import timedelta

from django.apps import AppConfig
from django.conf import settings
from django.utils.translation import gettext_lazy as _


class BackupsConfig(AppConfig):
    name = "portal.backups"
    verbose_name = _("Backups")

    def ready(self) -> None:
        from modelregistry.supervisor import tasks

        if settings.BACKUP_MAX_AGE is not None:
            tasks.register("watchbackups", timedelta(hours=1), ("watchbackups",))
