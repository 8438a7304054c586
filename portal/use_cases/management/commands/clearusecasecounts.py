"""Deletes what says that people opened or tried a use case on an earlier day; the supervisor runs it every hour."""

from typing import Any

from django.core.management.base import BaseCommand
from django.utils import timezone

from portal.use_cases.reactions import clear_counted


class Command(BaseCommand):
    help = "Deletes the keyed digests by which a person counts once a day for a use case, once their day is over."

    def handle(self, **options: Any) -> str:
        return f"{clear_counted(timezone.localdate())} deleted"
