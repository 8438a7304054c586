from datetime import timedelta
from types import ModuleType
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.utils.translation import gettext_lazy as _


class AccountsConfig(AppConfig):
    name = "portal.accounts"
    verbose_name = _("People")

    def __init__(self, app_name: str, app_module: ModuleType | None) -> None:
        super().__init__(app_name, app_module)
        self.audited: dict[str, Any] = {}  # what `audit.watch` was told

    def ready(self) -> None:
        from modelregistry.supervisor import tasks
        from portal.accounts import audit, checks, emergency, roster  # noqa: F401
        from portal.accounts.models import Membership, Tenant, User

        audit.watch_sessions()
        emergency.watch()
        audit.watch(
            User,
            "user",
            secret={"password"},
            silent={"last_login", "date_joined"},
            # Django keeps what was typed until the row is saved. Without it, a sign-in only hashed the same one anew.
            untold=lambda user: () if user._password is not None else {"password"},
            name=user_name,
            verb=user_verb,
        )
        audit.watch(Tenant, "tenant", tenant=lambda tenant: tenant, name=tenant_name, verb=switch_verb)
        audit.watch(
            Membership,
            "membership",
            silent={"since"},
            tenant=lambda membership: membership.tenant,
            name=lambda membership: f"{membership.user.get_username()} · {membership.tenant.slug}",
        )
        # Django's own command: sessions that are over, of people who closed their browser without signing out.
        tasks.register("clearsessions", timedelta(days=1), ("clearsessions",))
        if settings.DIRECTORY:
            work = roster.WORK
            tasks.register(work.name, work.every, work.argv)


def user_name(user: Any) -> str:
    from portal.console.templatetags.figures import person

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
