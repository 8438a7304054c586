"""How a model samples where its clients do not say, and within which bounds they may say, as operators set it.

Stored by parameter: `{"temperature": {"default": 0.6, "most": 1.0}}`. A client's own value wins over the default and is
brought within `least` and `most`.
"""

import math
from argparse import ArgumentTypeError
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from django.core.exceptions import ValidationError
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from modelregistry.plain_numbers import read_decimal

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


# Settings against word loops, which come most at low temperatures: SmolLM2 looped in 16 of 26 answers at temperature 0,
# in 3 of 14 at 0.7. At 0 nothing ever leaves a loop; at 0.3 a token that is drawn may, and answers stay sober. A
# repetition penalty punishes each token that was said before, so also particles of Japanese and names in code, which
# repeat by right: 1.05 is mild. DRY punishes only what continues a sequence that was there before; its author advises
# 0.8. Presence and frequency penalties are left alone: they do the former, in long answers ever more.
CALM: dict[str, dict[str, float]] = {
    "temperature": {"least": 0.3, "default": 0.7},
    "repetition_penalty": {"default": 1.05},
    "dry_multiplier": {"default": 0.8},
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
            _("%(parameter)s: the least must not be above the default, nor either of them above the most."),
            code="out-of-order",
            params={"parameter": name},
        )


def number(value: object) -> float | None:
    """Return a JSON number, if it is one."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        return float(value)
    except OverflowError:  # JSON's whole numbers have no bound
        return math.inf


def calm_down(stored: Mapping[str, Mapping[str, float]], members: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """Return what is stored, with CALM where the engine has the parameter and the setting is not set."""
    result = {name: dict(settings) for name, settings in stored.items()}
    for name, calm in CALM.items():
        if name in members:
            result[name] = _complete(result.get(name, {}), calm)
    return result


def _complete(own: dict[str, float], calm: Mapping[str, float]) -> dict[str, float]:
    """Return a parameter's own settings, and those of `calm` that it lacks, moved to where the own ones allow them."""
    settings = dict(own)
    if "least" in calm and "least" not in own:
        settings["least"] = min(calm["least"], *own.values(), calm["default"])
    if "default" not in own:
        least, most = settings.get("least", calm["default"]), settings.get("most", calm["default"])
        settings["default"] = max(least, min(calm["default"], most))
    return settings


def parse_option(text: str) -> tuple[str, dict[str, float] | None]:
    """Return (parameter, settings) of `temperature=0.6:0.3..1`; None for the settings: `temperature=none`.

    The default, the bounds, and each end of these may be left out. Raises ArgumentTypeError.
    """
    name, equals, value = text.partition("=")
    if name not in PARAMETERS or not equals:
        raise ArgumentTypeError(f"{text!r} does not begin with a parameter and =. Parameters: {', '.join(PARAMETERS)}")
    if value == "none":
        return name, None
    default, colon, bounds = value.partition(":")
    if not colon and ".." in default:
        default, bounds = "", default
    least, dots, most = bounds.partition("..")
    if (colon and not dots) or not (default or least or most):
        raise _malformed(name, value)
    given = {"default": default, "least": least, "most": most}
    try:
        return name, {key: read_decimal(number) for key, number in given.items() if number}
    except ValueError:
        raise _malformed(name, value) from None


def _malformed(name: str, value: str) -> ArgumentTypeError:
    return ArgumentTypeError(
        f"{name}: {value!r} is not like 0.6 (a default), 0.3..1 (bounds), 0.6:0.3..1 (both), ..1 (one bound) or none"
    )


def describe_sampling(presets: Iterable[SamplingPreset]) -> list[tuple[str, str]]:
    """Return (parameter as its engine calls it, what becomes of it in the reader's language)."""
    return [(preset.member, " · ".join(_describe(preset))) for preset in presets]


def _describe(preset: SamplingPreset) -> Iterator[str]:
    if preset.default is not None:
        yield gettext("%(value)s unless the request sets it") % {"value": f"{preset.default:g}"}
    if preset.least is not None:
        yield gettext("at least %(value)s") % {"value": f"{preset.least:g}"}
    if preset.most is not None:
        yield gettext("at most %(value)s") % {"value": f"{preset.most:g}"}
