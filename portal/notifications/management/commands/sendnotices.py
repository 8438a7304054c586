"""Notify people of keys that expire and of quotas that are almost used up, then mail the notices that are due."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from portal.keys import expiry_notifications
from portal.notifications import budget_alerts, inbox, mailing, quota_alerts


class Command(BaseCommand):
    help = (
        "Notifies people of expiring keys and of quotas and budgets that are almost used up, and sends notices by mail."
    )

    def handle(self, **options: Any) -> None:
        now = timezone.now()
        expiry_notifications.notify_expiring(now)
        expiry_notifications.notify_responsible_left()
        expiry_notifications.notify_expiring_management_keys(now)
        quota_alerts.notify_near_limits(now)
        budget_alerts.notify_near_budgets(now)
        inbox.delete_old(now)
        try:
            sent = mailing.send_mails(now)
        except mailing.MailServerUnavailable as error:
            raise CommandError(f"notices are stored, but not mailed: {error}") from error
        self.stdout.write(f"{sent} mailed")
