"""The usage of years that pages are measured with: as many rows as asked for, and the sums of these records."""

from datetime import datetime
from itertools import islice
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import time_machine
from django.db import connection

from portal.audit.audit_log import export_rows
from portal.audit.models import AuditEvent
from portal.demo import company
from portal.usage.models import UsageClientDay, UsageDay, UsageHour, UsageMonth, UsageRecord, UsageTenantDay
from tests.bench import usage_rows

NOW = datetime(2026, 11, 19, 15, 20, tzinfo=ZoneInfo("Asia/Tokyo"))
TABLES = (UsageDay, UsageTenantDay, UsageMonth, UsageHour, UsageClientDay)


def sums() -> dict[str, list[tuple[Any, ...]]]:
    """Return the rows of tenants without summer time, which the benchmark leaves out."""
    found = {}
    for table in TABLES:
        columns = [field.attname for field in table._meta.concrete_fields if not field.primary_key]
        rows = table._default_manager.filter(tenant__time_zone="Asia/Tokyo")
        found[table.__name__] = sorted(rows.values_list(*columns), key=str)
    return found


@pytest.mark.django_db
@pytest.mark.timeout(300)
def test_copied_sums_are_those_of_copied_records():
    with time_machine.travel(NOW, tick=False):
        company.fill_database(company.Size(people=40, days=90, amount=0.01), NOW, 5, directory=False)
        calls = UsageRecord.objects.count()
        events = AuditEvent.objects.count()
        usage_rows.multiply(calls * 11, events * 3, 4)
    # In their order each is read once: times that SQLite compares as texts of another form would be read for ever.
    assert len(list(islice(export_rows(AuditEvent.objects.order_by("-at", "-pk")), events * 4))) == events * 3
    copied = sums()
    with connection.cursor() as cursor:
        usage_rows.sum_records(cursor)
    assert UsageRecord.objects.count() == calls * 11
    assert all(copied.values())
    assert copied == sums()
