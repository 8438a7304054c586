"""Deletes old events of the audit log; with AUDIT_KEPT_DAYS the supervisor runs it every day."""

from datetime import timedelta
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.db.models import QuerySet
from django.utils import timezone

from portal.audit.models import AuditEvent

BATCH = 5000  # rows of one statement


class Command(BaseCommand):
    help = "Deletes events of the audit log that are older than AUDIT_KEPT_DAYS. Nothing else ever deletes one."

    def handle(self, **options: Any) -> str:
        if settings.AUDIT_KEPT_DAYS is None:
            raise CommandError("AUDIT_KEPT_DAYS is not set: events are kept for good")
        # Not by the model's own manager, which refuses to delete.
        events: QuerySet[AuditEvent] = QuerySet(AuditEvent)
        old = events.filter(at__lt=timezone.now() - timedelta(days=settings.AUDIT_KEPT_DAYS)).order_by()
        pruned = 0
        while batch := list(old.values_list("pk", flat=True)[:BATCH]):
            pruned += events.filter(pk__in=batch).delete()[0]
        return f"{pruned} deleted"
