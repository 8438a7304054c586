"""What engines say when they fail or refuse, and what the client receives of it. No I/O.

An engine's own sentence goes on where it is about the request, without addresses and paths; a prompt or an answer that
the context does not hold is reported in the words that clients know, with the numbers. All else is ours or the engine's
fault, and nothing of it goes out.
"""

import re
import zlib
from dataclasses import dataclass
from typing import Any

from apiproxy.dataplane.engine_json import loads
from apiproxy.dataplane.errors import BadRequest, ContextExceeded, EngineBusy, EngineFailed, Refusal
from apiproxy.dataplane.formats.api_formats import MESSAGES
from apiproxy.dataplane.formats.requests import MAX_TOKENS_MEMBERS, Call, Endpoint

CONTEXT = re.compile(
    r"exceed_context_size|context.{0,20}(length|size|window)|maximum model length|max_model_len"
    r"|max_tokens.{0,40}too large|input \(\d+ tokens\) is too large to process",
    re.I,
)
# Where an engine runs and what is on its disk is not shown to clients; what it says about the request is.
PRIVATE = re.compile(
    r"https?://\S+|(?<![\w.])/(?:[\w.@+-]+/)+[\w.@+-]*|Traceback \(most recent call last\)[\s\S]*"
    r"|(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?::\d{1,5})?(?!\w|\.\d)"
    r"|(?<![\w.-])(?:localhost|[a-z][\w-]*(?:\.[\w-]+)+):\d{2,5}\b"
)
# Seconds after which to come back to an engine that is full and does not say when.
BUSY_RETRY = 5
MAX_MESSAGE = 500  # characters of an engine's message that are passed on
# vLLM's front lives on for a second when its engine has died, and reports it to all open calls (seen with 0.32).
DEAD_ENGINE = re.compile(r"EngineCore (encountered|died)|EngineDeadError")
# Words with which llama.cpp (b11549) and llama-cpp-python answer 500 to a faulty request.
REQUEST_FAULTS = re.compile(
    r"^(Failed to parse (messages|tools|input)|(image|audio|video|file) input is not supported|'\w+' is required"
    r"|Unsupported (content|role|message)|Missing '|Expected '|Invalid '|.{0,40}\[json\.exception\."
    r"|input \(\d+ tokens\) is too large to process)"
)
# Bytes; an error object has no other members beside it, so longer bodies are answers.
MAX_ERROR_BODY = 64 * 1024


def reports_dead_engine(error: Any) -> bool:
    """Return whether an engine's error (its body, or the object of a stream's event) means that the engine is dead."""
    text = error.decode(errors="replace") if isinstance(error, bytes) else str(error)
    return bool(error) and DEAD_ENGINE.search(text) is not None


def make_refusal(status: int, body: bytes, call: Call, endpoint: Endpoint, *, retry_after: str = "") -> Refusal:
    """Make the client's refusal from an engine's error.

    4xx other than 401, 403, 404 and 429 are about the request. By 429 and 503 an engine says that it takes no more now,
    and perhaps (`retry_after`, its header) until when.
    """
    if status in (429, 503):
        seconds = int(retry_after) if retry_after.isdecimal() and len(retry_after) < 6 else BUSY_RETRY
        return EngineBusy(status, {"retry-after": str(seconds)})
    if status in (404, 405, 501) and not endpoint.universal:
        return BadRequest("path_not_supported", param="model", model=call.model, path=endpoint.path)
    error = parse_error(body)
    text = PRIVATE.sub("…", str(error.get("message") or ""))[:MAX_MESSAGE]
    if not (400 <= status < 500 and status not in (401, 403, 404, 408)) and not (
        status == 500 and REQUEST_FAULTS.match(text)
    ):
        return EngineFailed()
    if CONTEXT.search(f"{error.get('type')} {text}"):
        return context_exceeded(read_token_counts(error, text, call), endpoint, text)
    param = error.get("param")
    return BadRequest(
        "engine_refused",
        code="invalid_value",
        param=param if isinstance(param, str) else None,
        detail=text or f"HTTP {status}",
    )


