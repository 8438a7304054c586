"""How a model samples where the client does not say, and within which bounds it may say. No I/O."""

from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from typing import Any, NamedTuple

Values = Callable[[str], Any]  # of a call's members, None for those that it lacks

# Of the APIs of Responses and Messages, engines take these alone.
EVERYWHERE = frozenset({"temperature", "top_p"})
MAX_TEMPERATURE = 10.0  # beyond what any engine takes


class ParameterPreset(NamedTuple):
    """One parameter of sampling, by the name that the model's engine has for it. None: not set."""

    name: str
    default: float | None = None  # where the client says nothing
    least: float | None = None
    most: float | None = None

    def value_for(self, wanted: Any) -> float | None:
        """Return what the engine gets in place of what the client wants; None: nothing else."""
        if wanted is None:
            return self.default
        number = read_number(wanted)
        if number is None:
            return None  # nonsense, which the engine refuses by name
        if self.most is not None and not number <= self.most:  # also what compares with nothing, a NaN
            return self.most
        if self.least is not None and not number >= self.least:
            return self.least
        return number if number is not wanted and isfinite(number) else None


def preset_members(wanted: Values, presets: Sequence[ParameterPreset], *, every: bool) -> dict[str, float]:
    """Return the members of a request that the model's presets change. `every`: its API takes all parameters."""
    changed = {
        preset.name: preset.value_for(wanted(preset.name)) for preset in presets if every or preset.name in EVERYWHERE
    }
    return {name: value for name, value in changed.items() if value is not None}


def describe(members: Mapping[str, float]) -> bytes:
    """Return them as a header's value."""
    return ", ".join(f"{name}={value:g}" for name, value in members.items()).encode()


def read_number(value: Any) -> float | None:
    """Return the number that a value means to an engine; None if it means none.

    vLLM reads "2" as 2.0 and true as 1.0.
    """
    if isinstance(value, bool | str):
        try:
            return float(value)
        except ValueError:
            return None
    return value if isinstance(value, int | float) else None


def read_temperature(value: Any) -> int | None:
    """Return a temperature in hundredths; None if it is none."""
    number = read_number(value)
    return round(number * 100) if number is not None and 0 <= number <= MAX_TEMPERATURE else None
