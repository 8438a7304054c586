"""Throttling of sign-ins: django-axes counts failures by name and address, and locks after too many."""

import threading
import unicodedata
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from axes.models import AccessAttempt
from django.conf import settings
from django.db.models import Max
from django.http import HttpRequest
from django.utils import timezone
from django.utils.crypto import salted_hmac

from portal.accounts.models import User
from portal.web.client_address import client_address


def counted_name(request: HttpRequest, credentials: dict[str, Any] | None = None) -> str | None:
    """Return the name under which failures count: Yamada, yamada and ｙａｍａｄａ share their five attempts."""
    name = (credentials or request.POST).get("username")
    if name is None:
        return None
    name = _fold_name(name)
    if User.objects.filter(username__iexact=name).exists():
        return name
    name = _strip_domain(name)
    if User.objects.filter(username__iexact=name).exists():
        return name
    # An unknown name may be a password typed into the wrong field: counted like any name, but not stored in clear text.
    return f"unknown-{salted_hmac('sign-in attempts', name, algorithm='sha256').hexdigest()[:40]}"


class TooManyAttempts(Exception):
    """As many attempts with this name from this address as are allowed in all are being made at the same time."""


_locks: dict[tuple[str, str | None], threading.Lock] = {}
_attempts: Counter[tuple[str, str | None]] = Counter()
_guard = threading.Lock()


@contextmanager
def wait_turn(request: HttpRequest, username: str) -> Iterator[None]:
    """Wait until no other attempt with this name from this address is being made in this process.

    A failure counts only after the password was tried, so of seventy attempts at once all seventy were tried before one
    counted. An attempt that waits here has made no query yet, and so holds no database connection. Raises
    TooManyAttempts.
    """
    attempt = (_strip_domain(_fold_name(username)), client_address(request))
    with _guard:
        if _attempts[attempt] >= settings.AXES_FAILURE_LIMIT:
            raise TooManyAttempts
        _attempts[attempt] += 1
        lock = _locks.setdefault(attempt, threading.Lock())
    try:
        with lock:
            yield
    finally:
        with _guard:
            _attempts[attempt] -= 1
            if not _attempts[attempt]:
                del _attempts[attempt], _locks[attempt]


def _strip_domain(name: str) -> str:
    """Return the account name: with a directory, CORP\\yamada and yamada@corp.example share the attempts of yamada."""
    return (name.rpartition("\\")[2].partition("@")[0] or name) if settings.DIRECTORY else name


def _fold_name(name: str) -> str:
    return unicodedata.normalize("NFKC", name).strip().lower()


def remaining_lock(request: HttpRequest, username: str) -> timedelta:
    """Return how long a person who is locked out must still wait."""
    attempts = AccessAttempt.objects.filter(
        username=counted_name(request, {"username": username}), ip_address=client_address(request)
    )
    last = attempts.aggregate(last=Max("attempt_time"))["last"] or timezone.now()
    return max(last + settings.AXES_COOLOFF_TIME - timezone.now(), timedelta(seconds=1))
