"""What a person may see: every page about a tenant begins with `tenant_for`."""

from django.db.models import QuerySet
from django.http import Http404

from portal.accounts.models import Membership, Tenant, User


def tenant_for(user: User, slug: str) -> tuple[Tenant, bool]:
    """(tenant, may administer it). Raises Http404 for what is not there and for what is not this person's, alike."""
    membership = Membership.objects.filter(user=user, tenant__slug=slug).select_related("tenant").first()
    if user.is_staff:
        tenant = membership.tenant if membership else Tenant.objects.filter(slug=slug).first()
        if tenant:
            return tenant, True
    if membership is None:
        raise Http404
    return membership.tenant, membership.role == Membership.Role.ADMIN


def visible_tenants(user: User) -> QuerySet[Tenant]:
    """Those that `tenant_for` would give: one's own, and all for operators. With those that are switched off."""
    return Tenant.objects.all() if user.is_staff else Tenant.objects.filter(memberships__user=user)
