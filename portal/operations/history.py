"""The figures of the last 24 hours or 30 days of hosts and models, as charts and as values.

Charts have fewer, longer slots than the buckets: a page with 288 rows for each of several charts says no more. A slot
without any measurement is a gap.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from django.db.models import Sum
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from modelregistry.process.gpus import RAM
from portal.operations.figure_history import (
    FIVE_MINUTES,
    HOUR,
    HistoryFigure,
    HistoryRow,
    read_device_history,
    read_model_history,
    start_of_bucket,
)
from portal.usage.chart import NAMED, SHADES, Chart, Measure, line_chart
from portal.usage.models import UsageHour
from portal.usage.rollups import TTFT_BUCKETS, percentile

MOST_LINES = 8  # GPUs that have a line each; of more only the mean is shown
Lines = dict[str, dict[Any, float | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryPeriod:
    """A period that ends now. `length`: of the buckets that are read; `slot`: of what a chart shows; `unit`: its."""

    name: str
    label: Any
    span: timedelta
    length: timedelta
    slot: timedelta
    unit: str

    def begin(self, now: datetime) -> datetime:
        return start_of_bucket(now - self.span, self.slot)

    def slots(self, now: datetime) -> list[datetime]:
        """Return the beginnings of the slots, in UTC."""
        begin = self.begin(now)
        return [begin + number * self.slot for number in range((now - begin) // self.slot + 1)]


PERIODS = {
    "day": HistoryPeriod(
        name="day",
        label=gettext_lazy("24 hours"),
        span=timedelta(hours=24),
        length=FIVE_MINUTES,
        slot=timedelta(minutes=15),
        unit="time",
    ),
    "month": HistoryPeriod(
        name="month",
        label=gettext_lazy("30 days"),
        span=timedelta(days=30),
        length=HOUR,
        slot=timedelta(hours=6),
        unit="date",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryChart:
    """A chart with its title, and the highest value that was measured in the period."""

    title: str
    chart: Chart
    highest: float


def read_device_rows(host: str, now: datetime, period: HistoryPeriod) -> list[HistoryRow]:
    """Return what is known of a host's devices in the period, in the order of time. One query."""
    return read_device_history(host, period.begin(now), now, period.length)


def read_model_rows(model: str, now: datetime, period: HistoryPeriod) -> list[HistoryRow]:
    """Return what is known of a model in the period, in the order of time. One query."""
    return read_model_history(model, period.begin(now), now, period.length)


def describe_row(row: HistoryRow, names: Iterable[str]) -> dict[str, Any]:
    """Return the values of the API's PastOfDevice and PastOfModel."""
    figures = {name: row.figures.get(name) for name in names}
    known = {name: one and {"mean": one.mean, "highest": one.highest} for name, one in figures.items()}
    return {"at": row.at, **known}


def chart_devices(
    rows: Sequence[HistoryRow], now: datetime, period: HistoryPeriod, zone: ZoneInfo
) -> list[HistoryChart]:
    """Return the charts of a host's GPUs, and of its memory; without those of which nothing is known."""
    drawn = Drawing(period=period, now=now, zone=zone)
    gpus = [row for row in rows if row.subject != RAM]
    ram = [row for row in rows if row.subject == RAM]
    charts = [
        drawn.chart(gpus, "utilisation", "per cent", _("GPU utilisation")),
        drawn.chart(gpus, "memory", "gigabytes", _("GPU memory in use"), divisor=1e9),
        drawn.chart(gpus, "temperature", "degrees", _("GPU temperature")),
        drawn.chart(gpus, "power", "watts", _("GPU power")),
        drawn.chart(ram, "memory", "gigabytes", _("RAM in use"), divisor=1e9, name="ram"),
    ]
    return [chart for chart in charts if chart is not None]


