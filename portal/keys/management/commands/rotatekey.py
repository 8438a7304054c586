"""Replace an API key with a new one and print that, once."""

from argparse import ArgumentParser
from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from modelregistry.plain_numbers import whole_number
from portal.keys.lifecycle import KeyRefused, rotate_key
from portal.keys.models import ApiKey
from portal.keys.secret import PREFIX_LENGTH


class Command(BaseCommand):
    help = (
        "Prints a new key for the same person or service, with the same models, networks and limits and as long a"
        " life. The old one keeps working for some days."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("prefix", help=f"the key's first {PREFIX_LENGTH} characters (the whole key will do)")
        parser.add_argument(
            "--overlap",
            type=whole_number,
            default=7,
            metavar="DAYS",
            help="how long the old key still works; 0: not; default 7",
        )

    def handle(self, *, prefix: str, overlap: int, **options: Any) -> None:
        if not 0 <= overlap <= 365:
            raise CommandError("--overlap is between 0 and 365 days")
        try:
            key = ApiKey.objects.get(prefix=prefix[:PREFIX_LENGTH])
            _, text = rotate_key(key, timedelta(days=overlap))
        except ApiKey.DoesNotExist as error:
            raise CommandError(f"no key begins with {prefix[:PREFIX_LENGTH]}") from error
        except KeyRefused as error:
            raise CommandError(str(error)) from error
        self.stdout.write(text)
