from datetime import timedelta

from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class NotificationsConfig(AppConfig):
    name = "portal.notifications"
    verbose_name = _("Notices")

    def ready(self) -> None:
        from modelregistry.supervisor import tasks
        from portal.notifications.receivers import record_notification
        from portal.web.notify import notification_requested

        notification_requested.connect(record_notification, dispatch_uid="record notifications")

        tasks.register("sendnotices", timedelta(minutes=10), ("sendnotices",))
