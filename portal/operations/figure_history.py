"""What hosts and models did in the last two days and in the last month, for operators, without Prometheus.

The controller measures every 30 seconds and adds that to buckets of five minutes and of an hour: one statement for
devices and one for models. What is not known is not added, so a host that was silent has no buckets, not zeros. While
the database is away nothing is measured; the controller's log says so.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Any

from django.conf import settings
from django.db import connection, transaction

from modelregistry.database_clock import database_now, read_now
from modelregistry.host_figures import SiteFigures, read_figures
from modelregistry.models import Replica
from modelregistry.process.gpus import RAM
from portal.operations.models import DeviceBucket, FigureBucket, ModelBucket, QueueReport
from portal.operations.queue import GONE_AFTER

EVERY = 30.0  # seconds between two measurements
FIVE_MINUTES, HOUR = timedelta(minutes=5), timedelta(hours=1)
LENGTHS = (FIVE_MINUTES, HOUR)
KEPT_FINE = timedelta(days=2)  # buckets of five minutes
# Buckets of a clock that was ahead are deleted as well.
AHEAD = timedelta(hours=2)
DEVICE_FIGURES = ("utilisation", "memory", "temperature", "power")
MODEL_FIGURES = ("ready", "waiting", "speed")
MOST_ROWS = 1000  # of one statement
BATCH = 5000  # rows that are deleted at once

Key = tuple[Any, ...]
# By key: the figures that are known, by name.
Measured = Mapping[Key, Mapping[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryFigure:
    """Of some time: how often it was measured, the mean, and the highest value."""

    count: int
    mean: float
    highest: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryRow:
    """What is known of one subject (the index of a device, or a model) from `at` on, by the names of figures."""

    subject: Any
    at: datetime
    figures: Mapping[str, HistoryFigure]


class FigureRecorder:
    """Measures at most every EVERY seconds; belongs to the process that is the site's controller."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._measured_at: float | None = None

    def look(self, **_: Any) -> None:
        """Measure if it is time for it, as a receiver of `hosts_watched`. Raises django.db.Error."""
        now = self._clock()
        if self._measured_at is None or now - self._measured_at >= EVERY:
            self._measured_at = now  # a turn that fails is lost, not repeated every five seconds
            record_figures()


def record_figures() -> None:
    """Add what is known now to the buckets of now, by the database's clock. Seven queries and two statements."""
    now, figures = read_now(), read_figures()
    devices, models = measure_devices(figures), measure_models(figures, read_waiting())
    with transaction.atomic():
        _add(DeviceBucket, ("host", "device"), DEVICE_FIGURES, devices, now)
        _add(ModelBucket, ("model",), MODEL_FIGURES, models, now)


def measure_devices(figures: SiteFigures) -> Measured:
    """Return the figures of the devices that are reported now, by host and index."""
    return {
        (host.name, RAM if device.name == "ram" else int(device.name)): {
            "memory": device.used,
            **{name: device.sensors[name] for name in DEVICE_FIGURES if name in device.sensors},
        }
        for host in figures.hosts
        for device in host.devices
        if device.readable
    }


def measure_models(figures: SiteFigures, waiting: Mapping[str, int]) -> Measured:
    """Return the figures of the models that are placed, by name. `waiting`: calls that wait in gateways."""
    up = {host.name for host in figures.hosts if host.up}
    measured: dict[Key, Counter[str]] = {}
    for replica in figures.replicas:
        of_model = measured.setdefault((replica.model,), Counter(ready=0, waiting=waiting.get(replica.model, 0)))
        of_model["ready"] += replica.state == Replica.State.READY and replica.host in up
        of_model["waiting"] += int(replica.live.get("waiting", 0))
        if "tokens_per_second" in replica.live:
            of_model["speed"] += replica.live["tokens_per_second"]  # type: ignore[assignment]
    return measured


def read_waiting() -> Counter[str]:
    """Return how many calls wait in gateways, of all classes, by model. One query."""
    waiting: Counter[str] = Counter()
    recent = QueueReport.objects.filter(at__gte=database_now() - timedelta(seconds=GONE_AFTER))
    for snapshot in recent.values_list("snapshot", flat=True):
        for one in snapshot["models"]:
            waiting[one["model"]] += sum(one["waiting"].values())
    return waiting


