"""Deletes the oldest refused calls; the supervisor runs it every hour."""

from typing import Any

from django.core.management.base import BaseCommand
from django.utils import timezone

from portal.usage.refusals import prune_refusals


class Command(BaseCommand):
    help = "Deletes refused calls older than REFUSALS_KEPT_DAYS, and the oldest of too many. Their counts stay."

    def handle(self, **options: Any) -> str:
        return f"{prune_refusals(timezone.now())} deleted"
