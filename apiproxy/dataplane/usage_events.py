"""A line of the spool: one usage, typed and bounded where it is read. Bytes in, facts out; no I/O.

A line may come from another version, or have been damaged on the disk. What no database would take is found here, so
that code which records it need not fear a value.
"""

import json
from dataclasses import dataclass
from typing import Any

import orjson

from apiproxy.dataplane.token_usage import MAX_TOKEN_COUNT

MAX_ID = 2**63 - 1
MAX_MS = 2**31 - 1  # an `integer` of PostgreSQL: 24 days
MAX_TEMPERATURE = 1000  # hundredths; engines take 2.0 at most
MAX_RETRIES = 1000
MAX_TIME = 32_503_680_000.0  # the year 3000; a clock that was never set says 1970
# "looped": the answer was in a word loop when it ended, also if the client or the gateway ended it.
STATUSES = frozenset({"finished", "looped", "aborted", "interrupted", "failed", "refused"})
# Bytes of one line: ten times what the longest names come to.
MAX_LINE = 16 * 1024


class BadLine(Exception):
    """The line contains nothing that can be recorded; the message names the member and what is wrong with it."""


@dataclass(kw_only=True)  # frozen or with slots, it takes 4 µs more to make and to write down
class Usage:
    """One request that reached an engine. Never changed."""

    request_id: str
    key: int
    user: int | None
    tenant: int
    model: str
    replica: int | None
    endpoint: str
    started: float  # Unix seconds
    first_token_ms: int | None
    duration_ms: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    status: str  # one of STATUSES
    estimated: bool  # the engine did not report all of its tokens
    end_user: str
    # Not recorded with the call: the owner of the key sees them for its last call. Lines of older gateways lack them.
    address: str = ""
    client: str = ""
    # Lines of older gateways lack these as well.
    looped_tokens: int = 0  # of the completion, those that repeat what is before them
    saved_tokens: int = 0  # that an answer which was ended because of a loop could still have had
    temperature: int | None = None  # hundredths, as the engine got it; None: none
    watched: bool = False  # word loops were looked for to its end
    observer_failed: bool = False  # not to its end, by a fault of ours; not recorded with the call
    # The timeline, before and beside `first_token_ms` and `duration_ms`. None and "": of an older gateway, or unknown.
    queued_ms: int | None = None  # until it was its turn
    loading_ms: int | None = None  # until its model was loaded
    prefill_ms: int | None = None  # from when its engine had it to the first byte; None also of answers in one piece
    retries: int | None = None  # how often it was sent to another replica
    stopped_by: str = ""  # one of `stops.STOPS`
    engine: str = ""  # what runs it, and its version


NAMES = frozenset(Usage.__dataclass_fields__)
# Member: its types, least and most. As UsageRecord's columns.
INTEGER, OPTIONAL_INTEGER = frozenset({int}), frozenset({int, type(None)})
NUMBERS = (
    ("key", INTEGER, 1, MAX_ID),
    ("tenant", INTEGER, 1, MAX_ID),
    ("duration_ms", INTEGER, 0, MAX_MS),
    *((f"{kind}_tokens", INTEGER, 0, MAX_TOKEN_COUNT) for kind in ("prompt", "cached", "completion", "reasoning")),
    ("user", OPTIONAL_INTEGER, 1, MAX_ID),
    ("replica", OPTIONAL_INTEGER, 1, MAX_ID),
    ("first_token_ms", OPTIONAL_INTEGER, 0, MAX_MS),
    ("looped_tokens", INTEGER, 0, MAX_TOKEN_COUNT),
    ("saved_tokens", INTEGER, 0, MAX_TOKEN_COUNT),
    ("temperature", OPTIONAL_INTEGER, 0, MAX_TEMPERATURE),
    *((f"{stage}_ms", OPTIONAL_INTEGER, 0, MAX_MS) for stage in ("queued", "loading", "prefill")),
    ("retries", OPTIONAL_INTEGER, 0, MAX_RETRIES),
)
# What lines of older versions lack, with what it is then.
ABSENT = {
    **{"looped_tokens": 0, "saved_tokens": 0, "temperature": None, "watched": False, "observer_failed": False},
    **{"queued_ms": None, "loading_ms": None, "prefill_ms": None, "retries": None},
}
# Member: longest text. Those that an older version did not write are "".
TEXTS = (
    *(("request_id", 40), ("model", 100), ("endpoint", 40), ("end_user", 64), ("address", 45), ("client", 80)),
    *(("stopped_by", 16), ("engine", 80)),
)


