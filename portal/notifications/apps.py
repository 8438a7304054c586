from datetime import timedelta

from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class NotificationsConfig(AppConfig):
    name = "portal.notifications"
    verbose_name = _("Notices")

    def ready(self) -> None:
        from modelregistry.supervisor import tasks
        from portal.audit import tracking
        from portal.notifications.models import Webhook
        from portal.notifications.receivers import record_notification
        from portal.web.notify import notification_requested

        notification_requested.connect(record_notification, dispatch_uid="record notifications")

        tracking.track(
            Webhook,
            "webhook",
            secret={"url"},
            ignored={"succeeded_at", "failed_at", "fault", "status", "failures", "retry_at"},
        )
        tasks.register("sendwebhooks", timedelta(minutes=2), ("sendwebhooks",))
        tasks.register("sendnotices", timedelta(minutes=10), ("sendnotices",))
