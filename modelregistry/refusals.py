"""Why a model does not fit on its host, as sentences for operators: the whole sum, and what would fit."""

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from modelregistry.engine_trials import NoVersion
from modelregistry.memory import Prediction, Unpredictable
from modelregistry.placement import NoRoom, NoSuchDevice, Room

GB = 1e9


def no_room(refusal: NoRoom) -> str:
    """First the sum of the model, then each device's, then what would fit."""
    lines = [needed(refusal.need), *(_room(room) for room in refusal.rooms), _would_fit(refusal)]
    return "\n".join(line for line in lines if line)


def needed(need: Prediction) -> str:
    sums = {
        "total": need.total / GB,
        "weights": need.weights / GB,
        "cache": need.cache / GB,
        "overhead": need.overhead / GB,
        "sequences": need.sequences,
        "context": need.context,
    }
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


def no_version(launcher: str, refusal: NoVersion) -> str:
    """The version that a model is pinned to is not on this host."""
    values = {"engine": launcher, "version": refusal.wanted, "others": ", ".join(refusal.installed)}
    if refusal.installed:
        return (
            _("The model is pinned to %(engine)s %(version)s, which is not installed on this host (there: %(others)s).")
            % values
        )
    return _("The model is pinned to %(engine)s %(version)s, and no version of it is installed on this host.") % values


def no_such_device(refusal: NoSuchDevice) -> str:
    if refusal.missing:
        return _("This host does not have GPU %(missing)s, to which the model is bound.") % {
            "missing": ", ".join(map(str, refusal.missing))
        }
    return ngettext(
        "The model is to be split over %(wanted)d GPU, and there are fewer.",
        "The model is to be split over %(wanted)d GPUs, and there are fewer.",
        refusal.wanted,
    ) % {"wanted": refusal.wanted}


def unpredictable(refusal: Unpredictable) -> str:
    return _(
        "What it takes cannot be predicted: its config.json does not tell %(missing)s, and its architecture is not"
        " known here. It starts without a plan and takes what its engine chooses, which may be nearly all of a card."
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


def _would_fit(refusal: NoRoom) -> str:
    if refusal.fits and refusal.sequences:
        return _("A context of %(context)d tokens would fit, or %(sequences)d requests at a time with this one.") % {
            "context": refusal.fits,
            "sequences": refusal.sequences,
        }
    if refusal.fits:
        return _("A context of %(context)d tokens would fit.") % {"context": refusal.fits}
    if refusal.sequences:
        return _("%(sequences)d requests at a time would fit.") % {"sequences": refusal.sequences}
    return _("Stop another model, choose a smaller one, or start it without enough memory.")
