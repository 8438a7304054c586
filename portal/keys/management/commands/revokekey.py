"""Revoke an API key by its prefix."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from portal.keys.lifecycle import revoke_key
from portal.keys.models import ApiKey
from portal.keys.secret import PREFIX_LENGTH


class Command(BaseCommand):
    help = "Revokes a key; gateways refuse it within 2 s. Revoking twice changes nothing."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("prefix", help=f"the key's first {PREFIX_LENGTH} characters (the whole key will do)")
        parser.add_argument("--because", default="", metavar="TEXT", help="why, for the people concerned")

    def handle(self, *, prefix: str, because: str, **options: Any) -> None:
        try:
            key = ApiKey.objects.get(prefix=prefix[:PREFIX_LENGTH])
        except ApiKey.DoesNotExist as error:
            raise CommandError(f"no key begins with {prefix[:PREFIX_LENGTH]}") from error
        revoke_key(key, because)
        self.stdout.write(key.prefix)
