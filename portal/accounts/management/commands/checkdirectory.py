"""Try everything that sign-in and sync need of the company directory, and show what works. Changes nothing."""

from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from modelregistry.terminal import clean
from portal.accounts import directory_examination
from portal.accounts.ldap import DirectoryError

LONGEST_NAME = 254  # characters, as in the sign-in form
MARKS = {True: "ok  ", False: "FAIL", None: "    "}


class Command(BaseCommand):
    help = (
        "Shows which parts of the company directory work: each server with its certificate, our account, where people"
        " are, each group of the settings with its members; and for a person, which groups give which access. Exits"
        " with status 1 if something does not work. Changes nothing."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("person", nargs="?", help="the user name that the person types to sign in")

    def handle(self, *, person: str | None, **options: Any) -> None:
        if settings.DIRECTORY is None:
            raise CommandError("There is no directory: LDAP_SERVER_URI is not set.")
        name = _parse_name(person)
        failures = 0
        try:
            for section in directory_examination.examine(settings.DIRECTORY, name):
                self.stdout.write(clean(section.title))
                for finding in section.findings:
                    self.stdout.write(f"  {MARKS[finding.ok]}  {clean(finding.text)}")
                    failures += finding.ok is False
        except DirectoryError as error:
            raise CommandError(clean(str(error))) from error
        if failures:
            raise CommandError(f"Not everything works: {failures} × FAIL.")


def _parse_name(typed: str | None) -> str:
    """Return the name without surrounding spaces; empty if none was given. Raises CommandError."""
    if typed is None:
        return ""
    name = typed.strip()
    if not name or len(name) > LONGEST_NAME:
        raise CommandError(f"A user name has 1 to {LONGEST_NAME} characters.")
    return name
