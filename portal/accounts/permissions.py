"""What a person may see and change.

A page about a tenant begins with `tenant_for`, a page about hosts and models with `require_operator`.
"""

from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Any

from django.contrib.auth.models import AnonymousUser
from django.core.exceptions import PermissionDenied
from django.db.models import F, FilteredRelation, Q, QuerySet
from django.http import Http404, HttpRequest
from rest_framework.request import Request

from portal.accounts.models import INTERNAL_TENANTS, Membership, Tenant, User


def current_user(request: HttpRequest | Request) -> User:
    """Return the person who sent the request. Only for views behind a sign-in or a permission."""
    assert isinstance(request.user, User)
    return request.user


def tenant_for(user: User, slug: str) -> tuple[Tenant, bool]:
    """Return (tenant, may administer it). Raises Http404 both for an unknown tenant and for one of other people."""
    membership = Membership.objects.filter(user=user, tenant__slug=slug).select_related("tenant").first()
    if user.is_staff:
        tenant = membership.tenant if membership else Tenant.objects.filter(slug=slug).first()
        if tenant:
            return tenant, True
    if membership is None:
        raise Http404
    return membership.tenant, membership.role == Membership.Role.ADMIN


def without_internal(tenants: QuerySet[Tenant]) -> QuerySet[Tenant]:
    """Return those of the tenants that people may choose: not those of Madoguchi itself."""
    return tenants.exclude(slug__in=INTERNAL_TENANTS)


def visible_tenants(user: User) -> QuerySet[Tenant]:
    """Return the tenants that `tenant_for` would return: the person's own, all for operators; also inactive ones."""
    return Tenant.objects.all() if user.is_staff else Tenant.objects.filter(memberships__user=user)


def administered_tenants(user: User) -> QuerySet[Tenant]:
    """Return the tenants that this person may administer, for which `tenant_for` returns True."""
    if user.is_staff:
        return Tenant.objects.all()
    return Tenant.objects.filter(memberships__user=user, memberships__role=Membership.Role.ADMIN)


def administers(by: User, tenant: Tenant) -> bool:
    """Return whether this person may administer the tenant. Makes one query at most."""
    return by.is_active and administered_tenants(by).filter(pk=tenant.pk).exists()


def check_access(by: User | None, tenant: Tenant | None = None) -> None:
    """Raise PermissionDenied unless this person may administer the tenant or, without a tenant, is an operator.

    Functions that change rights, keys or models begin with it, so that a page without its own check opens nothing.
    `by` None: a command, whose caller has access to the machine itself.
    """
    if by is None or may_operate(by) or (tenant is not None and administers(by, tenant)):
        return
    raise PermissionDenied


def publishable_tenants(user: User) -> QuerySet[Tenant]:
    """Return the tenants for which this person may publish: as a champion or an admin of theirs, operators all."""
    if user.is_staff:
        return Tenant.objects.all()
    mine = Membership.objects.filter(user=user).filter(Q(is_champion=True) | Q(role=Membership.Role.ADMIN))
    return Tenant.objects.filter(pk__in=mine.values("tenant"))


def publishers_of(tenant: Tenant) -> QuerySet[User]:
    """Return the tenant's active champions and admins. Operators are not included."""
    mine = Membership.objects.filter(tenant=tenant).filter(Q(is_champion=True) | Q(role=Membership.Role.ADMIN))
    return User.objects.filter(is_active=True, pk__in=mine.values("user")).order_by("pk")


def own_tenants(user: User) -> QuerySet[Tenant]:
    """Return the active tenants that this person belongs to, and so may make keys of their own for."""
    return Tenant.objects.filter(memberships__user=user, is_active=True)


def admins_of(tenant: Tenant) -> QuerySet[User]:
    """Return the tenant's active admins, who get its notices and decide its requests. Operators are not included."""
    return User.objects.filter(
        is_active=True, memberships__tenant=tenant, memberships__role=Membership.Role.ADMIN
    ).order_by("pk")


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnTenant:
    """A tenant that a person belongs to. `admins`: its active ones, who can help its members."""

    tenant: Tenant
    is_admin: bool
    admins: tuple[User, ...]


def read_own_tenants(user: User) -> list[OwnTenant]:
    """Return `own_tenants` with what a person is there and its admins. One query."""
    admins = FilteredRelation("memberships", condition=Q(memberships__role=Membership.Role.ADMIN))
    rows: QuerySet[Any] = own_tenants(user).annotate(role=F("memberships__role"), admins=admins)
    rows = rows.select_related("admins__user").order_by("slug", "admins__user_id")
    found: list[OwnTenant] = []
    for _, some in groupby(rows, key=attrgetter("pk")):
        of_one = list(some)
        people = [row.admins.user for row in of_one if getattr(row, "admins", None)]
        found.append(
            OwnTenant(
                tenant=of_one[0],
                is_admin=of_one[0].role == Membership.Role.ADMIN,
                admins=tuple(person for person in people if person.is_active),
            )
        )
    return found


def operators() -> QuerySet[User]:
    """Return the active operators."""
    return User.objects.filter(is_active=True, is_staff=True).order_by("pk")


def may_operate(user: User | AnonymousUser) -> bool:
    """Return whether this person is an operator: runs hosts and models, and sees all of them."""
    return user.is_active and user.is_staff


def require_operator(user: User | AnonymousUser) -> User:
    """Return the same person if they are an operator; else raise PermissionDenied, whose page names operators to ask.

    Check before looking anything up, so that only operators learn which objects exist.
    """
    if not may_operate(user):
        raise PermissionDenied
    assert isinstance(user, User)
    return user
