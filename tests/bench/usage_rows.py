"""Makes the made-up company's usage many times as much, in the database: copies of its calls in earlier months.

Twelve weeks earlier is the same weekday, so weeks keep their shape. The sums are made from the records by SQL, as
`rollups` would make them one batch at a time (for which ten million rows would take a quarter of an hour).
"""

from datetime import timedelta
from itertools import pairwise

from django.db import connection
from django.db.backends.utils import CursorWrapper
from django.db.models import Max, Model
from django.utils import timezone

from portal.accounts.models import Tenant
from portal.audit.models import AuditEvent
from portal.usage import rollups
from portal.usage.models import (
    RejectionHour,
    UsageClientDay,
    UsageDay,
    UsageHour,
    UsageMonth,
    UsageRecord,
    UsageTenantDay,
)

BACK = 84  # days
WATCHED = "status = 'looped' OR (status = 'finished' AND watched AND completion_tokens > 0)"  # rollups.is_watched
END_USERS = 4  # of one in the original


def multiply(records: int, audit: int, periods: int) -> None:
    """Copy rows until there are about so many usage records and audit events, of `periods` times twelve weeks."""
    indexes = list(UsageRecord._meta.indexes)
    with connection.schema_editor() as editor:
        for index in indexes:
            editor.remove_index(UsageRecord, index)
    with connection.cursor() as cursor:
        _copies(cursor, UsageRecord, "started_at", round(records / UsageRecord.objects.count()), periods)
        _copies(cursor, RejectionHour, "hour", periods, periods)
        _copies(cursor, AuditEvent, "at", round(audit / AuditEvent.objects.count()), periods)
    with connection.schema_editor() as editor:
        for index in indexes:
            editor.add_index(UsageRecord, index)
    with connection.cursor() as cursor:
        sum_records(cursor)
        cursor.execute("VACUUM (ANALYZE)" if _postgres() else "ANALYZE")  # which autovacuum does in time


def _copies(cursor: CursorWrapper, model: type[Model], time: str, copies: int, periods: int) -> None:
    """Insert all rows of the last twelve weeks so many times, each time in another period."""
    table = model._meta.db_table
    last = model._default_manager.aggregate(last=Max("pk"))["last"]
    since = connection.ops.adapt_datetimefield_value(timezone.now() - timedelta(days=BACK))
    columns = [field.attname for field in model._meta.concrete_fields if not field.primary_key]
    for copy in range(1, copies):
        days = BACK * (copy % periods)
        special: dict[str, str] = {
            "request_id": f"md5(request_id || '{copy}')" if _postgres() else "lower(hex(randomblob(16)))",
            "end_user": f"CASE WHEN end_user = '' THEN '' ELSE end_user || '-{copy % END_USERS}' END",
            time: _earlier(time, days, seconds=0 if time == "hour" else 3000),
        }
        values = ", ".join(special.get(column, column) for column in columns)
        cursor.execute(
            f"INSERT INTO {table} ({', '.join(columns)}) SELECT {values} FROM {table} WHERE id <= %s AND {time} >= %s",
            [last, since],
        )


def _earlier(column: str, days: int, seconds: int) -> str:
    """Return SQL for a time so many days before it, and up to so many seconds."""
    if _postgres():
        return f"{column} - interval '{days} days' - random() * interval '{seconds} seconds'"
    spread = f", '-' || abs(random() % {seconds}) || ' seconds'" if seconds else ""
    return f"strftime('%%Y-%%m-%%d %%H:%%M:%%f', {column}, '-{days} days'{spread})"


