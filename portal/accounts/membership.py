"""Who belongs to a tenant by hand. What the company directory says is changed there; `directory_users` follows it.

For pages, the API and commands. Each verb is one transaction and checks the right of `by` (see tenancy.check); what
cannot be done raises Refused.
"""

from django.db import IntegrityError, transaction
from django.db.models import Q, QuerySet
from django.utils.translation import gettext as _

from portal.accounts import directory_users, permissions
from portal.accounts.models import Membership, Tenant, User
from portal.web.refusals import Refused


class MembershipRefused(Refused):
    """What was asked of a membership cannot be."""


def members_of(tenant: Tenant, text: str = "") -> QuerySet[Membership]:
    """Return those of the tenant; with `text` only of people who have all of its words in name, user name or mail."""
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
    """Make somebody who has an account here a member. Raises Refused."""
    permissions.check_access(by, tenant)
    user = User.objects.filter(username__iexact=username.strip()).first()
    if user is None:
        raise MembershipRefused(
            _("Nobody of the user name “%(name)s” has an account here. People get one when they first sign in.")
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
    """Make a member an admin of the tenant or the other way round. Raises Refused."""
    with transaction.atomic():
        row = _locked(by, membership)
        if row.role != role:
            row.role = role
            row.save(update_fields=["role"])
    return row


def remove_member(by: User, membership: Membership) -> None:
    """End it: the person's keys of the tenant stop within 2 s, what they used stays on record, and they are told.

    Raises Refused.
    """
    with transaction.atomic():
        directory_users.end_membership(_locked(by, membership))


def is_by_hand(membership: Membership) -> bool:
    return membership.source == Membership.Source.MANUAL


def _locked(by: User, membership: Membership) -> Membership:
    permissions.check_access(by, membership.tenant)
    row = Membership.objects.select_for_update(of=("self",)).select_related("user").filter(pk=membership.pk).first()
    if row is None:
        raise MembershipRefused(_("This person does not belong to the tenant any more."))
    if not is_by_hand(row):
        raise MembershipRefused(
            _("This membership follows the company directory: it is changed there, by who looks after its groups.")
        )
    if row.user == by and not by.is_staff:
        # Also keeps a tenant from losing its last admin by a slip.
        raise MembershipRefused(_("Ask another admin or an operator to change your own membership."))
    return row