def chart_model(
    rows: Sequence[HistoryRow], model: str, now: datetime, period: HistoryPeriod, zone: ZoneInfo
) -> list[HistoryChart]:
    """Return the charts of a model; without those of which nothing is known. One query."""
    drawn = Drawing(period=period, now=now, zone=zone)
    charts = [
        drawn.chart(rows, "ready", "replicas", _("Ready replicas")),
        drawn.chart(rows, "waiting", "requests", _("Waiting calls")),
        drawn.chart(rows, "speed", "tokens/s", _("Generation speed")),
        drawn.first_tokens(model),
    ]
    return [chart for chart in charts if chart is not None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """Draws charts of one period."""

    period: HistoryPeriod
    now: datetime
    zone: ZoneInfo

    def chart(
        self,
        rows: Iterable[HistoryRow],
        figure: str,
        measure: Measure,
        title: str,
        *,
        divisor: float = 1,
        name: str = "",
    ) -> HistoryChart | None:
        """Return the chart of a figure: the mean of each subject and the highest of all; None: it is not known."""
        by_subject: dict[Any, dict[datetime, list[HistoryFigure]]] = defaultdict(lambda: defaultdict(list))
        for row in rows:
            if known := row.figures.get(figure):
                by_subject[row.subject][start_of_bucket(row.at, self.period.slot)].append(known)
        if not by_subject:
            return None
        merged: dict[datetime, list[HistoryFigure]] = defaultdict(list)
        for slots in by_subject.values():
            for slot, figures in slots.items():
                merged[slot] += figures
        lines: Lines = {}
        if 1 < len(by_subject) <= MOST_LINES:
            for subject in sorted(by_subject):
                lines[f"GPU {subject}"] = _means(by_subject[subject], divisor)
        else:
            lines[_("mean")] = _means(merged, divisor)
        lines[_("highest")] = {slot: max(one.highest for one in all_) / divisor for slot, all_ in merged.items()}
        return self._finish(lines, measure, title, name=name or figure)

    def first_tokens(self, model: str) -> HistoryChart | None:
        """Return the chart of times to the first token, from the sums of usage. One query."""
        sums = {bucket: Sum(bucket) for bucket in TTFT_BUCKETS}
        period = replace(self.period, slot=max(self.period.slot, HOUR))
        hours = UsageHour.objects.filter(model=model, hour__gte=period.begin(self.now), hour__lte=self.now)
        counts: dict[datetime, list[int]] = defaultdict(lambda: [0] * len(TTFT_BUCKETS))
        rows: Iterable[Mapping[str, Any]] = hours.values("hour").annotate(**sums).order_by("hour")
        for row in rows:
            at = start_of_bucket(row["hour"], period.slot)
            counts[at] = [old + row[bucket] for old, bucket in zip(counts[at], TTFT_BUCKETS, strict=True)]
        shares = {_("median"): 0.5, _("95 of 100 within"): 0.95}
        lines: Lines = {
            label: {at: milliseconds / 1000 for at, of in counts.items() if (milliseconds := percentile(of, share))}
            for label, share in shares.items()
        }
        if not any(lines.values()):
            return None
        return replace(self, period=period)._finish(lines, "seconds", _("Time to first token"), name="first-token")

    def _finish(self, lines: Lines, measure: Measure, title: str, *, name: str) -> HistoryChart:
        slots = self.period.slots(self.now)
        local = [slot.astimezone(self.zone) for slot in slots]
        shown = {
            label: {there: _round(values.get(slot)) for slot, there in zip(slots, local, strict=True)}
            for label, values in lines.items()
        }
        chart = line_chart(shown, local, self.period.unit, name=name, measure=measure)
        series = [
            replace(one, shade=SHADES if number == len(lines) - 1 and number else NAMED[number % len(NAMED)])
            for number, one in enumerate(chart.series)
        ]
        highest = max(value or 0 for one in series for value in one.values)
        return HistoryChart(title=title, chart=replace(chart, series=tuple(series)), highest=highest)


def _means(slots: Mapping[datetime, Sequence[HistoryFigure]], divisor: float) -> dict[Any, float | None]:
    return {
        slot: sum(one.mean * one.count for one in figures) / sum(one.count for one in figures) / divisor
        for slot, figures in slots.items()
    }


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
