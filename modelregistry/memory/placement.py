"""Where a model fits: which GPUs it gets, how large its cache may be there, or the sum that says why it does not fit.

Pure. What the devices hold now and what our engines were promised is given; nothing is kept between two questions.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, islice
from typing import Annotated

from modelregistry.files.metadata import ModelMetadata
from modelregistry.memory.estimate import MIB, Demand, Prediction, predict, with_cache
from modelregistry.process.gpus import MOST_DEVICES, RAM, Device
from modelregistry.wire_bounds import AtMost, Line, Name

# Left free on each card: the driver and its fragments; a card that is full to the last byte fails at the next call. As
# much as one more CUDA context, since that was not measured for each card, driver and engine.
GPU_MARGIN = 650 * MIB
# Left free of RAM: 5 %, for the system and what comes and goes on it.
RAM_MARGIN = 0.05
# So many at a time are looked at for what would have to go, and so many are thought of as going: 800 trials at most.
MOST_TRIED = 16
MOST_GONE = 3
MOST_SPACES = 128  # sets of cards that are looked at for one replica: four of eight are 70
CONTEXT_STEP = 1024  # tokens
# vLLM is given its part of the card as a fraction, of which it looks at no more than this.
FRACTION_DIGITS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Commitment:
    """What one of our replicas was promised on a device, and what it holds there (of RAM: what cannot be dropped)."""

    name: str
    device: int
    predicted: int
    held: int

    @property
    def pledged(self) -> int:
        """What it will still take."""
        return max(0, self.predicted - self.held)


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """The sum of one device. `ours`: name and bytes of each of our replicas, the larger of promised and held.

    `strangers`: bytes that others hold. `free`: what a new engine can have: neither held nor promised.
    """

    device: int
    name: Name
    total: int
    ours: Annotated[tuple[tuple[Name, int], ...], AtMost(10_000)]
    strangers: int
    free: int
    fault: Line = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """`devices`: indices, empty for RAM. `fraction`: the part of a card that weights and cache take; RAM: 0.

    So much vLLM wants to see free when it starts, after its own CUDA context and the links between cards have taken
    theirs (0.32, v1/worker/utils.py, request_memory): neither is part of it.
    """

    devices: tuple[int, ...]
    prediction: Prediction
    fraction: float = 0.0
    forced: bool = False


class NoRoom(Exception):
    """It does not fit. `need` is per device; `rooms` are the devices that were asked for or are there.

    `in_ram`: the cards have room, but not the RAM for what `need.host` says. `fits`: the longest context that would fit
    with as many requests at a time (0: not even a short one), `sequences`: how many requests would fit with the context
    that was asked for (0: not even one).
    """

    def __init__(
        self, need: Prediction, rooms: Sequence[Room], *, fits: int = 0, sequences: int = 0, in_ram: bool = False
    ) -> None:
        super().__init__(f"{need.total} bytes on each of {need.devices}")
        self.need = need
        self.rooms = tuple(rooms)
        self.in_ram = in_ram
        self.fits = fits
        self.sequences = sequences


class NoSuchDevice(Exception):
    """The model is bound to GPUs that this host does not have (`missing`), or is split over more than there are.

    `usable`: how many its engine can use here.
    """

    def __init__(self, missing: Sequence[int], wanted: int, usable: int) -> None:
        super().__init__(f"{list(missing)} of {wanted}, {usable} there")
        self.missing = tuple(missing)
        self.wanted = wanted
        self.usable = usable


def kind_of(devices: Iterable[Device], *, on_cpu: bool) -> str:
    """Return where an engine keeps its model: on GPUs if there are any and it can use them."""
    return "gpu" if not on_cpu and any(device.kind == "gpu" for device in devices) else "ram"


def free_room(device: Device, shares: Sequence[Commitment]) -> Room:
    here = [share for share in shares if share.device == device.index]
    held = sum(share.held for share in here)
    return Room(
        device=device.index,
        name=device.name,
        total=device.total,
        ours=tuple((share.name, max(share.predicted, share.held)) for share in here),
        strangers=max(0, device.used - held),
        free=0 if device.fault else max(0, spare_bytes(device, here)),
        fault=device.fault,
    )


def spare_bytes(device: Device, shares: Sequence[Commitment]) -> int:
    """Return what is neither held nor promised on the device, less its margin; negative: too much is promised."""
    margin = GPU_MARGIN if device.kind == "gpu" else int(device.total * RAM_MARGIN)
    return device.free - sum(share.pledged for share in shares if share.device == device.index) - margin


def find_place(
    prediction: Prediction,
    demand: Demand,
    devices: Sequence[Device],
    shares: Sequence[Commitment] = (),
    *,
    gpus: Sequence[int] = (),
    overcommit: bool = False,
    facts: ModelMetadata | None = None,
) -> Placement:
    """Choose devices for one replica. Raises NoRoom or NoSuchDevice.

    `gpus`: the operator's choice; empty: the fullest card that has room (so that whole cards stay free for what needs
    one), for several cards those with most room. An engine that can do with less cache than it wants gets what there
    is.
    `overcommit`: where most is free, whatever the sum says. With `facts` a refusal can say what would fit.
    """
    if demand.kind != "gpu" and prediction.devices > 1:
        raise NoSuchDevice((), prediction.devices, 0)
    short = _short_of_ram(prediction, demand, devices, shares)
    if short and not overcommit:
        raise NoRoom(prediction, [short], in_ram=True)
    rooms = [free_room(device, shares) for device in devices if device.kind == demand.kind]
    candidates = _candidates(rooms, prediction, gpus) if demand.kind == "gpu" else rooms
    chosen = _choose_devices(candidates, prediction)
    if chosen is None and not overcommit:
        fits, sequences = _what_would_fit(prediction, demand, candidates, facts)
        raise NoRoom(prediction, candidates, fits=fits, sequences=sequences)
    forced = chosen is None or short is not None
    if chosen is None:
        chosen = sorted(candidates, key=lambda one: -one.free)[: prediction.devices]
    granted = _grant_cache(prediction, chosen)
    total = min((one.total for one in chosen), default=0)
    return Placement(
        devices=tuple(sorted(one.device for one in chosen if one.device != RAM)),
        prediction=granted,
        fraction=_fraction(_seen_free(granted), total) if demand.kind == "gpu" and total else 0.0,
        forced=forced,
    )


def _short_of_ram(
    prediction: Prediction, demand: Demand, devices: Sequence[Device], shares: Sequence[Commitment]
) -> Room | None:
    """Return the RAM, if a model on GPUs has no room in it for what it takes there. None: it has."""
    if demand.kind != "gpu" or not prediction.host:
        return None
    return next(
        (
            short
            for device in devices
            if device.kind == "ram" and (short := free_room(device, shares)).free < prediction.host
        ),
        None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """Devices on which one replica could go, with the bytes that it needs at least on each of them."""

    needs: Annotated[Mapping[int, int], AtMost(MOST_DEVICES + 1)]


def find_spaces(
    prediction: Prediction, kind: str, devices: Sequence[Device], *, gpus: Sequence[int] = ()
) -> tuple[Space, ...]:
    """Return where a replica could go if others made room for it, by what `find_place` asks for."""
    least = prediction.total - (prediction.cache - prediction.cache_least) - prediction.droppable
    if kind != "gpu":
        return tuple(Space(needs={one.index: least}) for one in devices if one.kind == kind and not one.fault)
    cards = [one.index for one in devices if one.kind == "gpu" and not one.fault and (not gpus or one.index in gpus)]
    beside = {RAM: prediction.host} if prediction.host else {}
    sets = islice(combinations(cards, prediction.devices), MOST_SPACES)
    return tuple(Space(needs=dict.fromkeys(some, least) | beside) for some in sets)


def _candidates(rooms: Sequence[Room], prediction: Prediction, gpus: Sequence[int]) -> list[Room]:
    there = {one.device: one for one in rooms}
    missing = [index for index in gpus if index not in there]
    if missing or len(there) < prediction.devices or (gpus and len(set(gpus)) < prediction.devices):
        raise NoSuchDevice(missing, prediction.devices, len(there))
    return [there[index] for index in dict.fromkeys(gpus)] if gpus else list(rooms)


def _choose_devices(rooms: Sequence[Room], need: Prediction) -> list[Room] | None:
    """Return the best devices for it; None: no room, not even with the least cache."""
    for least in (False, True):
        wanted = need.total - (need.cache - need.cache_least if least else 0) - need.droppable
        enough = [one for one in rooms if one.free >= wanted]
        if len(enough) >= need.devices:
            # One card: the fullest that will do, unless it would have to make do with less than it wants. Several wait
            # for the slowest of them: those with most room.
            emptiest_first = need.devices > 1 or least
            return sorted(enough, key=lambda one: -one.free if emptiest_first else one.free)[: need.devices]
    return None


def _grant_cache(need: Prediction, rooms: Sequence[Room]) -> Prediction:
    """Return it with the cache that there is room for, between the least and what is wanted."""
    free = min((one.free for one in rooms), default=0)
    cache = min(need.cache, max(need.cache_least, free - (need.total - need.cache)))
    return need if cache == need.cache else with_cache(need, cache)


def at_least(need: Prediction) -> Prediction:
    """Return the same with no more cache than its engine cannot do without. vLLM can do with that of one request."""
    if need.cache_least >= need.cache:
        return need
    return replace(with_cache(need, need.cache_least), sequences=need.sequences if need.open else 1)


def _seen_free(granted: Prediction) -> int:
    """Return what vLLM is to see free: with a cache that it measures itself, all that it takes after its context."""
    return granted.total - granted.apart if granted.open else granted.weights + granted.cache


def _fraction(part: int, total: int) -> float:
    """Round down, as it is only looked at (the cache is given in bytes); never to nothing, never to the whole card."""
    scale: int = 10**FRACTION_DIGITS
    return min(max(part * scale // total, 1) / scale, 0.99)


def _what_would_fit(
    need: Prediction, demand: Demand, rooms: Sequence[Room], facts: ModelMetadata | None
) -> tuple[int, int]:
    """Return the longest context with as many requests, and the most requests with this context; 0: none."""
    if facts is None or not facts.attention or len(rooms) < need.devices:
        return 0, 0
    # The last of those that would be taken decides.
    free = sorted((one.free for one in rooms), reverse=True)[need.devices - 1]
    spare = free - (need.weights + need.overhead) + need.droppable

    def fits(context: int, slots: int | None) -> bool:
        return predict(facts, replace(demand, context=context, slots=slots)).cache_least <= spare

    # Contexts that an operator might choose are multiples of CONTEXT_STEP.
    steps = _find_largest(lambda count: fits(count * CONTEXT_STEP, demand.slots), (need.context - 1) // CONTEXT_STEP)
    return steps * CONTEXT_STEP, _find_largest(lambda slots: fits(need.context, slots), need.sequences - 1)


def _find_largest(fits: Callable[[int], bool], most: int) -> int:
    """Return the largest number from 1 to `most` that fits, where a larger one takes more; 0: none.

    By bisection: each question plans a whole cache (0.3 ms), and a context of 10 million tokens has 10,000 steps.
    """
    enough, too_many = 0, most + 1
    while too_many - enough > 1:
        middle = (enough + too_many) // 2
        enough, too_many = (middle, too_many) if fits(middle) else (enough, middle)
    return enough


# --- What would have to go


def would_have_to_go(
    prediction: Prediction,
    demand: Demand,
    devices: Sequence[Device],
    shares: Sequence[Commitment],
    *,
    gpus: Sequence[int] = (),
) -> tuple[str, ...]:
    """Return the fewest of ours without which it would fit, of those the smallest; (): no few of them would do.

    `devices` as they are now, with what the shares hold.
    """
    sizes: dict[str, int] = {}
    for share in shares:
        sizes[share.name] = sizes.get(share.name, 0) + max(share.predicted, share.held)
    names = sorted(sizes, key=lambda name: sizes[name])[:MOST_TRIED]
    for count in range(1, MOST_GONE + 1):
        for gone in sorted(combinations(names, count), key=lambda some: sum(sizes[name] for name in some)):
            if _fits_without(gone, prediction, demand, devices, shares, gpus):
                return gone
    return ()


def _fits_without(
    gone: Collection[str],
    prediction: Prediction,
    demand: Demand,
    devices: Sequence[Device],
    shares: Sequence[Commitment],
    gpus: Sequence[int],
) -> bool:
    held: dict[int, int] = {}
    for share in shares:
        if share.name in gone:
            held[share.device] = held.get(share.device, 0) + share.held
    left = [share for share in shares if share.name not in gone]
    try:
        find_place(prediction, demand, without_ours(devices, held), left, gpus=gpus)
    except (NoRoom, NoSuchDevice):
        return False
    return True


# --- What fits beside what ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A model that is to be on a host, with one replica's prediction and where it is bound to."""

    name: str
    prediction: Prediction
    demand: Demand
    replicas: int = 1
    gpus: tuple[int, ...] = ()


