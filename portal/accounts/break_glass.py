"""The one account for emergencies: a local operator for when the directory, or the people who know it, are unavailable.

Its password is generated here and kept in a safe; it is never checked against the directory. Signing in with it needs
no reason, but every operator is notified.
"""

import secrets

from django.contrib import messages
from django.contrib.auth.signals import user_logged_in
from django.db import transaction
from django.http import HttpRequest
from django.utils import timezone
from django.utils.translation import gettext as _

from portal.accounts.models import User
from portal.accounts.signals import break_glass_used
from portal.web.client_address import client_address
from portal.web.notify import notify


class BreakGlassRefused(Exception):
    """The request cannot be carried out; the message gives the reason, for the command line, and `code` names it."""

    def __init__(self, sentence: str, code: str) -> None:
        super().__init__(sentence)
        self.code = code


def renew_password(name: str) -> str:
    """Create the account if there is none and return its new password, which is stored nowhere in clear text.

    Raises BreakGlassRefused.
    """
    with transaction.atomic():
        existing = User.objects.select_for_update().filter(is_break_glass=True).first()
        if existing is not None and existing.username.lower() != name.lower():
            raise BreakGlassRefused(
                f"There is one already: {existing.username}. Renew that one, or switch it off with --end.",
                "exists",
            )
        if existing is None and User.objects.filter(username__iexact=name).exists():
            raise BreakGlassRefused(
                f"There is a user {name} already; this account must not belong to a person.", "name-taken"
            )
        user = existing or User(username=User.normalize_username(name), is_break_glass=True)
        user.is_active = user.is_staff = user.is_superuser = True
        password = secrets.token_urlsafe(20)  # 160 bits: guessing it is hopeless, from however many addresses
        user.set_password(password)
        user.full_clean()
        user.save()
    return password


def disable_account(name: str) -> None:
    """Switch the account off for good, so that another can be created. What it did stays on record.

    Raises BreakGlassRefused.
    """
    with transaction.atomic():
        user = User.objects.select_for_update().filter(is_break_glass=True, username__iexact=name).first()
        if user is None:
            raise BreakGlassRefused(f"{name} is not the account for emergencies.", "another")
        user.is_break_glass = user.is_active = user.is_staff = user.is_superuser = False
        user.set_unusable_password()
        user.save()


def record_use(request: HttpRequest, user: User, **_more: object) -> None:
    """Notify every operator, within the same transaction, if the user who signed in is this account."""
    if not user.is_break_glass:
        return
    now, address = timezone.now(), client_address(request) or ""
    break_glass_used.send(sender=None, request=request, user=user)
    operators = User.objects.filter(is_staff=True, is_active=True, is_break_glass=False)
    facts = {"account": user.get_username(), "address": address, "at": timezone.localtime(now)}
    notify(operators, "break-glass-used", now.isoformat(), path="/audit/", **facts)
    warning = _("You are using the account for emergencies. Every operator has been notified.")
    messages.warning(request, warning, extra_tags="break-glass", fail_silently=True)


def watch_sign_ins() -> None:
    user_logged_in.connect(record_use, dispatch_uid="account for emergencies")
