"""The one door for values of a request body: each member that anything here or an engine counts with is read here.

A reader gives the value as engines must be told it, or refuses the call and names the member, the bound and what was
sent. What engines coerce is coerced as they do it (vLLM's pydantic takes "5", 5.0 and true for 5; "true" and 1 for
true) and sent on typed, because another engine reads the same text otherwise: llama.cpp refuses "5" and takes 5.7 for
5 and 4294967301 for 5. No I/O. Behind this door no code needs to fear a value.
"""

import json
import random
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import orjson

from apiproxy.dataplane.errors import BadRequest

Reader = Callable[[str, Any], Any]

# What llama.cpp keeps such numbers in: it takes 2**32 + 5 for 5.
INT32 = 2**31 - 1
# Answers to a prompt: OpenAI's bound of `n`. Prompts, or inputs, of a call: OpenAI's bound of an embedding's `input`
# (20,000 of them hold a model for a minute). Answers of a call in all: each may be as long as the model's context.
MOST_ANSWERS = 128
MOST_INPUTS = 2048
# Tokens of one answer with its prompt where nobody has said the model's context: that of the longest in common use.
LONGEST = 2**20
# Alternatives to each token: OpenAI's bound, and vLLM's default. llama.cpp takes 1,000,000: 4.5 MB for each token.
MOST_ALTERNATIVES = 20
# Levels of lists and objects in each other, and in a schema or a tool. Python's own reader and writer of JSON end at
# about 1,000.
DEEPEST = 100
DEEPEST_SCHEMA = 254
# Lists and objects, names, and values of a body. Of a body of 31 MB they could be 10 million, which stop everybody for
# seconds while they are read and take 750 MB. Of 2 million token ids (12 MB) the faster reader of JSON holds everybody
# up for 0.17 s; no model's context has half of them.
MOST_CONTAINERS = 500_000
MOST_VALUES = 2_000_000
MOST_VALUES_EXACTLY = 500_000  # of one that the faster reader of JSON does not take
MB = 1024 * 1024
LONGEST_NAME = 256  # characters of a model's name; ours have 100
SENT = 40  # characters of a value that a refusal shows

WHOLE = re.compile(r"[+-]?[0-9]{1,30}(\.0{1,30})?", re.ASCII)
TRUE = frozenset({"true", "t", "yes", "y", "on", "1"})  # as pydantic
FALSE = frozenset({"false", "f", "no", "n", "off", "0"})


def invalid(reason: str, name: str, **facts: Any) -> BadRequest:
    """`name`: of the member; `reason` and `facts` as `errors.Refusal` takes them."""
    return BadRequest(reason, code="invalid_value", param=name, **facts)


def shown(value: Any) -> str:
    """What was sent, for a refusal: a number or a short text itself, else its kind and size."""
    if isinstance(value, list | dict):
        return f"{'an array' if isinstance(value, list) else 'an object'} of {len(value):,}"
    text = {True: "true", False: "false"}[value] if isinstance(value, bool) else _digits(value)
    return text if len(text) <= SENT else f"{text[:SENT]}…"


def _digits(value: Any) -> str:
    if isinstance(value, int) and value.bit_length() > 1024:  # Python refuses to write the longest
        return f"{'-' if value < 0 else ''}2^{value.bit_length() - 1}…"
    return f'"{value[: SENT + 1]}"' if isinstance(value, str) else str(value)


def integer(least: int, most: int) -> Reader:
    def read(name: str, value: Any) -> int:
        if type(value) is int and least <= value <= most:
            return value
        number = whole(value)
        if number is None or not least <= number <= most:
            raise invalid("out_of_bounds", name, least=f"{least:,}", most=f"{most:,}", sent=shown(value))
        return number

    return read


def whole(value: Any) -> int | None:
    """Return the whole number that engines take this for."""
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
    raise invalid("not_boolean", name, sent=shown(value))


def text(most: int) -> Reader:
    def read(name: str, value: Any) -> Any:
        if isinstance(value, str) and len(value) > most:
            raise invalid("too_long", name, most=f"{most:,}", sent=f"{len(value):,}")
        return value

    return read


