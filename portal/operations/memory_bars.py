"""Who holds the memory of a device, drawn as a bar. Pure: bytes in, per cent of the bar out."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any


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
    """The stretch that a replica was predicted to take. `middle`: where its number is written."""

    number: int
    x: float
    width: float
    middle: float


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
    parts, outlines = drawn(numbered, others, total)
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
    )


def drawn(shares: Sequence[Share], others: int, total: int) -> tuple[tuple[Part, ...], tuple[Outline, ...]]:
    """From left to right: the parts of each replica that was measured, what is not ours, and the places kept for those
    of which nothing is to be seen yet.
    """
    parts, outlines, x = [], [], 0.0
    for one in shares:
        if one.measured is None:
            continue
        start = x
        for kind in ("weights", "cache", "overhead", "unsorted"):
            if width := percent(getattr(one, kind), total, x):
                parts.append(Part(kind, round(x, 2), width))
                x += width
        outlines.append(outline(one, start, x - start, total))
    if width := percent(others, total, x):
        parts.append(Part("others", round(x, 2), width))
        x += width
    for one in shares:
        if one.measured is None:
            outlines.append(outline(one, x, 0.0, total))
            x += outlines[-1].width
    return tuple(parts), tuple(outlines)


def outline(one: Share, start: float, drawn: float, total: int) -> Outline:
    width = percent(one.predicted or 0, total, start)
    # Its number stands below its middle, and not beyond the ends of the bar.
    middle = min(max(start + max(drawn, width) / 2, 1.5), 98.5)
    return Outline(one.number, round(start, 2), width, round(middle, 2))


def percent(part: int, total: int, start: float = 0.0) -> float:
    """Of the bar, which ends at 100 whatever was measured."""
    return round(min(100 * part / total, 100 - start), 2) if total else 0.0
