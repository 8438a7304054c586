"""Write down who people are and where they belong."""

import logging
from collections.abc import Mapping

from django.db import IntegrityError, transaction
from django.utils import timezone

from portal.accounts.directory import NameTaken, Person
from portal.accounts.models import Membership, Tenant, User

log = logging.getLogger(__name__)

# What `follow` may change of an account.
FOLLOWED = (
    "username",
    "first_name",
    "last_name",
    "email",
    "is_staff",
    "is_superuser",
    "is_active",
    "left_directory_at",
)


def follow(person: Person) -> tuple[User, bool]:
    """Makes our account of this person what the directory says: name, mail, roles, memberships. (user, changed).

    The person is known by the directory's id, so a new name keeps keys and usage. Memberships set by hand stay.
    Raises directory.NameTaken when a local account has the name.
    """
    try:
        with transaction.atomic():
            return _follow(person)
    except IntegrityError:
        # Another process wrote the same row between our look and our write (two tabs signing in for the first time)
        with transaction.atomic():
            return _follow(person)


def leave(user: User) -> None:
    """Disables somebody whom the directory no longer has; their keys stop, what they used stays on record."""
    if user.is_active:
        user.is_active = False
        user.left_directory_at = timezone.now()
        user.save(update_fields=["is_active", "left_directory_at"])


def adopt(user: User, person: Person) -> None:
    """Makes a local account the directory's: an operator's decision, never a sign-in's. The local password ends."""
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
    """A local account, and its place in a tenant if one is named. What is there already stays as it is.

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


def _follow(person: Person) -> tuple[User, bool]:
    user = User.objects.select_for_update().filter(directory_id=person.id).first()
    if user is None:
        user = User(directory_id=person.id)
        user.set_unusable_password()
    before = None if user.pk is None else [getattr(user, name) for name in FOLLOWED]
    _write(user, person)
    differs = before != [getattr(user, name) for name in FOLLOWED]
    if differs:
        user.save()
    return user, _follow_roles(user, person.roles) or differs


def _write(user: User, person: Person) -> None:
    if user.username != person.username:
        _free(person.username, user)
        user.username = person.username
    # Directories allow longer values than our columns.
    user.first_name = person.first_name[:150]
    user.last_name = person.last_name[:150]
    user.email = person.mail[:254]
    if person.is_operator is not None:
        user.is_staff = user.is_superuser = person.is_operator
    if user.left_directory_at:  # disabled by `leave`, not by an operator
        user.is_active = True
        user.left_directory_at = None


def _free(username: str, user: User) -> None:
    """Lets a name pass from one person of the directory to another: the directory says whose it is.

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


def _follow_roles(user: User, roles: Mapping[str, str]) -> bool:
    """Whether anything changed. Rows are saved and deleted one by one, so that gateways are told."""
    directory = Membership.Source.DIRECTORY
    changed = False
    present = {membership.tenant.slug: membership for membership in user.memberships.select_related("tenant")}
    for slug, membership in present.items():
        if membership.source == directory and slug not in roles:
            membership.delete()
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