def check_answer(body: bytes, content_type: bytes, call: Call, endpoint: Endpoint) -> None:
    """Raise Refusal for a 200 that is no answer: a page of a proxy, nothing at all, or an error."""
    if endpoint.costs == "sound" and not content_type.startswith(b"text/html"):
        return  # a transcript may be plain text
    if body.lstrip()[:1] not in (b"{", b"["):
        raise EngineFailed
    if len(body) > MAX_ERROR_BODY or b'"error"' not in body:
        return
    try:
        answer = loads(body)
    except ValueError:
        return
    error = answer.get("error") if isinstance(answer, dict) else None
    if error:
        code = error.get("code") if isinstance(error, dict) else None
        raise make_refusal(code if isinstance(code, int) and 400 <= code < 600 else 500, body, call, endpoint)


def decompress(body: bytes, encoding: bytes, most: int) -> bytes:
    """Return an answer in an encoding that was not asked for, decompressed. Raises Refusal."""
    if encoding in (b"", b"identity"):
        return body
    if encoding not in (b"gzip", b"x-gzip", b"deflate"):
        raise EngineFailed
    try:
        decompressor = zlib.decompressobj(zlib.MAX_WBITS | 32)
        found = decompressor.decompress(body, most)
    except zlib.error as error:
        raise EngineFailed from error
    if decompressor.unconsumed_tail:
        raise BadRequest("answer_too_large", limit=most // 2**20)
    return found


def parse_error(body: bytes) -> dict[str, Any]:
    """Return the error object of an answer, whichever shape the engine gives it."""
    try:
        answer = loads(body)
    except ValueError:
        return {"message": body.decode(errors="replace")}
    error = answer.get("error", answer.get("detail", answer)) if isinstance(answer, dict) else answer
    return error if isinstance(error, dict) else {"message": error}


# --- the context


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCounts:
    """Tokens, as far as they are known: what the context holds, what the prompt has, what the answer may have."""

    limit: int | None
    prompt: int | None
    answer: int | None


# Patterns for vLLM (0.6 to 0.32), llama.cpp, OpenAI and other servers behind us.
LIMIT = re.compile(
    r"(?:maximum (?:context|model) length (?:is|of)|max_model_len\D{0,12}|context size \(|context length(?: is)?"
    r"|current batch size:)"
    r"\s*(\d+)",
    re.I,
)
PROMPT = re.compile(
    r"(?:prompt contains|request has|contains)(?: at least)? (\d+) (?:input )?tokens|\((\d+) in the (?:messages|prompt)"
    r"|prompt \(length (\d+)\)|(?:request|input) \((\d+) tokens\)",
    re.I,
)
ANSWER = re.compile(
    r"requested (\d+) output tokens|(\d+) in the completion|max(?:_completion|_output)?_tokens=(\d+)|too large: (\d+)",
    re.I,
)


def read_token_counts(error: dict[str, Any], text: str, call: Call) -> TokenCounts:
    requested = next((value for name in MAX_TOKENS_MEMBERS if (value := call.value(name) or 0) > 0), None)
    prompt, limit = _positive_int(error.get("n_prompt_tokens")), _positive_int(error.get("n_ctx"))
    return TokenCounts(
        limit=limit or _search_number(LIMIT, text),
        prompt=prompt or _search_number(PROMPT, text),
        answer=_search_number(ANSWER, text) or requested,
    )


def context_exceeded(found: TokenCounts, endpoint: Endpoint, text: str) -> ContextExceeded:
    """Make the refusal in the words that clients look for: OpenAI's, or Anthropic's on its path."""
    limit, prompt, answer = found.limit, found.prompt, found.answer
    anthropic = "anthropic_" if endpoint.api_format is MESSAGES else ""
    code = "context_length_exceeded"
    if limit is not None and prompt is not None and (prompt >= limit or not answer):
        name = "input_too_long" if endpoint.costs == "prompt" else f"{anthropic}prompt_too_long"
        return ContextExceeded(name, code=code, param=endpoint.prompt_name, limit=limit, prompt=prompt)
    if limit is not None and prompt is not None and answer:
        name, total = f"{anthropic}answer_too_long", prompt + answer
        return ContextExceeded(
            name, code=code, param="max_tokens", limit=limit, prompt=prompt, answer=answer, total=total
        )
    if limit is not None and answer is not None and answer > limit:
        return ContextExceeded("answer_over_context", code=code, param="max_tokens", limit=limit, answer=answer)
    return ContextExceeded(code, param=endpoint.prompt_name, detail=text)


def _search_number(pattern: re.Pattern[str], text: str) -> int | None:
    match = pattern.search(text)
    return int(next(group for group in match.groups() if group)[:9]) if match else None


def _positive_int(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31 else None
