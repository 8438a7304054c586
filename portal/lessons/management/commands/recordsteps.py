"""Stores which steps of courses people have done; the supervisor runs it once a day."""

from typing import Any

from django.core.management.base import BaseCommand
from django.utils import timezone

from portal.lessons.progress import record_steps


class Command(BaseCommand):
    help = "Stores the steps of courses that people have done, before the records which show them are pruned."

    def handle(self, **options: Any) -> str:
        return f"{record_steps(timezone.now())} recorded"
