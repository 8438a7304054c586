"""A person's notices, as their page shows them."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db.models import QuerySet

from portal.accounts.models import User
from portal.notifications.models import Notice
from portal.notifications.types import KINDS

# Longer than anything that they tell of is of any interest; the audit keeps what must be kept.
KEPT = timedelta(days=400)


@dataclass(frozen=True, slots=True, kw_only=True)
class NotificationRow:
    """A notice in the language of the page. `tone`: "fine", "watch" or "broken". `path` "": there is no page of it."""

    pk: int
    title: str
    text: str
    tone: str
    path: str
    at: datetime
    is_read: bool


def notifications_of(user: User) -> QuerySet[Notice]:
    """Return newest first. Kinds of another release, which nobody here can say, are left out."""
    return Notice.objects.filter(user=user, kind__in=list(KINDS))


def notification_row(notices: Iterable[Notice]) -> list[NotificationRow]:
    """In their order; without those of another release whose facts do not make our sentences."""
    return [
        NotificationRow(
            pk=notice.pk,
            title=KINDS[notice.kind].title(notice.facts),
            text=KINDS[notice.kind].text(notice.facts),
            tone=KINDS[notice.kind].tone,
            path=notice.path,
            at=notice.at,
            is_read=notice.read_at is not None,
        )
        for notice in notices
        if KINDS[notice.kind].needs <= notice.facts.keys()
    ]


def mark_read(notices: QuerySet[Notice], now: datetime) -> None:
    """These are read from now on; those that were stay as they are."""
    notices.filter(read_at=None).update(read_at=now)


def delete_old(now: datetime) -> int:
    """Delete what is older than anybody looks back; how many."""
    return Notice.objects.filter(at__lt=now - KEPT).delete()[0]
