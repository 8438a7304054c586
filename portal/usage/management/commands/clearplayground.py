"""Deletes the playground's keys that expired unused; the supervisor runs it every hour."""

from typing import Any

from django.core.management.base import BaseCommand
from django.utils import timezone

from portal.usage.playground_keys import delete_expired


class Command(BaseCommand):
    help = (
        "Deletes the keys that the page for trying models made and that expired without a call. What was used with"
        " others stays as it is."
    )

    def handle(self, **options: Any) -> str:
        return str(delete_expired(timezone.now()))
