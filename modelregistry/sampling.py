"""How a model samples where its clients do not say, and within which bounds they may say, as operators set it.

Stored by parameter: `{"temperature": {"default": 0.6, "most": 1.0}}`. A client's own value wins over the default and is
brought within `least` and `most`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from django.core.exceptions import ValidationError
from django.utils.translation import gettext_lazy as _

SETTINGS = ("default", "least", "most")
# What engines accept: least, most.
PARAMETERS: dict[str, tuple[float, float]] = {
    "temperature": (0.0, 2.0),
    "top_p": (0.0, 1.0),
    "repetition_penalty": (0.5, 2.0),  # 1: none
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
    "dry_multiplier": (0.0, 5.0),  # 0: off; llama.cpp alone has it
}


class SamplingPreset(NamedTuple):
    """A parameter by its engine's name for it, with what operators set of it; None: nothing."""

    member: str
    default: float | None
    least: float | None
    most: float | None


def read_presets(stored: object, members: Mapping[str, str]) -> tuple[SamplingPreset, ...]:
    """Return what is stored, for an engine with these `members` of requests. Leaves out what that does not know."""
    if not isinstance(stored, dict):  # of another version
        return ()
    return tuple(
        SamplingPreset(members[name], *(number(settings.get(key)) for key in SETTINGS))
        for name, settings in stored.items()
        if name in members and isinstance(settings, dict)
    )


def check_sampling(stored: object, members: Mapping[str, str]) -> None:
    """Raise ValidationError for what cannot be stored, or what an engine with these `members` does not know."""
    if not isinstance(stored, dict):
        raise ValidationError(_("Give a JSON object, by parameter."), code="not-an-object")
    for name, settings in stored.items():
        if name not in members:
            raise ValidationError(
                _("%(parameter)s is no parameter of this engine. It has: %(known)s."),
                code="unknown-parameter",
                params={"parameter": str(name)[:40], "known": ", ".join(members)},
            )
        _check_parameter(name, settings)


def _check_parameter(name: str, settings: Any) -> None:
    least, most = PARAMETERS[name]
    if not isinstance(settings, dict) or not settings or not settings.keys() <= set(SETTINGS):
        raise ValidationError(
            _("%(parameter)s takes default, least and most, at least one of them."),
            code="unknown-setting",
            params={"parameter": name},
        )
    values = [number(settings.get(key)) for key in ("least", "default", "most") if key in settings]
    given = [value for value in values if value is not None and least <= value <= most]
    if len(given) < len(values):
        raise ValidationError(
            _("%(parameter)s must be a number from %(least)s to %(most)s."),
            code="out-of-range",
            params={"parameter": name, "least": f"{least:g}", "most": f"{most:g}"},
        )
    if given != sorted(given):
        raise ValidationError(
            _("%(parameter)s: the default must lie between least and most."),
            code="out-of-order",
            params={"parameter": name},
        )


def number(value: object) -> float | None:
    """Return a JSON number, if it is one."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
