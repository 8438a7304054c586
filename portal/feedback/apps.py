from datetime import timedelta

from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class FeedbackConfig(AppConfig):
    name = "portal.feedback"
    verbose_name = _("Feedback")

    def ready(self) -> None:
        from modelregistry.supervisor import tasks

        tasks.register("feedback", timedelta(minutes=10), ("feedback",))
