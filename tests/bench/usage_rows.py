"""Makes the made-up company's usage many times as much, in the database: copies of its calls in earlier months.

Thirteen weeks earlier is the same weekday, so weeks keep their shape. A copy is in the same hour as its original, so
its sums are those that `rollups` has made of the original: ten million rows one batch at a time would take a quarter of
an hour. Summer time is left out: an hour does not matter here.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

from django.db import connection
from django.db.backends.utils import CursorWrapper
from django.db.models import Max, Model
from django.utils import timezone

from portal.accounts.models import Tenant
from portal.adoption import journeys, summary
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

BACK = 91  # days; the company has usage of 90
WATCHED = "status = 'looped' OR (status = 'finished' AND watched AND completion_tokens > 0)"  # rollups.is_watched
END_USERS = 4  # of one in the original
OF_KEY = ("key_id", "model", "end_user", "tenant_id", "user_id")
COUNTS = ("requests", "answers", *rollups.SUMS)
# Of this session: sorts and indexes in memory.
GENEROUS = "SET work_mem = '512MB'; SET maintenance_work_mem = '1GB'; SET synchronous_commit = off"


def multiply(records: int, audit: int, periods: int) -> None:
    """Copy rows until there are about so many usage records and audit events, of `periods` times thirteen weeks."""
    copies = round(records / UsageRecord.objects.count())
    with connection.cursor() as cursor:
        if _postgres():
            cursor.execute(GENEROUS)
        with _without_indexes(cursor):
            _copy_rows(cursor, UsageRecord, "started_at", copies, periods)
            _copy_rows(cursor, RejectionHour, "hour", periods, periods)
            _copy_rows(cursor, AuditEvent, "at", round(audit / AuditEvent.objects.count()), periods)
            for model in (UsageDay, UsageHour, UsageClientDay, UsageTenantDay):
                _copy_sums(cursor, model, copies, periods)
            _sum_months(cursor)
        cursor.execute("VACUUM (ANALYZE)" if _postgres() else "ANALYZE")  # which autovacuum does in time
    # As the nightly run would have.
    now = timezone.now()
    journeys.update_journeys(now, rebuild=True)
    summary.update_summaries(timezone.localdate(now))


@contextmanager
def _without_indexes(cursor: CursorWrapper) -> Iterator[None]:
    """Drop what keeps the order of tables of usage while they are filled, except primary keys; make it again."""
    if _postgres():
        cursor.execute(
            "SELECT format('ALTER TABLE %%s DROP CONSTRAINT %%I', conrelid::regclass, conname),"
            " format('ALTER TABLE %%s ADD CONSTRAINT %%I %%s', conrelid::regclass, conname, pg_get_constraintdef(oid))"
            " FROM pg_constraint WHERE contype = 'u' AND conrelid::regclass::text LIKE %s"
            " UNION ALL SELECT format('DROP INDEX %%I', indexname), indexdef FROM pg_indexes"
            " WHERE tablename LIKE %s AND indexname NOT IN (SELECT conname FROM pg_constraint)",
            ["usage%", "usage%"],
        )
    else:
        cursor.execute(
            "SELECT format('DROP INDEX %%w', name), sql FROM sqlite_master"
            " WHERE type = 'index' AND sql IS NOT NULL AND tbl_name LIKE %s",
            ["usage%"],
        )
    found = cursor.fetchall()
    for drop, _ in found:
        cursor.execute(drop)
    yield
    for _, create in found:
        cursor.execute(create)


def _copy_rows(cursor: CursorWrapper, model: type[Model], time: str, copies: int, periods: int) -> None:
    """Insert all rows so many times, less the one that is there, each time in another period."""
    table, last, columns = _table(model)
    for copy in range(1, copies):
        special: dict[str, str] = {
            "request_id": f"md5(request_id || '{copy}')" if _postgres() else "lower(hex(randomblob(16)))",
            "end_user": f"CASE WHEN end_user = '' THEN '' ELSE end_user || '-{copy % END_USERS}' END",
            time: _earlier(time, BACK * (copy % periods)),
        }
        _insert(cursor, table, {column: special.get(column, column) for column in columns}, f"id <= {last}")


def _copy_sums(cursor: CursorWrapper, model: type[Model], copies: int, periods: int) -> None:
    """Insert the sums of what `_copy_rows` copies. `model` has a day or an hour, and end users or not."""
    table, last, columns = _table(model)
    time = "day" if "day" in columns else "hour"
    of_one = "end_user" in columns
    times = Counter(copy % periods for copy in range(1, copies))
    suffixes = Counter((copy % periods, copy % END_USERS) for copy in range(1, copies))
    anyone = f"id <= {last} AND end_user = ''" if of_one else f"id <= {last}"
    for period, count in times.items():
        if period:
            sums = _times(columns, count)
            earlier = {time: _before(time, BACK * period)}
            _insert(cursor, table, {**_same(columns), **sums, **earlier}, anyone)
    for (period, suffix), count in suffixes.items() if of_one else ():
        changed = {**_times(columns, count), time: _before(time, BACK * period), "end_user": f"end_user || '-{suffix}'"}
        _insert(cursor, table, {**_same(columns), **changed}, f"id <= {last} AND end_user <> ''")
    here = ", ".join(f"{column} = {value}" for column, value in _times(columns, times[0] + 1).items())
    cursor.execute(f"UPDATE {table} SET {here} WHERE {anyone}")


def _table(model: type[Model]) -> tuple[str, int, tuple[str, ...]]:
    """Return the name of its table, its last row's number, and its columns without that."""
    columns = tuple(field.attname for field in model._meta.concrete_fields if not field.primary_key)
    return model._meta.db_table, model._default_manager.aggregate(last=Max("pk"))["last"], columns


