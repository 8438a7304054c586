"""Apply the directory's entries to accounts and memberships, and create local accounts."""

import logging
from collections.abc import Mapping
from typing import Any

from django.db import IntegrityError, transaction
from django.utils import timezone

from modelregistry.one_line import make_one_line
from portal.accounts.attribution import by_directory
from portal.accounts.ldap import NameTaken, Person
from portal.accounts.models import Membership, Tenant, User
from portal.web.notify import notify

log = logging.getLogger(__name__)


def apply_entry(person: Person) -> tuple[User, bool]:
    """Update the person's account from their entry: name, mail, roles, memberships. Return (user, changed).

    The account is found by the directory's id, so a person with a new name keeps keys and usage. Memberships set by
    hand stay. Raises NameTaken when a local account has the name.
    """
    with by_directory():
        try:
            with transaction.atomic():
                return _write_entry(person)
        except IntegrityError:
            # Another process wrote the same row between our read and our write (two tabs signing in for the first time)
            with transaction.atomic():
                return _write_entry(person)


def deactivate(user: User) -> None:
    """Deactivate a person who is no longer in the directory; their keys stop, their usage stays on record."""
    if not user.is_active:
        return
    with by_directory(), transaction.atomic():
        for membership in user.memberships.select_related("tenant"):
            _notify_membership_end(membership)
        user.is_active = False
        user.left_directory_at = timezone.now()
        user.save(update_fields=["is_active", "left_directory_at"])


def end_membership(membership: Membership) -> None:
    """Remove a person from a tenant: their keys for it stop, and they are notified."""
    with transaction.atomic():
        _notify_membership_end(membership)
        membership.delete()


def _notify_membership_end(membership: Membership) -> None:
    """Notify the person. Called before the membership ends, while the keys that stop with it can be counted."""
    user, tenant = membership.user, membership.tenant
    keys = user.keys.usable().filter(tenant=tenant, is_playground=False).count()
    ref = f"{membership.pk} {timezone.now():%Y-%m-%d %H:%M}"
    notify([user], "membership-ended", ref, path="/keys/", tenant=tenant.name, keys=keys)


def adopt_person(user: User, person: Person) -> None:
    """Turn a local account into the directory's, by an operator's decision only. The local password is removed."""
    with transaction.atomic():
        user.directory_id = person.id
        user.set_unusable_password()
        user.save(update_fields=["directory_id", "password"])
        _write_entry(person)


def ensure_person(
    username: str,
    *,
    password: str,
    tenant_slug: str = "",
    tenant_name: str = "",
    role: str = Membership.Role.MEMBER,
    is_operator: bool = False,
) -> User:
    """Return a local account, created if need be, with a membership if a tenant is named. Existing rows stay unchanged.

    Raises ValidationError for an invalid name of a person or a tenant.
    """
    with transaction.atomic():
        user = User.objects.filter(username__iexact=username).first()
        if user is None:
            user = User(username=User.normalize_username(username), is_staff=is_operator, is_superuser=is_operator)
            user.set_password(password)
            user.full_clean()
            user.save()
        if tenant_slug:
            tenant = Tenant.objects.filter(slug=tenant_slug).first()
            if tenant is None:
                tenant = Tenant(slug=tenant_slug, name=tenant_name or tenant_slug)
                tenant.full_clean()
                tenant.save()
            Membership.objects.get_or_create(user=user, tenant=tenant, defaults={"role": role})
    return user


def agrees_with_entry(user: User, person: Person) -> bool:
    """Return whether `apply_entry` would change nothing.

    Makes no query if the memberships are prefetched, with their tenants.
    """
    if any(getattr(user, name) != value for name, value in _fields_from_entry(user, person).items()):
        return False
    ours: dict[bool, dict[str, str]] = {True: {}, False: {}}
    for membership in user.memberships.all():
        ours[membership.source == Membership.Source.DIRECTORY][membership.tenant.slug] = membership.role
    return ours[True] == {
        slug: role for slug, role in _merge_roles(person, ours[True]).items() if slug not in ours[False]
    }


