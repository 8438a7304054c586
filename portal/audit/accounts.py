"""How the audit log records people, tenants and memberships."""

from typing import Any

from django.http import HttpRequest

from portal.accounts.models import Membership, Tenant, User
from portal.accounts.signals import break_glass_used
from portal.audit import tracking
from portal.web.templatetags.formatting import person


def track_accounts() -> None:
    """Record changes of people, tenants and memberships, and each use of the account for emergencies."""
    tracking.track(
        User,
        "user",
        secret={"password"},
        ignored={"last_login", "date_joined"},
        # Django keeps the typed password until the row is saved. Without it, a sign-in only hashed the same one again.
        omitted=lambda user: () if user._password is not None else {"password"},
        name=user_name,
        verb=user_verb,
    )
    tracking.track(Tenant, "tenant", tenant=lambda tenant: tenant, name=tenant_name, verb=switch_verb)
    tracking.track(
        Membership,
        "membership",
        ignored={"since"},
        tenant=lambda membership: membership.tenant,
        name=lambda membership: f"{membership.user.get_username()} · {membership.tenant.slug}",
    )
    break_glass_used.connect(record_break_glass, dispatch_uid="audit break-glass")


def record_break_glass(request: HttpRequest, user: User, **_: Any) -> None:
    """Record that the account for emergencies signed in."""
    tracking.record_event("session.break-glass", user, "user", request=request, actor=user)


def user_name(user: Any) -> str:
    name = person(user)
    return str(name) if name == user.get_username() else f"{user.get_username()} ({name})"


def tenant_name(tenant: Any) -> str:
    return str(tenant.slug) if tenant.name == tenant.slug else f"{tenant.slug} ({tenant.name})"


def user_verb(before: dict[str, Any], after: dict[str, Any]) -> str:
    if "left_directory_at" in after:
        return "leave" if after["left_directory_at"] else "return"
    return "password" if set(after) == {"password"} else switch_verb(before, after)


def switch_verb(before: dict[str, Any], after: dict[str, Any]) -> str:
    if set(after) == {"is_active"}:
        return "on" if after["is_active"] else "off"
    return "change"
