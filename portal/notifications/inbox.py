"""A person's notices, as their page shows them."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.conf import settings
from django.db.models import QuerySet

from portal.accounts.models import User
from portal.notifications.models import Notice
from portal.notifications.types import KINDS


@dataclass(frozen=True, slots=True, kw_only=True)
class NotificationRow:
    """A notice in the language of the page."""

    pk: int
    title: str
    text: str
    tone: str  # "fine", "watch" or "broken"
    path: str  # of the page about it, or ""
    at: datetime
    is_read: bool
    is_tip: bool = False


def notifications_of(user: User) -> QuerySet[Notice]:
    """Return the notices of a person, newest first, without kinds of another release, which have no sentences here."""
    return Notice.objects.filter(user=user, kind__in=list(KINDS))


def notification_rows(notices: Iterable[Notice]) -> list[NotificationRow]:
    """Return what pages show of these notices, in their order, without those that lack facts for their sentences."""
    return [
        NotificationRow(
            pk=notice.pk,
            title=KINDS[notice.kind].title(notice.facts),
            text=KINDS[notice.kind].text(notice.facts),
            tone=KINDS[notice.kind].tone,
            path=notice.path,
            at=notice.at,
            is_read=notice.read_at is not None,
            is_tip=KINDS[notice.kind].is_tip,
        )
        for notice in notices
        if KINDS[notice.kind].required <= notice.facts.keys()
    ]


def mark_read(notices: QuerySet[Notice], now: datetime) -> None:
    """Mark the unread ones of these notices as read now."""
    notices.filter(read_at=None).update(read_at=now)


def delete_old(now: datetime) -> int:
    """Delete notices older than NOTICES_KEPT_DAYS; the audit log keeps what must be kept. Return how many."""
    return Notice.objects.filter(at__lt=now - timedelta(days=settings.NOTICES_KEPT_DAYS)).delete()[0]
