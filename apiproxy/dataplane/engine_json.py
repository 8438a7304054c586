"""The door for JSON that engines send."""

import json
from typing import Any

import orjson

# Levels of nesting: as many as orjson encodes. Answers have about ten. Showing or encoding 900 raises RecursionError.
MAX_DEPTH = 254


def loads(data: bytes | str) -> Any:
    """Return the value of an engine's JSON, also with half of a surrogate pair. Raise ValueError for anything else."""
    try:
        found = orjson.loads(data)
    except orjson.JSONDecodeError:
        found = _loads_exactly(data)
    if len(data) > 2 * MAX_DEPTH and _count_brackets(data) > MAX_DEPTH and _measure_depth(found) > MAX_DEPTH:
        raise ValueError("nested too deeply")
    return found


def decode_object(data: bytes) -> dict[str, Any] | None:
    """Return the JSON object in these bytes, if it is one."""
    try:
        found = loads(data)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _loads_exactly(data: bytes | str) -> Any:
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _count_brackets(data: bytes | str) -> int:
    if isinstance(data, str):
        return data.count("[") + data.count("{")
    return data.count(b"[") + data.count(b"{")


def _measure_depth(value: Any) -> int:
    """Return the number of levels, counted level by level: 4 MB of log probabilities take 35 ms."""
    level, depth = [value], 0
    while level := [each for each in level if isinstance(each, dict | list)]:
        depth += 1
        if depth > MAX_DEPTH:
            break
        level = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)]
    return depth
