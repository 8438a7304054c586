"""Deletes the playground's keys that expired unused; the supervisor runs it every hour."""

from typing import Any

from django.core.management.base import BaseCommand
from django.utils import timezone

from portal.usage.playground_keys import delete_unused


class Command(BaseCommand):
    help = "Deletes the playground's keys that have expired without a call. Keys that were used, and their usage, stay."

    def handle(self, **options: Any) -> str:
        return f"{delete_unused(timezone.now())} deleted"
