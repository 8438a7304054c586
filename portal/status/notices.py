"""Notify operators of a model that does not answer, once for each outage, and when it answers again.

Not at once: most engines are back within minutes, and a model that restarts again and again is one outage, see
`recording.SHORT_BREAK`. So the first notice comes after LEAST_OUTAGE, the second when the break has lasted.
"""

from datetime import datetime, timedelta

from django.db import transaction
from django.db.models import Exists, OuterRef
from django.urls import reverse
from django.utils import timezone

from portal.accounts.permissions import operators
from portal.status.models import StatusInterval
from portal.status.recording import NEW, SHORT_BREAK
from portal.web.notify import notify

Notified = StatusInterval.Notified
# The task that calls this runs every 5 minutes, so a notice comes 3 to 8 minutes after the model stopped answering.
LEAST_OUTAGE = timedelta(minutes=3)


def notify_of_outages(now: datetime) -> int:
    """Notify operators of what is due; return of how many outages. May be run by several processes at once."""
    outages = StatusInterval.objects.filter(kind=StatusInterval.Kind.DOWN, model__isnull=False).exclude(reason=NEW)
    begun = outages.filter(notified=Notified.NOT, ended_at=None, began_at__lte=now - LEAST_OUTAGE)
    over = outages.filter(notified=Notified.DOWN, ended_at__lte=now - SHORT_BREAK)
    is_not_up = Exists(StatusInterval.objects.filter(model=OuterRef("model"), ended_at=None))
    found = 0
    for row in begun.select_related("model"):
        found += _notify(row, Notified.DOWN, "model-down")
    for row in over.annotate(is_not_up=is_not_up).select_related("model"):
        # A model that was switched off, or is down again, does not answer again.
        found += _notify(row, Notified.UP, "" if row.is_not_up else "model-up")
    return found


def _notify(row: StatusInterval, notified: str, kind: str) -> int:
    """Note that operators were notified, and notify them if `kind` is set; return 1, or 0 if done before."""
    with transaction.atomic():
        if not StatusInterval.objects.filter(pk=row.pk, notified=row.notified).update(notified=notified):
            return 0
        if not kind or row.model is None:
            return 0
        facts = {"model": row.model.name, "reason": row.reason, "at": timezone.localtime(row.began_at)}
        if row.ended_at is not None:
            facts["ended_at"] = timezone.localtime(row.ended_at)
        path = reverse("operations-model", args=[row.model.name])
        notify(operators(), kind, f"outage {row.pk}", path=path, **facts)
    return 1
