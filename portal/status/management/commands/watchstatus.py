"""Note which models are available, for the page of the status, and notify operators of outages.

Run every few minutes.
"""

from typing import Any

from django.core.management.base import BaseCommand
from django.utils import timezone

from portal.status import notices, recording


class Command(BaseCommand):
    help = "Notes which models are available, and notifies operators of outages. May be run at any time."

    def handle(self, **options: Any) -> None:
        now = timezone.now()
        self.stdout.write(f"{recording.watch(now)} models, {notices.notify_of_outages(now)} notices")
