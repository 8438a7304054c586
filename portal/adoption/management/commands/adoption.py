"""Bring the counts of who began to use models, and went on, up to date, and send tips."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand
from django.utils import timezone

from portal.adoption import summary, tips


class Command(BaseCommand):
    help = "Counts who began to use models and who went on, and sends tips that are due. May be run at any time."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--rebuild", action="store_true", help="Read all days again, not only the latest.")

    def handle(self, **options: Any) -> str:
        now = timezone.now()
        changed = summary.update_if_due(now, rebuild=options["rebuild"])
        sent = tips.send_tips(now)
        return f"{changed or 0} changed, {sent} tips"
