"""Revokes an API key by its prefix."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from portal.keys.issuing import revoke
from portal.keys.models import ApiKey
from portal.keys.secret import PREFIX


class Command(BaseCommand):
    help = "Revokes a key; gateways refuse it within 2 s. Revoking twice changes nothing."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("prefix", help=f"the key's first {PREFIX} characters (the whole key will do)")
        parser.add_argument("--because", default="", metavar="TEXT", help="why, for those whom the key concerns")

    def handle(self, *, prefix: str, because: str, **options: Any) -> None:
        try:
            key = ApiKey.objects.get(prefix=prefix[:PREFIX])
        except ApiKey.DoesNotExist as error:
            raise CommandError(f"no key begins with {prefix[:PREFIX]}") from error
        revoke(key, because)
        self.stdout.write(key.prefix)
