"""What goes between a controller, its driver and agents: JSON only, one line each between the first two. No Ray."""

import json
from typing import Any

from modelregistry.cluster import limits

UNREADABLE = "UnreadableAnswer"
FIELDS = ("result", "fault", "kind", "term", "shown")  # of an agent's answer


class TooLong(ValueError):
    """A message is longer than the other end reads."""


def encode(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


def encode_line(value: dict[str, Any]) -> bytes:
    """Return a message as a line. Raises TooLong."""
    line = encode(value) + b"\n"
    if len(line) > limits.LONGEST_LINE:
        raise TooLong(f"a message of {len(line)} bytes is too long")
    return line


def encode_answer(value: dict[str, Any]) -> bytes:
    """Return an answer as a line; in place of one that is too long, that it is."""
    try:
        return encode_line(value)
    except TooLong as error:
        return encode_line({"id": value.get("id"), "fault": str(error), "kind": TooLong.__name__})


def read_answer(answer: Any) -> dict[str, Any]:
    """Return what an agent answered, of which nothing but JSON is taken: "result" or "fault", and "shown"."""
    if type(answer) is not bytes or len(answer) > limits.LONGEST_LINE:
        return {"fault": "the host's agent answered what cannot be read, or too much", "kind": UNREADABLE}
    try:
        found = json.loads(answer.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError):
        found = None
    if (
        not isinstance(found, dict)
        or not (("result" in found) or _is_fault(found))
        or not _is_clock(found.get("shown"))
    ):
        return {"fault": "the host's agent answered no JSON of ours", "kind": UNREADABLE}
    return {name: found[name] for name in FIELDS if name in found}


def _is_fault(found: dict[str, Any]) -> bool:
    return type(found.get("fault")) is str and type(found.get("kind")) is str and type(found.get("term")) is int


def _is_clock(shown: Any) -> bool:
    return isinstance(shown, list) and [type(each) for each in shown] in ([str, float], [str, int])
