"""Reads the arguments that an operator gives an engine, in every spelling that the engine's own parser takes. Pure.

The one place that looks into argument strings: planner, launcher and validation ask `Arguments`. What an engine takes
is a table of `Option`s, read off its own parser (`options/`): one of each launcher comes with the product, and one of
the very version of a host may be given in its place. Each engine has a `ArgumentReader` of its own:

- vLLM (FlexibleArgumentParser over Python's argparse): `--a b`, `--a=b`, `_` for `-`, unique beginnings of names,
  `-tp 2`, `-qawq`, `-O2`, `8k` and `8K`, keys of JSON one by one (`--a.b=c`, `--a.b+ c`), `--no-a`.
- llama.cpp (common/arg.cpp): `--a b`, `_` for `-`, aliases, `--no-a`. `--a=b` is no form of its own, but operators
  write it, so `render` takes it apart. Values are read by C++'s stoi, to which `8k` is 8.
- llama-cpp-python: Python's argparse, values for everything (`--embedding true`), `_` in every name.

Of an option that is given twice the last one counts, as in all of them.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelregistry.engines.argument_rules import Range
from modelregistry.engines.registry import launched_by
from modelregistry.wire_bounds import Line, Lines, Name

if TYPE_CHECKING:
    from modelregistry.engines.base import Engine

TABLES = Path(__file__).with_name("options")
_DECIMAL = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_HUMAN = re.compile(r"(\d+(?:\.\d+)?)([kKmMgGtT])")
_NEGATIVE = re.compile(r"-\d+|-\d*\.\d+")  # argparse's own: a value, not an option
LONGEST = 1 << 62  # a number that an operator writes; larger ones are faults, not memory errors


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """What an engine takes. `names` with dashes, `off`: the names that say no.

    `values`: how many follow: "0", "1", "2", "?" (none or one), "+" (all that follow). `kind`: how each is read: int,
    size (8k, 2G), size-or-auto, float, json, bool (true or false), text.
    """

    names: tuple[str, ...]
    off: tuple[str, ...] = ()
    values: str = "1"
    kind: str = "text"
    choices: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The one to show."""
        return next((name for name in self.names if name.startswith("--")), self.names[0])