def encode_line(kind: str, usage: Usage) -> bytes:
    """Return the line, with its end.

    Never raises and is never longer than MAX_LINE: a usage that cannot be encoded whole is encoded as far as possible.
    """
    event = {kind: vars(usage)}
    try:
        line = orjson.dumps(event, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:  # a number beyond 64 bits, half of a surrogate pair: its reader will set it aside
        line = json.dumps(event, default=repr).encode() + b"\n"
    return line if len(line) <= MAX_LINE else line[: MAX_LINE - 1].replace(b"\n", b" ") + b"\n"


def decode_line(line: bytes) -> tuple[str, Usage]:
    """Return "open" or "close", and the usage. Raises BadLine."""
    kind, facts = _parse_event(line)
    if is_valid(facts):
        return kind, Usage(**facts)
    _check_flat(facts)
    return kind, parse_usage(facts)


def decode_members(line: bytes) -> tuple[str, dict[str, Any]]:
    """Decode a line as `decode_line` does, but return the members unchecked. Raises BadLine."""
    kind, facts = _parse_event(line)
    _check_flat(facts)
    return kind, facts


def _parse_event(line: bytes) -> tuple[str, dict[str, Any]]:
    try:
        event = orjson.loads(line)
    except ValueError as error:
        raise BadLine(f"no JSON: {error}") from error
    if not isinstance(event, dict) or len(event) != 1:
        raise BadLine("no event")
    ((kind, facts),) = event.items()
    if kind not in ("open", "close") or not isinstance(facts, dict):
        raise BadLine("no event that this version knows")
    return kind, facts


def _check_flat(facts: dict[str, Any]) -> None:
    if (name := find_nested(facts)) is not None:
        raise BadLine(f"{name[:40]}: not a single value")


def find_nested(facts: dict[str, Any]) -> str | None:
    """Return the first member that has parts. Showing or encoding deep nesting would raise RecursionError."""
    return next((name for name, value in facts.items() if isinstance(value, dict | list)), None)


def is_valid(facts: dict[str, Any]) -> bool:
    """Return whether `parse_usage` would accept these members.

    The same rules, written out: this runs for each line, in a process that has other work (3 instead of 8 µs).
    """
    if facts.keys() != NAMES:
        return False
    key, tenant, user, replica = facts["key"], facts["tenant"], facts["user"], facts["replica"]
    prompt, cached = facts["prompt_tokens"], facts["cached_tokens"]
    completion, reasoning = facts["completion_tokens"], facts["reasoning_tokens"]
    lasted, first, started = facts["duration_ms"], facts["first_token_ms"], facts["started"]
    request_id, model, endpoint = facts["request_id"], facts["model"], facts["endpoint"]
    end_user, address, client, status = facts["end_user"], facts["address"], facts["client"], facts["status"]
    looped, saved, temperature = facts["looped_tokens"], facts["saved_tokens"], facts["temperature"]
    queued, loading, prefill, retries = facts["queued_ms"], facts["loading_ms"], facts["prefill_ms"], facts["retries"]
    stopped_by, engine = facts["stopped_by"], facts["engine"]
    return (
        (type(key) is int and 1 <= key <= MAX_ID)
        and (type(tenant) is int and 1 <= tenant <= MAX_ID)
        and (user is None or (type(user) is int and 1 <= user <= MAX_ID))
        and (replica is None or (type(replica) is int and 1 <= replica <= MAX_ID))
        and (type(prompt) is int and 0 <= prompt <= MAX_TOKEN_COUNT)
        and (type(cached) is int and 0 <= cached <= MAX_TOKEN_COUNT)
        and (type(completion) is int and 0 <= completion <= MAX_TOKEN_COUNT)
        and (type(reasoning) is int and 0 <= reasoning <= MAX_TOKEN_COUNT)
        and (type(looped) is int and 0 <= looped <= MAX_TOKEN_COUNT)
        and (type(saved) is int and 0 <= saved <= MAX_TOKEN_COUNT)
        and (temperature is None or (type(temperature) is int and 0 <= temperature <= MAX_TEMPERATURE))
        and (type(lasted) is int and 0 <= lasted <= MAX_MS)
        and (first is None or (type(first) is int and 0 <= first <= MAX_MS))
        and (queued is None or (type(queued) is int and 0 <= queued <= MAX_MS))
        and (loading is None or (type(loading) is int and 0 <= loading <= MAX_MS))
        and (prefill is None or (type(prefill) is int and 0 <= prefill <= MAX_MS))
        and (retries is None or (type(retries) is int and 0 <= retries <= MAX_RETRIES))
        and (type(started) is float and 0 <= started <= MAX_TIME)
        and type(request_id) is type(model) is type(endpoint) is type(end_user) is type(address) is type(client) is str
        and (len(request_id) <= 40 and len(model) <= 100 and len(endpoint) <= 40)
        and (len(end_user) <= 64 and len(address) <= 45 and len(client) <= 80)
        and type(stopped_by) is type(engine) is str
        and (len(stopped_by) <= 16 and len(engine) <= 80)
        and "\0" not in f"{request_id}{model}{endpoint}{end_user}{address}{client}{stopped_by}{engine}"
        and (type(status) is str and status in STATUSES)
        and (facts["estimated"] is True or facts["estimated"] is False)
        and (facts["watched"] is True or facts["watched"] is False)
        and (facts["observer_failed"] is True or facts["observer_failed"] is False)
    )


def parse_usage(facts: dict[str, Any]) -> Usage:
    """Return the usage with these members. Raises BadLine, which names the member, for what no database would take."""
    try:
        _check_members(facts)
        return Usage(**facts)
    except (KeyError, TypeError) as error:
        raise BadLine(f"not the members of a usage: {', '.join(sorted(facts.keys() ^ NAMES)[:20])}") from error


def _check_members(facts: dict[str, Any]) -> None:
    """Raise BadLine for a value that its column would not take, KeyError for a member that is missing."""
    for name, types, least, most in NUMBERS:
        value = facts.get(name, ABSENT[name]) if name in ABSENT else facts[name]
        if type(value) not in types or (value is not None and not least <= value <= most):
            raise _bad_value(name, value)
    for name, longest in TEXTS:
        value = facts.get(name, "")
        if type(value) is not str or len(value) > longest or "\0" in value:
            raise _bad_value(name, value)
    started, status = facts["started"], facts["status"]
    if type(started) not in (float, int) or not 0 <= started <= MAX_TIME:
        raise _bad_value("started", started)
    if type(status) is not str or status not in STATUSES:
        raise _bad_value("status", status)
    _check_flag("estimated", facts["estimated"])
    for name in ("watched", "observer_failed"):
        _check_flag(name, facts.get(name, ABSENT[name]))


def _check_flag(name: str, value: Any) -> None:
    if value is not True and value is not False:
        raise _bad_value(name, value)


def _bad_value(name: str, value: Any) -> BadLine:
    return BadLine(f"{name}: {repr(value)[:60]}")
