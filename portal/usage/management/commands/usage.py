"""Prints usage, grouped."""

import json
from argparse import ArgumentParser, ArgumentTypeError
from datetime import date
from typing import Any

from django.core.management.base import BaseCommand
from django.db.models import F

from portal.usage.models import UsageDay
from portal.usage.records import usage_by

# What a row is called in the output: the words by which other commands name it.
NAMES = {"tenant": F("tenant__slug"), "user": F("user__username"), "key": F("key__prefix")}
NUMBERS = ("requests", "prompt_tokens", "completion_tokens", "total_tokens")


def day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise ArgumentTypeError(f"{text!r} is not a date like 2026-11-01") from error


class Command(BaseCommand):
    help = "Prints requests and tokens by model, or by what --by says. Usage is shown about a second after a call."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--since", type=day, metavar="2026-11-01", help="from this day on, in each tenant's time zone"
        )
        parser.add_argument("--by", default="model", choices=["tenant", "user", "key", "model", "day"])
        parser.add_argument("--json", action="store_true", help="a list of objects")

    def handle(self, *, by: str, **options: Any) -> None:
        rows = grouped(by, options["since"])
        if options["json"]:
            self.stdout.write(json.dumps(rows, ensure_ascii=False))
            return
        width = max([len(by), *(len(str(row[by])) for row in rows)])
        self.stdout.write(by.ljust(width) + "".join(name.rjust(19) for name in NUMBERS))
        for row in rows:
            self.stdout.write(str(row[by]).ljust(width) + "".join(f"{row[name]:>19,}" for name in NUMBERS))


def grouped(field: str, since: date | None) -> list[dict[str, Any]]:
    """Return one row per value of `field`, with exactly that and NUMBERS; a service key's user and what was deleted:
    ''.
    """
    days = UsageDay.objects.filter(day__gte=since) if since else UsageDay.objects.all()
    days = days.annotate(value=NAMES.get(field, F(field)))
    return [
        {field: str(row["value"] if row["value"] is not None else ""), **{name: row[name] for name in NUMBERS}}
        for row in usage_by(days, "value")
    ]
