"""Whose usage a person may look at: one's own, that of a tenant that one administers, for operators everything.

`find` is the one function that says so; `narrowed` leaves less of what it gave, never more.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from django.db.models import QuerySet
from django.http import Http404
from django.utils.translation import gettext as _

from portal.accounts import permissions
from portal.accounts.models import User
from portal.usage.models import RejectionHour, UsageDay, UsageHour, UsageMonth, UsageRecord, UsageTenantDay

ME, ALL, TENANT = "me", "all", "tenant:"
SERVICE = "service"  # in place of a user's number: service keys, which have none


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """`groups`: by what it can be told apart. `sums`: the fewest rows that add up to each of its days, by model.
    `hours`: None where nothing is summed by the hour. `owner`: the tenant or user whose it is; None: everybody's."""

    name: str
    label: str
    owner: tuple[Literal["tenant", "user"], int] | None
    days: QuerySet[UsageDay]
    months: QuerySet[UsageMonth]
    sums: QuerySet[UsageDay] | QuerySet[UsageTenantDay]
    hours: QuerySet[UsageHour] | None
    records: QuerySet[UsageRecord]
    rejections: QuerySet[RejectionHour]
    groups: tuple[str, ...]

    @property
    def personal(self) -> bool:
        """Whether it is one person's, so that there is nobody to count."""
        return self.name == ME


@dataclass(frozen=True, slots=True, kw_only=True)
class Focus:
    """A part of a scope: "" stands for all. `user` and `key` by number (or SERVICE), the others by name."""

    model: str = ""
    user: str = ""
    key: str = ""
    end_user: str = ""

    @property
    def asked(self) -> dict[str, str]:
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name))}


def scope_choices(user: User) -> list[tuple[str, str]]:
    """(name, label) of each scope that `find` gives this person, one's own first. One query."""
    every = [(ALL, _("everything"))] if permissions.may_operate(user) else []
    tenants = permissions.administered_tenants(user).order_by("name")
    return [(ME, _("mine")), *every, *((TENANT + tenant.slug, tenant.name) for tenant in tenants)]


def find_scope(user: User, name: str) -> Scope:
    """Return the scope of this name. Raises Http404 for what is not there and for what is not this person's, alike."""
    if name == ME:
        mine = _of(user=user)
        return Scope(
            name=name,
            label=_("mine"),
            owner=("user", user.pk),
            **mine,
            sums=mine["days"],
            hours=None,
            groups=("model", "key", "end_user"),
        )
    if name == ALL and permissions.may_operate(user):
        return Scope(
            name=name,
            label=_("everything"),
            owner=None,
            **_of(),
            sums=UsageTenantDay.objects.all(),
            hours=UsageHour.objects.all(),
            groups=("model", "tenant", "user", "key", "end_user"),
        )
    if not name.startswith(TENANT):
        raise Http404
    tenant, may_administer = permissions.tenant_for(user, name.removeprefix(TENANT))
    if not may_administer:
        raise Http404
    return Scope(
        name=name,
        label=tenant.name,
        owner=("tenant", tenant.pk),
        **_of(tenant=tenant),
        sums=UsageTenantDay.objects.filter(tenant=tenant),
        hours=UsageHour.objects.filter(tenant=tenant),
        groups=("model", "user", "key", "end_user"),
    )


def _of(**owner: Any) -> dict[str, Any]:
    return {
        "days": UsageDay.objects.filter(**owner),
        "months": UsageMonth.objects.filter(**owner),
        "records": UsageRecord.objects.filter(**owner),
        "rejections": RejectionHour.objects.filter(**owner),
    }


def narrowed(scope: Scope, focus: Focus) -> Scope:
    """What `focus` leaves of the scope. Raises Http404 where that is not in it, so that nobody learns of others' keys
    and people by their numbers. One query at most."""
    if not focus.asked:
        return scope
    conditions = _conditions(focus)
    months = scope.months.filter(**conditions)
    # A model may be looked at that was not used yet: their names are no secret.
    if focus.asked.keys() != {"model"} and not months.exists():
        raise Http404
    only_model = focus.asked.keys() == {"model"}
    days = scope.days.filter(**conditions)
    refused = {name: value for name, value in conditions.items() if name != "end_user"}
    return replace(
        scope,
        days=days,
        months=months,
        sums=scope.sums.filter(**conditions) if only_model else days,
        hours=scope.hours.filter(**conditions) if only_model and scope.hours is not None else None,
        records=scope.records.filter(**conditions),
        # Whose end user it was is not known of a call that was refused.
        rejections=scope.rejections.none() if focus.end_user else scope.rejections.filter(**refused),
        groups=tuple(group for group in scope.groups if group not in focus.asked),
    )


def _conditions(focus: Focus) -> dict[str, Any]:
    conditions: dict[str, Any] = {name: value for name, value in focus.asked.items() if name in ("model", "end_user")}
    for name in ("user", "key"):
        if value := focus.asked.get(name):
            if name == "user" and value == SERVICE:
                conditions["user__isnull"] = True
            elif value.isdecimal() and len(value) < 19:
                conditions[f"{name}_id"] = int(value)
            else:
                raise Http404
    return conditions
