"""Reads the arguments that an operator gives an engine, in every spelling that the engine's own parser takes. Pure.

The one place that looks into argument strings: planner, launcher and validation ask `Arguments`. What an engine takes
is a table of `Option`s, read off its own parser (`options/`): one of each launcher comes with us, and one of the
very version of a host may be given in its place.

- vLLM (FlexibleArgumentParser over Python's argparse): `--a b`, `--a=b`, `_` for `-`, unique beginnings of names,
  `-tp 2`, `-qawq`, `-O2`, `8k` and `8K`, keys of JSON one by one (`--a.b=c`, `--a.b+ c`), `--no-a`.
- llama.cpp (common/arg.cpp): `--a b`, `_` for `-`, aliases, `--no-a`. `--a=b` is no form of its own, but operators
  write it, so `rendered` takes it apart. Values are read by C++'s stoi, to which `8k` is 8.
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
from typing import Any

from modelregistry.engines import argument_rules, xllamacpp_launcher

TABLES = Path(__file__).with_name("options")
_TABLE_OF: Mapping[str, str] = {"": "llama-server"}
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
        """Back from JSON. Raises TypeError, LookupError for what is no such table."""
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
class Fault:
    """What the engine would refuse. `arg` as written; `more`: the names or values that were possible.

    `code`: unknown, elsewhere (unknown here, but llama-server has it), ambiguous, joined (an option and its value in
    one argument), no-value, needless-value, stray, not-a-number, not-json, not-one-of, out-of-range (`more`: within
    which numbers the engine works), or half-read: a number with more behind it, of which llama.cpp reads the beginning
    (`more`).
    """

    code: str
    arg: str
    more: tuple[str, ...] = ()


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
    """What was given, in its order. Each question takes the names of one option, of any launcher: those that the
    engine does not know match nothing.
    """

    launcher: str
    given: tuple[Given, ...] = ()
    faults: tuple[Fault, ...] = ()

    def last(self, *names: str) -> Given | None:
        """Return the one that counts."""
        asked = {_dashed(name) for name in names}
        return next((one for one in reversed(self.given) if not asked.isdisjoint(one.names)), None)

    def all(self, *names: str) -> list[Given]:
        """Also those that count for nothing, as llama.cpp adds up adapters."""
        return [one for one in self.given if not set(names).isdisjoint(one.names)]

    def says(self, *names: str) -> bool:
        return self.last(*names) is not None

    def text(self, *names: str) -> str | None:
        found = self.last(*names)
        return found.values[-1] if found and found.values else None

    def flag(self, *names: str) -> bool | None:
        """True: turned on; False: turned off (`--no-…`, or a value of false); None: nothing was said."""
        found = self.last(*names)
        if found is None:
            return None
        value = found.values[0].lower() if found.values else ""
        return found.on and value not in ("0", "off", "f", "false", "n", "no", "disabled")

    def number(self, *names: str) -> int | None:
        """None also for what is no whole number, and for a length that the engine is to find itself ("auto")."""
        found = self.last(*names)
        if found is None or not found.values:
            return None
        kind = found.option.kind if found.option else "size"
        value = _whole(found.values[-1], "size" if kind in ("text", "float", "json") else kind, self.launcher)
        return value if isinstance(value, int) and not (kind == "size-or-auto" and value == -1) else None

    def decimal(self, *names: str) -> float | None:
        text = self.text(*names)
        try:
            value = float(text) if text is not None else None
        except ValueError:
            return None
        return value if value is not None and abs(value) < LONGEST else None

    def data(self, *names: str) -> Any:
        """What JSON says; None: no JSON, or nothing."""
        text = self.text(*names)
        try:
            return json.loads(text) if text is not None else None
        except (ValueError, RecursionError):
            return None


@cache
def shipped_options(launcher: str) -> Options:
    """Return the table that comes with us. Its versions: vLLM 0.32.0, llama.cpp b11434 (with names of older builds),
    llama-cpp-python 0.3; that of xllamacpp is what our own launcher takes.
    """
    if launcher == "xllamacpp":
        return Options.of(xllamacpp_launcher.described(), exact=True)
    path = TABLES / f"{_TABLE_OF.get(launcher, launcher)}.json"
    return Options.of(json.loads(path.read_text()) if path.exists() else (), exact=False)


def read_arguments(launcher: str, args: Iterable[str], options: Options | None = None) -> Arguments:
    """`launcher` as in engines.LAUNCHERS; "" is llama.cpp by whichever. Never raises: faults are told."""
    return _read(launcher, tuple(arg for arg in args if isinstance(arg, str)), options or shipped_options(launcher))


@lru_cache(maxsize=256)
def _read(launcher: str, args: tuple[str, ...], options: Options) -> Arguments:
    reader = _Argparse if launcher in ("vllm", "llama-cpp-python") else _LlamaCpp
    found = reader(launcher, options)
    found.read(args)
    for one in found.given:
        found.faults += _value_faults(one, launcher, exact=options.exact)
    return Arguments(launcher=launcher, given=tuple(found.given), faults=tuple(found.faults))


def render(launcher: str, arguments: Arguments, args: Sequence[str]) -> tuple[str, ...]:
    """Return the same for the engine, in a form that it takes."""
    if launcher == "vllm":
        return tuple(args)
    found: list[str] = []
    for one in arguments.given:
        name = one.name.replace("-", "_").replace("__", "--", 1) if launcher == "llama-cpp-python" else one.name
        found += [name if one.option or one.values else one.written, *one.values]
    return tuple(found)


def without(launcher: str, ours: Sequence[str], operators: Arguments) -> list[str]:
    """Return our own arguments but for the options that the operator gave, too: an engine should hear of each once."""
    kept: list[str] = []
    for one in _spans(launcher, ours):
        if not operators.says(*one.given.names):
            kept += ours[one.start : one.end]
    return kept


@dataclass(frozen=True, slots=True)
class _Span:
    given: Given
    start: int
    end: int


def _spans(launcher: str, args: Sequence[str]) -> Iterator[_Span]:
    """Yield each option of a list that we wrote ourselves: every option's name is a word of its own, and is known."""
    starts = [at for at, arg in enumerate(args) if arg.startswith("-") and not _NEGATIVE.fullmatch(arg)]
    options = shipped_options(launcher)
    for at, end in zip(starts, [*starts[1:], len(args)], strict=True):
        name = _dashed(args[at])
        yield _Span(Given(name=name, written=args[at], option=options.by_name.get(name)), at, end)


