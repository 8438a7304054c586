"""Write down who people are and where they belong."""

import logging
from collections.abc import Mapping
from typing import Any

from django.db import IntegrityError, transaction
from django.utils import timezone

from portal.accounts.attribution import by_directory
from portal.accounts.ldap import NameTaken, Person
from portal.accounts.models import Membership, Tenant, User
from portal.web.notify import notify

log = logging.getLogger(__name__)


def apply_entry(person: Person) -> tuple[User, bool]:
    """Make our account of this person what the directory says: name, mail, roles, memberships. (user, changed).

    The person is known by the directory's id, so a new name keeps keys and usage. Memberships set by hand stay.
    Raises directory.NameTaken when a local account has the name.
    """
    with by_directory():
        try:
            with transaction.atomic():
                return _follow(person)
        except IntegrityError:
            # Another process wrote the same row between our look and our write (two tabs signing in for the first time)
            with transaction.atomic():
                return _follow(person)


def deactivate(user: User) -> None:
    """Disable somebody whom the directory no longer has; their keys stop, what they used stays on record."""
    if not user.is_active:
        return
    with by_directory(), transaction.atomic():
        for membership in user.memberships.select_related("tenant"):
            _tell_of_end(membership)
        user.is_active = False
        user.left_directory_at = timezone.now()
        user.save(update_fields=["is_active", "left_directory_at"])


def end_membership(membership: Membership) -> None:
    """Take a person out of a tenant: their keys for it stop, and they are told."""
    with transaction.atomic():
        _tell_of_end(membership)
        membership.delete()


def _tell_of_end(membership: Membership) -> None:
    """Before it ends, while it can be said which keys stop with it."""
    user, tenant = membership.user, membership.tenant
    keys = user.keys.usable().filter(tenant=tenant, is_playground=False).count()
    ref = f"{membership.pk} {timezone.now():%Y-%m-%d %H:%M}"
    notify([user], "membership-ended", ref, path="/keys/", tenant=tenant.name, keys=keys)


def adopt_person(user: User, person: Person) -> None:
    """Make a local account the directory's: an operator's decision, never a sign-in's. The local password ends."""
    with transaction.atomic():
        user.directory_id = person.id
        user.set_unusable_password()
        user.save(update_fields=["directory_id", "password"])
        _follow(person)


def ensure_person(
    username: str,
    *,
    password: str,
    tenant_slug: str = "",
    tenant_name: str = "",
    role: str = Membership.Role.MEMBER,
    is_operator: bool = False,
) -> User:
    """Return a local account, and its place in a tenant if one is named. What is there already stays as it is.

    Raises ValidationError for what cannot be the name of a person or a tenant.
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
    """Return whether `follow` would change nothing.

    Asks nobody if the memberships are prefetched, with their tenants.
    """
    if any(getattr(user, name) != value for name, value in _told(user, person).items()):
        return False
    ours: dict[bool, dict[str, str]] = {True: {}, False: {}}
    for membership in user.memberships.all():
        ours[membership.source == Membership.Source.DIRECTORY][membership.tenant.slug] = membership.role
    return ours[True] == {slug: role for slug, role in _roles(person, ours[True]).items() if slug not in ours[False]}


def _follow(person: Person) -> tuple[User, bool]:
    user = User.objects.select_for_update().filter(directory_id=person.id).first()
    if user is None:
        user = User(directory_id=person.id)
        user.set_unusable_password()
    if user.username != person.username:
        _free(person.username, user)
    told = _told(user, person)
    differs = user.pk is None or any(getattr(user, name) != value for name, value in told.items())
    if differs:
        for name, value in told.items():
            setattr(user, name, value)
        user.save()
    if keeps_last_operator(user, person):
        ref = f"{user.pk} {timezone.now():%Y-%m}"
        notify([user], "last-operator-kept", ref, path="/operations/directory/", person=user.get_username())
    return user, _follow_roles(user, person) or differs


def _told(user: User, person: Person) -> dict[str, Any]:
    """Return the fields of an account that are the directory's to say. It allows longer values than our columns."""
    told: dict[str, Any] = {
        "username": person.username,
        "first_name": person.first_name[:150],
        "last_name": person.last_name[:150],
        "email": person.mail[:254],
    }
    if person.is_operator is not None and not _is_last_operator(user, person):
        told |= {"is_staff": person.is_operator, "is_superuser": person.is_operator}
    if user.left_directory_at:  # disabled by `leave`, not by an operator
        told |= {"is_active": True, "left_directory_at": None}
    return told


def _is_last_operator(user: User, person: Person) -> bool:
    """Return whether this person would be dropped as operator, and nobody but the account for emergencies were left."""
    if person.is_operator or not (user.is_staff and user.is_active):
        return False
    others = User.objects.filter(is_staff=True, is_active=True, is_break_glass=False).exclude(pk=user.pk)
    return not others.exists()


def keeps_last_operator(user: User, person: Person) -> bool:
    """Return whether `follow` leaves somebody an operator because there is no other, and has told so."""
    return person.is_operator is False and _is_last_operator(user, person)


def _roles(person: Person, present: Mapping[str, str]) -> Mapping[str, str]:
    """What the directory gives; in tenants of which a group was not found nobody loses what they have there."""
    kept = {slug: role for slug, role in present.items() if slug in person.undecided}
    ranks = list(Membership.Role.values)
    return kept | {slug: max(role, kept.get(slug, role), key=ranks.index) for slug, role in person.roles.items()}


def _free(username: str, user: User) -> None:
    """Let a name pass from one person of the directory to another: the directory says whose it is.

    The former holder, who has left or has a new name, keeps keys and usage under a name that shows it.
    """
    holder = User.objects.filter(username__iexact=username).exclude(pk=user.pk).first()
    if holder is None:
        return
    if holder.directory_id is None:
        raise NameTaken(f"{username} is in the directory, and a local account as well")
    holder.username = f"{username[:130]}.former.{holder.pk}"
    holder.save(update_fields=["username"])
    log.warning("The name %s now belongs to somebody else in the directory; its former holder is %s", username, holder)


def _follow_roles(user: User, person: Person) -> bool:
    """Return whether anything changed. Rows are saved and deleted one by one, so that gateways are told."""
    directory = Membership.Source.DIRECTORY
    changed = False
    present = {membership.tenant.slug: membership for membership in user.memberships.select_related("tenant")}
    given = {slug: membership.role for slug, membership in present.items() if membership.source == directory}
    roles = _roles(person, given)
    for slug, membership in present.items():
        if membership.source == directory and slug not in roles:
            end_membership(membership)
            changed = True
    for slug, role in roles.items():
        if slug not in present:
            tenant, _ = Tenant.objects.get_or_create(slug=slug, defaults={"name": slug})
            Membership.objects.create(user=user, tenant=tenant, role=role, source=directory)
            changed = True
        elif present[slug].source == directory and present[slug].role != role:
            present[slug].role = role
            present[slug].save(update_fields=["role"])
            changed = True
    return changed