def fits_together(candidates: Sequence[Candidate], devices: Sequence[Device]) -> bool:
    """Return whether all replicas of all these fit on the host at a time, if it held nothing of ours now."""
    return left_after(candidates, devices) is not None


def left_after(candidates: Sequence[Candidate], devices: Sequence[Device]) -> dict[int, int] | None:
    """Return bytes that stay free on each device after all these were placed; None: they do not fit together.

    `devices` as they would be without our engines: see `without_ours`.
    """
    shares: list[Commitment] = []
    for one in sorted(candidates, key=lambda one: -one.prediction.total):
        for number in range(one.replicas):
            try:
                found = find_place(one.prediction, one.demand, devices, shares, gpus=one.gpus)
            except (NoRoom, NoSuchDevice):
                return None
            shares += shares_of(f"{one.name} #{number}", found)
    return {device.index: free_room(device, shares).free for device in devices}


def shares_of(name: str, found: Placement, held: dict[int, int] | None = None) -> list[Commitment]:
    """Return what this placement promises on each of its devices."""
    return [
        Commitment(name=name, device=device, predicted=found.prediction.total, held=(held or {}).get(device, 0))
        for device in found.devices or (RAM,)
    ]


def fits_beside(new: Candidate, others: Sequence[Candidate], devices: Sequence[Device]) -> dict[str, bool]:
    """Return for each of the others whether the new one fits on the host together with it alone."""
    return {other.name: fits_together([new, other], devices) for other in others}


def without_ours(devices: Sequence[Device], held: dict[int, int]) -> list[Device]:
    """Return the devices as if our engines were gone. `held`: bytes that they hold, by device."""
    return [
        replace(device, used=max(0, device.used - ours), free=min(device.total, device.free + ours))
        for device in devices
        for ours in (held.get(device.index, 0),)
    ]


def with_reserved(devices: Iterable[Device], shares: Sequence[Commitment], reserved: Mapping[int, int]) -> list[Device]:
    """Return the devices as if others held at least what they have reserved. `shares`: ours, with what they hold."""
    found = []
    for device in devices:
        more = max(0, reserved.get(device.index, 0) - free_room(device, shares).strangers)
        found.append(replace(device, used=min(device.total, device.used + more), free=max(0, device.free - more)))
    return found
