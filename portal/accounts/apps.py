from datetime import timedelta

from django.apps import AppConfig
from django.conf import settings
from django.utils.translation import gettext_lazy as _


class AccountsConfig(AppConfig):
    name = "portal.accounts"
    verbose_name = _("People")

    def ready(self) -> None:
        from modelregistry import chores
        from portal.accounts import audit, checks  # noqa: F401

        audit.watch_sessions()
        if settings.DIRECTORY:
            chores.register("syncdirectory", timedelta(hours=1), ("syncdirectory",))
