"""Record usage in batches, and read its sums by day (see `rollups`).

Days are those of the tenant that a key belongs to.
"""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from itertools import chain
from typing import Any

from django.db import connection, transaction
from django.db.models import F, QuerySet, Sum
from django.utils import timezone

from portal.accounts.models import User
from portal.keys import last_used
from portal.usage import client_classes, loop_rates, rollups
from portal.usage.models import UsageBacklog, UsageDay, UsageRecord, UsageSetAside

COLUMNS = tuple(str(field.column) for field in UsageRecord._meta.concrete_fields if not field.primary_key)
# What a row may lack, as those of older gateways do, and what it is then.
ABSENT = {
    **{"queued_ms": None, "loading_ms": None, "prefill_ms": None, "retries": None, "stopped_by": "", "engine": ""},
    "client_class": client_classes.UNKNOWN,
}
# Of one statement: SQLite takes 32,766 values.
ROWS = 500
SUMS = {
    name: Sum(name, default=0)
    for name in (
        *("requests", "prompt_tokens", "completion_tokens", "estimated"),
        *("looped", "looped_tokens", "saved_tokens"),
    )
}
TOTAL = {"total_tokens": F("prompt_tokens") + F("completion_tokens")}


def record_usage(rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a batch of records in one transaction.

    A row has UsageRecord's columns by name (it may lack ABSENT), `started_at` aware, and may have `address` and
    `client` (texts, "" if not known), which are kept only as a key's last use. A request id that already exists is left
    as it is, so repeating is safe; only new records are added to the sums of days and hours.

    Raw SQL: `bulk_create` takes 60 µs of CPU per row, a third of what the gateway needs for a whole call; this takes 14
    and the sums 4. Many rows per statement, because each releases the interpreter's lock, which a busy gateway returns
    after 5 ms: row by row, 430 a second.
    """
    adapt = connection.ops.adapt_datetimefield_value
    values = [
        [adapt(row[name]) if name == "started_at" else row[name] if name in row else ABSENT[name] for name in COLUMNS]
        for row in rows
    ]
    last: dict[int, Mapping[str, Any]] = {}
    for row in rows:
        known = last.get(row["key_id"])
        if known is None or known["started_at"] < row["started_at"]:
            last[row["key_id"]] = row
    written: list[Mapping[str, Any]] = []
    with transaction.atomic(), connection.cursor() as cursor:
        for start in range(0, len(values), ROWS):
            some = values[start : start + ROWS]
            cursor.execute(build_insert(len(some)), list(chain.from_iterable(some)))
            new = {request_id for (request_id,) in cursor.fetchall()}
            if len(new) == len(some):
                written += rows[start : start + ROWS]
            else:  # repeated; of two in one batch the first was written
                by_id = {row["request_id"]: row for row in reversed(rows[start : start + ROWS])}
                written += [row for request_id, row in by_id.items() if request_id in new]
        rollups.add_records(written, cursor)
        loop_rates.add_loops(written, cursor)
        last_used.record_use(last, cursor)


def build_insert(rows: int) -> str:
    """Return the statement that inserts so many records and returns the request ids of the new ones.

    Names come from the model, never from outside.
    """
    row = f"({', '.join(['%s'] * len(COLUMNS))})"
    return (
        f"INSERT INTO {UsageRecord._meta.db_table} ({', '.join(COLUMNS)}) "  # noqa: S608
        f"VALUES {', '.join([row] * rows)} ON CONFLICT DO NOTHING RETURNING request_id"
    )


def report_set_aside(host: str, lines: int) -> None:
    """Record how many lines of usage of this host's gateways are set aside because they could not be recorded."""
    if lines:
        UsageSetAside.objects.update_or_create(host=host, defaults={"lines": lines, "reported_at": timezone.now()})
    else:
        UsageSetAside.objects.filter(host=host).delete()


def report_backlog(worker: str, *, size: int, seconds: float) -> None:
    """Record how many bytes of usage have waited on the disk of a gateway's worker, for how long; 0: none does."""
    if size:
        now = timezone.now()
        found = {"size": size, "since": now - timedelta(seconds=seconds), "reported_at": now}
        UsageBacklog.objects.update_or_create(worker=worker, defaults=found)
    else:
        UsageBacklog.objects.filter(worker=worker).delete()


def days_of_user(user: User) -> QuerySet[UsageDay]:
    """Return the usage of a person's own keys, by day."""
    return UsageDay.objects.filter(user=user)


def sum_by(days: QuerySet[Any], *fields: str) -> list[dict[str, Any]]:
    """Return the sums of SUMS and TOTAL of any Sums, grouped by fields. One query."""
    return [dict(row) for row in days.values(*fields).annotate(**SUMS, **TOTAL).order_by(*fields)]


def sum_all(days: QuerySet[Any]) -> dict[str, Any]:
    """Return the same sums of all rows together, as one row. One query."""
    sums = days.aggregate(**SUMS)
    return {**sums, "total_tokens": sums["prompt_tokens"] + sums["completion_tokens"]}
