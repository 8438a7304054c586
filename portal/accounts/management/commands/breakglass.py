"""Print a new password of the account for emergencies, once."""

from argparse import ArgumentParser
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError

from portal.accounts import break_glass


class Command(BaseCommand):
    help = (
        "Creates the one local operator account for emergencies, or gives it a new password, and prints the password."
        " It works while the directory is down; every use is in the audit log, and all operators are notified."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("username")
        parser.add_argument("--end", action="store_true", help="switch it off for good instead")

    def handle(self, *, username: str, end: bool, **options: Any) -> None:
        try:
            if end:
                break_glass.disable_account(username)
                self.stdout.write(f"{username} is switched off")
            else:
                self.stdout.write(break_glass.renew_password(username))
        except ValidationError as error:
            raise CommandError(" ".join(error.messages)) from error
        except break_glass.BreakGlassRefused as error:
            raise CommandError(str(error)) from error
