"""Values of `surface` as JSON: written by their fields, and read by their annotations.

What is read is typed and bounded here, so that no code behind it fears a value. A field has the bounds below unless its
annotation says less (`wire_bounds`); what may be any JSON is small and shallow. Fields that are not known are left out,
and those that are missing take their defaults: a host and its supervisor are upgraded one after the other. No pickles:
they would tie both to one version of each class, and one that is forged runs code where it is read.
"""

import json
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from modelregistry.engines.version_trials import NoVersion
from modelregistry.files.unreadable import UnreadableModel
from modelregistry.memory.estimate import Prediction, Unpredictable
from modelregistry.memory.placement import NoRoom, NoSuchDevice, Room
from modelregistry.process.gpus import MOST_DEVICES
from modelregistry.wire_bounds import AtMost, Line, Name, Names

MOST_BYTES = 64 * 2**20  # of a message; the largest are tables of measurements and the tails of logs
MOST_TEXT = 2_000_000  # characters: the tail of a log, a chat template among the arguments
MOST_KEY = 5_000  # characters of a name in a mapping
MOST_ENTRIES = 100_000  # of a list or mapping: measurements
MOST_INT = 2**63 - 1  # as databases hold them
# Of what may be any JSON, such as an answer of 256 numbers: values in all, and how deep they are nested.
MOST_FREE, DEEPEST_FREE = 2_000, 8


class WireFault(ValueError):
    """A message that cannot be read. `str()` says where it is wrong, without its values."""


# Exceptions that are values of answers: what they are made of, by the names of their arguments.
EXCEPTIONS: Mapping[type[Exception], Mapping[str, Any]] = {
    NoRoom: {
        "need": Prediction,
        "rooms": Annotated[tuple[Room, ...], AtMost(MOST_DEVICES)],
        "fits": int,
        "sequences": int,
        "in_ram": bool,
    },
    NoSuchDevice: {"missing": Annotated[tuple[int, ...], AtMost(1_000)], "wanted": int, "usable": int},
    Unpredictable: {"missing": Names},
    NoVersion: {"launcher": Name, "wanted": Name, "installed": Names},
    UnreadableModel: {
        "code": Name,
        "risk": Name,
        "values": Annotated[Mapping[str, int | float | bool | Line], AtMost(20)],
    },
}


def write_message(value: Any) -> bytes:
    """Return a value as JSON. Raises WireFault for one that is none of ours, or too long."""
    written = json.dumps(encode(value), ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
    if len(written) > MOST_BYTES:
        raise WireFault(f"a message of {len(written)} bytes is too long")
    return written


def read_message(data: bytes) -> dict[str, Any]:
    """Return a message as `write_message` wrote it. Raises WireFault."""
    if len(data) > MOST_BYTES:
        raise WireFault(f"a message of {len(data)} bytes is too long")
    try:
        found = json.loads(data.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError):
        raise WireFault("a message is not JSON") from None
    if not isinstance(found, dict):
        raise WireFault("a message is no object")
    return found


def encode(value: Any) -> Any:
    """Return what JSON can hold of a value. Raises WireFault."""
    if value is None or (isinstance(value, bool | int | float | str) and not isinstance(value, Enum)):
        return value
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, Exception):
        return _encode_exception(value)
    if is_dataclass(value):
        return {one.name: encode(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): encode(one) for key, one in value.items()}
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, bytes):
        return [encode(one) for one in value]
    raise WireFault(f"a {type(value).__name__} cannot be sent")


def _encode_exception(value: Exception) -> Any:
    parts = EXCEPTIONS.get(type(value))
    if parts is None:
        raise WireFault(f"a {type(value).__name__} cannot be sent")
    found = {name: encode(getattr(value, name)) for name in parts}
    if isinstance(value, UnreadableModel):  # its values are for a sentence: any of them can be a text
        found["values"] = {name: encode(_printed(one)) for name, one in value.values.items()}
    return {"type": type(value).__name__, **found}


def _printed(value: object) -> object:
    return value if isinstance(value, bool | int | float | str) else str(value)


def decode(kind: Any, data: Any, where: str = "value") -> Any:
    """Return the value of this type that JSON held. Raises WireFault."""
    if kind is Any or kind is object:
        _count_free(data, where)
        return data
    if kind is None or kind is types.NoneType:
        return _expect(data is None, where, None)
    origin = get_origin(kind)
    if origin is None:
        return _decode_plain(kind, data, where)
    return _decode_made_up(origin, kind, data, where)


def _decode_made_up(origin: Any, kind: Any, data: Any, where: str) -> Any:
    """Decode a value of a type that is made of others."""
    if origin is Annotated:
        kind, *notes = get_args(kind)
        for note in notes:
            _check_bound(note, data, where)
        return decode(kind, data, where)
    if origin in (Union, types.UnionType):
        return _decode_union(get_args(kind), data, where)
    if origin is Literal:
        return _expect(data in get_args(kind) and isinstance(data, str), where, data)
    if origin is tuple:
        return _decode_tuple(get_args(kind), data, where)
    if issubclass(origin, Mapping):
        return _decode_mapping(get_args(kind), data, where)
    _expect(issubclass(origin, Collection), where, None)
    [inner] = get_args(kind)
    return [decode(inner, one, f"{where}[{number}]") for number, one in enumerate(_list_of(data, where))]


