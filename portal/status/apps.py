from datetime import timedelta

from django.apps import AppConfig
from django.db.models.signals import post_save
from django.utils.translation import gettext_lazy as _


class StatusConfig(AppConfig):
    name = "portal.status"
    verbose_name = _("Status")

    def ready(self) -> None:
        from modelregistry.models import Replica, ServedModel
        from modelregistry.supervisor import tasks
        from portal.status.receivers import note_model, note_replica

        post_save.connect(note_replica, sender=Replica, dispatch_uid="status of replicas")
        post_save.connect(note_model, sender=ServedModel, dispatch_uid="status of models")

        tasks.register("watchstatus", timedelta(minutes=5), ("watchstatus",))
