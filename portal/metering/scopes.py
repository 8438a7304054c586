"""Whose usage a person may look at: one's own, that of a tenant that one administers, for operators everything."""

from dataclasses import dataclass

from django.db.models import QuerySet
from django.http import Http404
from django.utils.translation import gettext as _

from portal.accounts import tenancy
from portal.accounts.models import User
from portal.metering.models import UsageDay, UsageHour
from portal.metering.usage import visible_to

ME, ALL, TENANT = "me", "all", "tenant:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """`groups`: by what it can be told apart. `hours`: None for one's own, which is not summed by the hour."""

    name: str
    label: str
    days: QuerySet[UsageDay]
    hours: QuerySet[UsageHour] | None
    groups: tuple[str, ...]


def choices(user: User) -> list[tuple[str, str]]:
    """(name, label) of each scope that `find` gives this person, one's own first. One query."""
    every = [(ALL, _("everything"))] if tenancy.may_operate(user) else []
    tenants = tenancy.administered_tenants(user).order_by("name")
    return [(ME, _("mine")), *every, *((TENANT + tenant.slug, tenant.name) for tenant in tenants)]


def find(user: User, name: str) -> Scope:
    """The scope of this name. Raises Http404 for what is not there and for what is not this person's, alike."""
    if name == ME:
        return Scope(name=name, label=_("mine"), days=visible_to(user), hours=None, groups=("model", "key"))
    if name == ALL and tenancy.may_operate(user):
        return Scope(
            name=name,
            label=_("everything"),
            days=UsageDay.objects.all(),
            hours=UsageHour.objects.all(),
            groups=("model", "tenant", "user", "key", "end_user"),
        )
    if not name.startswith(TENANT):
        raise Http404
    tenant, may_administer = tenancy.tenant_for(user, name.removeprefix(TENANT))
    if not may_administer:
        raise Http404
    return Scope(
        name=name,
        label=tenant.name,
        days=UsageDay.objects.filter(tenant=tenant),
        hours=UsageHour.objects.filter(tenant=tenant),
        groups=("model", "user", "key", "end_user"),
    )
