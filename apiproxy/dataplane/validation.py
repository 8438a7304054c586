"""The one door for values of a request body: each member that anything here or an engine counts with is read here.

A reader returns the value as engines must receive it, or refuses the call and names the member, the bound and what was
sent. What engines coerce is coerced as they do it (vLLM's pydantic takes "5", 5.0 and true for 5; "true" and 1 for
true) and sent on typed, because another engine reads the same text otherwise: llama.cpp refuses "5" and takes 5.7 for 5
and 4294967301 for 5. No I/O. Behind this door no code needs to fear a value.
"""

import json
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

import orjson

from apiproxy.dataplane.errors import BadRequest

Reader = Callable[[str, Any], Any]

# The type in which llama.cpp keeps such numbers: it takes 2**32 + 5 for 5.
INT32 = 2**31 - 1
# Answers to a prompt: OpenAI's bound of `n`. Prompts, or inputs, of a call: OpenAI's bound of an embedding's `input`
# (20,000 of them hold a model for a minute). Answers of a call in all: each may be as long as the model's context.
MAX_ANSWERS = 128
MAX_INPUTS = 2048
# Tokens of one answer with its prompt where the model's context is not known: that of the longest in common use.
MAX_CONTEXT = 2**20
# Alternatives to each token: OpenAI's bound, and vLLM's default. llama.cpp takes 1,000,000: 4.5 MB for each token.
MAX_ALTERNATIVES = 20
# Levels of lists and objects in each other, and in a schema or a tool. Python's own reader and writer of JSON end at
# about 1,000.
MAX_DEPTH = 100
MAX_SCHEMA_DEPTH = 254
# Lists and objects, names, and values of a body. A body of 31 MB could have 10 million, which stop all calls for
# seconds while they are read and take 750 MB. For 2 million token ids (12 MB) the faster reader of JSON holds all calls
# up for 0.17 s; no model's context has half of them.
MAX_CONTAINERS = 500_000
MAX_VALUES = 2_000_000
MAX_VALUES_SLOW = 500_000  # of one that the faster reader of JSON does not take
MB = 1024 * 1024
MAX_MODEL_NAME = 256  # characters of a model's name; ours have 100
MAX_SHOWN = 40  # characters of a value that a refusal shows

WHOLE = re.compile(r"[+-]?[0-9]{1,30}(\.0{1,30})?", re.ASCII)
TRUE = frozenset({"true", "t", "yes", "y", "on", "1"})  # as pydantic
FALSE = frozenset({"false", "f", "no", "n", "off", "0"})


def invalid_value(reason: str, name: str, **facts: Any) -> BadRequest:
    """Make the refusal of a member. `name`: of the member; `reason` and `facts` as `errors.Refusal` takes them."""
    return BadRequest(reason, code="invalid_value", param=name, **facts)


def describe_value(value: Any) -> str:
    """Describe what was sent, for a refusal: a number or a short text itself, otherwise its kind and size."""
    if isinstance(value, list | dict):
        return f"{'an array' if isinstance(value, list) else 'an object'} of {len(value):,}"
    text = {True: "true", False: "false"}[value] if isinstance(value, bool) else _describe_scalar(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def _describe_scalar(value: Any) -> str:
    if isinstance(value, int) and value.bit_length() > 1024:  # Python refuses to write the longest
        return f"{'-' if value < 0 else ''}2^{value.bit_length() - 1}…"
    return f'"{value[: MAX_SHOWN + 1]}"' if isinstance(value, str) else str(value)


def integer(least: int, most: int) -> Reader:
    def read(name: str, value: Any) -> int:
        if type(value) is int and least <= value <= most:
            return value
        number = coerce_integer(value)
        if number is None or not least <= number <= most:
            raise invalid_value("out_of_bounds", name, least=f"{least:,}", most=f"{most:,}", sent=describe_value(value))
        return number

    return read


def coerce_integer(value: Any) -> int | None:
    """Return the integer that engines take this for; None if they take it for none."""
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    if isinstance(value, str) and len(value) <= 64 and WHOLE.fullmatch(value.strip()):
        return int(value.strip().partition(".")[0])
    return None


def boolean(name: str, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    text = value.lower() if isinstance(value, str) else str(int(value)) if value in (0, 1) else ""
    if text in TRUE or text in FALSE:
        return text in TRUE
    raise invalid_value("not_boolean", name, sent=describe_value(value))


def text(most: int) -> Reader:
    def read(name: str, value: Any) -> Any:
        if isinstance(value, str) and len(value) > most:
            raise invalid_value("too_long", name, most=f"{most:,}", sent=f"{len(value):,}")
        return value

    return read


def bounded_items(most: int) -> Reader:
    """Return a reader of lists and objects with at most this many members; other values are the engine's to judge."""

    def read(name: str, value: Any) -> Any:
        if isinstance(value, list | dict) and len(value) > most:
            raise invalid_value("too_many", name, most=f"{most:,}", sent=f"{len(value):,}")
        return value

    return read


def inputs(name: str, value: Any) -> Any:
    """Check texts, or texts as lists of token ids; a list of numbers is one text.

    A conversation (Responses) has no such bound.
    """
    return value if are_token_ids(value) or _is_conversation(value) else _input_count(name, value)


_input_count = bounded_items(MAX_INPUTS)


def _is_conversation(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, dict) and ("role" in one or "type" in one) for one in value)


def are_token_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], int)


