"""Why a model does not fit on its host, as sentences for operators: the whole sum, and what would fit."""

from collections.abc import Sequence

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from modelregistry.engines.version_trials import NoVersion
from modelregistry.memory import placement
from modelregistry.memory.allocation import FitResult
from modelregistry.memory.estimate import Prediction, Unpredictable
from modelregistry.memory.placement import NoRoom, NoSuchDevice, Room

GB = 1e9


def explain_refusal(answer: FitResult) -> str:
    """Explain it in lines; "": it fits."""
    match answer.refusal:
        case Unpredictable() as refusal:
            return explain_unpredictable(refusal)
        case NoSuchDevice() as refusal:
            return explain_missing_device(refusal)
        case NoRoom() as refusal:
            return explain_no_room(refusal, answer.to_go)
    return ""


def explain_no_room(refusal: NoRoom, to_go: Sequence[str] = ()) -> str:
    """Explain what the model needs and wants, each device's sum, what would fit and what would have to go."""
    own = [explain_short_ram(refusal.need)]
    if not refusal.in_ram:
        own = [explain_need(refusal.need), explain_wanted_cache(refusal.need)]
    lines = [*own, *(_room(room) for room in refusal.rooms), *_ways_out(refusal, to_go)]
    return "\n".join(line for line in lines if line)


def explain_waiting(why: str) -> str:
    """Explain that a model without room comes when it is called. `why`: the lines that say why it has none."""
    return "\n".join([_("It is loaded when it is called: a model that is needed less leaves its place."), why])


def explain_short_ram(need: Prediction) -> str:
    return _(
        "It does not fit: beside the GPUs it needs %(host).1f GB of this host's RAM, for its processes and for what its"
        " arguments keep there."
    ) % {"host": need.host / GB}


def explain_need(wanted: Prediction) -> str:
    """Explain what it needs at least."""
    need = placement.at_least(wanted)
    sums = {
        "total": need.total / GB,
        "weights": need.weights / GB,
        "cache": need.cache / GB,
        "overhead": need.overhead / GB,
        "sequences": need.sequences,
        "context": need.context,
    }
    if need.open:
        return _(
            "It does not fit: it needs %(weights).1f GB for weights and %(overhead).1f for its engine, and room for a"
            " cache of unknown size."
        ) % {"weights": need.weights / GB, "overhead": need.overhead / GB}
    if need.devices > 1:
        return _(
            "It does not fit: on each of %(devices)d GPUs it needs %(total).1f GB = weights %(weights).1f + cache"
            " %(cache).1f (%(sequences)d × %(context)d tokens) + engine %(overhead).1f."
        ) % (sums | {"devices": need.devices})
    return (
        _(
            "It does not fit: it needs %(total).1f GB = weights %(weights).1f + cache %(cache).1f"
            " (%(sequences)d × %(context)d tokens) + engine %(overhead).1f."
        )
        % sums
    )


def explain_wanted_cache(wanted: Prediction) -> str:
    """Explain what it wants where its engine could do with less; "": it could not."""
    if wanted.open or wanted.cache <= wanted.cache_least:
        return ""
    return _(
        "This is the least that it needs. With the cache that it wants (%(cache).1f GB, %(sequences)d × %(context)d"
        " tokens) it would be %(total).1f GB."
    ) % {
        "cache": wanted.cache / GB,
        "sequences": wanted.sequences,
        "context": wanted.context,
        "total": wanted.total / GB,
    }


def explain_missing_version(refusal: NoVersion) -> str:
    """Return the version that a model is pinned to is not on this host."""
    values = {"engine": refusal.launcher, "version": refusal.wanted, "others": ", ".join(refusal.installed)}
    if refusal.installed:
        return (
            _("The model is pinned to %(engine)s %(version)s, which is not installed on this host (there: %(others)s).")
            % values
        )
    return _("The model is pinned to %(engine)s %(version)s, and no version of it is installed on this host.") % values


def explain_missing_device(refusal: NoSuchDevice) -> str:
    if refusal.missing:
        return _("This host does not have GPU %(missing)s, to which the model is bound.") % {
            "missing": ", ".join(map(str, refusal.missing))
        }
    if not refusal.usable:
        return ngettext(
            "The model needs %(wanted)d GPU, but its engine has none on this host.",
            "The model is split over %(wanted)d GPUs, but its engine has none on this host.",
            refusal.wanted,
        ) % {"wanted": refusal.wanted}
    return ngettext(
        "The model is split over %(wanted)d GPU, but there are fewer.",
        "The model is to be split over %(wanted)d GPUs, and there are fewer.",
        refusal.wanted,
    ) % {"wanted": refusal.wanted}


def explain_unpredictable(refusal: Unpredictable) -> str:
    return _(
        "What it takes cannot be predicted: its config.json does not say %(missing)s, and its architecture is not"
        " known here. In RAM it starts without a plan, and its engine takes what it chooses."
    ) % {"missing": ", ".join(refusal.missing)}


def _room(room: Room) -> str:
    name = f"GPU {room.device} ({room.name})" if room.device >= 0 else room.name
    if room.fault:
        return _("%(name)s cannot be read: %(fault)s.") % {"name": name, "fault": room.fault}
    ours = " + ".join(f"{who} {size / GB:.1f}" for who, size in room.ours) or "0"
    return _("%(name)s: %(free).1f GB free of %(total).1f; models %(ours)s, others %(strangers).1f.") % {
        "name": name,
        "free": room.free / GB,
        "total": room.total / GB,
        "ours": ours,
        "strangers": room.strangers / GB,
    }


def _ways_out(refusal: NoRoom, to_go: Sequence[str]) -> list[str]:
    found = [_would_fit(refusal), _suggest_removal(to_go), _by_splitting(refusal)]
    return [line for line in found if line] or [
        _("Stop another model, choose a smaller one, or start it without enough memory.")
    ]


def _suggest_removal(to_go: Sequence[str]) -> str:
    if not to_go:
        return ""
    return _("It would fit without %(models)s.") % {"models": ", ".join(to_go)}


def _by_splitting(refusal: NoRoom) -> str:
    """Suggest cards that together have room for what one has not: it may be split over them."""
    alone = placement.at_least(refusal.need).total
    rooms = [room for room in refusal.rooms if room.device >= 0 and room.free]
    if refusal.need.devices > 1 or refusal.in_ram or len(rooms) < 2:
        return ""
    for count in (2, 4, 8):
        free = sorted((room.free for room in rooms), reverse=True)[:count]
        if len(free) == count and alone / count + refusal.need.overhead <= free[-1]:
            return _("Split over %(count)d GPUs (--tensor-parallel %(count)d) it may fit.") % {"count": count}
    return ""


def _would_fit(refusal: NoRoom) -> str:
    if refusal.fits and refusal.sequences:
        return ngettext(
            "A context of %(context)d tokens would fit, or %(sequences)d request at a time with this one.",
            "A context of %(context)d tokens would fit, or %(sequences)d requests at a time with this one.",
            refusal.sequences,
        ) % {"context": refusal.fits, "sequences": refusal.sequences}
    if refusal.fits:
        return _("A context of %(context)d tokens would fit.") % {"context": refusal.fits}
    if refusal.sequences:
        return ngettext(
            "%(sequences)d request at a time would fit.",
            "%(sequences)d requests at a time would fit.",
            refusal.sequences,
        ) % {"sequences": refusal.sequences}
    return ""
