"""Synchronise with the company directory, as a supervisor does every hour (`modelregistry.supervisor.tasks`)."""

from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from portal.accounts import directory_groups, directory_sync, directory_users
from portal.accounts.ldap import DirectoryError, DirectorySettings, find_person
from portal.accounts.models import User


class Command(BaseCommand):
    help = (
        "Deactivates people who have left the company directory, readmits those who returned, and updates names, roles"
        " and memberships. Changes nothing if the directory is down or seems to have lost most of our people."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        what = parser.add_mutually_exclusive_group()
        what.add_argument("--force", action="store_true", help="even if most of our people would lose their access")
        what.add_argument(
            "--adopt", metavar="NAME", help="only hand this local account to the directory; its password is removed"
        )

    def handle(self, *, force: bool, adopt: str | None, **options: Any) -> None:
        if settings.DIRECTORY is None:
            raise CommandError("There is no directory: LDAP_SERVER_URI is not set.")
        try:
            if adopt:
                self.stdout.write(_adopt(settings.DIRECTORY, adopt))
                return
            outcome = directory_sync.sync_directory(settings.DIRECTORY, force=force)
        except (DirectoryError, directory_sync.SuspiciousChange) as error:
            raise CommandError(str(error)) from error
        self.stdout.write(str(outcome))
        if outcome.missing_groups:
            lost = "; ".join(f"{dn} ({', '.join(settings.DIRECTORY.settings_of(dn))})" for dn in outcome.missing_groups)
            raise CommandError(f"Not found in the directory, so what depends on it stays as it is: {lost}")


def _adopt(directory: DirectorySettings, name: str) -> str:
    user = User.objects.filter(username__iexact=name, directory_id=None).first()
    if user is None:
        raise CommandError(f"There is no local account {name}.")
    person = find_person(directory, name, directory_groups.remembered_groups())
    if person is None:
        raise CommandError(f"No one in the directory signs in as {name}; checkdirectory {name} shows why.")
    if holder := User.objects.filter(directory_id=person.id).first():
        raise CommandError(f"{person.username} has an account already: {holder.get_username()}.")
    directory_users.adopt_person(user, person)
    return f"{person.username} now signs in with the password of the directory"
