"""Geometry of a chart of tokens over time, stacked by model. Pure: rows in, numbers for a template out."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

HEIGHT = 100
SLOT = 10  # width of an hour, day or month: 7 of bar, 3 of air
BAR = 7
# Shades that can be told apart; the models used least share the last.
SHADES = 4
LABELS = 6


@dataclass(frozen=True, slots=True)
class Part:
    """One model's share of a bar. `shade` counts from 1, in the order of Chart.legend."""

    y: float
    height: float
    shade: int


@dataclass(frozen=True, slots=True)
class Bar:
    """An hour, a day or a month (its first day). `labelled`: the axis names it."""

    slot: date
    x: float
    tokens: int
    requests: int
    parts: tuple[Part, ...]
    labelled: bool


@dataclass(frozen=True, slots=True)
class Chart:
    """`top` is the value at the upper edge, from zero below. `legend`: (model, tokens); "" stands for all others."""

    bars: tuple[Bar, ...]
    legend: tuple[tuple[str, int], ...]
    top: int
    width: int

    @property
    def middle(self) -> int:
        return self.top // 2

    @property
    def peak(self) -> Bar:
        return max(self.bars, key=lambda bar: bar.tokens)


def chart(rows: Iterable[dict[str, Any]], slots: Sequence[date]) -> Chart:
    """A chart of these hours, days or months from rows by "slot" and model; slots without rows are there, empty."""
    tokens: dict[date, Counter[str]] = defaultdict(Counter)
    requests: Counter[date] = Counter()
    models: Counter[str] = Counter()
    for row in rows:
        tokens[row["slot"]][row["model"]] += row["total_tokens"]
        requests[row["slot"]] += row["requests"]
        models[row["model"]] += row["total_tokens"]
    legend = shaded(models)
    top = round_up(max((tokens[slot].total() for slot in slots), default=0))
    step = -(-len(slots) // LABELS)
    return Chart(
        bars=tuple(
            Bar(
                slot=slot,
                x=n * SLOT + (SLOT - BAR) / 2,
                tokens=tokens[slot].total(),
                requests=requests[slot],
                parts=parts(tokens[slot], [name for name, __ in legend], top),
                labelled=(len(slots) - 1 - n) % step == 0,
            )
            for n, slot in enumerate(slots)
        ),
        legend=legend,
        top=top,
        width=len(slots) * SLOT,
    )


def shaded(models: Counter[str]) -> tuple[tuple[str, int], ...]:
    """The models that get a shade of their own, most used first, and the rest together as ""."""
    ordered = models.most_common()
    if len(ordered) <= SHADES:
        return tuple(ordered)
    return (*ordered[: SHADES - 1], ("", sum(count for __, count in ordered[SHADES - 1 :])))


def parts(tokens: Counter[str], named: list[str], top: int) -> tuple[Part, ...]:
    """A bar from the ground up, in the order of the legend."""
    counts = [tokens[name] if name else sum(tokens[m] for m in tokens if m not in named) for name in named]
    made = []
    y = float(HEIGHT)
    for shade, count in enumerate(counts, 1):
        height = HEIGHT * count / top if top else 0.0
        y -= height
        if count:
            made.append(Part(round(y, 2), round(height, 2), shade))
    return tuple(made)


def round_up(value: int) -> int:
    """The next value that is fit for an axis: one even digit (or 1) and zeros, so that its half is round as well."""
    if value <= 0:
        return 0
    power: int = 10 ** (len(str(value)) - 1)
    tops = (max(step * power, 2) for step in (1, 2, 4, 6, 8, 10))
    return next(top for top in tops if top >= value)
