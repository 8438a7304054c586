"""The data of charts over time. charts.js draws them with Chart.js; without scripts there is a table.

The view of a page makes a `Chart` (with `token_chart`, `stacked_chart` or `line_chart`), and its template has
    {% block scripts %}{% include "usage/_chart_scripts.html" %}{% endblock %}
    <h2>what the chart shows, in words</h2>
    {% translate "…" as label %}{% include "usage/_chart.html" with chart=… %}
The include has the legend, the table and its CSV. Several charts on a page need different `name`s.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from functools import lru_cache
from typing import Any, Literal
from zlib import crc32

from django.utils.formats import number_format
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import get_language
from django.utils.translation import gettext as _

from portal.web.templatetags.formatting import figure, mark_of, slot_of

Slot = date | datetime | int
Measure = Literal[
    "tokens", "requests", "people", "seconds", "tokens/s", "per cent", "replicas", "degrees", "watts", "gigabytes"
]
DIGITS = {"seconds": 2, "tokens/s": 1, "per cent": 1, "replicas": 1, "gigabytes": 1}  # after the decimal point
# Series of a chart; the smallest share the last one, which is grey.
SHADES = 6
# Colours that names keep, which differ in hue and lightness (distinguishable with any colour vision) in both themes.
NAMED = (1, 2, 3, 4, 5, 7, 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line, or one part of each bar."""

    label: str
    values: tuple[float | None, ...]  # one for each slot; None: not known
    shade: int  # from 1
    code: bool = False  # whether the label is a name that programs use

    @property
    def total(self) -> int:
        return int(sum(value or 0 for value in self.values))


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Stacked bars, or lines, over time."""

    name: str
    kind: Literal["bars", "lines"]
    measure: Measure
    # Of a slot: "second", "hour", "day", "week", "month", "year", "nth week" after something, "time" of a day or "date"
    # with time.
    unit: str
    slots: tuple[Slot, ...]  # hours, days, or first days of weeks, months or fiscal years; numbers of weeks
    series: tuple[Series, ...]
    links: tuple[str, ...] = ()  # to the page of each slot; empty: none has one

    @property
    def element(self) -> str:
        return f"chart-{self.name}"

    @property
    def sums(self) -> list[int]:
        """The sum of all series, for each slot."""
        return [int(sum(series.values[n] or 0 for series in self.series)) for n in range(len(self.slots))]

    @property
    def peak(self) -> tuple[Slot, int]:
        """The first slot with the highest sum, and that sum."""
        sums = self.sums
        most = max(range(len(sums)), key=sums.__getitem__)
        return self.slots[most], sums[most]

    @property
    def has_total(self) -> bool:
        """Whether a sum of the series means something."""
        return self.kind == "bars" and len(self.series) > 1

    @property
    def measure_label(self) -> str:
        """What the axis counts."""
        return {
            "tokens": _("tokens"),
            "requests": _("requests"),
            "people": _("people"),
            "seconds": _("seconds"),
            "tokens/s": _("tokens per second"),
            "per cent": _("per cent"),
            "replicas": _("replicas"),
            "degrees": "°C",
            "watts": "W",
            "gigabytes": "GB",
        }[self.measure]

    @property
    def table(self) -> list[tuple[str, str, list[str]]]:
        """Rows of (slot, link, a text for each series and, if it means something, their sum), the latest first."""
        columns: list[Sequence[float | None]] = [series.values for series in self.series]
        if self.has_total:
            columns.append(self.sums)
        links = self.links or ("",) * len(self.slots)
        titles, _marks = label_slots(self.slots, self.unit, get_language())
        return [
            (titles[n], links[n], [self._text(column[n]) for column in columns])
            for n in reversed(range(len(self.slots)))
        ]

    @property
    def table_rows(self) -> SafeString:
        """The same as HTML: a year has thousands of cells, of which a template takes four times as long."""
        return format_html_join(
            "",
            '<tr><th scope="row">{}</th>{}</tr>',
            (
                (
                    format_html('<a href="{}">{}</a>', link, title) if link else title,
                    format_html_join("", '<td class="num">{}</td>', ((text,) for text in texts)),
                )
                for title, link, texts in self.table
            ),
        )

    def _text(self, value: float | None) -> str:
        if value is None:
            return "–"
        return number_format(value, self.digits) if self.digits else figure(int(value))

    @property
    def digits(self) -> int:
        return DIGITS.get(self.measure, 0)

    @property
    def script_data(self) -> dict[str, Any]:
        """The data for charts.js. It has the slots three times: for the axis, in full, and for files."""
        titles, marks = label_slots(self.slots, self.unit, get_language())
        return {
            "kind": self.kind,
            "unit": self.unit,
            "measure": self.measure_label,
            "digits": self.digits,
            "marks": marks,
            "titles": titles,
            "slots": [slot if isinstance(slot, int) else slot.isoformat() for slot in self.slots],
            "links": self.links,
            "total": _("Total") if self.has_total else "",
            "series": [
                {"label": series.label or self.measure_label, "shade": series.shade, "values": series.values}
                for series in self.series
            ],
        }


@lru_cache(maxsize=64)
def label_slots(slots: tuple[Slot, ...], unit: str, language: str | None) -> tuple[list[str], list[str]]:
    """Return the labels of slots, in full and for an axis.

    Cached, because the charts of a page have the same slots: 90 days take 10 ms.
    """
    return [slot_of(slot, unit) for slot in slots], [mark_of(slot, unit) for slot in slots]


def token_chart(
    rows: Iterable[Mapping[str, Any]], slots: Sequence[Slot], unit: str = "day", *, links: Sequence[str] = ()
) -> Chart:
    """Return a chart of tokens by model, from rows with "slot", "model" and "total_tokens"."""
    return stacked_chart(
        ((row["slot"], row["model"], row["total_tokens"]) for row in rows),
        slots,
        unit,
        name="tokens",
        measure="tokens",
        others=_("other models"),
        code=True,
        links=links,
    )


def stacked_chart(
    values: Iterable[tuple[Slot, str, int]],
    slots: Sequence[Slot],
    unit: str,
    *,
    name: str,
    measure: Measure,
    others: str = "",
    labels: Mapping[str, str] | None = None,
    code: bool = False,
    links: Sequence[str] = (),
) -> Chart:
    """Return stacked bars from (slot, name, number), the largest series at the bottom; slots without values are empty.

    Series beyond the number of colours are added up as `others`. `labels`: of names that are not their own label.
    """
    numbers: dict[str, Counter[Slot]] = defaultdict(Counter)
    for slot, series_name, number in values:
        numbers[series_name][slot] += number
    ordered = sorted(numbers, key=lambda one: (-numbers[one].total(), one))
    shown = ordered if len(ordered) <= SHADES else ordered[: SHADES - 1]
    rest: Counter[Slot] = Counter()
    for one in ordered[len(shown) :]:
        rest.update(numbers[one])
    shades = choose_shades(shown) if any(shown) else {one: shade for shade, one in enumerate(shown, 1)}
    series = [
        Series(
            label=(labels or {}).get(one, one),
            values=tuple(numbers[one][slot] for slot in slots),
            shade=shades[one],
            code=code,
        )
        for one in shown
    ]
    if rest:
        series.append(Series(label=others or _("others"), values=tuple(rest[slot] for slot in slots), shade=SHADES))
    return Chart(
        name=name,
        kind="bars",
        measure=measure,
        unit=unit,
        slots=tuple(slots),
        series=tuple(series),
        links=tuple(links),
    )


def choose_shades(names: Iterable[str]) -> dict[str, int]:
    """Return the colour of each of these names (at most as many as NAMED): the same on every page.

    A name gives way to another only where both are shown and have the same one.
    """
    chosen: dict[str, int] = {}
    for name in sorted(names):
        wanted = crc32(name.encode()) % len(NAMED)
        free = (NAMED[(wanted + n) % len(NAMED)] for n in range(len(NAMED)))
        chosen[name] = next(shade for shade in free if shade not in chosen.values())
    return chosen


def line_chart(
    series: Mapping[str, Mapping[Any, float | None]],
    slots: Sequence[Slot],
    unit: str,
    *,
    name: str,
    measure: Measure,
    links: Sequence[str] = (),
    first_shade: int = 1,
) -> Chart:
    """Return a chart with a line for each label, with gaps where values are not known.

    `first_shade`: of the first line, where all are of one model, which has a colour of its own (`choose_shades`).
    """
    return Chart(
        name=name,
        kind="lines",
        measure=measure,
        unit=unit,
        slots=tuple(slots),
        series=tuple(
            Series(label=label, values=tuple(values.get(slot) for slot in slots), shade=shade)
            for shade, (label, values) in enumerate(series.items(), first_shade)
        ),
        links=tuple(links),
    )
