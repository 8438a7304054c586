"""What an engine's options may be given: numbers within which it works, what must be allowed first, and files. Pure.

Each engine has a table of it, `ArgumentRules`, beside its reader. They are bounds that no version widens by much, so
they hold for those of other versions as well.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any

# The risks that an operator has to allow by name before an argument may bring them.
CODE = "remote-code"
OUTSIDE = "outside-access"


@dataclass(frozen=True, slots=True)
class Range:
    """The numbers from `least` to `most`, both included except where `above` or `below` say otherwise.

    `also`: one more number, by which the engine chooses itself; `step`: only its multiples.
    """

    least: float = -inf
    most: float = inf
    above: float = -inf
    below: float = inf
    also: int | None = None
    step: int = 0

    def allows(self, value: float) -> bool:
        """Return whether it is one of them; what is no number (NaN) never is."""
        if value == self.also:
            return True
        within = self.least <= value <= self.most and self.above < value < self.below
        return within and (not self.step or value % self.step == 0)

    @property
    def limits(self) -> tuple[str, ...]:
        """As a reader of any language understands them."""
        found = [
            f"≥ {self.least:g}" if self.least > -inf else "",
            f"> {self.above:g}" if self.above > -inf else "",
            f"≤ {self.most:g}" if self.most < inf else "",
            f"< {self.below:g}" if self.below < inf else "",
            f"= {self.also}" if self.also is not None else "",
            f"n × {self.step}" if self.step else "",
        ]
        return tuple(filter(None, found))


NATURAL = Range(least=1)
FROM_0 = Range(least=0)
FROM_MINUS_1 = Range(least=-1)
SHARE = Range(above=0, most=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedFile:
    """A file that an argument names. `kind`: "file", "template" (a file in Jinja), "folder", or "path" (either)."""

    path: str
    kind: str


def no_risk(names: tuple[str, ...], value: str) -> str | None:
    """Leave the answer to the table of risks."""
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class ArgumentRules:
    """What is known of one engine's options, each by one of its names; of an option without a row nothing is known.

    `risks`: CODE or OUTSIDE. `risk_of_value`: the same where the value decides; None: the table does. `files`: how the
    value names files, a key of `_READERS` or a kind of `NamedFile`. `unplanned`: options that take (or give back)
    memory which no plan counts.
    """

    ranges: Mapping[str, Range] = field(default_factory=dict)
    risks: Mapping[str, str] = field(default_factory=dict)
    risk_of_value: Callable[[tuple[str, ...], str], str | None] = no_risk
    files: Mapping[str, str] = field(default_factory=dict)
    unplanned: frozenset[str] = frozenset()

    def range_of(self, names: tuple[str, ...]) -> Range | None:
        """Return the numbers that an option by any of these names may be given; None: nothing is known of it."""
        return next((self.ranges[name] for name in names if name in self.ranges), None)

    def risk_of(self, names: tuple[str, ...], values: tuple[str, ...]) -> str:
        """Return the risk that an option brings with these values; empty: none that is known."""
        decided = self.risk_of_value(names, values[-1] if values else "")
        if decided is not None:
            return decided
        return next((self.risks[name] for name in names if name in self.risks), "")

    def files_named(self, names: tuple[str, ...], values: tuple[str, ...]) -> Iterator[NamedFile]:
        """Yield the files that an option with these values makes its engine read, not what may be a name on a hub."""
        kind = next((self.files[name] for name in names if name in self.files), "")
        for value in values if kind else ():
            yield from _READERS.get(kind, lambda text, kind=kind: _read_file(text, kind))(value)


def json_object(text: str) -> dict[str, Any]:
    """Return the object that a value holds in JSON; {}: it holds none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _read_file(value: str, kind: str) -> Iterator[NamedFile]:
    yield NamedFile(path=value, kind=kind)


def _read_template(value: str) -> Iterator[NamedFile]:
    if not set("{}\n") & set(value):  # else vLLM takes it for the template itself
        yield NamedFile(path=value, kind="template")


def _read_path(value: str) -> Iterator[NamedFile]:
    if value.startswith(("/", ".")):
        yield NamedFile(path=value, kind="path")


def _read_model(value: str) -> Iterator[NamedFile]:
    yield from _read_path(str(json_object(value).get("model", "")))


def _read_named(value: str) -> Iterator[NamedFile]:
    """Yield the path in `name=path`, or in an object with both."""
    yield from _read_path(str(json_object(value).get("path", "")) if value.startswith("{") else value.partition("=")[2])


def _read_files(value: str) -> Iterator[NamedFile]:
    for path in value.split(","):
        yield NamedFile(path=path, kind="file")


def _read_scaled(value: str) -> Iterator[NamedFile]:
    for part in value.split(","):
        yield NamedFile(path=part.rpartition(":")[0] or part, kind="file")


_READERS = {
    "template": _read_template,
    "path": _read_path,
    "model": _read_model,
    "named": _read_named,
    "files": _read_files,
    "scaled": _read_scaled,
}
