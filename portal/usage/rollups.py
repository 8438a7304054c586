"""Sums of usage by hour (see `hours`), day and month, updated in the transaction that records it.

Pages read them instead of the records, and records that are pruned stay in the sums. A batch is added to each table
with one statement, ON CONFLICT DO UPDATE, which SQLite and PostgreSQL both support.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime
from itertools import chain
from typing import Any
from zoneinfo import ZoneInfo

from django.conf import settings
from django.db import connection
from django.db.backends.utils import CursorWrapper
from django.db.models import Model

from portal.accounts.models import Tenant
from portal.usage.hours import start_of_interval
from portal.usage.models import Sums, UsageClientDay, UsageDay, UsageHour, UsageMonth, UsageTenantDay

# Upper bounds, in ms, of ttft_bucket_0 … ttft_bucket_14; ttft_bucket_15 counts everything slower. About √2 apart where
# people begin to notice a wait.
TTFT_BOUNDS_MS = (50, 100, 150, 200, 300, 500, 700, 1000, 1500, 2000, 3000, 5000, 8000, 15000, 30000)
TTFT_BUCKETS = tuple(f"ttft_bucket_{n}" for n in range(len(TTFT_BOUNDS_MS) + 1))
SUMS = tuple(field.name for field in Sums._meta.get_fields())  # in the order in which they are declared
FIRST_BUCKET = SUMS.index(TTFT_BUCKETS[0])
GENERATED, LOOPED = SUMS.index("generated_tokens"), SUMS.index("looped")  # each with those that follow it
STATES = {name: SUMS.index(name) for name in ("aborted", "interrupted", "failed", "refused")}
VALUES = 30_000  # of one statement; SQLite takes 32,766

Row = Mapping[str, Any]
Group = tuple[Any, ...]


def add_records(rows: Iterable[Row], cursor: CursorWrapper) -> None:
    """Add records (UsageRecord's columns by name) to the sums, once each, in the transaction that writes them."""
    calendar = Calendar()
    finest: dict[Group, list[int]] = {}
    clients: dict[Group, list[int]] = {}
    for row in rows:
        tenant = row["tenant_id"]
        day, hour = calendar.find_day_and_interval(row["started_at"], tenant)
        group = (row["key_id"], day, row["model"], row["end_user"], tenant, row["user_id"], hour)
        numbers = finest.get(group)
        if numbers is None:
            numbers = finest[group] = [0] * len(SUMS)
        _count_record(row, numbers)
        program = (row["key_id"], day, row.get("client_class", ""), tenant, row["user_id"])
        counted = clients.get(program)
        if counted is None:
            counted = clients[program] = [0, 0]
        counted[0] += 1
        counted[1] += row["status"] not in STATES
    days: dict[Group, list[int]] = {}
    months: dict[Group, list[int]] = {}
    hours: dict[Group, list[int]] = {}
    tenants: dict[Group, list[int]] = {}
    for (key, day, model, end_user, tenant, user, hour), numbers in finest.items():
        _add_numbers(days, (key, day, model, end_user, tenant, user), numbers)
        _add_numbers(months, (key, day.replace(day=1), model, end_user, tenant, user), numbers)
        _add_numbers(hours, (hour, tenant, model), numbers)
        _add_numbers(tenants, (tenant, day, model), numbers)
    owner = ("tenant_id", "user_id")
    upsert(cursor, UsageDay, days, unique=("key_id", "day", "model", "end_user"), further=owner)
    upsert(cursor, UsageMonth, months, unique=("key_id", "month", "model", "end_user"), further=owner)
    upsert(cursor, UsageHour, hours, unique=("hour", "tenant_id", "model"))
    one_class = ("key_id", "day", "client_class")
    upsert(cursor, UsageClientDay, clients, unique=one_class, further=owner, counters=("requests", "answers"))
    upsert(cursor, UsageTenantDay, tenants, unique=("tenant_id", "day", "model"))


def percentile(counts: Sequence[int], share: float) -> float | None:
    """Return the time to the first token, in ms, that `share` of the answers did not exceed; None without any.

    `counts`: in the order of TTFT_BUCKETS. Within a bucket answers are assumed to be spread evenly; for the last bucket
    the result is its lower bound.
    """
    wanted, below = share * sum(counts), 0
    for n, count in enumerate(counts):
        if count and below + count >= wanted:
            if n == len(TTFT_BOUNDS_MS):
                return float(TTFT_BOUNDS_MS[-1])
            lower = TTFT_BOUNDS_MS[n - 1] if n else 0
            return lower + (TTFT_BOUNDS_MS[n] - lower) * (wanted - below) / count
        below += count
    return None


class Calendar:
    """The days of tenants, and the hours (or quarters of an hour, see `hours`) by which usage is summed. One query.

    Results are cached: zone arithmetic is slow, and the records of a batch are close together in time.
    """

    def __init__(self) -> None:
        self._zones = {tenant.pk: tenant.zone for tenant in Tenant.objects.all()}
        self._site = ZoneInfo(settings.TIME_ZONE)
        self._zones_in_use = {self._site, *self._zones.values()}  # any of them may be a reader's zone
        self._found: dict[tuple[datetime, int], tuple[date, datetime]] = {}
        self._intervals: dict[datetime, datetime] = {}

    def find_day_and_interval(self, started: datetime, tenant: int) -> tuple[date, datetime]:
        """Return the tenant's day (the server's if the tenant is gone) and the interval's start. `started`: in UTC."""
        quarter = started.replace(minute=started.minute // 15 * 15, second=0, microsecond=0)
        found = self._found.get((quarter, tenant))
        if found is None:
            zone = self._zones.get(tenant) or self._site
            found = self._found[quarter, tenant] = started.astimezone(zone).date(), self.find_interval(quarter)
        return found

    def find_interval(self, moment: datetime) -> datetime:
        """Return the start of the hour, or quarter of an hour, that contains this moment."""
        found = self._intervals.get(moment)
        if found is None:
            found = self._intervals[moment] = start_of_interval(moment, self._zones_in_use)
        return found


def _count_record(row: Row, numbers: list[int]) -> None:
    """Add one record to `numbers`, in the order of SUMS. Unrolled, because it runs for every call."""
    first, completion = row["first_token_ms"], row["completion_tokens"]
    numbers[0] += 1
    numbers[1] += row["prompt_tokens"]
    numbers[2] += row["cached_tokens"]
    numbers[3] += completion
    numbers[4] += row["reasoning_tokens"]
    numbers[5] += row["estimated"]
    if row["status"] in STATES:
        numbers[STATES[row["status"]]] += 1
    if first is not None:
        numbers[FIRST_BUCKET + bisect_left(TTFT_BOUNDS_MS, first)] += 1
        if row["duration_ms"] > first:
            numbers[GENERATED] += completion
            numbers[GENERATED + 1] += row["duration_ms"] - first
    if row["status"] == "looped":
        numbers[LOOPED] += 1
        numbers[LOOPED + 1] += row["looped_tokens"]
        numbers[LOOPED + 2] += row["saved_tokens"]
    if is_watched(row):
        numbers[LOOPED + 3] += 1


def is_watched(row: Row) -> bool:
    """Return whether the record counts for the rate of loops: an answer that could have been found to loop.

    One that loops was watched, also if the gateway that recorded it did not say so.
    """
    status = row["status"]
    return bool(status == "looped" or (status == "finished" and row["watched"] and row["completion_tokens"]))


def _add_numbers(groups: dict[Group, list[int]], group: Group, numbers: list[int]) -> None:
    known = groups.get(group)
    groups[group] = list(numbers) if known is None else [a + b for a, b in zip(known, numbers, strict=True)]


def upsert(
    cursor: CursorWrapper,
    model: type[Model],
    groups: Mapping[Group, list[int]],
    *,
    unique: Sequence[str],
    further: Sequence[str] = (),
    counters: Sequence[str] = SUMS,
) -> None:
    """Add each group's numbers, in the order of `counters`, to its row, identified by the values of `unique`.

    A group has the values of `unique`, then those of `further`.
    """
    columns = (*unique, *further, *counters)
    table = model._meta.db_table
    added = ", ".join(f"{name} = {table}.{name} + excluded.{name}" for name in counters)
    # Every writer in the same order: otherwise two could lock each other's rows and deadlock.
    rows = [[_to_database(value) for value in group] + groups[group] for group in sorted(groups, key=_sort_key)]
    step = VALUES // len(columns)
    for start in range(0, len(rows), step):
        some = rows[start : start + step]
        places = ", ".join([f"({', '.join(['%s'] * len(columns))})"] * len(some))
        cursor.execute(
            f"INSERT INTO {table} ({', '.join(columns)}) VALUES {places} "  # noqa: S608 -- names of our own columns
            f"ON CONFLICT ({', '.join(unique)}) DO UPDATE SET {added}",
            list(chain.from_iterable(some)),
        )


def _sort_key(group: Group) -> list[str]:
    return [str(value) for value in group]


def _to_database(value: Any) -> Any:
    if isinstance(value, datetime):
        return connection.ops.adapt_datetimefield_value(value)
    return connection.ops.adapt_datefield_value(value) if isinstance(value, date) else value
