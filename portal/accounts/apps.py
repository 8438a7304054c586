from datetime import timedelta

from django.apps import AppConfig
from django.conf import settings
from django.utils.translation import gettext_lazy as _


class AccountsConfig(AppConfig):
    name = "portal.accounts"
    verbose_name = _("People")

    def ready(self) -> None:
        from modelregistry.supervisor import tasks
        from portal.accounts import break_glass, directory_sync
        from portal.accounts.search import KINDS
        from portal.web import search

        break_glass.watch_sign_ins()
        for kind in KINDS:
            search.register(kind)
        # Django's own command: expired sessions of people who closed their browser without signing out.
        tasks.register("clearsessions", timedelta(days=1), ("clearsessions",))
        if settings.DIRECTORY:
            task = directory_sync.SYNC_TASK
            tasks.register(task.name, task.every, task.argv)