@dataclass(frozen=True, slots=True, eq=False)
class Options:
    """All that an engine takes. `exact`: of the very version that will be started, so what is not here is an error."""

    all: tuple[Option, ...]
    exact: bool = False
    by_name: Mapping[str, Option] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, stored: Iterable[Mapping[str, Any]], *, exact: bool) -> "Options":
        """Make the table from JSON. Raises TypeError, LookupError for what is no such table."""
        found = tuple(
            Option(
                names=tuple(each["names"]),
                off=tuple(each.get("off", ())),
                values=each.get("values", "1"),
                kind=each.get("kind", "text"),
                choices=tuple(each.get("choices", ())),
            )
            for each in stored
        )
        return cls(found, exact, {name: option for option in found for name in (*option.names, *option.off)})

    def names_beginning(self, start: str) -> list[str]:
        return [name for name in self.by_name if name.startswith(start)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArgumentFault:
    """What the engine would refuse. `arg` as written; `more`: the names or values that were possible.

    `code`: unknown, elsewhere (unknown here, but llama-server has it), ambiguous, joined (an option and its value in
    one argument), no-value, needless-value, stray, not-a-number, not-json, not-one-of, out-of-range (`more`: within
    which numbers the engine works), or half-read: a number with more behind it, of which llama.cpp reads the beginning
    (`more`).
    """

    code: Name
    arg: Line
    more: Lines = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """An option that was given. `option` None: not in the table. `on`: False for a name that says no."""

    name: str  # as the table has it; of an unknown one as written, with dashes
    written: str
    option: Option | None
    values: tuple[str, ...] = ()
    on: bool = True

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.option.names, *self.option.off) if self.option else (self.name,)

    @property
    def shown(self) -> str:
        """Its full name, whatever beginning or alias was written."""
        return self.option.name if self.option and self.on else self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Arguments:
    """What was given, in its order.

    Each method takes the names of one option, of any launcher: those that the engine does not know match nothing.
    """

    launcher: str
    given: tuple[Given, ...] = ()
    faults: tuple[ArgumentFault, ...] = ()

    def last(self, *names: str) -> Given | None:
        """Return the one that counts."""
        asked = {replace_underscores(name) for name in names}
        return next((one for one in reversed(self.given) if not asked.isdisjoint(one.names)), None)

    def all(self, *names: str) -> list[Given]:
        """Return each time that it was given, as llama.cpp adds up adapters."""
        return [one for one in self.given if not set(names).isdisjoint(one.names)]

    def has(self, *names: str) -> bool:
        return self.last(*names) is not None

    def text(self, *names: str) -> str | None:
        found = self.last(*names)
        return found.values[-1] if found and found.values else None

    def flag(self, *names: str) -> bool | None:
        """Return True if it was turned on, False if off (`--no-…`, or a value of false), None if it was not given."""
        found = self.last(*names)
        if found is None:
            return None
        value = found.values[0].lower() if found.values else ""
        return found.on and value not in ("0", "off", "f", "false", "n", "no", "disabled")

    def number(self, *names: str) -> int | None:
        """Return its number; None also for what is no whole number, and for a length that the engine finds itself."""
        found = self.last(*names)
        if found is None or not found.values:
            return None
        kind = found.option.kind if found.option else "size"
        stoi = launched_by(self.launcher).reader.reads_by_stoi
        value = _read_whole_number(found.values[-1], "size" if kind in ("text", "float", "json") else kind, stoi=stoi)
        return value if isinstance(value, int) and not (kind == "size-or-auto" and value == -1) else None

    def decimal(self, *names: str) -> float | None:
        text = self.text(*names)
        try:
            value = float(text) if text is not None else None
        except ValueError:
            return None
        return value if value is not None and abs(value) < LONGEST else None

    def data(self, *names: str) -> Any:
        """Return its value as JSON; None: it is no JSON, or was not given."""
        text = self.text(*names)
        try:
            return json.loads(text) if text is not None else None
        except (ValueError, RecursionError):
            return None


def load_table(name: str) -> Options:
    """Return a table of `options/`; an empty one where there is none, so that every argument is taken as it is."""
    path = TABLES / f"{name}.json"
    return Options.of(json.loads(path.read_text()) if path.exists() else (), exact=False)


@cache
def shipped_options(launcher: str) -> Options:
    """Return the table that comes with the product.

    Its versions: vLLM 0.32.0, llama.cpp b11434 (with names of older builds), llama-cpp-python 0.3; that of xllamacpp is
    what the product's own launcher takes.
    """
    return launched_by(launcher).shipped_options()


def read_arguments(launcher: str, args: Iterable[str], options: Options | None = None) -> Arguments:
    """Read arguments as the engine would that this launcher starts. Never raises: what is wrong is among the faults."""
    return _read(launcher, tuple(arg for arg in args if isinstance(arg, str)), options or shipped_options(launcher))


@lru_cache(maxsize=256)
def _read(launcher: str, args: tuple[str, ...], options: Options) -> Arguments:
    engine = launched_by(launcher)
    found = engine.reader(options)
    found.read(args)
    for one in found.given:
        found.faults += _value_faults(one, engine, exact=options.exact)
    return Arguments(launcher=launcher, given=tuple(found.given), faults=tuple(found.faults))


def render(launcher: str, arguments: Arguments, args: Sequence[str]) -> tuple[str, ...]:
    """Return the same for the engine, in a form that it takes."""
    return launched_by(launcher).reader.render(arguments, args)


def drop_overridden(launcher: str, ours: Sequence[str], operators: Arguments) -> list[str]:
    """Return our own arguments but for the options that the operator gave, too: an engine should hear of each once."""
    kept: list[str] = []
    for one in _split_options(launcher, ours):
        if not operators.has(*one.given.names):
            kept += ours[one.start : one.end]
    return kept