def _insert(cursor: CursorWrapper, table: str, values: dict[str, str], where: str) -> None:
    columns, selected = ", ".join(values), ", ".join(values.values())
    cursor.execute(f"INSERT INTO {table} ({columns}) SELECT {selected} FROM {table} WHERE {where}")


def _times(columns: tuple[str, ...], count: int) -> dict[str, str]:
    return {column: f"{column} * {count}" for column in columns if column in COUNTS}


def _earlier(column: str, days: int) -> str:
    """Return SQL for a time in the same hour so many days before, not later in it."""
    if _postgres():
        return f"{column} - interval '{days} days' - random() * ({column} - date_trunc('hour', {column}))"
    spread = f"'-' || abs(random() % (1 + strftime('%s', {column}) % 3600)) || ' seconds'"
    # With six digits, as Django writes them: SQLite compares times as texts.
    return f"strftime('%Y-%m-%d %H:%M:%f', {column}, '-{days} days', {spread}) || '001'"


def _before(column: str, days: int) -> str:
    """Return SQL for a day or an hour so many days before."""
    if _postgres():
        return f"{column} - {days}" if column == "day" else f"{column} - interval '{days} days'"
    return f"{'date' if column == 'day' else 'datetime'}({column}, '-{days} days')"


def _sum_months(cursor: CursorWrapper) -> None:
    cursor.execute(f"DELETE FROM {UsageMonth._meta.db_table}")
    groups = {"month": _month(), **_same(OF_KEY)}
    _fill(cursor, UsageMonth, UsageDay._meta.db_table, groups, {name: f"sum({name})" for name in rollups.SUMS})


def sum_records(cursor: CursorWrapper) -> None:
    """Make all tables of sums again, from the records: for usage that `rollups` has never seen."""
    for model in (UsageDay, UsageClientDay, UsageMonth, UsageHour, UsageTenantDay):
        cursor.execute(f"DELETE FROM {model._meta.db_table}")
    counted = dict(zip(rollups.SUMS, _counted(), strict=True))
    records, summed = UsageRecord._meta.db_table, {name: f"sum({name})" for name in rollups.SUMS}
    _fill(cursor, UsageDay, records, {"day": _day(), **_same(OF_KEY)}, counted)
    _fill(cursor, UsageHour, records, {"hour": _hour(), **_same(("tenant_id", "model"))}, counted)
    states = ", ".join(f"'{state}'" for state in rollups.STATES)
    answers = f"sum(CASE WHEN status IN ({states}) THEN 0 ELSE 1 END)"
    of_class = {"day": _day(), **_same(("key_id", "client_class", "tenant_id", "user_id"))}
    _fill(cursor, UsageClientDay, records, of_class, {"requests": "count(*)", "answers": answers})
    _sum_months(cursor)
    _fill(cursor, UsageTenantDay, UsageDay._meta.db_table, _same(("day", "tenant_id", "model")), summed)


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
    return "date_trunc('hour', started_at)" if _postgres() else "strftime('%Y-%m-%d %H:00:00', started_at)"


def _month() -> str:
    return "date_trunc('month', day)::date" if _postgres() else "date(day, 'start of month')"


def _same(columns: tuple[str, ...]) -> dict[str, str]:
    return {column: column for column in columns}


def _postgres() -> bool:
    return connection.vendor == "postgresql"