# --- What the planner cannot account for

_UNPLANNED: Mapping[str, tuple[str, ...]] = {
    "vllm": (
        *("--enable-lora", "--lora-modules", "--default-mm-loras", "--speculative-config", "--spec-model"),
        *("--spec-method", "--kv-transfer-config", "--ec-transfer-config", "--hf-overrides"),
        *("--data-parallel-size", "--pipeline-parallel-size", "--decode-context-parallel-size"),
        *("--prefill-context-parallel-size", "--num-gpu-blocks-override", "--enable-dbo", "--enable-eplb"),
        *("--offload-group-size", "--mm-ipc-gpu-memory-gb"),
        *("--api-server-count", "--diffusion-config", "--engram-config"),
    ),
    "llama.cpp": (
        *("--mmproj", "--mmproj-url", "--spec-draft-model", "--spec-draft-hf", "--spec-type", "--lora"),
        *("--lora-scaled", "--control-vector", "--control-vector-scaled", "--override-tensor"),
        *("--n-cpu-ffn", "--rpc", "--device", "--main-gpu", "--tensor-split", "--split-mode"),
        *("--op-offload", "--kv-unified-per-slot", "--ctx-checkpoints"),
        *("--lora-path", "--clip-model-path", "--draft-model", "--rpc-servers", "--offload-kqv", "--cache"),
    ),
}


def unplanned(arguments: Arguments) -> tuple[str, ...]:
    """Options given that take (or give back) memory which no plan counts, by their full names, in their order."""
    family = "vllm" if arguments.launcher == "vllm" else "llama.cpp"
    found = [one.shown for one in arguments.given if not set(_UNPLANNED[family]).isdisjoint(one.names) and _asks(one)]
    return tuple(dict.fromkeys(found))


