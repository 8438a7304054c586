"""The one account for emergencies: a local operator for when the directory, or whoever knows it, is away.

Its password is made here and kept by people, in a safe; it is tried against no directory. Whoever uses it is asked no
questions, but every operator is told.
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
    """The message says why, for the command line."""


def renew_password(name: str) -> str:
    """Return a new password of the account, which is made if there is none. It exists nowhere else. Raises Refused."""
    with transaction.atomic():
        present = User.objects.select_for_update().filter(is_break_glass=True).first()
        if present is not None and present.username.lower() != name.lower():
            raise BreakGlassRefused(f"There is one already: {present.username}. Renew that one, or end it with --end.")
        if present is None and User.objects.filter(username__iexact=name).exists():
            raise BreakGlassRefused(f"There is a user {name} already; this account must be nobody's.")
        user = present or User(username=User.normalize_username(name), is_break_glass=True)
        user.is_active = user.is_staff = user.is_superuser = True
        password = secrets.token_urlsafe(20)  # 160 bits: guessing it is hopeless, from however many addresses
        user.set_password(password)
        user.full_clean()
        user.save()
    return password


def disable_account(name: str) -> None:
    """Nobody signs in with it any more, and another may be made. What it did stays on record. Raises Refused."""
    with transaction.atomic():
        user = User.objects.select_for_update().filter(is_break_glass=True, username__iexact=name).first()
        if user is None:
            raise BreakGlassRefused(f"{name} is not the account for emergencies.")
        user.is_break_glass = user.is_active = user.is_staff = user.is_superuser = False
        user.set_unusable_password()
        user.save()


def record_use(request: HttpRequest, user: User, **_more: object) -> None:
    """A receiver: somebody signed in. Of this account every operator is told, within the same transaction."""
    if not user.is_break_glass:
        return
    now, address = timezone.now(), client_address(request) or ""
    break_glass_used.send(sender=None, request=request, user=user)
    operators = User.objects.filter(is_staff=True, is_active=True, is_break_glass=False)
    facts = {"account": user.get_username(), "address": address, "at": timezone.localtime(now)}
    notify(operators, "break-glass-used", now.isoformat(), path="/audit/", **facts)
    said = _("You use the account for emergencies. Every operator is told of it.")
    messages.warning(request, said, fail_silently=True)


def watch_sign_ins() -> None:
    user_logged_in.connect(record_use, dispatch_uid="account for emergencies")