@dataclass(frozen=True, slots=True)
class _Span:
    given: Given
    start: int
    end: int


def _split_options(launcher: str, args: Sequence[str]) -> Iterator[_Span]:
    """Yield each option of a list that we wrote ourselves: every option's name is a word of its own, and is known."""
    starts = [at for at, arg in enumerate(args) if arg.startswith("-") and not _NEGATIVE.fullmatch(arg)]
    options = shipped_options(launcher)
    for at, end in zip(starts, [*starts[1:], len(args)], strict=True):
        name = replace_underscores(args[at])
        yield _Span(Given(name=name, written=args[at], option=options.by_name.get(name)), at, end)


# --- What the planner cannot account for


def unplanned_options(arguments: Arguments) -> tuple[str, ...]:
    """Return the options given that take (or give back) memory which no plan counts, by their full names, in order."""
    uncounted = launched_by(arguments.launcher).rules.unplanned
    found = [one.shown for one in arguments.given if not uncounted.isdisjoint(one.names) and _takes_effect(one)]
    return tuple(dict.fromkeys(found))


def _takes_effect(one: Given) -> bool:
    """Return False for a number that changes nothing ("--data-parallel-size 1"), and a feature that is turned off."""
    if one.names[0] == "--op-offload":
        return not one.on  # the engine's own is to use the card
    if one.name == "--offload-kqv":
        return one.values[-1:] == ("false",)
    idle = ("0", "1") if one.shown.endswith(("-size", "-count")) else ("0", "false")
    return one.on and one.values[-1:] not in [(value,) for value in idle]


# --- Readers


def replace_underscores(arg: str) -> str:
    """Write `-` for `_`, as all of them take it, in the name only: before the first dot, where keys of JSON begin."""
    if not arg.startswith("--"):
        return arg
    name, dot, keys = arg.partition(".")
    return name.replace("_", "-") + dot + keys


class ArgumentReader:
    """Takes a list of arguments apart as one engine's own parser does. `given` and `faults`: what it found so far."""

    reads_by_stoi = False  # numbers, as C++ does: the digits that a text begins with
    words_for_nothing: tuple[str, ...] = ()  # taken as a value where none is allowed

    def __init__(self, options: Options) -> None:
        self.options = options
        self.given: list[Given] = []
        self.faults: list[ArgumentFault] = []

    def read(self, args: Sequence[str]) -> None:
        """Read all of them. Called once."""
        raise NotImplementedError

    @classmethod
    def render(cls, arguments: Arguments, args: Sequence[str]) -> tuple[str, ...]:
        """Return what was read in a form that the engine takes. `args`: the same as the operator wrote it."""
        found: list[str] = []
        for one in arguments.given:
            found += [one.name if one.option or one.values else one.written, *one.values]
        return tuple(found)


