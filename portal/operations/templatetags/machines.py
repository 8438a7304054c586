"""Bytes, seconds and rates as operators read them."""

from collections import defaultdict

from django import template
from django.utils.formats import number_format
from django.utils.safestring import SafeString, mark_safe
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from modelregistry.engines.base import LEVEL_1, LEVEL_2
from modelregistry.failure_advice import ADVICE, advise
from modelregistry.overview import ReplicaNow
from portal.web.templatetags.formatting import round_share

register = template.Library()

SLEPT = {LEVEL_1: gettext_lazy("level 1 (weights in RAM)"), LEVEL_2: gettext_lazy("level 2 (weights discarded)")}
GB = 10**9  # as everywhere in the registry, and as sizes of models are given
PROBLEMS = {
    "address-unknown": gettext_lazy(
        "The host’s address %(address)s cannot be looked up. No engine can be started until that is corrected."
    ),
    "address-missing": gettext_lazy(
        "This machine does not have the host’s address %(address)s (%(reason)s). No engine can be started until that is"
        " corrected."
    ),
    "address-slow": gettext_lazy(
        "The host’s address %(address)s could not be looked up within %(reason)s s. No engine can be started until that"
        " is corrected."
    ),
    "disk-full": gettext_lazy("Little disk space is left: %(detail)s."),
    "more-strangers": gettext_lazy(
        "More processes that are not ours hold memory of its devices than are listed: %(detail)s."
    ),
    "unreadable-answer": gettext_lazy(
        "Its agent answers what cannot be read (%(detail)s), and what is shown of it may be old. Install the same"
        " version there as here; if it has that, something else may answer in its name."
    ),
    "remains": gettext_lazy("Processes of stopped engines are still running and may hold memory: %(detail)s."),
    "memory-not-back": gettext_lazy("The driver has not released the memory of a stopped engine: %(detail)s."),
    "booking-held": gettext_lazy(
        "Ray cannot book what a replica takes (%(detail)s), because other work on the cluster has booked it. The engine"
        " runs all the same; either may run out of memory."
    ),
    "booking-not-offered": gettext_lazy(
        "Ray cannot book what a replica takes (%(detail)s): on this host it was started without offering that memory."
        " Restart the host’s service; engines go on."
    ),
    "booking-late": gettext_lazy(
        "Ray has not booked what a replica takes (%(detail)s), although there is room. The engine runs all the same."
    ),
    "clock-jumped": gettext_lazy("The clock was changed by %(detail)s: earlier times are off by that much."),
}


@register.filter
def gigabytes(value: int | None) -> str:
    """Return 12.3 GB, or MB below a tenth of one, so that it is not shown as zero; "" if not known."""
    if value is None:
        return ""
    if 0 < value < GB / 10:
        return number_format(round(value / 10**6), force_grouping=True) + " MB"
    return number_format(round(value / GB, 1), decimal_pos=1, force_grouping=True) + " GB"


@register.filter
def rate(value: float | None) -> str:
    """Return tokens per second, with one decimal below ten."""
    if value is None:
        return ""
    digits = 1 if 0 < value < 10 else 0
    return number_format(round(value, digits), decimal_pos=digits, force_grouping=True)


@register.filter
def per_cent(value: float | None, digits: int = 0) -> str:
    """Return a share from 0 to 1 in per cent, with so many decimals."""
    return "" if value is None else f"{number_format(round_share(value, digits), decimal_pos=digits)}%"


@register.filter
def sleep(replica: ReplicaNow) -> str:
    """Return at which level it sleeps and what it holds meanwhile; "" if it is awake, or nothing is left of it."""
    if not replica.slept:
        return ""
    level = str(SLEPT.get(replica.slept, replica.slept))
    held = [gigabytes(replica.memory)] if replica.memory else []
    if replica.ram:
        held.append(_("%(bytes)s of RAM") % {"bytes": gigabytes(replica.ram)})
    return _("%(level)s, holds %(memory)s") % {"level": level, "memory": " + ".join(held)} if held else level


@register.filter
def percentage(value: float) -> float:
    """Return a share from 0 to 1 as a number of per cent, for widths."""
    return round(100 * min(1.0, value), 2)


@register.filter
def first_line(text: str) -> str:
    return text.strip().partition("\n")[0]


@register.filter
def advice(cause: str) -> str:
    """Return what to do about a failure of a known cause; "" for other causes."""
    return str(ADVICE.get(cause, ""))


@register.filter
def replica_advice(replica: ReplicaNow) -> str:
    """Return what to do about a replica's failure; "" for a cause that is not known."""
    return advise(replica.cause, replica.booked_by_others)


@register.filter
def problem(found: dict[str, str]) -> str:
    """Return a host's problem as a sentence; its own detail if the code is not known here."""
    sentence = PROBLEMS.get(found["code"])
    return str(sentence) % defaultdict(str, found) if sentence else found["detail"]


@register.simple_tag
def no_figure() -> SafeString:
    """Return a dash in place of a figure that is not known."""
    return mark_safe('<span class="nothing">–</span>')
