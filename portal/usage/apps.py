from datetime import timedelta

from django.apps import AppConfig
from django.conf import settings
from django.utils.translation import gettext_lazy as _


class UsageConfig(AppConfig):
    name = "portal.usage"
    verbose_name = _("Usage")

    def ready(self) -> None:
        from modelregistry.supervisor import tasks
        from portal.usage.search import KIND
        from portal.web import search

        search.register(KIND)

        if settings.USAGE_KEPT_DAYS is not None:
            tasks.register("pruneusage", timedelta(days=1), ("pruneusage",))
        tasks.register("clearplayground", timedelta(hours=1), ("clearplayground",))
        tasks.register("prunerefusals", timedelta(hours=1), ("prunerefusals",))
