"""Who holds the memory of a device, drawn as a bar. Pure: bytes in, per cent of the bar out."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

LETTER = 2.6  # per cent of the bar that a digit takes at most: 8 px of the 310 that a telephone has for it


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one replica takes of one device, in bytes.

    `measured` is what its processes hold, None until it was looked at; `predicted` None if nothing could be said.
    The parts add up to `measured`: weights and cache as predicted, and as overhead whatever else is held.
    """

    number: int  # as written beside the bar; set by `bar`
    model: str
    replica: str
    weights: int = 0
    cache: int = 0
    overhead: int = 0
    unsorted: int = 0  # measured where nothing was predicted, so not to be told apart
    measured: int | None
    predicted: int | None

    @property
    def drawn(self) -> int:
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
        return LETTER * len(str(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A device's memory in bytes: shares + others = used, unless measurements overtook each other.

    `free` may be less than the rest: what nobody can have. `fault`: why the numbers are old ones; empty: they are not.
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
    """What a replica takes of a device, from its prediction for that device and from what was measured there."""
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
    weights = round(measured * weights / known)  # not all of it is loaded yet, or less than was predicted
    return replace(made, weights=weights, cache=measured - weights)


def memory_bar(device: dict[str, Any], shares: Iterable[Share]) -> Bar:
    """`device` as `gpus.Device`. What is used and is nobody's of ours is `others`'."""
    ordered = sorted(shares, key=lambda one: one.measured is None)
    numbered = tuple(replace(one, number=number) for number, one in enumerate(ordered, 1))
    total, used = device["total"], device["used"]
    others = max(0, used - sum(one.drawn for one in numbered))
    parts, outlines, labels = drawn(numbered, others, total)
    return Bar(
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


def drawn(
    shares: Sequence[Share], others: int, total: int
) -> tuple[tuple[Part, ...], tuple[Outline, ...], tuple[Label, ...]]:
    """From left to right: the parts of each replica that was measured, what is not ours, and the places kept for those
    of which nothing is to be seen yet.
    """
    parts, outlines, labels, x = [], [], list[Label](), 0.0
    for one in shares:
        if one.measured is None:
            continue
        start = x
        for kind in ("weights", "cache", "overhead", "unsorted"):
            if width := percent(getattr(one, kind), total, x):
                parts.append(Part(kind, round(x, 2), width))
                x += width
        outlines.append(Outline(round(start, 2), percent(one.predicted or 0, total, start)))
        add_label(labels, one.number, start + max(x - start, outlines[-1].width) / 2)
    if width := percent(others, total, x):
        parts.append(Part("others", round(x, 2), width))
        x += width
    for one in shares:
        if one.measured is None:
            outlines.append(Outline(round(x, 2), percent(one.predicted or 0, total, x)))
            add_label(labels, one.number, x + outlines[-1].width / 2)
            x += outlines[-1].width
    return tuple(parts), tuple(outlines), tuple(labels)


def add_label(labels: list[Label], number: int, middle: float) -> None:
    """Write the number of the next replica below its middle; where it would touch the one before, write both as one."""
    label = _within_bar(number, number, middle)
    while labels and label.x - labels[-1].x < (label.width + labels[-1].width) / 2 + LETTER / 2:
        before = labels.pop()
        label = _within_bar(before.first, number, (before.x + label.x) / 2)
    labels.append(label)


def _within_bar(first: int, last: int, x: float) -> Label:
    half = Label(first, last, x).width / 2
    return Label(first, last, round(min(max(x, half), 100 - half), 2))


def percent(part: int, total: int, start: float = 0.0) -> float:
    """Of the bar, which ends at 100 whatever was measured."""
    return round(min(100 * part / total, 100 - start), 2) if total else 0.0