def start_of_bucket(moment: datetime, length: timedelta) -> datetime:
    """Return the start of the bucket that contains this moment: a multiple of its length, in UTC."""
    seconds = int(length.total_seconds())
    return datetime.fromtimestamp(int(moment.timestamp()) // seconds * seconds, UTC)


def _add(
    table: type[FigureBucket], subject: Sequence[str], names: Sequence[str], measured: Measured, now: datetime
) -> None:
    """Add one measurement of each subject to its buckets."""
    unique = ("length", "began_at", *subject)
    columns = [f"{name}_{part}" for name in names for part in ("count", "sum", "max")]
    known = {
        key: [number for name in names for number in _as_columns(figures.get(name))]
        for key, figures in sorted(measured.items())
    }
    begins = {
        int(length.total_seconds()): connection.ops.adapt_datetimefield_value(start_of_bucket(now, length))
        for length in LENGTHS
    }
    rows = [[seconds, at, *key, *known[key]] for seconds, at in begins.items() for key in known]
    for first in range(0, len(rows), MOST_ROWS):
        _upsert(table._meta.db_table, unique, columns, rows[first : first + MOST_ROWS])


def _as_columns(value: float | None) -> tuple[int, float, float]:
    return (0, 0.0, 0.0) if value is None else (1, value, value)


def _upsert(table: str, unique: Sequence[str], columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    def combine(column: str) -> str:
        old, new = f"{table}.{column}", f"excluded.{column}"
        if column.endswith("_max"):
            return f"{column} = CASE WHEN {new} > {old} THEN {new} ELSE {old} END"
        return f"{column} = {old} + {new}"

    places = ", ".join([f"({', '.join(['%s'] * len(rows[0]))})"] * len(rows))
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {table} ({', '.join([*unique, *columns])}) VALUES {places} "  # noqa: S608 -- our own columns
            f"ON CONFLICT ({', '.join(unique)}) DO UPDATE SET {', '.join(map(combine, columns))}",
            list(chain.from_iterable(rows)),
        )


def read_device_history(host: str, begin: datetime, end: datetime, length: timedelta) -> list[HistoryRow]:
    """Return what is known of a host's devices between two times, in the order of time. One query."""
    rows = DeviceBucket.objects.filter(
        host=host, length=int(length.total_seconds()), began_at__gte=begin, began_at__lt=end
    )
    return list(_read_rows(rows.order_by("began_at", "device").values(), "device", DEVICE_FIGURES))


def read_model_history(model: str, begin: datetime, end: datetime, length: timedelta) -> list[HistoryRow]:
    """Return what is known of a model between two times, in the order of time. One query."""
    rows = ModelBucket.objects.filter(
        model=model, length=int(length.total_seconds()), began_at__gte=begin, began_at__lt=end
    )
    return list(_read_rows(rows.order_by("began_at").values(), "model", MODEL_FIGURES))


def _read_rows(rows: Iterable[Mapping[str, Any]], subject: str, names: Sequence[str]) -> Iterator[HistoryRow]:
    for row in rows:
        known = {
            name: HistoryFigure(
                count=row[f"{name}_count"], mean=row[f"{name}_sum"] / row[f"{name}_count"], highest=row[f"{name}_max"]
            )
            for name in names
            if row[f"{name}_count"]
        }
        yield HistoryRow(subject=row[subject], at=row["began_at"], figures=known)


def prune_figures(now: datetime) -> int:
    """Delete buckets that are too old, and those of a clock that was ahead; return how many."""
    pruned = 0
    kept = {FIVE_MINUTES: KEPT_FINE, HOUR: timedelta(days=settings.HISTORY_KEPT_DAYS)}
    for table in (DeviceBucket, ModelBucket):
        for length, age in kept.items():
            rows = table.objects.filter(length=int(length.total_seconds()))
            for wrong in (rows.filter(began_at__lt=now - age), rows.filter(began_at__gt=now + AHEAD)):
                while batch := list(wrong.values_list("pk", flat=True)[:BATCH]):
                    pruned += table.objects.filter(pk__in=batch).delete()[0]
    return pruned
