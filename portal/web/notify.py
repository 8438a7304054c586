"""Notify people, whatever shows it: `portal.notifications` subscribes, so that no lower package needs to know it."""

from collections.abc import Iterable
from typing import Any

from django.contrib.auth.models import AbstractBaseUser
from django.dispatch import Signal

notification_requested = Signal()


def notify(users: Iterable[AbstractBaseUser], kind: str, ref: str, path: str = "", **facts: Any) -> None:
    """Record a notification for each of these people once, within the caller's transaction.

    `kind` is one of `notifications.types.KINDS`, which says what `facts` it needs: texts, numbers and aware times.
    `ref` (100 characters) tells two of a kind apart, as "mdg_AbCdEfGh 7". `path`: of the page about it, from "/".
    Raises ValueError for an unknown kind and for facts that are missing.
    """
    heard = notification_requested.send(sender=None, users=users, kind=kind, ref=ref, path=path, facts=facts)
    assert heard, "portal.notifications is not installed: nobody would be notified"