class ArgparseReader(ArgumentReader):
    """Reads as Python's argparse does."""

    def read(self, args: Sequence[str]) -> None:
        self.read_words([dashed_name(arg) for arg in args], args)

    def read_words(self, words: Sequence[str], written: Sequence[str]) -> None:
        """Read `words`, which were `written` so."""
        at = 0
        while at < len(words):
            at += self._read_option(words, written, at)

    def _read_option(self, words: Sequence[str], written: Sequence[str], at: int) -> int:
        word = words[at]
        if not self._is_option(word):
            self.faults.append(stray_fault(written[at], self.options))
            self.given.append(Given(name=word, written=written[at], option=None))
            return 1
        name, equals, value = word.partition("=")
        inline: str | None = value if equals else None
        found = self._find(name)
        if found is None and not equals:
            found, inline = self._split_attached(word)
        if found is None:
            return self._read_unknown(words, written, at, name, inline)
        option = self.options.by_name[found]
        values, took = self._take_values(option, inline, words, at)
        if inline is not None and option.values == "0":
            self.faults.append(ArgumentFault(code="needless-value", arg=written[at]))
        if not values and option.values in ("1", "2", "+"):
            self.faults.append(ArgumentFault(code="no-value", arg=written[at]))
        on = found not in option.off
        self.given.append(Given(name=found, written=written[at], option=option, values=values, on=on))
        return 1 + took

    def _take_values(
        self, option: Option, inline: str | None, words: Sequence[str], at: int
    ) -> tuple[tuple[str, ...], int]:
        """Return its values, and how many words they are."""
        if option.values == "0":
            return (), 0
        if inline is not None:
            return (inline,), 0
        most = {"1": 1, "?": 1, "2": 2}.get(option.values, len(words))
        values = []
        for word in words[at + 1 : at + 1 + most]:
            if self._is_option(word):
                break
            values.append(word)
        return tuple(values), len(values)

    def _is_option(self, word: str) -> bool:
        if not word.startswith("-") or word == "-" or is_negative(word):
            return False
        return " " not in word or word.partition("=")[0] in self.options.by_name

    def _find(self, name: str) -> str | None:
        """Return the name in the table: as it is, or the only one that begins so."""
        if name in self.options.by_name:
            return name
        if len(name) < 2 or name == "--":
            return None
        candidates = self.options.names_beginning(name)
        meant = {
            self.options.by_name[each].name + "!" * (each in self.options.by_name[each].off) for each in candidates
        }
        if len(meant) == 1:
            return candidates[0]
        if meant:
            self.faults.append(ArgumentFault(code="ambiguous", arg=name, more=tuple(candidates[:8])))
        return None

    def _split_attached(self, word: str) -> tuple[str | None, str | None]:
        """Split `-qawq` into the option of one letter and the value right behind it."""
        option = self.options.by_name.get(word[:2]) if not word.startswith("--") and len(word) > 2 else None
        return (word[:2], word[2:]) if option and option.values != "0" else (None, None)

    def _read_unknown(
        self, words: Sequence[str], written: Sequence[str], at: int, name: str, inline: str | None
    ) -> int:
        ambiguous = any(fault.code == "ambiguous" and fault.arg == name for fault in self.faults)
        if self.options.exact and not ambiguous:
            self.faults.append(ArgumentFault(code="unknown", arg=written[at]))
        following = words[at + 1 : at + 2]
        takes = inline is None and bool(following) and not self._is_option(following[0])
        values = (inline,) if inline is not None else tuple(following) if takes else ()
        self.given.append(Given(name=name, written=written[at], option=None, values=values))
        return 1 + takes


def joined_option(arg: str, options: Options) -> str:
    """Return the option of `--dtype half` in one argument, which no engine takes apart; empty: it is no such thing."""
    name, space, _ = arg.partition(" ")
    return name if space and replace_underscores(name) in options.by_name else ""


def stray_fault(arg: str, options: Options) -> ArgumentFault:
    """Return what is wrong with a word that belongs to no option."""
    name = joined_option(arg, options)
    return ArgumentFault(code="joined", arg=arg, more=(name,)) if name else ArgumentFault(code="stray", arg=arg)


def dashed_name(arg: str) -> str:
    """Write `-` for `_` in the name of `--name=value`."""
    name, equals, value = arg.partition("=")
    return replace_underscores(name) + equals + value


def is_negative(word: str) -> bool:
    """Return whether it is a negative number: a value, not an option."""
    return bool(_NEGATIVE.fullmatch(word))


# --- Values


def parse_human_number(text: str) -> int | None:
    """Read a number as vLLM does: `25.6k` is 25,600, `1K` 1,024, no decimals before a capital. None: it is none."""
    text = text.strip()
    matched = _HUMAN.fullmatch(text)
    try:
        if not matched:
            value = int(text)
        elif matched[2] in _DECIMAL:
            value = int(float(matched[1]) * _DECIMAL[matched[2]])
        else:
            value = int(matched[1]) * _BINARY[matched[2]]
    except (ValueError, OverflowError):
        return None
    return value if abs(value) < LONGEST else None


