from datetime import timedelta

from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class CanaryConfig(AppConfig):
    name = "portal.canary"
    verbose_name = _("Canary")

    def ready(self) -> None:
        from modelregistry.supervisor import tasks

        # As long as it takes to ask 20 models of a size that answers in 10 s.
        tasks.register("canary", timedelta(minutes=5), ("canary", "--due"), limit=timedelta(hours=2))
