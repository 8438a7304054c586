from datetime import timedelta

from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class UsageConfig(AppConfig):
    name = "portal.usage"
    verbose_name = _("Usage")

    def ready(self) -> None:
        from modelregistry.supervisor import tasks

        tasks.register("clearplayground", timedelta(hours=1), ("clearplayground",))
