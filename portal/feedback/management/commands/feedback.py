"""Joins feedback with usage that came later, and sends the weekly digest; the supervisors run it often."""

from typing import Any

from django.core.management.base import BaseCommand
from django.utils import timezone

from portal.feedback.digest import send_digests
from portal.feedback.recording import join_waiting


class Command(BaseCommand):
    help = (
        "Joins feedback with the usage of its requests, and notifies operators and champions of last week's once. May "
        "be run again at any time."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        now = timezone.now()
        self.stdout.write(f"{join_waiting(now)} joined, {send_digests(now)} digests")
