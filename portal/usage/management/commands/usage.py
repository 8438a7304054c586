"""Prints usage by model, tenant, user, key or day."""

import json
from argparse import ArgumentParser, ArgumentTypeError
from datetime import date
from typing import Any

from django.core.management.base import BaseCommand
from django.db.models import F

from modelregistry.terminal import format_table
from portal.usage.models import UsageDay
from portal.usage.records import sum_by

# What rows are named by: what other commands take as the name.
NAMES = {"tenant": F("tenant__slug"), "user": F("user__username"), "key": F("key__prefix")}
SHOWN = ("requests", "prompt_tokens", "completion_tokens", "total_tokens")  # within 80 columns of a terminal
NUMBERS = (*SHOWN, "looped", "looped_tokens", "saved_tokens")


def parse_day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise ArgumentTypeError(f"{text!r} is not a date like 2026-11-01") from error


class Command(BaseCommand):
    help = "Prints requests and tokens by model, or what --by names. Usage is shown about a second after a call."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--since", type=parse_day, metavar="2026-11-01", help="from this day on, in each tenant's time zone"
        )
        parser.add_argument("--by", default="model", choices=["tenant", "user", "key", "model", "day"])
        parser.add_argument("--json", action="store_true", help="a list of objects, with word loops")

    def handle(self, *, by: str, **options: Any) -> None:
        rows = read_rows(by, options["since"])
        if options["json"]:
            self.stdout.write(json.dumps(rows, ensure_ascii=False))
            return
        lines = [[row[by], *(f"{row[name]:,}" for name in SHOWN)] for row in rows]
        for line in format_table([by, *SHOWN], lines, numeric=SHOWN):
            self.stdout.write(line)


def read_rows(field: str, since: date | None) -> list[dict[str, Any]]:
    """Return one row per value of `field`, with exactly that and NUMBERS.

    The value is '' for a service key's user and for anything deleted.
    """
    days = UsageDay.objects.filter(day__gte=since) if since else UsageDay.objects.all()
    days = days.annotate(value=NAMES.get(field, F(field)))
    return [
        {field: str(row["value"] if row["value"] is not None else ""), **{name: row[name] for name in NUMBERS}}
        for row in sum_by(days, "value")
    ]
