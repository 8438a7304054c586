"""Post the notices that wait to the webhooks of operators. Run every few minutes."""

from typing import Any

from django.core.management.base import BaseCommand
from django.utils import timezone

from portal.notifications import webhooks


class Command(BaseCommand):
    help = "Posts the notices that wait to the webhooks of operators. May be run at any time."

    def handle(self, **options: Any) -> None:
        self.stdout.write(f"{webhooks.send_due(timezone.now())} posted")