def _asks(one: Given) -> bool:
    """Not a number that changes nothing ("--data-parallel-size 1"), nor a feature that is turned off."""
    if one.names[0] == "--op-offload":
        return not one.on  # the engine's own is to use the card
    if one.name == "--offload-kqv":
        return one.values[-1:] == ("false",)
    idle = ("0", "1") if one.shown.endswith(("-size", "-count")) else ("0", "false")
    return one.on and one.values[-1:] not in [(value,) for value in idle]


# --- The two ways in which engines read


def _dashed(arg: str) -> str:
    """`_` for `-`, as all of them take it, in the name only: before the first dot, which begins the keys of JSON."""
    if not arg.startswith("--"):
        return arg
    name, dot, keys = arg.partition(".")
    return name.replace("_", "-") + dot + keys


class _LlamaCpp:
    """common_params_parse_ex of llama.cpp's common/arg.cpp: names as they are, a value is whatever comes next."""

    def __init__(self, launcher: str, options: Options) -> None:
        self.launcher = launcher
        self.options = options
        self.given: list[Given] = []
        self.faults: list[Fault] = []

    def read(self, args: Sequence[str]) -> None:
        at = 0
        while at < len(args):
            at += self._one(args, at)

    def _one(self, args: Sequence[str], at: int) -> int:
        """Read an option and return how many words it took."""
        arg = args[at]
        name, equals, value = arg.partition("=")
        if not arg.startswith("-") or _joined(arg, self.options):
            self.faults.append(_stray(arg, self.options))
            self.given.append(Given(name=arg, written=arg, option=None))
            return 1
        name = _dashed(name)
        option = self.options.by_name.get(name)
        if option is None:
            return self._unknown(args, at, name, value if equals else None)
        count = int(option.values) if option.values.isdigit() else 1  # "?" and "+" are argparse's
        values = ((value,) if equals else ()) + tuple(args[at + 1 : at + 1 + count - bool(equals)])
        if count == 0 and equals:
            self.faults.append(Fault(code="needless-value", arg=arg))
        if len(values) < count:
            self.faults.append(Fault(code="no-value", arg=arg))
        self.given.append(
            Given(name=name, written=arg, option=option, values=values[:count], on=name not in option.off)
        )
        return 1 + max(0, count - bool(equals))

    def _unknown(self, args: Sequence[str], at: int, name: str, value: str | None) -> int:
        """Of another version: what follows is its value unless it looks like an option."""
        if self.options.exact:
            known = self.launcher == "xllamacpp" and name in shipped_options("llama-server").by_name
            self.faults.append(Fault(code="elsewhere" if known else "unknown", arg=args[at]))
        following = args[at + 1 : at + 2]
        takes = value is None and bool(following) and (not following[0].startswith("-") or _is_negative(following[0]))
        values = (value,) if value is not None else tuple(following) if takes else ()
        if value is not None and not name.startswith("--"):
            values = ()  # `-x=1` is handed on as it is
        self.given.append(Given(name=name, written=args[at], option=None, values=values))
        return 1 + takes


