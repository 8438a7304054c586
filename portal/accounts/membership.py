"""Memberships that are managed by hand; those of the company directory are changed there (see `directory_users`).

For pages, the API and commands. Each function is one transaction, checks the rights of `by` (see
`permissions.check_access`), and raises MembershipRefused for what cannot be done.
"""

from django.db import IntegrityError, transaction
from django.db.models import Q, QuerySet
from django.utils.translation import gettext as _

from portal.accounts import directory_users, permissions
from portal.accounts.models import Membership, Tenant, User
from portal.web.refusals import Refused


class MembershipRefused(Refused):
    """The requested change of a membership cannot be made."""


def members_of(tenant: Tenant, text: str = "") -> QuerySet[Membership]:
    """Return the memberships of a tenant; with `text` only of people with all its words in name, user name or mail."""
    found = Membership.objects.filter(tenant=tenant).select_related("user")
    for word in text.split()[:5]:
        found = found.filter(
            Q(user__username__icontains=word)
            | Q(user__first_name__icontains=word)
            | Q(user__last_name__icontains=word)
            | Q(user__email__icontains=word)
        )
    return found


def add_member(by: User, tenant: Tenant, username: str, role: str = Membership.Role.MEMBER) -> Membership:
    """Add a person who has an account here to the tenant. Raises MembershipRefused."""
    permissions.check_access(by, tenant)
    user = User.objects.filter(username__iexact=username.strip()).first()
    if user is None:
        raise MembershipRefused(
            _("There is no account with the user name “%(name)s”. People get one when they first sign in.")
            % {"name": username.strip()}
        )
    if not user.is_active:
        raise MembershipRefused(_("The account of %(person)s is switched off.") % {"person": user})
    try:
        with transaction.atomic():
            return Membership.objects.create(user=user, tenant=tenant, role=role)
    except IntegrityError as error:
        raise MembershipRefused(_("%(person)s belongs to this tenant already.") % {"person": user}) from error


def change_role(by: User, membership: Membership, role: str) -> Membership:
    """Change the role of a member. Raises MembershipRefused."""
    with transaction.atomic():
        row = _lock_membership(by, membership)
        if row.role != role:
            row.role = role
            row.save(update_fields=["role"])
    return row


def appoint_champion(by: User, membership: Membership, is_champion: bool) -> Membership:
    """Give a member the mark of a champion, or take it away. It is ours also where the directory has the role."""
    permissions.check_access(by, membership.tenant)
    with transaction.atomic():
        row = Membership.objects.select_for_update(of=("self",)).select_related("user").filter(pk=membership.pk).first()
        if row is None:
            raise MembershipRefused(_("This person does not belong to the tenant any more."))
        if row.is_champion != is_champion:
            row.is_champion = is_champion
            row.save(update_fields=["is_champion"])
    return row


def remove_member(by: User, membership: Membership) -> None:
    """Remove a member: their keys of the tenant stop within 2 s, their usage stays on record, and they are notified.

    Raises MembershipRefused.
    """
    with transaction.atomic():
        directory_users.end_membership(_lock_membership(by, membership))


def is_by_hand(membership: Membership) -> bool:
    return membership.source == Membership.Source.MANUAL


def _lock_membership(by: User, membership: Membership) -> Membership:
    permissions.check_access(by, membership.tenant)
    row = Membership.objects.select_for_update(of=("self",)).select_related("user").filter(pk=membership.pk).first()
    if row is None:
        raise MembershipRefused(_("This person does not belong to the tenant any more."))
    if not is_by_hand(row):
        raise MembershipRefused(_("This membership comes from the company directory and can only be changed there."))
    if row.user == by and not by.is_staff:
        # Also keeps a tenant from losing its last admin by mistake.
        raise MembershipRefused(_("Ask another admin or an operator to change your own membership."))
    return row
