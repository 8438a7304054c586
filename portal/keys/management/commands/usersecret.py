from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from portal.keys import end_user_secret, lifecycle
from portal.keys.models import ApiKey


class Command(BaseCommand):
    help = "Makes a new secret with which a service key's program signs its end users, and prints the settings of "
    help += "Open WebUI with it, this once. From then on unsigned names are not believed."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("prefix", help="of the service key, as pages show it")
        parser.add_argument("--remove", action="store_true", help="believe names without a signature again")

    def handle(self, *, prefix: str, remove: bool, **options: Any) -> str:
        key = ApiKey.objects.filter(prefix=prefix).first()
        if key is None:
            raise CommandError(f"There is no key {prefix}.")
        try:
            if remove:
                end_user_secret.remove_user_secret(key)
                return f"{key} has no secret any more."
            return "\n".join(end_user_secret.webui_settings(end_user_secret.make_user_secret(key)))
        except lifecycle.KeyRefused as refusal:
            raise CommandError(str(refusal.sentence)) from refusal
