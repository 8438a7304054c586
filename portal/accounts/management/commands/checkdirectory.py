"""Try everything that sign-in and sync need of the company directory, and show what works. Changes nothing."""

from argparse import ArgumentParser
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.db.models import Q

from modelregistry.terminal import clean
from portal.accounts import directory_groups
from portal.accounts.ldap import DirectoryError, DirectorySettings, Finding, Person, examine_directory
from portal.accounts.models import Tenant, User

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
            for section in examine_directory(settings.DIRECTORY, directory_groups.remembered_groups(), name):
                self.stdout.write(clean(section.title))
                here = _examine_account(section.person, name) if section.is_person else ()
                for finding in (*section.findings, *here):
                    self.stdout.write(f"  {MARKS[finding.ok]}  {clean(finding.text)}")
                    failures += finding.ok is False
        except DirectoryError as error:
            raise CommandError(clean(str(error))) from error
        for line in _missing_tenants(settings.DIRECTORY):
            self.stdout.write(line)
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


def _examine_account(person: Person | None, typed: str) -> Iterator[Finding]:
    """Yield what the portal itself knows about this person."""
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
        yield Finding(None, "here there is no account yet; the first sign-in creates one")
        return
    name = user.get_username()
    if user.is_active:
        yield Finding(None, f"here {name}, active")
    elif user.left_directory_at:
        yield Finding(None, f"here {name}, off since {user.left_directory_at:%Y-%m-%d} because of the directory")
    else:
        yield Finding(False, f"here {name}, switched off by an operator")


def _missing_tenants(directory: DirectorySettings) -> Iterator[str]:
    """Yield lines about tenants of the settings that do not exist yet: a misspelt one would be created as well."""
    wanted = {tenant for places in directory.group_tenants.values() for tenant, _ in places}
    slugs = set(Tenant.objects.values_list("slug", flat=True))
    if missing := sorted(wanted - slugs):
        yield "Tenants (LDAP_GROUP_TENANTS)"
    for tenant in missing:
        near = get_close_matches(tenant, slugs, 1)
        hint = f"; is {near[0]} meant?" if near else ""
        yield f"  {MARKS[None]}  {tenant}: does not exist yet; the first sign-in of a member creates it{hint}"
