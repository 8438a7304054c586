"""Writes what gateways report of their queues: a row for each worker, and for each minute in which calls waited."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from django.db import transaction

from modelregistry.database_clock import database_now
from portal.operations.models import FairnessMinute, QueueReport

KEPT = 61  # minutes of fairness, so that an hour is complete
# After so long a worker is gone for good; pages leave it out much sooner.
FORGOTTEN_AFTER = timedelta(hours=1)


def write_report(worker: str, snapshot: dict[str, Any], minutes: Sequence[dict[str, Any]]) -> None:
    """Replace the worker's report, and add these minutes; those that are written already stay."""
    with transaction.atomic():
        QueueReport.objects.bulk_create(
            [QueueReport(worker=worker, at=database_now(), snapshot=snapshot)],
            update_conflicts=True,
            unique_fields=["worker"],
            update_fields=["at", "snapshot"],
        )
        if minutes:
            rows = [FairnessMinute(worker=worker, **minute) for minute in minutes]
            FairnessMinute.objects.bulk_create(rows, ignore_conflicts=True)
            FairnessMinute.objects.filter(number__lt=max(one.number for one in rows) - KEPT).delete()
            QueueReport.objects.filter(at__lt=database_now() - FORGOTTEN_AFTER).delete()


def withdraw_report(worker: str) -> None:
    """Remove the report of a worker that stops."""
    QueueReport.objects.filter(worker=worker).delete()
