"""Sums the hours of what is kept anew, by quarters, where a time zone is in use that is no whole hour from UTC.

Of records that were pruned the sums by hours of UTC stay: up to half an hour of them is shown in the hour before.
"""

from bisect import bisect_left
from collections import defaultdict
from datetime import timedelta
from zoneinfo import ZoneInfo

from django.conf import settings
from django.db import migrations

HOUR = timedelta(hours=1)
FIRST_TOKEN_MS = (50, 100, 150, 200, 300, 500, 700, 1000, 1500, 2000, 3000, 5000, 8000, 15000, 30000)
ADDED = ("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens", "estimated")
STATES = ("aborted", "interrupted", "failed", "refused")
NAMES = (
    *("requests", *ADDED, *STATES, "generated_tokens", "generated_ms"),
    *(f"first_{number}" for number in range(len(FIRST_TOKEN_MS) + 1)),
)
COLUMNS = ("started_at", "tenant_id", "model", "status", "first_token_ms", "duration_ms", *ADDED)


def make_anew(apps, schema_editor):
    tenant, record, hour = (
        apps.get_model(*name) for name in (("accounts", "Tenant"), ("metering", "UsageRecord"), ("metering", "UsageHour"))
    )
    zones = {settings.TIME_ZONE, *tenant.objects.values_list("time_zone", flat=True)}
    records = record.objects.order_by("started_at")
    oldest = records.values_list("started_at", flat=True).first()
    if oldest is None or all(whole(oldest, ZoneInfo(zone)) for zone in zones):
        return
    # Records are pruned from the oldest on: the hour of the oldest may have lost some, all later ones are whole.
    begin = oldest.replace(minute=0, second=0, microsecond=0) + HOUR
    hour.objects.filter(hour__gte=begin).delete()
    sums, day = defaultdict(lambda: dict.fromkeys(NAMES, 0)), None
    for row in records.filter(started_at__gte=begin).values(*COLUMNS).iterator(2000):
        at = row["started_at"]
        if at.date() != day:  # no more than a day's sums are held
            write(hour, sums)
            day = at.date()
        quarter = at.replace(minute=at.minute // 15 * 15, second=0, microsecond=0)
        add(row, sums[quarter, row["tenant_id"], row["model"]])
    write(hour, sums)


def whole(moment, zone):
    """On the day of the moment and half a year later, when clocks may have moved."""
    return not any((moment + timedelta(days=days)).astimezone(zone).utcoffset() % HOUR for days in (0, 182))


def add(row, numbers):
    numbers["requests"] += 1
    for name in ADDED:
        numbers[name] += row[name]
    if row["status"] in STATES:
        numbers[row["status"]] += 1
    first = row["first_token_ms"]
    if first is not None:
        numbers[f"first_{bisect_left(FIRST_TOKEN_MS, first)}"] += 1
        if row["duration_ms"] > first:
            numbers["generated_tokens"] += row["completion_tokens"]
            numbers["generated_ms"] += row["duration_ms"] - first


def write(hour, sums):
    hour.objects.bulk_create(
        [hour(hour=at, tenant_id=tenant, model=model, **numbers) for (at, tenant, model), numbers in sums.items()],
        batch_size=500,
    )
    sums.clear()


class Migration(migrations.Migration):
    dependencies = [("metering", "0002_usage_set_aside"), ("accounts", "0001_initial")]

    operations = [migrations.RunPython(make_anew, migrations.RunPython.noop, elidable=True)]
