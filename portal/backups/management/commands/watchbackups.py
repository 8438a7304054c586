"""Notifies operators of a newest backup that is too old; the supervisor runs it every hour."""

from typing import Any

from django.core.management.base import BaseCommand
from django.utils import timezone

from portal.backups.watching import notify_of_age


class Command(BaseCommand):
    help = "Notifies operators, once a day, for as long as the newest backup is older than BACKUP_MAX_AGE."

    def handle(self, **options: Any) -> str:
        return f"{notify_of_age(timezone.now())} overdue"