def _read_leading_number(text: str) -> tuple[int, str] | None:
    """Read a number as C++'s stoi does; return it and the text that is left over."""
    matched = re.match(r"\s*([+-]?\d{1,10})(.*)", text, re.DOTALL)
    return (int(matched[1]), matched[2]) if matched else None


def _read_whole_number(text: str, kind: str, *, stoi: bool) -> int | ArgumentFault | None:
    """Return a number; None: it need not be one; an ArgumentFault without its argument."""
    if stoi and kind == "int":
        found = _read_leading_number(text)
        return found[0] if found else ArgumentFault(code="not-a-number", arg="")
    if kind == "size-or-auto" and text.strip().lower() in ("-1", "auto"):
        return -1
    if kind in ("size", "size-or-auto"):
        value = parse_human_number(text)
    else:
        value = int(text) if re.fullmatch(r"\s*[+-]?\d{1,18}\s*", text) else None
    return ArgumentFault(code="not-a-number", arg="") if value is None else value


def _value_faults(one: Given, engine: "Engine", *, exact: bool) -> list[ArgumentFault]:
    if one.option is None or one.option.values == "0":
        return []
    check: Callable[[str], ArgumentFault | None] = _CHECKS.get(one.option.kind, lambda text: None)
    found = []
    for value in one.values:
        if value in engine.reader.words_for_nothing:
            continue
        stoi = engine.reader.reads_by_stoi
        allowed = engine.rules.range_of(one.names)
        fault = _of_integer(value, one.option.kind, stoi=stoi) or check(value)
        fault = fault or (_of_range(value, one.option.kind, allowed, stoi=stoi) if allowed else None)
        if fault is None and exact and one.option.choices and value not in one.option.choices:
            fault = ArgumentFault(code="not-one-of", arg="", more=one.option.choices)
        if fault:
            found.append(replace(fault, arg=f"{one.name} {value}"))
    return found


def _of_integer(text: str, kind: str, *, stoi: bool) -> ArgumentFault | None:
    if kind not in ("int", "size", "size-or-auto"):
        return None
    value = _read_whole_number(text, kind, stoi=stoi)
    if isinstance(value, ArgumentFault):
        return value
    left = _read_leading_number(text) if stoi else None
    return ArgumentFault(code="half-read", arg="", more=(str(left[0]),)) if left and left[1].strip() else None


def _of_float(text: str) -> ArgumentFault | None:
    try:
        finite = math.isfinite(float(text))  # "nan" passes every comparison that an engine makes
    except ValueError:
        finite = False
    return None if finite else ArgumentFault(code="not-a-number", arg="")


def _of_range(text: str, kind: str, allowed: Range, *, stoi: bool) -> ArgumentFault | None:
    value = float(text) if kind == "float" else _read_whole_number(text, kind, stoi=stoi)
    if isinstance(value, int | float) and not allowed.allows(value):
        return ArgumentFault(code="out-of-range", arg="", more=allowed.limits)
    return None


def _of_json(text: str) -> ArgumentFault | None:
    try:
        # vLLM reads 80m in JSON as a number as well.
        json.loads(re.sub(r'("(?:[^"\\]|\\.)*")|\b\d+(?:\.\d+)?[kKmMgGtT]\b', lambda found: found[1] or "0", text))
    except (ValueError, RecursionError):
        return ArgumentFault(code="not-json", arg="")
    return None


def _of_bool(text: str) -> ArgumentFault | None:
    words = ("1", "on", "t", "true", "y", "yes", "0", "off", "f", "false", "n", "no")
    return None if text.lower().strip() in words else ArgumentFault(code="not-one-of", arg="", more=("true", "false"))


_CHECKS: Mapping[str, Callable[[str], ArgumentFault | None]] = {"float": _of_float, "json": _of_json, "bool": _of_bool}
