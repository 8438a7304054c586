"""Examine the company directory and what the portal knows of it, for `manage.py checkdirectory`. Changes nothing."""

from collections.abc import Iterator
from dataclasses import replace
from difflib import get_close_matches

from django.db.models import Q

from portal.accounts import directory_groups
from portal.accounts.ldap import DirectorySettings, Finding, Person, Section, examine_directory
from portal.accounts.models import Tenant, User


def examine(directory: DirectorySettings, name: str = "") -> Iterator[Section]:
    """Yield each section as soon as it is known. `name`: a person who is examined as well.

    Blocks as `examine_directory` does. Raises DirectoryError.
    """
    for section in examine_directory(directory, directory_groups.remembered_groups(), name):
        if section.is_person:
            account = tuple(_examine_account(section.person, name))
            section = replace(section, findings=(*section.findings, *account))
        yield section
    if missing := tuple(_examine_tenants(directory)):
        yield Section("Tenants (LDAP_GROUP_TENANTS)", missing)


def _examine_account(person: Person | None, typed: str) -> Iterator[Finding]:
    """Yield what the portal itself knows about this person."""
    names = Q(username__iexact=typed)
    if person is not None:
        names |= Q(username__iexact=person.username)
    local = User.objects.filter(names, directory_id=None).first()
    if local is not None:
        name = local.get_username()
        adopt = f"; syncdirectory --adopt {name}" if person else ", and the directory is not asked about it"
        yield Finding(False, "local-account", f"here {name} is a local account with its own password{adopt}")
    if person is None:
        return
    user = User.objects.filter(directory_id=person.id).first()
    if user is None:
        yield Finding(None, "account-to-come", "here there is no account yet; the first sign-in creates one")
        return
    name = user.get_username()
    if user.is_active:
        yield Finding(None, "account-active", f"here {name}, active")
    elif user.left_directory_at:
        words = f"off since {user.left_directory_at:%Y-%m-%d} because of the directory"
        yield Finding(None, "account-left", f"here {name}, {words}")
    else:
        yield Finding(False, "account-off", f"here {name}, switched off by an operator")


def _examine_tenants(directory: DirectorySettings) -> Iterator[Finding]:
    """Yield tenants of the settings that do not exist yet: a misspelt one would be created as well."""
    wanted = {tenant for places in directory.group_tenants.values() for tenant, _ in places}
    slugs = set(Tenant.objects.values_list("slug", flat=True))
    for tenant in sorted(wanted - slugs):
        near = get_close_matches(tenant, slugs, 1)
        hint = f"; is {near[0]} meant?" if near else ""
        words = f"{tenant}: does not exist yet; the first sign-in of a member creates it{hint}"
        yield Finding(None, "tenant-to-come", words)