def stream_options(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadRequest("invalid_value", param=name, detail="object expected")
    asked = value.get("include_usage")
    if asked is None or isinstance(asked, bool):
        return value
    return {**value, "include_usage": boolean("stream_options.include_usage", asked)}


def logprobs(name: str, value: Any) -> Any:
    """Check the member: in chat it says whether, in completions how many."""
    return value if isinstance(value, bool) else _alternatives(name, value)


_alternatives = integer(0, MAX_ALTERNATIVES)


def max_tokens(name: str, value: Any) -> int:
    """Check the tokens of an answer. -1 means no bound (llama.cpp's word, which other servers have adopted)."""
    return -1 if value == -1 else _max_tokens(name, value)


_max_tokens = integer(1, INT32)

# Texts that engines compile (rules of a grammar, a regular expression). llama.cpp dies of 100,000 parentheses in each
# other; 10,000 it survives. What people write has hundreds of characters and a dozen levels.
MAX_GRAMMAR = 32 * 1024
MAX_PATTERN = 4096
MAX_GRAMMAR_DEPTH = 100
# Bytes of a schema, what its lists and objects have in all, and bytes of all tools together. llama.cpp hangs for
# 28 s over a schema of 1,000 properties and for more than 40 s over one of 5,000 permitted values (one slow core).
MAX_SCHEMA = 64 * 1024
MAX_SCHEMA_MEMBERS = 2000
MAX_TOOLS = 1024 * 1024


def grammar(name: str, value: Any) -> Any:
    """Check a grammar (llama.cpp's GBNF, or EBNF)."""
    return _check_brackets(name, _grammar_length(name, value))


def _check_brackets(name: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    depth = deepest = 0
    for bracket in BRACKETS.findall(value):
        depth = depth + 1 if bracket in "([{" else max(0, depth - 1)
        deepest = max(deepest, depth)
    if deepest > MAX_GRAMMAR_DEPTH:
        raise invalid_value("too_nested", name, most=f"{MAX_GRAMMAR_DEPTH:,}", sent=f"{deepest:,}")
    return value


_grammar_length = text(MAX_GRAMMAR)
BRACKETS = re.compile(r"[(\[{)\]}]")


def pattern(name: str, value: Any) -> Any:
    """Check a regular expression."""
    return grammar(name, _pattern_length(name, value))


_pattern_length = text(MAX_PATTERN)


def stop_texts(name: str, value: Any) -> Any:
    """Check texts at which an answer ends."""
    for word in value if isinstance(value, list) else ():
        _stop_text(name, word)
    return _stop_texts(name, _stop_text(name, value))


_stop_texts, _stop_text = bounded_items(64), text(1024)


def bounded_json(most: int, *, members: int) -> Reader:
    """Return a reader of any JSON with these bounds.

    `most` bytes, `members` of all its lists and objects together, and MAX_SCHEMA_DEPTH levels.
    """

    def read(name: str, value: Any) -> Any:
        if isinstance(value, list | dict):
            data = encode_json(value)
            if len(data) > most:
                raise invalid_value("too_long", name, most=f"{most:,}", sent=f"{len(data):,}")
            # A member takes 2 bytes.
            if len(data) > 2 * members and (count := sum(map(len, iterate_containers(value)))) > members:
                raise invalid_value("too_many", name, most=f"{members:,}", sent=f"{count:,}")
            if data.find(b'"pattern') >= 0:
                _check_patterns(name, value)
        return value

    return read


def encode_json(value: Any) -> bytes:
    """Encode as JSON. Raises BadRequest for more than MAX_SCHEMA_DEPTH levels."""
    try:
        return orjson.dumps(value)  # which refuses more levels than these: 0.3 µs for a kilobyte
    except orjson.JSONEncodeError:  # too deep, or with half of a surrogate pair or a number of more than 64 bits
        walk_levels([value], MAX_SCHEMA_DEPTH)
        return json.dumps(value).encode()


def iterate_containers(value: Any) -> Iterator[list[Any] | dict[str, Any]]:
    """Yield all lists and objects within a JSON value."""
    inside = [value]
    while inside:
        inner = inside.pop()
        if isinstance(inner, dict | list):
            yield inner
            inside += inner.values() if isinstance(inner, dict) else inner


def _check_patterns(name: str, value: Any) -> None:
    """Check the regular expressions of schemas."""
    for inner in iterate_containers(value):
        if isinstance(inner, dict):
            pattern(f"{name}…pattern", inner.get("pattern"))
            for expression in inner.get("patternProperties") or ():
                pattern(f"{name}…patternProperties", expression)


schema = bounded_json(MAX_SCHEMA, members=MAX_SCHEMA_MEMBERS)
_tool_count, _tools_size = bounded_items(512), bounded_json(MAX_TOOLS, members=MAX_TOOLS)


def tools(name: str, value: Any) -> Any:
    return _tools_size(name, _tool_count(name, value))


def schema_text(name: str, value: Any) -> Any:
    """Check a schema, or the text of one, which vLLM reads."""
    return schema(name, _check_brackets(name, _schema_length(name, value)))


_schema_length = text(MAX_SCHEMA)


def structured_outputs(name: str, value: Any) -> Any:
    """Check the member `structured_outputs` of vLLM: one of several kinds of rules."""
    if isinstance(value, dict):
        for kind, reader in STRUCTURED.items():
            if value.get(kind) is not None:
                reader(f"{name}.{kind}", value[kind])
    return schema(name, value)


STRUCTURED: Mapping[str, Reader] = {
    "grammar": grammar,
    "regex": pattern,
    "choice": bounded_items(1024),
    "json": schema_text,
    "structural_tag": schema_text,
}


def drop_member(name: str, value: Any) -> None:
    """Drop a member that no client may set: which work an engine does first, in which slot and from whose cache."""


def check_letter_case(name: str, value: Any) -> Any:
    """Refuse a name that differs from a known one only in the case of its letters.

    Engines written in Go or C# take it for the known one, which was not read here.
    """
    if (known := name.casefold()) in READERS:
        raise invalid_value("other_case", name, known=known)
    return value


READERS: Mapping[str, Reader | None] = {
    # None: only engines read them. They are here because most calls have them, and for their names in other letters.
    **dict.fromkeys(("messages", "user", "temperature", "top_p", "tool_choice", "presence_penalty", "seed")),
    **dict.fromkeys(("frequency_penalty", "parallel_tool_calls", "chat_template_kwargs", "encoding_format", "system")),
    "model": text(MAX_MODEL_NAME),
    "stream": boolean,
    "stream_options": stream_options,
    "n": integer(1, MAX_ANSWERS),
    "best_of": integer(1, MAX_ANSWERS),
    "max_tokens": max_tokens,
    "max_completion_tokens": max_tokens,
    "max_output_tokens": max_tokens,
    "n_predict": max_tokens,
    "prompt": inputs,
    "input": inputs,
    "content": inputs,  # llama.cpp's other word for `input`
    "documents": bounded_items(MAX_INPUTS),
    "texts": bounded_items(MAX_INPUTS),  # and for `documents`
    "text_1": inputs,
    "text_2": inputs,
    "top_n": integer(-1, INT32),
    "dimensions": integer(1, INT32),
    "logprobs": logprobs,
    "top_logprobs": _alternatives,
    "prompt_logprobs": _alternatives,
    "n_probs": _alternatives,
    "logprob_token_ids": bounded_items(128),
    "stop": stop_texts,
    "stop_sequences": stop_texts,
    "stop_token_ids": bounded_items(1024),
    "bad_words": bounded_items(1024),
    "logit_bias": bounded_items(1024),
    "tools": tools,
    "functions": tools,
    "grammar": grammar,
    "guided_grammar": grammar,
    "guided_regex": pattern,
    "guided_choice": bounded_items(1024),
    "structured_outputs": structured_outputs,
    **dict.fromkeys(("json_schema", "guided_json"), schema_text),
    **dict.fromkeys(("response_format", "grammar_triggers"), schema),
    **dict.fromkeys(("text", "output_format", "output_config"), schema),  # Responses' and Messages' words for it
    "preserved_tokens": bounded_items(1024),
    "samplers": bounded_items(64),
    "dry_sequence_breakers": stop_texts,
    **dict.fromkeys(("priority", "cache_salt", "cache_prompt", "id_slot", "request_id", "session_id"), drop_member),
    **dict.fromkeys(("kv_transfer_params", "ec_transfer_params"), drop_member),
    "n_cmpl": drop_member,  # llama.cpp's other word for `n`
}
GATEWAY_ONLY = frozenset(name for name, reader in READERS.items() if reader is drop_member)
# Members with a bound of levels of their own.
SCHEMA_MEMBERS = frozenset(
    name for name, reader in READERS.items() if reader in (schema, schema_text, tools, structured_outputs)
)


def read_members(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the members that engines must receive otherwise than they came; None: not at all. Raises BadRequest."""
    typed: dict[str, Any] = {}
    find = READERS.get
    for name, value in fields.items():
        reader = find(name, check_letter_case)
        if reader is None:
            continue
        if reader is drop_member:
            typed[name] = None
        elif (value is not None or reader is check_letter_case) and (known := reader(name, value)) is not value:
            typed[name] = known
    return typed


def may_have_media(body: bytes) -> bool:
    """Return whether `find_media` could find or refuse anything: a short question cannot (saves 1 of 4 µs).

    A name may be written with escapes.
    """
    return (
        len(body) > 4096
        or (len(body) > 2 * MAX_DEPTH and body.count(b"[") + body.count(b"{") > MAX_DEPTH)
        or b"_url" in body
        or b"source" in body
        or b"\\u00" in body
    )


# Keys under which a part of a message has the address of a picture, recording or file: chat's, Responses', Messages'.
MEDIA_KEYS = frozenset({"image_url", "audio_url", "video_url", "file_url", "source"})


def find_media(fields: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the addresses of media in the parts of messages that are not data: the member and its text.

    Tools, schemas and the like are not messages: a tool may have a parameter of such a name. Raises BadRequest for too
    many levels.
    """
    messages = [
        value
        for name, value in fields.items()
        if (type(value) is list or type(value) is dict) and name not in SCHEMA_MEMBERS
    ]
    return [found for part in walk_levels(messages, MAX_DEPTH) for found in _find_media(part)] if messages else []


def _find_media(part: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name in MEDIA_KEYS & part.keys():
        place = part[name]
        place = place.get("url") if isinstance(place, dict) else place
        if isinstance(place, str) and place[:5].lower() != "data:":
            yield name, place


def walk_levels(containers: list[Any], most: int) -> list[Mapping[str, Any]]:
    """Go through these lists and objects and all within them; return the objects that have one of MEDIA_KEYS.

    Raise BadRequest if one of them has more levels than `most`.
    """
    found: list[Mapping[str, Any]] = []
    level: list[Iterable[Any]] = [containers]
    for _ in range(most + 1):
        following: list[Iterable[Any]] = []
        for value in chain.from_iterable(level):
            if type(value) is dict:
                if len(value) == 2 and type(value.get("content")) is type(value.get("role")) is str:
                    continue  # a message of text, as most are
                if not MEDIA_KEYS.isdisjoint(value):
                    found.append(value)
                following.append(value.values())
            elif type(value) is list and (len(value) < LONG_LIST or not SCALARS.issuperset(map(type, value))):
                following.append(value)
        if not following:
            return found
        level = following
    raise BadRequest("too_deep", code="invalid_json", most=most)


NAME_ENDS = re.compile(rb'"[ \t\r\n]*:')
LONG_LIST = 100  # items, from which on a list (of token ids) is checked as a whole
SCALARS = frozenset({str, int, float, bool, type(None)})


def check_density(body: bytes, most: int = MAX_VALUES) -> None:
    """Raise BadRequest for a large body that is made of very many very small values.

    It looks at 64 samples at random places: counting all of it would take as long as reading it.
    """
    samples, length = 64, 4096
    part = len(body) // samples
    starts = [number * part + random.randrange(part - length) for number in range(samples)]  # noqa: S311 - no secret
    seen = b"".join([body[start : start + length] for start in starts])
    scale = len(body) / len(seen)
    containers = (seen.count(b"[") + seen.count(b"{")) * scale
    values, names = seen.count(b",") * scale, len(NAME_ENDS.findall(seen)) * scale
    if containers > MAX_CONTAINERS or names > MAX_CONTAINERS or values > most:
        raise BadRequest("too_many_values", code="invalid_json", most=f"{MAX_CONTAINERS:,}")
