"""Whose usage a person may look at: their own, that of a tenant that they administer, for operators all usage.

Only `find_scope` decides that; `narrow_scope` selects a part of what it gave, never more.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from django.db.models import QuerySet
from django.http import Http404
from django.utils.translation import gettext as _

from portal.accounts import permissions
from portal.accounts.models import User
from portal.usage.models import (
    RefusedRequest,
    RejectionHour,
    UsageClientDay,
    UsageDay,
    UsageHour,
    UsageMonth,
    UsageRecord,
    UsageTenantDay,
)

ME, ALL, TENANT = "me", "all", "tenant:"
SERVICE = "service"  # in place of a user's number: service keys, which belong to no user


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageScope:
    """The usage that a person looks at."""

    name: str
    label: str
    owner: tuple[Literal["tenant", "user"], int] | None  # None: all usage
    days: QuerySet[UsageDay]
    months: QuerySet[UsageMonth]
    people: QuerySet[UsageDay] | QuerySet[UsageClientDay]  # the fewest rows that have all people of each of its days
    sums: QuerySet[UsageDay] | QuerySet[UsageTenantDay]  # the fewest rows that add up to each of its days, by model
    hours: QuerySet[UsageHour] | None  # None: not summed by the hour
    records: QuerySet[UsageRecord]
    rejections: QuerySet[RejectionHour]
    refused: QuerySet[RefusedRequest]
    groups: tuple[str, ...]  # by which it can be grouped

    @property
    def personal(self) -> bool:
        """Whether it is one person's, so that people need not be counted."""
        return self.name == ME


@dataclass(frozen=True, slots=True, kw_only=True)
class Focus:
    """A part of a scope; "" for all. `user` and `key` are given by number (or SERVICE), the others by name."""

    model: str = ""
    user: str = ""
    key: str = ""
    end_user: str = ""

    @property
    def parts(self) -> dict[str, str]:
        """What is given, by name."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name))}


def scope_choices(user: User) -> list[tuple[str, str]]:
    """Return (name, label) of each scope that `find_scope` gives this person, their own first. One query."""
    every = [(ALL, _("everyone"))] if permissions.may_operate(user) else []
    tenants = permissions.administered_tenants(user).order_by("name")
    return [(ME, _("mine")), *every, *((TENANT + tenant.slug, tenant.name) for tenant in tenants)]


def find_scope(user: User, name: str) -> UsageScope:
    """Return the scope of this name. Raises the same Http404 if it does not exist and if it is not this person's."""
    if name == ME:
        mine = _filter_rows(user=user)
        return UsageScope(
            name=name,
            label=_("mine"),
            owner=("user", user.pk),
            **mine,
            people=mine["days"],
            sums=mine["days"],
            hours=None,
            groups=("model", "key", "end_user"),
        )
    if name == ALL and permissions.may_operate(user):
        return UsageScope(
            name=name,
            label=_("everything"),
            owner=None,
            **_filter_rows(),
            people=UsageClientDay.objects.all(),
            sums=UsageTenantDay.objects.all(),
            hours=UsageHour.objects.all(),
            groups=("model", "tenant", "user", "key", "end_user"),
        )
    if not name.startswith(TENANT):
        raise Http404
    tenant, may_administer = permissions.tenant_for(user, name.removeprefix(TENANT))
    if not may_administer:
        raise Http404
    return UsageScope(
        name=name,
        label=tenant.name,
        owner=("tenant", tenant.pk),
        **_filter_rows(tenant=tenant),
        people=UsageDay.objects.filter(tenant=tenant),  # which, unlike the other, has an index by tenant
        sums=UsageTenantDay.objects.filter(tenant=tenant),
        hours=UsageHour.objects.filter(tenant=tenant),
        groups=("model", "user", "key", "end_user"),
    )


def _filter_rows(**owner: Any) -> dict[str, Any]:
    return {
        "days": UsageDay.objects.filter(**owner),
        "months": UsageMonth.objects.filter(**owner),
        "records": UsageRecord.objects.filter(**owner),
        "rejections": RejectionHour.objects.filter(**owner),
        "refused": RefusedRequest.objects.filter(**owner),
    }


def narrow_scope(scope: UsageScope, focus: Focus) -> UsageScope:
    """Return the part of the scope that `focus` selects.

    Raises Http404 if the scope has no such part, so that no one learns of other tenants' keys and people by their
    numbers. One query at most.
    """
    if not focus.parts:
        return scope
    conditions = _build_conditions(focus)
    months = scope.months.filter(**conditions)
    # A model may be chosen before it was used: names of models are not secret.
    if focus.parts.keys() != {"model"} and not months.exists():
        raise Http404
    only_model = focus.parts.keys() == {"model"}
    days = scope.days.filter(**conditions)
    of_rejections = {name: value for name, value in conditions.items() if name != "end_user"}
    return replace(
        scope,
        days=days,
        months=months,
        people=days,
        sums=scope.sums.filter(**conditions) if only_model else days,
        hours=scope.hours.filter(**conditions) if only_model and scope.hours is not None else None,
        records=scope.records.filter(**conditions),
        # The end user of a rejected call is not known.
        rejections=scope.rejections.none() if focus.end_user else scope.rejections.filter(**of_rejections),
        refused=scope.refused.none() if focus.end_user else scope.refused.filter(**of_rejections),
        groups=tuple(group for group in scope.groups if group not in focus.parts),
    )


def _build_conditions(focus: Focus) -> dict[str, Any]:
    conditions: dict[str, Any] = {name: value for name, value in focus.parts.items() if name in ("model", "end_user")}
    for name in ("user", "key"):
        if value := focus.parts.get(name):
            if name == "user" and value == SERVICE:
                conditions["user__isnull"] = True
            elif value.isdecimal() and len(value) < 19:
                conditions[f"{name}_id"] = int(value)
            else:
                raise Http404
    return conditions
