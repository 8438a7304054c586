"""Who is trying to sign in, for django-axes: it counts failures by person and address and locks after too many."""

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
    name = _folded(name)
    if User.objects.filter(username__iexact=name).exists():
        return name
    name = _account(name)
    if User.objects.filter(username__iexact=name).exists():
        return name
    # Nobody's name may be somebody's password, typed into the wrong field: counted alike, but not to be read.
    return f"unknown-{salted_hmac('sign-in attempts', name, algorithm='sha256').hexdigest()[:40]}"


class Crowded(Exception):
    """As many attempts of this name from this address as one has in all are being made at the same time."""


_turns: dict[tuple[str, str | None], threading.Lock] = {}
_present: Counter[tuple[str, str | None]] = Counter()
_guard = threading.Lock()


@contextmanager
def wait_turn(request: HttpRequest, username: str) -> Iterator[None]:
    """Let one attempt of a name from an address at a time be made in this process. Raises Crowded.

    A failure counts when the password was tried: of seventy attempts at the same time all seventy were tried. Who waits
    asks the database nothing yet, and so holds none of its connections.
    """
    one = (_account(_folded(username)), client_address(request))
    with _guard:
        if _present[one] >= settings.AXES_FAILURE_LIMIT:
            raise Crowded
        _present[one] += 1
        mine = _turns.setdefault(one, threading.Lock())
    try:
        with mine:
            yield
    finally:
        with _guard:
            _present[one] -= 1
            if not _present[one]:
                del _present[one], _turns[one]


def _account(name: str) -> str:
    """With a directory CORP\\yamada and yamada@corp.example are yamada, and have no five attempts of their own."""
    return (name.rpartition("\\")[2].partition("@")[0] or name) if settings.DIRECTORY else name


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", name).strip().lower()


def wait(request: HttpRequest, username: str) -> timedelta:
    """Return how long somebody who is locked out must wait from now on."""
    attempts = AccessAttempt.objects.filter(
        username=counted_name(request, {"username": username}), ip_address=client_address(request)
    )
    last = attempts.aggregate(last=Max("attempt_time"))["last"] or timezone.now()
    return max(last + settings.AXES_COOLOFF_TIME - timezone.now(), timedelta(seconds=1))