def items(most: int) -> Reader:
    """List and objects of so many members; what is neither is the engine's to judge."""

    def read(name: str, value: Any) -> Any:
        if isinstance(value, list | dict) and len(value) > most:
            raise invalid("too_many", name, most=f"{most:,}", sent=f"{len(value):,}")
        return value

    return read


def inputs(name: str, value: Any) -> Any:
    """Texts, or texts as lists of token ids; a list of numbers is one. A conversation (Responses) has no such bound."""
    return value if token_ids(value) or _conversation(value) else _several(name, value)


_several = items(MOST_INPUTS)


def _conversation(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, dict) and ("role" in one or "type" in one) for one in value)


def token_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], int)


def stream_options(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadRequest("invalid_value", param=name, detail="object expected")
    asked = value.get("include_usage")
    if asked is None or isinstance(asked, bool):
        return value
    return {**value, "include_usage": boolean("stream_options.include_usage", asked)}


def logprobs(name: str, value: Any) -> Any:
    """Whether, in chat; how many, in completions."""
    return value if isinstance(value, bool) else _alternatives(name, value)


_alternatives = integer(0, MOST_ALTERNATIVES)


def bound(name: str, value: Any) -> int:
    """Return tokens of an answer. -1 says that there is no bound (llama.cpp's word, which others have learnt)."""
    return -1 if value == -1 else _bound(name, value)


_bound = integer(1, INT32)

# Texts that engines compile (rules of a grammar, a regular expression). llama.cpp dies of 100,000 parentheses in each
# other; 10,000 it bears. What people write has hundreds of characters and a dozen levels.
LONGEST_RULES = 32 * 1024
LONGEST_PATTERN = 4096
DEEPEST_RULES = 100
# Bytes of a schema, what its lists and objects have in all, and bytes of all tools together. llama.cpp stands still for
# 28 s over a schema of 1,000 properties and for more than 40 s over one of 5,000 permitted values (one slow core).
MOST_SCHEMA = 64 * 1024
MOST_MEMBERS = 2000
MOST_TOOLS = 1024 * 1024


def rules(name: str, value: Any) -> Any:
    """Return a grammar (llama.cpp's GBNF, or EBNF)."""
    return _check_brackets(name, _rules_length(name, value))


def _check_brackets(name: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    depth = deepest = 0
    for bracket in BRACKETS.findall(value):
        depth = depth + 1 if bracket in "([{" else max(0, depth - 1)
        deepest = max(deepest, depth)
    if deepest > DEEPEST_RULES:
        raise invalid("too_nested", name, most=f"{DEEPEST_RULES:,}", sent=f"{deepest:,}")
    return value


_rules_length = text(LONGEST_RULES)
BRACKETS = re.compile(r"[(\[{)\]}]")


def pattern(name: str, value: Any) -> Any:
    """Return a regular expression."""
    return rules(name, _pattern_length(name, value))


_pattern_length = text(LONGEST_PATTERN)


def words(name: str, value: Any) -> Any:
    """Return texts at which an answer ends."""
    for word in value if isinstance(value, list) else ():
        _word(name, word)
    return _words(name, _word(name, value))


_words, _word = items(64), text(1024)


def sized(most: int, *, members: int) -> Reader:
    """What may be any JSON: so many bytes, members of all its lists and objects, and DEEPEST_SCHEMA levels."""

    def read(name: str, value: Any) -> Any:
        if isinstance(value, list | dict):
            data = encoded(value)
            if len(data) > most:
                raise invalid("too_long", name, most=f"{most:,}", sent=f"{len(data):,}")
            # A member takes 2 bytes.
            if len(data) > 2 * members and (count := sum(map(len, containers(value)))) > members:
                raise invalid("too_many", name, most=f"{members:,}", sent=f"{count:,}")
            if data.find(b'"pattern') >= 0:
                _check_patterns(name, value)
        return value

    return read


def encoded(value: Any) -> bytes:
    """As JSON. Raises BadRequest for more than DEEPEST_SCHEMA levels."""
    try:
        return orjson.dumps(value)  # which refuses more levels than these: 0.3 µs for a kilobyte
    except orjson.JSONEncodeError:  # too deep, or with half of a surrogate pair or a number of more than 64 bits
        levels([value], DEEPEST_SCHEMA)
        return json.dumps(value).encode()


def containers(value: Any) -> Iterator[list[Any] | dict[str, Any]]:
    """Yield all lists and objects of any JSON."""
    inside = [value]
    while inside:
        inner = inside.pop()
        if isinstance(inner, dict | list):
            yield inner
            inside += inner.values() if isinstance(inner, dict) else inner


def _check_patterns(name: str, value: Any) -> None:
    """The regular expressions of schemas."""
    for inner in containers(value):
        if isinstance(inner, dict):
            pattern(f"{name}…pattern", inner.get("pattern"))
            for expression in inner.get("patternProperties") or ():
                pattern(f"{name}…patternProperties", expression)


schema = sized(MOST_SCHEMA, members=MOST_MEMBERS)
_tools, _tools_size = items(512), sized(MOST_TOOLS, members=MOST_TOOLS)


def tools(name: str, value: Any) -> Any:
    return _tools_size(name, _tools(name, value))


def schema_text(name: str, value: Any) -> Any:
    """Return a schema, or the text of one, which vLLM reads."""
    return schema(name, _check_brackets(name, _schema_length(name, value)))


_schema_length = text(MOST_SCHEMA)


def structured(name: str, value: Any) -> Any:
    """vLLM's `structured_outputs`: one of several kinds of rules."""
    if isinstance(value, dict):
        for kind, reader in STRUCTURED.items():
            if value.get(kind) is not None:
                reader(f"{name}.{kind}", value[kind])
    return schema(name, value)


STRUCTURED: Mapping[str, Reader] = {
    "grammar": rules,
    "regex": pattern,
    "choice": items(1024),
    "json": schema_text,
    "structural_tag": schema_text,
}


def ours(name: str, value: Any) -> None:
    """Not for a client to say: which work an engine does first, in which slot and from whose cache."""


def unknown(name: str, value: Any) -> Any:
    """Return engines written in Go or C# take a name in other letters for that which they know.

    Here it was not read.
    """
    if (known := name.casefold()) in READERS:
        raise invalid("other_case", name, known=known)
    return value


READERS: Mapping[str, Reader | None] = {
    # None: for engines alone. They are here because they come with most calls, and for their names in other letters.
    **dict.fromkeys(("messages", "user", "temperature", "top_p", "tool_choice", "presence_penalty", "seed")),
    **dict.fromkeys(("frequency_penalty", "parallel_tool_calls", "chat_template_kwargs", "encoding_format", "system")),
    "model": text(LONGEST_NAME),
    "stream": boolean,
    "stream_options": stream_options,
    "n": integer(1, MOST_ANSWERS),
    "best_of": integer(1, MOST_ANSWERS),
    "max_tokens": bound,
    "max_completion_tokens": bound,
    "max_output_tokens": bound,
    "n_predict": bound,
    "prompt": inputs,
    "input": inputs,
    "content": inputs,  # llama.cpp's other word for `input`
    "documents": items(MOST_INPUTS),
    "texts": items(MOST_INPUTS),  # and for `documents`
    "text_1": inputs,
    "text_2": inputs,
    "top_n": integer(-1, INT32),
    "dimensions": integer(1, INT32),
    "logprobs": logprobs,
    "top_logprobs": _alternatives,
    "prompt_logprobs": _alternatives,
    "n_probs": _alternatives,
    "logprob_token_ids": items(128),
    "stop": words,
    "stop_sequences": words,
    "stop_token_ids": items(1024),
    "bad_words": items(1024),
    "logit_bias": items(1024),
    "tools": tools,
    "functions": tools,
    "grammar": rules,
    "guided_grammar": rules,
    "guided_regex": pattern,
    "guided_choice": items(1024),
    "structured_outputs": structured,
    **dict.fromkeys(("json_schema", "guided_json"), schema_text),
    **dict.fromkeys(("response_format", "grammar_triggers"), schema),
    **dict.fromkeys(("text", "output_format", "output_config"), schema),  # Responses' and Messages' words for it
    "preserved_tokens": items(1024),
    "samplers": items(64),
    "dry_sequence_breakers": words,
    **dict.fromkeys(("priority", "cache_salt", "cache_prompt", "id_slot", "request_id", "session_id"), ours),
    **dict.fromkeys(("kv_transfer_params", "ec_transfer_params"), ours),
    "n_cmpl": ours,  # llama.cpp's other word for `n`
}
OURS = frozenset(name for name, reader in READERS.items() if reader is ours)
# What has its own bound of levels.
SCHEMAS = frozenset(name for name, reader in READERS.items() if reader in (schema, schema_text, tools, structured))


def read(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the members that engines must be told otherwise than they came; None: not at all. Raises BadRequest."""
    typed: dict[str, Any] = {}
    find = READERS.get
    for name, value in fields.items():
        reader = find(name, unknown)
        if reader is None:
            continue
        if reader is ours:
            typed[name] = None
        elif (value is not None or reader is unknown) and (known := reader(name, value)) is not value:
            typed[name] = known
    return typed


def may_have_places(body: bytes) -> bool:
    """Return whether `places` has anything to find or to refuse: in a short question it has not (1 of 4 µs).

    A name may be written with escapes.
    """
    return (
        len(body) > 4096
        or (len(body) > 2 * DEEPEST and body.count(b"[") + body.count(b"{") > DEEPEST)
        or b"_url" in body
        or b"source" in body
        or b"\\u00" in body
    )


# Keys under which a part of a message says where a picture, a recording or a file is: chat's, Responses', Messages'.
PLACES = frozenset({"image_url", "audio_url", "video_url", "file_url", "source"})


def places(fields: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Where the parts of messages say that media are, if these are not in them: the member and its text.

    Tools, schemas and the like are no messages: a tool may have a parameter of such a name. Raises BadRequest for too
    many levels.
    """
    messages = [
        value for name, value in fields.items() if (type(value) is list or type(value) is dict) and name not in SCHEMAS
    ]
    return [found for part in levels(messages, DEEPEST) for found in _places(part)] if messages else []


def _places(part: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name in PLACES & part.keys():
        place = part[name]
        place = place.get("url") if isinstance(place, dict) else place
        if isinstance(place, str) and place[:5].lower() != "data:":
            yield name, place


def levels(level: list[Any], most: int) -> list[Mapping[str, Any]]:
    """Go through these lists and objects and all within them; gives the objects that have one of PLACES.

    Raises BadRequest if one of them has more levels than `most`.
    """
    found: list[Mapping[str, Any]] = []
    for _ in range(most):
        following: list[Any] = []
        for outer in level:
            if type(outer) is dict:
                if len(outer) == 2 and type(outer.get("content")) is type(outer.get("role")) is str:
                    continue  # a message of text, as most are
                if not PLACES.isdisjoint(outer):
                    found.append(outer)
                for inner in outer.values():
                    if type(inner) is list or type(inner) is dict:
                        following.append(inner)
            elif len(outer) < MANY or not SCALARS.issuperset(map(type, outer)):
                for inner in outer:
                    if type(inner) is dict or type(inner) is list:
                        following.append(inner)
        if not following:
            return found
        level = following
    raise BadRequest("too_deep", code="invalid_json", most=most)


NAME_ENDS = re.compile(rb'"[ \t\r\n]*:')
MANY = 100  # token ids, of which nobody need look at each
SCALARS = frozenset({str, int, float, bool, type(None)})


def check_density(body: bytes, most: int = MOST_VALUES) -> None:
    """Raise BadRequest for a large body that is made of very many very small values.

    By 64 samples at places that nobody can foresee: counting all of it would take as long as reading it.
    """
    samples, length = 64, 4096
    part = len(body) // samples
    starts = [number * part + random.randrange(part - length) for number in range(samples)]  # noqa: S311 - no secret
    seen = b"".join([body[start : start + length] for start in starts])
    scale = len(body) / len(seen)
    containers = (seen.count(b"[") + seen.count(b"{")) * scale
    values, names = seen.count(b",") * scale, len(NAME_ENDS.findall(seen)) * scale
    if containers > MOST_CONTAINERS or names > MOST_CONTAINERS or values > most:
        raise BadRequest("too_many_values", code="invalid_json", most=f"{MOST_CONTAINERS:,}")
