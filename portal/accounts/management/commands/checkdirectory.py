"""Tries everything that sign-in and sync need of the company directory, and says what works. Changes nothing."""

from argparse import ArgumentParser
from collections.abc import Iterator
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from portal.accounts import directory_groups
from portal.accounts.directory import DirectoryError, Finding, examine
from portal.accounts.models import User

MARKS = {True: "ok  ", False: "FAIL", None: "    "}


class Command(BaseCommand):
    help = (
        "Says what works of the company directory: each server with its certificate, our account, where people are,"
        " each group of the settings with its members; and of a person, by which groups they have what. Ends with"
        " status 1 if something does not work. Changes nothing."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("person", nargs="?", default="", help="what they type as user name when they sign in")

    def handle(self, *, person: str, **options: Any) -> None:
        if settings.DIRECTORY is None:
            raise CommandError("There is no directory: LDAP_SERVER_URI is not set.")
        failures = 0
        try:
            for section in examine(settings.DIRECTORY, directory_groups.remembered(), person):
                self.stdout.write(section.title)
                here = _here(section.person_id, person) if section.person_id else ()
                for finding in (*section.findings, *here):
                    self.stdout.write(f"  {MARKS[finding.ok]}  {finding.text}")
                    failures += finding.ok is False
        except DirectoryError as error:
            raise CommandError(str(error)) from error
        if failures:
            raise CommandError(f"Not everything works: {failures} × FAIL.")


def _here(id: str, typed: str) -> Iterator[Finding]:
    """What the portal itself knows of this person."""
    local = User.objects.filter(username__iexact=typed.strip(), directory_id=None).first()
    if local is not None:
        name = local.get_username()
        yield Finding(False, f"here {name} is a local account with its own password; syncdirectory --adopt {name}")
    user = User.objects.filter(directory_id=id).first()
    if user is None:
        yield Finding(None, "here there is no account yet; the first sign-in makes one")
        return
    name = user.get_username()
    if user.is_active:
        yield Finding(None, f"here {name}, active")
    elif user.left_directory_at:
        yield Finding(None, f"here {name}, off since {user.left_directory_at:%Y-%m-%d} because of the directory")
    else:
        yield Finding(False, f"here {name}, switched off by an operator")
