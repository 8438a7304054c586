"""What a person may see: a page about a tenant begins with `tenant_for`, one about hosts and models with `operator`."""

from collections import defaultdict
from collections.abc import Iterable

from django.contrib.auth.models import AnonymousUser
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import Http404, HttpRequest
from rest_framework.request import Request

from portal.accounts.models import Membership, Tenant, User


def current_user(request: HttpRequest | Request) -> User:
    """Return the person who asks. For what is behind a sign-in or a permission: there is always one."""
    assert isinstance(request.user, User)
    return request.user


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
    """Return those that `tenant_for` would give: one's own, and all for operators. With those that are switched off."""
    return Tenant.objects.all() if user.is_staff else Tenant.objects.filter(memberships__user=user)


def administered_tenants(user: User) -> QuerySet[Tenant]:
    """Return those that this person may administer: of `tenant_for` the ones with True."""
    if user.is_staff:
        return Tenant.objects.all()
    return Tenant.objects.filter(memberships__user=user, memberships__role=Membership.Role.ADMIN)


def administers(by: User, tenant: Tenant) -> bool:
    """Return whether this person may administer the tenant. One query at most."""
    return by.is_active and administered_tenants(by).filter(pk=tenant.pk).exists()


def check_access(by: User | None, tenant: Tenant | None = None) -> None:
    """Raise PermissionDenied unless this person may administer the tenant or, without one, operates.

    Verbs that change rights, keys or models begin with it: a page that forgot to ask opens nothing. `by` None: a
    command, whose caller has the machine itself.
    """
    if by is None or may_operate(by) or (tenant is not None and administers(by, tenant)):
        return
    raise PermissionDenied


def own_tenants(user: User) -> QuerySet[Tenant]:
    """Return the active tenants that this person belongs to: for which they may make keys of their own."""
    return Tenant.objects.filter(memberships__user=user, is_active=True)


def admins_of(tenant: Tenant) -> QuerySet[User]:
    """Return the active people who administer this tenant as its members: who is told and asked of its affairs."""
    return User.objects.filter(
        is_active=True, memberships__tenant=tenant, memberships__role=Membership.Role.ADMIN
    ).order_by("pk")


def admins_by_tenant(tenants: Iterable[Tenant]) -> list[tuple[Tenant, list[User]]]:
    """Return each of these tenants with its admins, for who wants to know whom to ask. One query."""
    rows = Membership.objects.filter(tenant__in=tenants, role=Membership.Role.ADMIN, user__is_active=True)
    found: dict[int, list[User]] = defaultdict(list)
    for row in rows.select_related("user").order_by("user_id"):
        found[row.tenant_id].append(row.user)
    return [(tenant, found[tenant.pk]) for tenant in tenants]


def operators() -> QuerySet[User]:
    """Return the active operators."""
    return User.objects.filter(is_active=True, is_staff=True).order_by("pk")


def may_operate(user: User | AnonymousUser) -> bool:
    """Return whether this person runs hosts and models, and so sees all of them."""
    return user.is_active and user.is_staff


def require_operator(user: User | AnonymousUser) -> User:
    """Return the same person, if an operator; else raises PermissionDenied, whose page says whom to ask.

    For everything at an address, also for what is not there: only operators learn what is.
    """
    if not may_operate(user):
        raise PermissionDenied
    assert isinstance(user, User)
    return user