def _decode_plain(kind: Any, data: Any, where: str) -> Any:
    if kind in (bool, int, float, str):
        return _decode_scalar(kind, data, where)
    if kind in EXCEPTIONS:
        return _decode_exception(kind, data, where)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind[_expect(isinstance(data, str) and data in kind.__members__, where, data)]
    if is_dataclass(kind):
        return _decode_dataclass(kind, data, where)
    if isinstance(kind, type) and issubclass(kind, tuple):  # a NamedTuple
        hints = _hints(kind)
        return kind(*_decode_tuple(tuple(hints.values()), data, where))
    raise WireFault(f"{where}: a {kind} is not known here")


def _decode_scalar(kind: Any, data: Any, where: str) -> Any:
    _check_bound(AtMost(MOST_TEXT), data, where)
    _expect(type(data) is not int or -MOST_INT <= data <= MOST_INT, where, None)
    if kind is float:
        return float(_expect(type(data) in (int, float), where, data))
    return _expect(type(data) is kind, where, data)


def _decode_union(kinds: Sequence[Any], data: Any, where: str) -> Any:
    """Decode one of several types: of None and another one, or of exceptions, which carry their names."""
    if data is None and types.NoneType in kinds:
        return None
    left = [kind for kind in kinds if kind is not types.NoneType]
    if len(left) == 1:
        return decode(left[0], data, where)
    scalar = next((kind for kind in left if type(data) is (get_args(kind) or (kind,))[0]), None)
    if scalar is not None:
        return decode(scalar, data, where)
    name = data.get("type") if isinstance(data, dict) else None
    for kind in left:
        if kind in EXCEPTIONS and kind.__name__ == name:
            return decode(kind, data, where)
    raise WireFault(f"{where} is of no known type")


def _decode_tuple(kinds: Sequence[Any], data: Any, where: str) -> tuple[Any, ...]:
    there = _list_of(data, where)
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        return tuple(decode(kinds[0], one, f"{where}[{number}]") for number, one in enumerate(there))
    _expect(len(there) == len(kinds), where, None)
    return tuple(decode(kind, one, where) for kind, one in zip(kinds, there, strict=True))


def _decode_mapping(kinds: Sequence[Any], data: Any, where: str) -> dict[Any, Any]:
    key, inner = kinds
    _check_bound(AtMost(MOST_ENTRIES), data, where)
    found = _expect(isinstance(data, dict), where, data)
    return {_decode_key(key, name, where): decode(inner, one, f"{where}.{name}"[:200]) for name, one in found.items()}


def _decode_key(kind: Any, name: str, where: str) -> Any:
    if kind is not int:
        _check_bound(AtMost(MOST_KEY), name, where)
        return name
    try:
        return _decode_scalar(int, int(name), where)
    except ValueError:
        raise WireFault(f"{where} has a key that is no number") from None


def _decode_dataclass(kind: Any, data: Any, where: str) -> Any:
    _expect(isinstance(data, dict), where, None)
    hints, values = _hints(kind), {}
    for one in fields(kind):
        if one.name in data:
            values[one.name] = decode(hints[one.name], data[one.name], f"{where}.{one.name}")
        elif one.default is MISSING and one.default_factory is MISSING:
            raise WireFault(f"{where} lacks {one.name}")
    try:
        return kind(**values)
    except ValueError as error:  # what `__post_init__` refuses
        raise WireFault(f"{where}: {error}") from None


def _decode_exception(kind: type[Exception], data: Any, where: str) -> Exception:
    _expect(isinstance(data, dict), where, None)
    parts = {name: decode(part, data.get(name), f"{where}.{name}") for name, part in EXCEPTIONS[kind].items()}
    if kind is UnreadableModel:
        return _unreadable(parts["code"], parts["risk"], parts["values"], where)
    make: Callable[..., Exception] = kind
    return make(**parts)


def _unreadable(code: str, risk: str, values: Mapping[str, Any], where: str) -> UnreadableModel:
    try:
        return UnreadableModel(code, risk=risk, **values)
    except (LookupError, TypeError, ValueError):  # of another release
        raise WireFault(f"{where} is of no known code") from None


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _list_of(data: Any, where: str) -> list[Any]:
    _check_bound(AtMost(MOST_ENTRIES), data, where)
    found: list[Any] = _expect(isinstance(data, list), where, data)
    return found


def _check_bound(bound: Any, data: Any, where: str) -> None:
    if isinstance(bound, AtMost) and isinstance(data, str | list | dict) and len(data) > bound.number:
        what = "characters" if isinstance(data, str) else "entries"
        raise WireFault(f"{where} has {len(data)} {what}, more than {bound.number}")


def _count_free(data: Any, where: str, deep: int = 0) -> int:
    """Return of how many values any JSON consists. Raises WireFault."""
    if deep > DEEPEST_FREE:
        raise WireFault(f"{where} is nested too deep")
    if not isinstance(data, list | dict):
        decode(type(data), data, where)
        return 1
    _check_bound(AtMost(MOST_FREE), data, where)
    there = data.values() if isinstance(data, dict) else data
    count = 1 + sum(_count_free(one, where, deep + 1) for one in there)
    if count > MOST_FREE:
        raise WireFault(f"{where} has more than {MOST_FREE} values")
    return count


def _expect(condition: bool, where: str, value: Any) -> Any:
    if not condition:
        raise WireFault(f"{where} is not what it should be")
    return value
