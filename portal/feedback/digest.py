"""Once a week: how people found the answers, for operators, and for each tenant's champions and admins."""

from collections.abc import Iterable
from datetime import datetime, time, timedelta
from zoneinfo import ZoneInfo

from django.conf import settings
from django.urls import reverse

from portal.accounts import permissions
from portal.accounts.models import Tenant, User
from portal.feedback.models import Feedback
from portal.feedback.reports import FeedbackRow, comments_of, sum_up
from portal.web.notify import notify

HOUR = 8  # on Monday, in the server's time zone


def last_week(now: datetime) -> tuple[datetime, datetime]:
    """Return the beginning and the end of the last whole week, from Monday to Sunday."""
    local = now.astimezone(ZoneInfo(settings.TIME_ZONE))
    monday = local.date() - timedelta(days=local.weekday())
    end = datetime.combine(monday, time.min, local.tzinfo)
    return datetime.combine(monday - timedelta(days=7), time.min, local.tzinfo), end


def is_time(now: datetime) -> bool:
    """Return whether last week's digest is due: from Monday at HOUR on."""
    local = now.astimezone(ZoneInfo(settings.TIME_ZONE))
    return local.weekday() > 0 or local.hour >= HOUR


def send_digests(now: datetime) -> int:
    """Notify of last week's feedback, each person once however often this runs; return for how many groups."""
    if not is_time(now):
        return 0
    start, end = last_week(now)
    rows = Feedback.objects.filter(at__gte=start, at__lt=end).exclude(model="")
    week = f"{start:%G-W%V}"
    everything = sum_up(rows)
    if not everything.count:
        return 0
    _notify(permissions.operators(), week, everything, comments_of(rows).count(), start)
    sent = 1
    for tenant in Tenant.objects.filter(pk__in=rows.order_by().values("tenant")):
        mine = rows.filter(tenant=tenant)
        readers = [person for person in permissions.publishers_of(tenant) if not person.is_staff]
        if readers:
            _notify(readers, week, sum_up(mine), comments_of(mine).count(), start, tenant)
            sent += 1
    return sent


def _notify(
    people: Iterable[User], week: str, row: FeedbackRow, comments: int, start: datetime, tenant: Tenant | None = None
) -> None:
    slug = tenant.slug if tenant else ""
    path = reverse("feedback") + (f"?of={slug}" if slug else "")
    facts = {"up": row.up, "down": row.down, "comments": comments, "tenant": tenant.name if tenant else "", "at": start}
    notify(people, "feedback-digest", f"{week} {slug}".strip(), path=path, **facts)
