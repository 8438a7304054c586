"""Tells people what the quarter brought, as the parts of the system would have: in the same words, with the same facts.

Only those who can be looked over the shoulder: the accounts to look around with, admins and operators.
"""

from datetime import datetime, timedelta

from django.urls import reverse

from portal.accounts.models import DirectoryState
from portal.demo.staff import Staff
from portal.notifications import quota_alerts
from portal.notifications.models import Notice
from portal.quotas import administration
from portal.quotas.models import QuotaRequest
from portal.web.notify import notify
from portal.web.templatetags.formatting import person

SOON = timedelta(days=7)


def notify_all(now: datetime, staff: Staff) -> None:
    quota_alerts.notify_near_limits(now)
    for wish in QuotaRequest.objects.select_related("tenant", "user", "asked_by", "decided_by"):
        _tell_of(wish)
    _tell_of_directory(now, staff)
    # What is older than two days has been seen, as by people who look in every other day.
    seen = now - timedelta(days=2)
    Notice.objects.filter(at__lt=seen).update(read_at=seen)
    Notice.objects.update(mailed_at=now)  # none is to be mailed to these addresses


def _tell_of(wish: QuotaRequest) -> None:
    asker = wish.asked_by
    assert asker
    facts = {"unit": wish.unit, "window": wish.window, "model": "", "amount": wish.amount}
    deciders = administration.deciders(wish)
    if wish.state == QuotaRequest.State.OPEN:
        more = {"asker": person(asker), "tenant": wish.tenant.name, "had": wish.previous_amount, "reason": wish.reason}
        notify(
            deciders,
            "request-asked",
            str(wish.pk),
            reverse("tenant-requests", args=[wish.tenant.slug]),
            **facts,
            **more,
        )
        Notice.objects.filter(kind="request-asked", ref=str(wish.pk)).update(at=wish.asked_at)
    elif wish.decided_by and wish.decided_at:
        answer = {"by": person(wish.decided_by), "granted": wish.granted, "note": wish.note}
        notify([asker], "request-decided", str(wish.pk), reverse("home"), **facts, **answer)
        Notice.objects.filter(kind="request-decided", ref=str(wish.pk)).update(at=wish.decided_at)


def _tell_of_directory(now: datetime, staff: Staff) -> None:
    """A night in which the directory was moved."""
    at = now - timedelta(days=12, hours=9)
    notify(
        staff.operators,
        "directory-trouble",
        f"{at:%Y-%m-%d}",
        path="/operations/directory/",
        problem=DirectoryState.Problem.AWAY,
        detail="",
        at=at,
    )
    Notice.objects.filter(kind="directory-trouble").update(at=at)
