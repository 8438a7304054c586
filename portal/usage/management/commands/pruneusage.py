"""Deletes old usage records; the sums of days and hours stay, so no total and no chart changes.

With USAGE_KEPT_DAYS the supervisor runs it every day.
"""

from argparse import ArgumentParser, ArgumentTypeError
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from modelregistry.plain_numbers import whole_number
from portal.usage.models import UsageRecord

# A gateway that starts counts the current month from the records. A month has 31 days; the rest allows for clocks.
LEAST_DAYS = 40
BATCH = 5000  # rows of one statement: the tables that it locks are free again soon


def parse_days(text: str) -> int:
    number = whole_number(text)
    if number < LEAST_DAYS:
        raise ArgumentTypeError(f"give {LEAST_DAYS} days or more: monthly quotas are counted from the records")
    return number


class Command(BaseCommand):
    help = "Deletes usage records that are older than so many days. The sums that pages show stay."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--older-than", type=parse_days, metavar="DAYS", help="default: USAGE_KEPT_DAYS")

    def handle(self, **options: Any) -> str:
        days = options.get("older_than") or settings.USAGE_KEPT_DAYS
        if days is None:
            raise CommandError("give --older-than, or set USAGE_KEPT_DAYS")
        before = timezone.now() - timedelta(days=days)
        old = UsageRecord.objects.filter(started_at__lt=before)
        pruned = 0
        while batch := list(old.values_list("pk", flat=True)[:BATCH]):
            pruned += UsageRecord.objects.filter(pk__in=batch).delete()[0]
        return str(pruned)
