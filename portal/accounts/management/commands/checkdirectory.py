"""Tries everything that sign-in and sync need of the company directory, and says what works. Changes nothing."""

import unicodedata
from argparse import ArgumentParser
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.db.models import Q

from portal.accounts import directory_groups
from portal.accounts.ldap import Directory, DirectoryError, Finding, Person, examine_directory
from portal.accounts.models import Tenant, User

# Unicode's categories of controls, of marks for the direction of writing, and of ends of lines and paragraphs.
STEERING = ("Cc", "Cf", "Zl", "Zp")
LONGEST_NAME = 254  # characters, as the sign-in form has it
MARKS = {True: "ok  ", False: "FAIL", None: "    "}


class Command(BaseCommand):
    help = (
        "Says what works of the company directory: each server with its certificate, our account, where people are,"
        " each group of the settings with its members; and of a person, by which groups they have what. Ends with"
        " status 1 if something does not work. Changes nothing."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("person", nargs="?", help="what they type as user name when they sign in")

    def handle(self, *, person: str | None, **options: Any) -> None:
        if settings.DIRECTORY is None:
            raise CommandError("There is no directory: LDAP_SERVER_URI is not set.")
        name = _name(person)
        failures = 0
        try:
            for section in examine_directory(settings.DIRECTORY, directory_groups.remembered_groups(), name):
                self.stdout.write(_printable(section.title))
                here = _account_here(section.person, name) if section.is_person else ()
                for finding in (*section.findings, *here):
                    self.stdout.write(f"  {MARKS[finding.ok]}  {_printable(finding.text)}")
                    failures += finding.ok is False
        except DirectoryError as error:
            raise CommandError(_printable(str(error))) from error
        for line in _tenants_to_make(settings.DIRECTORY):
            self.stdout.write(line)
        if failures:
            raise CommandError(f"Not everything works: {failures} × FAIL.")


def _name(typed: str | None) -> str:
    """Empty for no name at all."""
    if typed is None:
        return ""
    name = typed.strip()
    if not name or len(name) > LONGEST_NAME:
        raise CommandError(f"A user name has 1 to {LONGEST_NAME} characters.")
    return name


def _printable(text: str) -> str:
    """In one line and without what steers a terminal: names come from the directory, words from its server."""
    return "".join("\ufffd" if unicodedata.category(character) in STEERING else character for character in text)


def _account_here(person: Person | None, typed: str) -> Iterator[Finding]:
    """What the portal itself knows of this person."""
    names = Q(username__iexact=typed)
    if person is not None:
        names |= Q(username__iexact=person.username)
    local = User.objects.filter(names, directory_id=None).first()
    if local is not None:
        name = local.get_username()
        adopt = f"; syncdirectory --adopt {name}" if person else ", and the directory is not asked about it"
        yield Finding(False, f"here {name} is a local account with its own password{adopt}")
    if person is None:
        return
    user = User.objects.filter(directory_id=person.id).first()
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


def _tenants_to_make(directory: Directory) -> Iterator[str]:
    """Yield the tenants of the settings that are not here, where a misspelt one would be made as well."""
    wanted = {tenant for places in directory.group_tenants.values() for tenant, _ in places}
    slugs = set(Tenant.objects.values_list("slug", flat=True))
    if missing := sorted(wanted - slugs):
        yield "Tenants (LDAP_GROUP_TENANTS)"
    for tenant in missing:
        near = get_close_matches(tenant, slugs, 1)
        hint = f"; is {near[0]} meant?" if near else ""
        yield f"  {MARKS[None]}  {tenant}: not here yet; the first sign-in of a member makes it{hint}"
