"""The one door for values of a request body: each member that anything here or an engine counts with is read here.

A reader gives the value as engines must be told it, or refuses the call and names the member, the bound and what was
sent. What engines coerce is coerced as they do it (vLLM's pydantic takes "5", 5.0 and true for 5; "true" and 1 for
true) and sent on typed, because another engine reads the same text otherwise: llama.cpp refuses "5" and takes 5.7 for
5 and 4294967301 for 5. No I/O. Behind this door no code needs to fear a value.
"""

import random
import re
from collections.abc import Callable, Mapping
from typing import Any

from apiproxy.errors import BadRequest

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
# Levels of lists and objects in each other. Python's own reader and writer of JSON end at about 1,000.
DEEPEST = 100
# Lists and objects, names, and values of a body. Of a body of 31 MB they could be 10 million, which stop everybody for
# seconds while they are read and take 750 MB. Token ids of 31 MB are 5 million values.
MOST_CONTAINERS = 500_000
MOST_VALUES = 6_000_000
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
    """The whole number that engines take this for."""
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
    """Lists and objects of so many members; what is neither is the engine's to judge."""

    def read(name: str, value: Any) -> Any:
        if isinstance(value, list | dict) and len(value) > most:
            raise invalid("too_many", name, most=f"{most:,}", sent=f"{len(value):,}")
        return value

    return read


def inputs(name: str, value: Any) -> Any:
    """Texts, or texts as lists of token ids; a list of numbers is one."""
    return value if token_ids(value) else _several(name, value)


_several = items(MOST_INPUTS)


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
    """Tokens of an answer. -1 says that there is no bound (llama.cpp's word, which others have learnt)."""
    return -1 if value == -1 else _bound(name, value)


_bound = integer(1, INT32)

READERS: Mapping[str, Reader] = {
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
}


def read(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The members that engines must be told otherwise than they came. Raises BadRequest."""
    typed: dict[str, Any] = {}
    find = READERS.get
    for name, value in fields.items():
        reader = find(name)
        if reader is not None and value is not None and (known := reader(name, value)) is not value:
            typed[name] = known
    return typed


def shallow(value: Any) -> bool:
    """Whether lists and objects are within each other DEEPEST times at most."""
    level = [value]
    for _ in range(DEEPEST):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if type(outer) is dict else outer)
            if type(inner) is dict or type(inner) is list
        ]
        if not level:
            return True
    return False


def check_density(body: bytes) -> None:
    """Raises BadRequest for a large body that is made of very many very small values.

    By 64 samples at places that nobody can foresee: counting all of it would take as long as reading it.
    """
    samples, length = 64, 4096
    part = len(body) // samples
    starts = [number * part + random.randrange(part - length) for number in range(samples)]  # noqa: S311 - no secret
    seen = b"".join([body[start : start + length] for start in starts])
    scale = len(body) / len(seen)
    containers = (seen.count(b"[") + seen.count(b"{")) * scale
    values, names = seen.count(b",") * scale, seen.count(b'":') * scale
    if containers > MOST_CONTAINERS or names > MOST_CONTAINERS or values > MOST_VALUES:
        raise BadRequest("too_many_values", code="invalid_json", most=f"{MOST_CONTAINERS:,}")
