"""Who is trying to sign in, for django-axes: it counts failures by person and address and locks after too many."""

import ipaddress
import unicodedata
from datetime import timedelta
from typing import Any

from axes.models import AccessAttempt
from django.conf import settings
from django.db.models import Max
from django.http import HttpRequest
from django.utils import timezone
from django.utils.crypto import salted_hmac

from portal.accounts.models import User


def client_address(request: HttpRequest) -> str | None:
    """The address of the person's computer, as seen by the outermost proxy that is ours.

    A client may write anything into X-Forwarded-For; each proxy appends the address that it saw. So with
    TRUSTED_PROXIES = n the n-th entry from the right is the first one that a client cannot invent.
    """
    peer = _address(request.META.get("REMOTE_ADDR", ""))
    if not settings.TRUSTED_PROXIES:
        return peer
    seen = request.META.get("HTTP_X_FORWARDED_FOR", "").split(",")
    if len(seen) < settings.TRUSTED_PROXIES:
        return peer  # did not come through all of them
    return _address(seen[-settings.TRUSTED_PROXIES]) or peer


def counted_name(request: HttpRequest, credentials: dict[str, Any] | None = None) -> str | None:
    """The name under which failures count: Yamada, yamada and ｙａｍａｄａ share their five attempts."""
    name = (credentials or request.POST).get("username")
    if name is None:
        return None
    name = unicodedata.normalize("NFKC", name).strip().lower()
    if User.objects.filter(username__iexact=name).exists():
        return name
    # Nobody's name may be somebody's password, typed into the wrong field: counted alike, but not to be read.
    return f"unknown-{salted_hmac('sign-in attempts', name, algorithm='sha256').hexdigest()[:40]}"


def wait(request: HttpRequest, username: str) -> timedelta:
    """How long somebody who is locked out must wait from now on."""
    attempts = AccessAttempt.objects.filter(
        username=counted_name(request, {"username": username}), ip_address=client_address(request)
    )
    last = attempts.aggregate(last=Max("attempt_time"))["last"] or timezone.now()
    return max(last + settings.AXES_COOLOFF_TIME - timezone.now(), timedelta(seconds=1))


def _address(text: str) -> str | None:
    """An address alone: proxies may add a port, and brackets around IPv6. None for what is no address."""
    host = text.strip()
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    elif host.count(":") == 1:
        host = host.partition(":")[0]
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return None