def _write_entry(person: Person) -> tuple[User, bool]:
    user = User.objects.select_for_update().filter(directory_id=person.id).first()
    if user is None:
        user = User(directory_id=person.id)
        user.set_unusable_password()
    if user.username != person.username:
        _release_username(person.username, user)
    fields = _fields_from_entry(user, person)
    differs = user.pk is None or any(getattr(user, name) != value for name, value in fields.items())
    if differs:
        for name, value in fields.items():
            setattr(user, name, value)
        user.save()
    if keeps_last_operator(user, person):
        ref = f"{user.pk} {timezone.now():%Y-%m}"
        notify([user], "last-operator-kept", ref, path="/operations/directory/", person=user.get_username())
    return user, _write_roles(user, person) or differs


def _fields_from_entry(user: User, person: Person) -> dict[str, Any]:
    """Return the fields of an account that the directory decides, cut to the length of our columns."""
    fields: dict[str, Any] = {
        "username": person.username,
        "first_name": make_one_line(person.first_name)[:150],
        "last_name": make_one_line(person.last_name)[:150],
        "email": person.mail[:254],
    }
    if person.is_operator is not None and not _is_last_operator(user, person):
        fields |= {"is_staff": person.is_operator, "is_superuser": person.is_operator}
    if user.left_directory_at:  # deactivated by `deactivate`, not by an operator
        fields |= {"is_active": True, "left_directory_at": None}
    return fields


def _is_last_operator(user: User, person: Person) -> bool:
    """Return whether without this person only the account for emergencies would be left as operator."""
    if person.is_operator or not (user.is_staff and user.is_active):
        return False
    others = User.objects.filter(is_staff=True, is_active=True, is_break_glass=False).exclude(pk=user.pk)
    return not others.exists()


def keeps_last_operator(user: User, person: Person) -> bool:
    """Return whether `apply_entry` keeps this person as operator only because there is no other."""
    return person.is_operator is False and _is_last_operator(user, person)


def _merge_roles(person: Person, existing: Mapping[str, str]) -> Mapping[str, str]:
    """Return the roles that the directory gives, by tenant.

    In tenants with a group that was not found, the person keeps the role they have if it is the higher one.
    """
    kept = {slug: role for slug, role in existing.items() if slug in person.undecided}
    ranks = list(Membership.Role.values)
    return kept | {slug: max(role, kept.get(slug, role), key=ranks.index) for slug, role in person.roles.items()}


def _release_username(username: str, user: User) -> None:
    """Free a name that the directory has given to another person.

    The former holder, who has left or has a new name, keeps keys and usage under a name that shows it.
    """
    holder = User.objects.filter(username__iexact=username).exclude(pk=user.pk).first()
    if holder is None:
        return
    if holder.directory_id is None:
        raise NameTaken(f"{username} is in the directory, and a local account as well")
    holder.username = f"{username[:130]}.former.{holder.pk}"
    holder.save(update_fields=["username"])
    log.warning("The name %s now belongs to another person in the directory; its former holder is %s", username, holder)


def _write_roles(user: User, person: Person) -> bool:
    """Add, change and remove memberships; return whether anything changed.

    Rows are saved and deleted one by one, so that signals reach the gateways.
    """
    directory = Membership.Source.DIRECTORY
    changed = False
    existing = {membership.tenant.slug: membership for membership in user.memberships.select_related("tenant")}
    from_directory = {slug: membership.role for slug, membership in existing.items() if membership.source == directory}
    roles = _merge_roles(person, from_directory)
    for slug, membership in existing.items():
        if membership.source == directory and slug not in roles:
            end_membership(membership)
            changed = True
    for slug, role in roles.items():
        if slug not in existing:
            tenant, _ = Tenant.objects.get_or_create(slug=slug, defaults={"name": slug})
            Membership.objects.create(user=user, tenant=tenant, role=role, source=directory)
            changed = True
        elif existing[slug].source == directory and existing[slug].role != role:
            existing[slug].role = role
            existing[slug].save(update_fields=["role"])
            changed = True
    return changed
