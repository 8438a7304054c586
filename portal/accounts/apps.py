from datetime import timedelta
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.utils.translation import gettext_lazy as _


class AccountsConfig(AppConfig):
    name = "portal.accounts"
    verbose_name = _("People")

    def ready(self) -> None:
        from modelregistry.supervisor import tasks
        from portal.accounts import break_glass, directory_sync
        from portal.accounts.models import Membership, Tenant, User
        from portal.audit import tracking

        break_glass.watch_sign_ins()
        tracking.track(
            User,
            "user",
            secret={"password"},
            silent={"last_login", "date_joined"},
            # Django keeps what was typed until the row is saved. Without it, a sign-in only hashed the same one anew.
            untold=lambda user: () if user._password is not None else {"password"},
            name=user_name,
            verb=user_verb,
        )
        tracking.track(Tenant, "tenant", tenant=lambda tenant: tenant, name=tenant_name, verb=switch_verb)
        tracking.track(
            Membership,
            "membership",
            silent={"since"},
            tenant=lambda membership: membership.tenant,
            name=lambda membership: f"{membership.user.get_username()} · {membership.tenant.slug}",
        )
        # Django's own command: sessions that are over, of people who closed their browser without signing out.
        tasks.register("clearsessions", timedelta(days=1), ("clearsessions",))
        if settings.DIRECTORY:
            work = directory_sync.WORK
            tasks.register(work.name, work.every, work.argv)


def user_name(user: Any) -> str:
    from portal.web.templatetags.formatting import person

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
