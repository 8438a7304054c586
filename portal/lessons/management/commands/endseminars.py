"""Ends the seminars that are over; the supervisor runs it every five minutes."""

from typing import Any

from django.core.management.base import BaseCommand
from django.utils import timezone

from portal.lessons.seminars import close_due_seminars


class Command(BaseCommand):
    help = "Ends seminars half an hour after their hours: revokes their keys and notifies the participants, once."

    def handle(self, **options: Any) -> str:
        return f"{close_due_seminars(timezone.now())} ended"
