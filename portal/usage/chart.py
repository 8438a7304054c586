"""What a chart over time shows: numbers and words. charts.js draws it with Chart.js; without a script there is a table.

A page that has one: its view makes a `Chart` (`stacked` from rows, or `lines`), and its template has
    {% block scripts %}{% include "usage/_chart_scripts.html" %}{% endblock %}
    <h2>what is to be seen, in words</h2>
    {% translate "…" as label %}{% include "usage/_chart.html" with chart=… %}
The include brings colours, the table and its copy as CSV. Several charts on a page need different `name`s.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from functools import lru_cache
from typing import Any, Literal

from django.utils.formats import number_format
from django.utils.translation import get_language
from django.utils.translation import gettext as _

from portal.web.templatetags.formatting import figure, mark_of, slot_of

Slot = date | datetime
Measure = Literal["tokens", "requests", "people", "seconds", "tokens/s"]
DIGITS = {"seconds": 2, "tokens/s": 1}  # behind the point
# Colours that can be told apart; what is least shares the last.
SHADES = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """`values`: one for each slot, None where nothing is known. `shade` counts from 1. `code`: the label is a name
    that programs use."""

    label: str
    values: tuple[float | None, ...]
    shade: int
    code: bool = False

    @property
    def total(self) -> int:
        return int(sum(value or 0 for value in self.values))


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """`kind`: bars that stand on each other, or lines. `slots`: hours, days, or first days of months or fiscal years
    (`unit`: "second", "hour", "day", "month", "year"). `links`: where more is told of each slot; empty for nowhere."""

    name: str
    kind: Literal["bars", "lines"]
    measure: Measure
    unit: str
    slots: tuple[Slot, ...]
    series: tuple[Series, ...]
    links: tuple[str, ...] = ()

    @property
    def element(self) -> str:
        return f"chart-{self.name}"

    @property
    def sums(self) -> list[int]:
        """Of all series in each slot."""
        return [int(sum(series.values[n] or 0 for series in self.series)) for n in range(len(self.slots))]

    @property
    def peak(self) -> tuple[Slot, int]:
        """The slot with most, and how much: the first of several."""
        sums = self.sums
        most = max(range(len(sums)), key=sums.__getitem__)
        return self.slots[most], sums[most]

    @property
    def together(self) -> bool:
        """Whether a sum of the series means something."""
        return self.kind == "bars" and len(self.series) > 1

    @property
    def measured(self) -> str:
        """What the axis counts."""
        return {
            "tokens": _("tokens"),
            "requests": _("requests"),
            "people": _("people"),
            "seconds": _("seconds"),
            "tokens/s": _("tokens per second"),
        }[self.measure]

    @property
    def table(self) -> list[tuple[str, str, list[str]]]:
        """(slot, link, a text for each series and, where it means something, their sum), the latest first."""
        columns: list[Sequence[float | None]] = [series.values for series in self.series]
        if self.together:
            columns.append(self.sums)
        links = self.links or ("",) * len(self.slots)
        titles, _marks = named(self.slots, self.unit, get_language())
        return [
            (titles[n], links[n], [self._text(column[n]) for column in columns])
            for n in reversed(range(len(self.slots)))
        ]

    def _text(self, value: float | None) -> str:
        if value is None:
            return "–"
        return number_format(value, self.digits) if self.digits else figure(int(value))

    @property
    def digits(self) -> int:
        return DIGITS.get(self.measure, 0)

    @property
    def figures(self) -> dict[str, Any]:
        """What charts.js reads. Slots three times: for the axis, in full, and for files."""
        titles, marks = named(self.slots, self.unit, get_language())
        return {
            "kind": self.kind,
            "unit": self.unit,
            "measured": self.measured,
            "digits": self.digits,
            "marks": marks,
            "titles": titles,
            "slots": [slot.isoformat() for slot in self.slots],
            "links": self.links,
            "together": _("Together") if self.together else "",
            "series": [
                {"label": series.label or self.measured, "shade": series.shade, "values": series.values}
                for series in self.series
            ],
        }


@lru_cache(maxsize=64)
def named(slots: tuple[Slot, ...], unit: str, language: str | None) -> tuple[list[str], list[str]]:
    """Return slots in full and for an axis. Kept, because the charts of a page have the same: 90 days take 10 ms."""
    return [slot_of(slot, unit) for slot in slots], [mark_of(slot, unit) for slot in slots]


def chart(
    rows: Iterable[Mapping[str, Any]], slots: Sequence[Slot], unit: str = "day", *, links: Sequence[str] = ()
) -> Chart:
    """Return tokens by model, from rows by "slot" and "model" with "total_tokens"."""
    return stacked(
        ((row["slot"], row["model"], row["total_tokens"]) for row in rows),
        slots,
        unit,
        name="tokens",
        measure="tokens",
        others=_("other models"),
        code=True,
        links=links,
    )


def stacked(
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
    """Return bars from (slot, thing, number), the thing with most at the bottom; slots without any are there, empty.

    Things beyond the colours stand together as `others`. `labels`: how a thing is called, if not by itself.
    """
    numbers: dict[str, Counter[Slot]] = defaultdict(Counter)
    for slot, thing, number in values:
        numbers[thing][slot] += number
    most = sorted(numbers, key=lambda thing: (-numbers[thing].total(), thing))
    named = most if len(most) <= SHADES else most[: SHADES - 1]
    rest: Counter[Slot] = Counter()
    for thing in most[len(named) :]:
        rest.update(numbers[thing])
    series = [
        Series(
            label=(labels or {}).get(thing, thing),
            values=tuple(numbers[thing][slot] for slot in slots),
            shade=shade,
            code=code,
        )
        for shade, thing in enumerate(named, 1)
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


def lines(
    series: Mapping[str, Mapping[Slot, float | None]],
    slots: Sequence[Slot],
    unit: str,
    *,
    name: str,
    measure: Measure,
    links: Sequence[str] = (),
) -> Chart:
    """Return a line for each label, with gaps where nothing is known."""
    return Chart(
        name=name,
        kind="lines",
        measure=measure,
        unit=unit,
        slots=tuple(slots),
        series=tuple(
            Series(label=label, values=tuple(values.get(slot) for slot in slots), shade=shade)
            for shade, (label, values) in enumerate(series.items(), 1)
        ),
        links=tuple(links),
    )
