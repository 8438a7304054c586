from datetime import timedelta

from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class AdoptionConfig(AppConfig):
    name = "portal.adoption"
    verbose_name = _("Spread of use")

    def ready(self) -> None:
        from modelregistry.supervisor import tasks

        tasks.register("adoption", timedelta(hours=1), ("adoption",))