class _Argparse:
    """Python's argparse; for vLLM what its FlexibleArgumentParser does before (vllm/utils/argparse_utils.py)."""

    def __init__(self, launcher: str, options: Options) -> None:
        self.launcher = launcher
        self.options = options
        self.given: list[Given] = []
        self.faults: list[Fault] = []

    def read(self, args: Sequence[str]) -> None:
        words = [_underscores(arg) for arg in args]
        written = list(args)
        if self.launcher == "vllm":
            words, written = _levels(words, written)
            words, written, faults = _keys_of_json(words, written)
            self.faults += faults
        at = 0
        while at < len(words):
            at += self._one(words, written, at)

    def _one(self, words: Sequence[str], written: Sequence[str], at: int) -> int:
        word = words[at]
        if not self._is_option(word):
            self.faults.append(_stray(written[at], self.options))
            self.given.append(Given(name=word, written=written[at], option=None))
            return 1
        name, equals, value = word.partition("=")
        inline: str | None = value if equals else None
        found = self._find(name)
        if found is None and not equals:
            found, inline = self._attached(word)
        if found is None:
            return self._unknown(words, written, at, name, inline)
        option = self.options.by_name[found]
        values, took = self._values(option, inline, words, at)
        if inline is not None and option.values == "0":
            self.faults.append(Fault(code="needless-value", arg=written[at]))
        if not values and option.values in ("1", "2", "+"):
            self.faults.append(Fault(code="no-value", arg=written[at]))
        on = found not in option.off
        self.given.append(Given(name=found, written=written[at], option=option, values=values, on=on))
        return 1 + took

    def _values(self, option: Option, inline: str | None, words: Sequence[str], at: int) -> tuple[tuple[str, ...], int]:
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
        if not word.startswith("-") or word == "-" or _is_negative(word):
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
            self.faults.append(Fault(code="ambiguous", arg=name, more=tuple(candidates[:8])))
        return None

    def _attached(self, word: str) -> tuple[str | None, str | None]:
        """`-qawq`: one letter, and its value right behind it."""
        option = self.options.by_name.get(word[:2]) if not word.startswith("--") and len(word) > 2 else None
        return (word[:2], word[2:]) if option and option.values != "0" else (None, None)

    def _unknown(self, words: Sequence[str], written: Sequence[str], at: int, name: str, inline: str | None) -> int:
        ambiguous = any(fault.code == "ambiguous" and fault.arg == name for fault in self.faults)
        if self.options.exact and not ambiguous:
            self.faults.append(Fault(code="unknown", arg=written[at]))
        following = words[at + 1 : at + 2]
        takes = inline is None and bool(following) and not self._is_option(following[0])
        values = (inline,) if inline is not None else tuple(following) if takes else ()
        self.given.append(Given(name=name, written=written[at], option=None, values=values))
        return 1 + takes


def _joined(arg: str, options: Options) -> str:
    """Return the option of `--dtype half` in one argument, which no engine takes apart; empty: it is no such thing."""
    name, space, _ = arg.partition(" ")
    return name if space and _dashed(name) in options.by_name else ""


def _stray(arg: str, options: Options) -> Fault:
    name = _joined(arg, options)
    return Fault(code="joined", arg=arg, more=(name,)) if name else Fault(code="stray", arg=arg)


def _underscores(arg: str) -> str:
    name, equals, value = arg.partition("=")
    return _dashed(name) + equals + value


def _is_negative(word: str) -> bool:
    return bool(_NEGATIVE.fullmatch(word))


def _levels(words: Sequence[str], written: Sequence[str]) -> tuple[list[str], list[str]]:
    """`-O2`, `-O=2`, `-O 2`: the level of optimisation."""
    new: list[tuple[str, str]] = []
    for at, word in enumerate(words):
        if word.startswith("-O") and word != "-O":
            level = word[3:] if word[2] == "=" else word[2:]
            new += [("--optimization-level", written[at]), (level, level)]
        elif word == "-O" and words[at + 1 : at + 2] in (["0"], ["1"], ["2"], ["3"]):
            new.append(("--optimization-level", written[at]))
        else:
            new.append((word, written[at]))
    return [word for word, _ in new], [spelt for _, spelt in new]


def _keys_of_json(words: Sequence[str], written: Sequence[str]) -> tuple[list[str], list[str], list[Fault]]:
    """`--a.b=c`, `--a.b c`, `--a.b+ c,d`: put together to one `--a {"b": …}` behind all others, as vLLM does."""
    kept: list[tuple[str, str]] = []
    made: dict[str, dict[str, Any]] = {}
    faults: list[Fault] = []
    at = 0
    while at < len(words):
        name, equals, value = words[at].partition("=")
        if not name.startswith("-") or "." not in name or _is_negative(name):
            kept.append((words[at], written[at]))
            at += 1
            continue
        if not equals:
            if at + 1 == len(words):
                faults.append(Fault(code="no-value", arg=written[at]))
                break
            at += 1
            value = words[at]
        at += 1
        option, *keys = name.removesuffix("+").split(".")
        _merge(made.setdefault(option, {}), keys, value.split(",") if name.endswith("+") else _json_or_text(value))
    for option, keyed in made.items():
        kept += [(option, option), (json.dumps(keyed), json.dumps(keyed))]
    return [word for word, _ in kept], [spelt for _, spelt in kept], faults


