"""Notify people of what happened in the quarter, as the parts of the system would have, with the same facts.

Only people whose pages one can see: the demo accounts, admins and operators.
"""

from datetime import datetime, timedelta

from django.urls import reverse
from django.utils import timezone

from portal.accounts.models import DirectoryState
from portal.demo.staff import Staff
from portal.notifications import quota_alerts
from portal.notifications.models import Notice
from portal.operations import host_notices
from portal.quotas import administration
from portal.quotas.models import QuotaRequest
from portal.web.notify import notify
from portal.web.templatetags.formatting import person

SOON = timedelta(days=7)


def notify_all(now: datetime, staff: Staff) -> None:
    quota_alerts.notify_near_limits(now)
    for request in QuotaRequest.objects.select_related("tenant", "user", "asked_by", "decided_by"):
        _notify_of_request(request)
    _notify_of_directory(now, staff)
    host_notices.notify_of_silences(now)
    host_notices.notify_of_moves(now)
    # Notices older than two days have been read, as by people who look at them every other day.
    seen = now - timedelta(days=2)
    Notice.objects.filter(at__lt=seen).update(read_at=seen)
    Notice.objects.update(mailed_at=now)  # none is to be mailed to these addresses


def _notify_of_request(request: QuotaRequest) -> None:
    asker = request.asked_by
    assert asker
    facts = {"unit": request.unit, "window": request.window, "model": "", "amount": request.amount}
    deciders = administration.deciders(request)
    if request.state == QuotaRequest.State.OPEN:
        more = {
            "asker": person(asker),
            "tenant": request.tenant.name,
            "previous_amount": request.previous_amount,
            "reason": request.reason,
        }
        notify(
            deciders,
            "request-asked",
            str(request.pk),
            reverse("tenant-requests", args=[request.tenant.slug]),
            **facts,
            **more,
        )
        Notice.objects.filter(kind="request-asked", ref=str(request.pk)).update(at=request.asked_at)
    elif request.decided_by and request.decided_at:
        answer = {"by": person(request.decided_by), "granted": request.granted, "note": request.note}
        notify([asker], "request-decided", str(request.pk), reverse("home"), **facts, **answer)
        Notice.objects.filter(kind="request-decided", ref=str(request.pk)).update(at=request.decided_at)


def _notify_of_directory(now: datetime, staff: Staff) -> None:
    """Notify operators of a night in which the directory was moved."""
    at = now - timedelta(days=12, hours=9)
    notify(
        staff.operators,
        "directory-trouble",
        f"{at:%Y-%m-%d}",
        path="/operations/directory/",
        problem=DirectoryState.Problem.AWAY,
        detail="",
        at=timezone.localtime(at),
    )
    Notice.objects.filter(kind="directory-trouble").update(at=at)