def sum_records(cursor: CursorWrapper) -> None:
    """Make all tables of sums again, from the records."""
    for model in (UsageDay, UsageClientDay, UsageMonth, UsageHour, UsageTenantDay):
        cursor.execute(f"DELETE FROM {model._meta.db_table}")
    counted = dict(zip(rollups.SUMS, _counted(), strict=True))
    records, summed = UsageRecord._meta.db_table, {name: f"sum({name})" for name in rollups.SUMS}
    of_key = ("key_id", "model", "end_user", "tenant_id", "user_id")
    _fill(cursor, UsageDay, records, {"day": _day(), **_same(of_key)}, counted)
    _fill(cursor, UsageHour, records, {"hour": _hour(), **_same(("tenant_id", "model"))}, counted)
    states = ", ".join(f"'{state}'" for state in rollups.STATES)
    answers = f"sum(CASE WHEN status IN ({states}) THEN 0 ELSE 1 END)"
    of_class = {"day": _day(), **_same(("key_id", "client_class", "tenant_id", "user_id"))}
    _fill(cursor, UsageClientDay, records, of_class, {"requests": "count(*)", "answers": answers})
    days = UsageDay._meta.db_table
    _fill(cursor, UsageMonth, days, {"month": _month(), **_same(of_key)}, summed)
    _fill(cursor, UsageTenantDay, days, _same(("day", "tenant_id", "model")), summed)


def _fill(cursor: CursorWrapper, model: type[Model], source: str, groups: dict[str, str], sums: dict[str, str]) -> None:
    table, by = model._meta.db_table, ", ".join(map(str, range(1, len(groups) + 1)))
    columns = ", ".join((*groups, *sums))
    values = ", ".join((*groups.values(), *sums.values()))
    # By time, as they come in life: what is of one day lies together.
    cursor.execute(f"INSERT INTO {table} ({columns}) SELECT {values} FROM {source} GROUP BY {by} ORDER BY 1")


def _counted() -> list[str]:
    """Return SQL for the sums in the order of rollups.SUMS: see rollups._count."""
    told = "first_token_ms IS NOT NULL AND duration_ms > first_token_ms"
    bounds = (-1, *rollups.TTFT_BOUNDS_MS, 2**31)
    return [
        "count(*)",
        *(f"sum({name})" for name in ("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens")),
        "sum(CASE WHEN estimated THEN 1 ELSE 0 END)",
        *(f"sum(CASE WHEN status = '{state}' THEN 1 ELSE 0 END)" for state in rollups.STATES),
        "sum(CASE WHEN status = 'looped' THEN 1 ELSE 0 END)",
        "sum(CASE WHEN status = 'looped' THEN looped_tokens ELSE 0 END)",
        "sum(CASE WHEN status = 'looped' THEN saved_tokens ELSE 0 END)",
        f"sum(CASE WHEN {WATCHED} THEN 1 ELSE 0 END)",
        f"sum(CASE WHEN {told} THEN completion_tokens ELSE 0 END)",
        f"sum(CASE WHEN {told} THEN duration_ms - first_token_ms ELSE 0 END)",
        *(
            f"sum(CASE WHEN first_token_ms > {above} AND first_token_ms <= {until} THEN 1 ELSE 0 END)"
            for above, until in pairwise(bounds)
        ),
    ]


def _day() -> str:
    """Return SQL for the period in the tenant's calendar, without summer time: an hour does not matter here."""
    abroad = Tenant.objects.exclude(time_zone="Asia/Tokyo").values_list("pk", flat=True)
    cases = " ".join(f"WHEN {tenant} THEN 1" for tenant in abroad)
    hours = f"(CASE tenant_id {cases} ELSE 9 END)"
    if _postgres():
        return f"((started_at AT TIME ZONE 'UTC') + {hours} * interval '1 hour')::date"
    return f"date(started_at, '+' || {hours} || ' hours')"


def _hour() -> str:
    return "date_trunc('hour', started_at)" if _postgres() else "strftime('%%Y-%%m-%%d %%H:00:00', started_at)"


def _month() -> str:
    return "date_trunc('month', day)::date" if _postgres() else "date(day, 'start of month')"


def _same(columns: tuple[str, ...]) -> dict[str, str]:
    return {column: column for column in columns}


def _postgres() -> bool:
    return connection.vendor == "postgresql"
