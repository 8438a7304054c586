"""How the memory of a device is used, drawn as a bar. Pure: bytes in, per cent of the bar out."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

DIGIT_WIDTH = 2.6  # per cent of the bar that a digit takes at most: 8 px of the 310 on a phone


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one replica takes of one device, in bytes.

    `measured` is what its processes hold, None until it was measured; `predicted` is None without a prediction. The
    parts add up to `measured`: weights and cache as predicted, and whatever else is held as overhead.
    """

    number: int  # as shown below the bar; set by `memory_bar`
    model: str
    replica: str
    weights: int = 0
    cache: int = 0
    overhead: int = 0
    unsorted: int = 0  # measured without a prediction, so the parts are not known
    measured: int | None
    predicted: int | None

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.overhead + self.unsorted


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of the bar: from `x`, `width` wide, in per cent."""

    kind: str  # weights, cache, overhead, unsorted or others
    x: float
    width: float


@dataclass(frozen=True, slots=True)
class Outline:
    """The stretch that a replica was predicted to take."""

    x: float
    width: float


@dataclass(frozen=True, slots=True)
class Label:
    """The numbers of one replica or of neighbours, written below the bar around `x`, in per cent: 1 or 1–3."""

    first: int
    last: int
    x: float

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}–{self.last}"

    @property
    def width(self) -> float:
        return DIGIT_WIDTH * len(str(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryBar:
    """A device's memory in bytes: shares + others = used, unless measurements were made at different times.

    `free` may be less than the rest, part of which no process can have. `fault`: why the numbers are old; empty: they
    are current.
    """

    index: int
    name: str
    kind: str
    total: int
    used: int
    free: int
    others: int
    fault: str
    shares: tuple[Share, ...]
    parts: tuple[Part, ...]
    outlines: tuple[Outline, ...]
    labels: tuple[Label, ...]

    @property
    def percent(self) -> int:
        return round(100 * self.used / self.total) if self.total else 0


def share_of(*, model: str, replica: str, predicted: dict[str, Any] | None, measured: int | None) -> Share:
    """Return what a replica takes of a device, from its prediction and its measured memory there."""
    made = Share(
        number=0,
        model=model,
        replica=replica,
        measured=measured,
        predicted=predicted["total"] if predicted else None,
    )
    if measured is None:
        return made
    if not predicted:
        return replace(made, unsorted=measured)
    weights, cache = predicted["weights"], predicted["cache"]
    known = weights + cache
    if measured >= known:
        return replace(made, weights=weights, cache=cache, overhead=measured - known)
    weights = round(measured * weights / known)  # still loading, or it takes less than was predicted
    return replace(made, weights=weights, cache=measured - weights)


def memory_bar(device: dict[str, Any], shares: Iterable[Share]) -> MemoryBar:
    """Return the bar of a device (see `gpus.Device`). Memory that no replica of ours uses is `others`."""
    ordered = sorted(shares, key=lambda one: one.measured is None)
    numbered = tuple(replace(one, number=number) for number, one in enumerate(ordered, 1))
    total, used = device["total"], device["used"]
    others = max(0, used - sum(one.total for one in numbered))
    parts, outlines, labels = lay_out(numbered, others, total)
    return MemoryBar(
        index=device["index"],
        name=device["name"],
        kind=device["kind"],
        total=total,
        used=used,
        free=device["free"],
        others=others,
        fault=device["fault"],
        shares=numbered,
        parts=parts,
        outlines=outlines,
        labels=labels,
    )


def lay_out(
    shares: Sequence[Share], others: int, total: int
) -> tuple[tuple[Part, ...], tuple[Outline, ...], tuple[Label, ...]]:
    """Lay out the bar from left to right.

    First the parts of each measured replica, then what is not ours, then the space kept for replicas that are not
    measured yet.
    """
    parts, outlines, labels, x = [], [], list[Label](), 0.0
    for one in shares:
        if one.measured is None:
            continue
        start = x
        for kind in ("weights", "cache", "overhead", "unsorted"):
            if width := bar_percent(getattr(one, kind), total, x):
                parts.append(Part(kind, round(x, 2), width))
                x += width
        outlines.append(Outline(round(start, 2), bar_percent(one.predicted or 0, total, start)))
        add_label(labels, one.number, start + max(x - start, outlines[-1].width) / 2)
    if width := bar_percent(others, total, x):
        parts.append(Part("others", round(x, 2), width))
        x += width
    for one in shares:
        if one.measured is None:
            outlines.append(Outline(round(x, 2), bar_percent(one.predicted or 0, total, x)))
            add_label(labels, one.number, x + outlines[-1].width / 2)
            x += outlines[-1].width
    return tuple(parts), tuple(outlines), tuple(labels)


def add_label(labels: list[Label], number: int, middle: float) -> None:
    """Add the number of the next replica below its middle; merge it with the one before if they would touch."""
    label = _place_label(number, number, middle)
    while labels and label.x - labels[-1].x < (label.width + labels[-1].width) / 2 + DIGIT_WIDTH / 2:
        before = labels.pop()
        label = _place_label(before.first, number, (before.x + label.x) / 2)
    labels.append(label)


def _place_label(first: int, last: int, x: float) -> Label:
    half = Label(first, last, x).width / 2
    return Label(first, last, round(min(max(x, half), 100 - half), 2))


def bar_percent(part: int, total: int, start: float = 0.0) -> float:
    """Return the part in per cent of the bar, which ends at 100 whatever was measured."""
    return round(min(100 * part / total, 100 - start), 2) if total else 0.0
