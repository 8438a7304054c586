"""Notify people: `portal.notifications` subscribes to the signal, so that no lower package needs to import it."""

from collections.abc import Iterable
from typing import Any

from django.contrib.auth.models import AbstractBaseUser
from django.dispatch import Signal

notification_requested = Signal()


def notify(users: Iterable[AbstractBaseUser], kind: str, ref: str, path: str = "", **facts: Any) -> None:
    """Record a notification for each of these people once, within the caller's transaction.

    `kind` is one of `notifications.types.KINDS`, which says what `facts` it needs: texts, numbers and aware times.
    `ref` (100 characters) distinguishes two of a kind, as "mdg_AbCdEfGh 7". `path`: of the page about it, from "/".
    Raises ValueError for an unknown kind and for facts that are missing.
    """
    receivers = notification_requested.send(sender=None, users=users, kind=kind, ref=ref, path=path, facts=facts)
    assert receivers, "portal.notifications is not installed: no one would be notified"
