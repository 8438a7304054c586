from datetime import timedelta

from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class UseCasesConfig(AppConfig):
    name = "portal.use_cases"
    verbose_name = _("Use cases")

    def ready(self) -> None:
        from modelregistry.supervisor import tasks
        from portal.use_cases.search import KIND
        from portal.web import search

        search.register(KIND)
        tasks.register("loadusecases", timedelta(days=1), ("loadusecases",))
        tasks.register("clearusecasecounts", timedelta(hours=1), ("clearusecasecounts",))
        # As long as a night's checks may take at a time; what is left is due again at the next start.
        tasks.register("checkusecases", timedelta(minutes=15), ("checkusecases", "--due"), limit=timedelta(hours=1))
