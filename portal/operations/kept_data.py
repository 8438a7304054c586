"""What is kept for how long, and what it takes on the disk of the database, for operators."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.conf import settings
from django.db import OperationalError, connection, models, transaction
from django.db.models import Min
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.utils.translation import gettext_lazy
from django.views.decorators.http import require_safe

from modelregistry.models import TaskRun
from modelregistry.supervisor.tasks import registered_tasks
from portal.accounts.decorators import operator_required
from portal.accounts.permissions import current_user
from portal.accounts.timezones import zone_of
from portal.audit.models import AuditEvent
from portal.backups.models import BackupRun
from portal.backups.watching import read_backup_state
from portal.notifications.models import Notice
from portal.operations.models import DeviceBucket, ModelBucket
from portal.usage.models import RefusedRequest, UsageDay, UsageHour, UsageMonth, UsageRecord

RUNS = 10  # backups that the page lists
# Bytes of a SQLite database up to which its pages are counted table by table: all of it is read (0.1 s).
COUNTED = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptKind:
    """A kind of rows. `setting`: how many days they are kept; "": for good. `task`: which deletes them."""

    name: str
    label: Any
    tables: tuple[type[models.Model], ...]
    time: str  # the column by which rows are old
    setting: str = ""
    task: str = ""


KINDS = (
    KeptKind(
        name="usage",
        label=gettext_lazy("Calls, one by one"),
        tables=(UsageRecord,),
        time="started_at",
        setting="USAGE_KEPT_DAYS",
        task="pruneusage",
    ),
    KeptKind(
        name="sums",
        label=gettext_lazy("Sums of hours, days and months"),
        tables=(UsageDay, UsageHour, UsageMonth),
        time="day",
    ),
    KeptKind(
        name="refusals",
        label=gettext_lazy("Refused calls"),
        tables=(RefusedRequest,),
        time="at",
        setting="REFUSALS_KEPT_DAYS",
        task="prunerefusals",
    ),
    KeptKind(
        name="history",
        label=gettext_lazy("Figures of hosts and models"),
        tables=(DeviceBucket, ModelBucket),
        time="began_at",
        setting="HISTORY_KEPT_DAYS",
        task="prunehistory",
    ),
    KeptKind(
        name="audit",
        label=gettext_lazy("Audit log"),
        tables=(AuditEvent,),
        time="at",
        setting="AUDIT_KEPT_DAYS",
        task="pruneaudit",
    ),
    KeptKind(
        name="notices",
        label=gettext_lazy("Notices"),
        tables=(Notice,),
        time="at",
        setting="NOTICES_KEPT_DAYS",
        task="sendnotices",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptRow:
    """A row of the page."""

    kind: KeptKind
    days: int | None  # None: for good
    rows: int
    oldest: datetime | None
    size: int | None  # bytes with indexes; None: not known
    last_run: datetime | None
    next_run: datetime | None


@operator_required
@require_safe
def show_kept_data(request: HttpRequest) -> HttpResponse:
    now = timezone.now()
    context = {
        "zone": zone_of(current_user(request)),
        "now": now,
        "kept": read_kept(),
        "database_size": database_size(),
        "is_estimated": connection.vendor == "postgresql",
        "backups": read_backup_state(now),
        "runs": BackupRun.objects.all()[:RUNS],
        "directory": settings.BACKUP_DIR,
    }
    return render(request, "operations/data.html", context)


def read_kept() -> list[KeptRow]:
    """Read what is kept. A query for the oldest row of each kind, and four (SQLite: some more) for the rest."""
    sizes, counts = read_sizes(), count_all()
    runs = {run.name: run for run in TaskRun.objects.filter(name__in=[kind.task for kind in KINDS if kind.task])}
    return [_read_kind(kind, sizes, counts, runs) for kind in KINDS]


def _read_kind(
    kind: KeptKind, sizes: Mapping[str, int], counts: Mapping[str, int], runs: Mapping[str, TaskRun]
) -> KeptRow:
    tables = [table._meta.db_table for table in kind.tables]
    oldest = models.QuerySet(kind.tables[0]).aggregate(at=Min(kind.time))["at"]
    last, following = _read_task(kind.task, runs)
    return KeptRow(
        kind=kind,
        days=getattr(settings, kind.setting) if kind.setting else None,
        rows=sum(counts[table] for table in tables),
        oldest=oldest,
        size=sum(sizes[table] for table in tables) if all(table in sizes for table in tables) else None,
        last_run=last,
        next_run=following,
    )


def _read_task(name: str, runs: Mapping[str, TaskRun]) -> tuple[datetime | None, datetime | None]:
    """Return when a task was last run, and when it is due again; None if it is not run, or was not yet."""
    every = {task.name: task.every for task in registered_tasks()}
    run = runs.get(name)
    if name not in every or run is None or run.claimed_at is None:
        return None, None
    return run.claimed_at, run.claimed_at + every[name]


def count_all() -> dict[str, int]:
    """Return the rows by table. PostgreSQL's own estimate: counting a hundred million takes it minutes."""
    names = [table._meta.db_table for kind in KINDS for table in kind.tables]
    with connection.cursor() as cursor:
        if connection.vendor != "postgresql":
            counts = ", ".join(f"(SELECT count(*) FROM {name})" for name in names)  # noqa: S608 -- our own tables
            cursor.execute(f"SELECT {counts}")
            return dict(zip(names, cursor.fetchone(), strict=True))
        cursor.execute("SELECT relname, greatest(reltuples, 0) FROM pg_class WHERE relname = ANY (%s)", [names])
        return {name: int(count) for name, count in cursor.fetchall()}


def read_sizes() -> dict[str, int]:
    """Return the bytes of each table with its indexes, as far as they are known."""
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(
                "SELECT relname, pg_total_relation_size(oid) FROM pg_class "
                "WHERE relkind = 'r' AND pg_table_is_visible(oid)"
            )
        elif database_size() <= COUNTED:
            try:
                with transaction.atomic():
                    cursor.execute(
                        "SELECT part.tbl_name, sum(pages.pgsize) FROM dbstat AS pages "
                        "JOIN sqlite_master AS part ON part.name = pages.name "
                        "WHERE pages.aggregate = 1 GROUP BY part.tbl_name"
                    )
            except OperationalError:  # a SQLite without this table
                return {}
        else:
            return {}
        return {str(name): int(size) for name, size in cursor.fetchall()}


def database_size() -> int:
    """Return the bytes of the whole database."""
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SELECT pg_database_size(current_database())")
        else:
            cursor.execute("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size")
        return int(cursor.fetchone()[0])
