"""Prints the timeline of one request, and why it was slow or refused."""

import json
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.core.serializers.json import DjangoJSONEncoder
from django.utils import timezone

from portal.usage.api import explain_with_words
from portal.usage.calls import find_call

UNKNOWN = (
    "There is no request {id!r}. It is the header x-request-id of an answer; a request is known seconds after it has "
    "ended, and of refused ones the first few of each minute are kept for a week."
)


class Command(BaseCommand):
    help = "Prints when a request waited, ran and ended, and why it was slow or refused. No prompt or answer is stored."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("id", help="x-request-id of the answer")
        parser.add_argument("--json", action="store_true")

    def handle(self, **options: Any) -> None:
        call = find_call(options["id"])
        if call is None:
            raise CommandError(UNKNOWN.format(id=options["id"][:40]))
        facts = explain_with_words(call)
        if options["json"]:
            self.stdout.write(json.dumps(facts, ensure_ascii=False, cls=DjangoJSONEncoder))
            return
        causes = facts.pop("causes")
        facts["arrived"] = f"{timezone.localtime(facts['arrived']):%Y-%m-%d %H:%M:%S %Z}"
        for name, value in facts.items():
            if value not in (None, ""):
                self.stdout.write(f"{name:18} {value}")
        for cause in causes:
            self.stdout.write(f"\n{cause['code']}: {cause['sentence']} {cause['advice']}".rstrip())