def _merge(into: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    for key in keys[:-1]:
        inner = into.get(key)
        if not isinstance(inner, dict):
            inner = into[key] = {}
        into = inner
    before = into.get(keys[-1])
    into[keys[-1]] = before + value if isinstance(before, list) and isinstance(value, list) else value


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        number = parse_human_number(text)
        return text if number is None else number


# --- Values


def parse_human_number(text: str) -> int | None:
    """vLLM's: `25.6k` is 25,600, `1K` is 1,024, no decimals before a capital. None: no such number."""
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


def _stoi(text: str) -> tuple[int, str] | None:
    """C++'s: the digits that it begins with, and what is left over."""
    matched = re.match(r"\s*([+-]?\d{1,10})(.*)", text, re.DOTALL)
    return (int(matched[1]), matched[2]) if matched else None


def _whole(text: str, kind: str, launcher: str) -> int | Fault | None:
    """Return a number; None: it need not be one; a Fault without its argument."""
    if launcher not in ("vllm", "llama-cpp-python") and kind == "int":
        found = _stoi(text)
        return found[0] if found else Fault(code="not-a-number", arg="")
    if kind == "size-or-auto" and text.strip().lower() in ("-1", "auto"):
        return -1
    if kind in ("size", "size-or-auto"):
        value = parse_human_number(text)
    else:
        value = int(text) if re.fullmatch(r"\s*[+-]?\d{1,18}\s*", text) else None
    return Fault(code="not-a-number", arg="") if value is None else value


_NOTHING = ("", "None")  # vLLM's words for no value, where none is allowed


def _value_faults(one: Given, launcher: str, *, exact: bool) -> list[Fault]:
    if one.option is None or one.option.values == "0":
        return []
    check: Callable[[str], Fault | None] = _CHECKS.get(one.option.kind, lambda text: None)
    found = []
    for value in one.values:
        if launcher == "vllm" and value in _NOTHING:
            continue
        fault = _of_integer(value, one.option.kind, launcher) or check(value) or _of_range(value, one, launcher)
        if fault is None and exact and one.option.choices and value not in one.option.choices:
            fault = Fault(code="not-one-of", arg="", more=one.option.choices)
        if fault:
            found.append(replace(fault, arg=f"{one.name} {value}"))
    return found


def _of_integer(text: str, kind: str, launcher: str) -> Fault | None:
    if kind not in ("int", "size", "size-or-auto"):
        return None
    value = _whole(text, kind, launcher)
    if isinstance(value, Fault):
        return value
    left = _stoi(text) if launcher not in ("vllm", "llama-cpp-python") else None
    return Fault(code="half-read", arg="", more=(str(left[0]),)) if left and left[1].strip() else None


def _of_float(text: str) -> Fault | None:
    try:
        finite = math.isfinite(float(text))  # "nan" passes every comparison that an engine makes
    except ValueError:
        finite = False
    return None if finite else Fault(code="not-a-number", arg="")


def _of_range(text: str, one: Given, launcher: str) -> Fault | None:
    allowed = argument_rules.range_of(launcher, one.names)
    if allowed is None or one.option is None:
        return None
    value = float(text) if one.option.kind == "float" else _whole(text, one.option.kind, launcher)
    if isinstance(value, int | float) and not allowed.allows(value):
        return Fault(code="out-of-range", arg="", more=allowed.limits)
    return None


def _of_json(text: str) -> Fault | None:
    try:
        # vLLM reads 80m in JSON as a number as well.
        json.loads(re.sub(r'("(?:[^"\\]|\\.)*")|\b\d+(?:\.\d+)?[kKmMgGtT]\b', lambda found: found[1] or "0", text))
    except (ValueError, RecursionError):
        return Fault(code="not-json", arg="")
    return None


def _of_bool(text: str) -> Fault | None:
    words = ("1", "on", "t", "true", "y", "yes", "0", "off", "f", "false", "n", "no")
    return None if text.lower().strip() in words else Fault(code="not-one-of", arg="", more=("true", "false"))


_CHECKS: Mapping[str, Callable[[str], Fault | None]] = {"float": _of_float, "json": _of_json, "bool": _of_bool}
