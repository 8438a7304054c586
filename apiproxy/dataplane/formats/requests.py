"""The paths of `/v1` and the few fields of their bodies that the gateway reads or changes. No I/O."""

import codecs
import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import orjson

from apiproxy.dataplane import validation
from apiproxy.dataplane.catalogue import Model
from apiproxy.dataplane.engine_json import loads
from apiproxy.dataplane.errors import BadRequest
from apiproxy.dataplane.formats import transcription
from apiproxy.dataplane.formats.api_formats import CHAT, MESSAGES, RESPONSES, TRANSCRIPTS, ApiFormat, encode_json
from apiproxy.dataplane.json_faults import describe_json_fault
from apiproxy.dataplane.memory_budget import SMALL as SMALL_SHARE
from apiproxy.dataplane.memory_budget import BudgetShare
from apiproxy.dataplane.routes import RERANKERS
from apiproxy.dataplane.token_usage import MAX_TOKEN_COUNT, Tokens, read_tokens

# A prompt's length before the engine has counted it. Qwen, Llama and Gemma tokenizers give 3 to 4.5 characters per
# token for English and about 1.5 for Japanese, which is 3 bytes a character in UTF-8: 3 bytes per token errs upwards.
BYTES_PER_TOKEN = 3
# The priority of a batch key's call at vLLM, which takes waiting requests in this order, the lowest first; all others
# have 0. A client's own `priority` is ignored: every client would choose to be first.
BATCH_PRIORITY = 1
# The members by which engines bound an answer. Which one wins differs: llama.cpp takes `n_predict` before all others.
MAX_TOKENS_MEMBERS = ("max_completion_tokens", "max_tokens", "max_output_tokens", "n_predict")
ANSWER_COUNTS = ("n", "best_of")
IDENTITY_BYTES = 8 * 1024  # bytes of each end by which a large body is known
SAMPLE = 4096  # bytes before and after a wrong one by which an encoding is guessed
MAX_END_USER = 64  # characters of the body's "user" that are kept


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A path whose calls are passed on to engines."""

    path: str
    tasks: frozenset[str]  # what a model must be for
    costs: Literal["prompt and answer", "prompt", "nothing", "sound"]  # what a call can use up; "sound": an upload
    streams: bool = False  # takes `stream`
    universal: bool = False  # every engine of such a model has this path; for others it may answer that it does not
    takes_priority: bool = False  # engines that sort waiting calls know its `priority`
    api_format: ApiFormat = CHAT
    bound_names: tuple[str, ...] = ("max_tokens",)  # its members for the most tokens of an answer, the first wins
    prompt_name: str = "messages"  # its member for what the model reads
    several_answers: bool = False  # has a member for several answers
    short_default: bool = False  # without a bound, vLLM's answers have 16 tokens, as OpenAI's description says


TEXT = frozenset({"chat"})
VECTORS = frozenset({"embedding"})
# vLLM ranks with embedding models as well, by the distance of their vectors.
RANKING = frozenset({"rerank", "embedding"})
# A chat model that can hear transcribes as well; llama.cpp knows no others.
HEARING = frozenset({"transcription", "chat"})

ENDPOINTS = {
    endpoint.path: endpoint
    for endpoint in (
        Endpoint(
            *("/v1/chat/completions", TEXT, "prompt and answer"),
            streams=True,
            universal=True,
            takes_priority=True,
            bound_names=("max_completion_tokens", "max_tokens"),
            several_answers=True,
        ),
        Endpoint(
            *("/v1/completions", TEXT, "prompt and answer"),
            streams=True,
            universal=True,
            takes_priority=True,
            prompt_name="prompt",
            several_answers=True,
            short_default=True,
        ),
        Endpoint(
            *("/v1/responses", TEXT, "prompt and answer"),
            streams=True,
            takes_priority=True,
            api_format=RESPONSES,
            bound_names=("max_output_tokens",),
            prompt_name="input",
        ),
        Endpoint("/v1/messages", TEXT, "prompt and answer", streams=True, api_format=MESSAGES),
        Endpoint("/v1/messages/count_tokens", TEXT, "nothing", api_format=MESSAGES),
        Endpoint("/v1/embeddings", VECTORS, "prompt", universal=True, prompt_name="input"),
        Endpoint("/v1/rerank", RANKING, "prompt", prompt_name="documents"),
        Endpoint("/v1/score", RANKING, "prompt", prompt_name="text_2"),
        *(
            Endpoint(path, HEARING, "sound", streams=True, api_format=TRANSCRIPTS, prompt_name="file")
            for path in ("/v1/audio/transcriptions", "/v1/audio/translations")
        ),
    )
}
ENDPOINTS |= dict.fromkeys(RERANKERS, ENDPOINTS["/v1/rerank"])  # requests and answers are the same


# Values that are read again after `Call.drop_values`.
READ_AGAIN = frozenset({"stream_options", "cache_salt"})


@dataclass(slots=True)
class Call:
    """What the gateway needs to know of a request body, with every number within its bounds (`validation`)."""

    body: bytes
    fields: dict[str, Any]  # the members of the body
    model: str  # as the client wrote it
    stream: bool
    asks_usage: bool  # of a stream: the client wants the usage chunk
    end_user: str  # the person that the client names, see `clean_end_user`
    n: int = 1  # answers to each prompt
    prompts: int = 1
    # Members that engines would read otherwise than we do, as we read them; None: not sent.
    coerced: Mapping[str, Any] = field(default_factory=dict)
    # Tokens of an answer (-1: any), by which of MAX_TOKENS_MEMBERS.
    max_tokens: Mapping[str, int] = field(default_factory=dict)
    media: Sequence[tuple[str, str]] = ()  # where its pictures and recordings are, with the member that says so
    share: BudgetShare | None = None  # its part of the memory budget, mostly for its body
    size: int = field(init=False)  # bytes of the body
    answers: int = field(init=False)  # to all prompts

    def __post_init__(self) -> None:
        self.size = len(self.body)
        self.answers = self.n * self.prompts

    def value(self, name: str) -> Any:
        """Return a member as engines receive it."""
        return self.coerced[name] if name in self.coerced else self.fields.get(name)

    @property
    def prompt_estimate(self) -> int:
        return max(1, self.size // BYTES_PER_TOKEN)

    def drop_values(self) -> None:
        """Drop the values that only engines read, once they have been checked.

        They may take ten times the memory of their bytes, which are kept for another attempt.
        """
        if self.size > SMALL_SHARE:
            for name, value in self.fields.items():
                if isinstance(value, list | str | dict) and name not in READ_AGAIN:
                    self.fields[name] = True if value else None  # whether there are tools is asked again

    @property
    def identity(self) -> bytes:
        """What distinguishes the call from others: its body, or for a large one the length and both ends."""
        body = self.body
        if self.size <= SMALL_SHARE or len(body) < self.size:
            return body
        return b"%d %b %b" % (self.size, body[:IDENTITY_BYTES], body[-IDENTITY_BYTES:])

    def forget_body(self) -> None:
        """Free a large body that no engine will be sent again, however long the answer takes."""
        if self.size > SMALL_SHARE:
            self.body = self.identity
            if self.share is not None:
                self.share.give_back(self.share.held - len(self.body))


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestPolicy:
    """The operator's settings for request bodies."""

    # Tokens of an answer whose call has no bound but falls under a limit of tokens. It needs a bound, because what is
    # reserved must be what the engine obeys. 1,024 would cut answers that people wait for; a whole context of 128 K
    # would let eight open calls use up a tenant's million of a day while they run.
    default_answer: int = 8192
    # Domains from which engines may fetch pictures and recordings; empty: from nowhere.
    media_domains: frozenset[str] = frozenset()
    # Key of the salts that keep tenants' prompts apart in engines' caches; empty: all share one cache.
    salt_key: bytes = b""


def requested_max_tokens(call: Call, endpoint: Endpoint) -> int | None:
    """Return the most tokens of each answer that the client asks for.

    A member of another API counts if there is none of this one.
    """
    bounds = call.max_tokens
    if not bounds:
        return None
    for name in endpoint.bound_names:
        if bounds.get(name, -1) > 0:
            return bounds[name]
    return next((most for most in bounds.values() if most > 0), None)


def reserved_answer_tokens(call: Call, endpoint: Endpoint, model: Model, policy: RequestPolicy) -> int:
    """Return the most tokens that are reserved for each answer."""
    return min(requested_max_tokens(call, endpoint) or policy.default_answer, model.context or validation.MAX_CONTEXT)


def max_tokens_members(
    call: Call, endpoint: Endpoint, model: Model, policy: RequestPolicy, *, limited: Callable[[], bool]
) -> dict[str, Any]:
    """Return the members that give the engine the reserved bound, and (None) those that it might obey instead.

    `limited()`: the call falls under a limit of tokens. Without one, an answer whose client gave no bound may continue
    until the context is full, as with any other server.
    """
    if endpoint.costs != "prompt and answer":
        return {}
    # Where the API has no member for it, llama.cpp gives several answers nevertheless, and reports the usage of one.
    members: dict[str, Any] = (
        {} if endpoint.several_answers else {name: None for name in ANSWER_COUNTS if name in call.fields}
    )
    short = endpoint.short_default and model.stops_unary and not model.external
    requested = requested_max_tokens(call, endpoint)
    if requested is None and (short or not limited()):
        return members
    most = min(requested or policy.default_answer, model.context or validation.MAX_CONTEXT)
    if (
        call.max_tokens == {"max_tokens": most}
        and "max_tokens" in endpoint.bound_names
        and "max_tokens" not in call.coerced
    ):
        return members  # as nearly always
    sent = [name for name in endpoint.bound_names if name in call.max_tokens] or [endpoint.bound_names[0]]
    if not model.stops_unary and "max_tokens" in endpoint.bound_names:
        sent.append("max_tokens")  # llama-cpp-python knows no other
    for name in MAX_TOKENS_MEMBERS:
        wanted, came = most if name in sent else None, call.fields.get(name)
        if wanted != came or type(wanted) is not type(came):
            members[name] = wanted
    return members


def cache_members(call: Call, model: Model, policy: RequestPolicy, tenant: int) -> dict[str, Any]:
    """Return the members that keep a tenant away from what others' prompts have left in an engine's cache.

    Otherwise a caller who guesses a beginning learns how much of it was right: from `cached_tokens`, and from the time
    to the first token. vLLM's cache is salted; a client's own salt divides its tenant's further. llama.cpp has one
    cache for all, so only a model of one tenant may use it (it ignores this member on /v1/messages, so it is started
    that way as well). About engines that others run we know nothing.
    """
    if model.external or not policy.salt_key:
        return {}
    if not model.stops_unary:  # llama.cpp
        return {"cache_prompt": model.has_one_tenant}
    own = call.fields.get("cache_salt")
    if isinstance(own, str):
        return {"cache_salt": digest(f"{tenant}:{own}", policy.salt_key)}
    return {"cache_salt": tenant_salt(tenant, policy.salt_key)}


@lru_cache(maxsize=4096)
def tenant_salt(tenant: int, key: bytes) -> str:
    return digest(f"{tenant}", key)


def digest(text: str, key: bytes) -> str:
    return hashlib.blake2b(text.encode(errors="replace"), key=key, digest_size=20).hexdigest()


def estimate_tokens(call: Call, endpoint: Endpoint, model: Model, policy: RequestPolicy) -> int:
    """Return the most tokens that this call can be expected to use."""
    if endpoint.costs == "nothing":
        return 0
    prompt = call.prompt_estimate
    if endpoint.costs != "prompt and answer":
        return min(prompt, MAX_TOKEN_COUNT)
    answers = reserved_answer_tokens(call, endpoint, model, policy) * call.answers
    return min(prompt + answers, (model.context or validation.MAX_CONTEXT) * call.answers)


def max_usage(call: Call, endpoint: Endpoint, model: Model) -> int:
    """Return the most tokens that can be right, whatever an engine says.

    The context of servers that others run is not known for certain, and an answer of Responses may have several rounds,
    each with a full context.
    """
    if endpoint.costs != "prompt and answer":
        return MAX_TOKEN_COUNT
    known = None if model.external or endpoint.api_format is RESPONSES else model.context
    return min((known or validation.MAX_CONTEXT) * call.answers, MAX_TOKEN_COUNT)


def max_generated(call: Call, endpoint: Endpoint, model: Model) -> int:
    """Return the most tokens that all answers to the call together can have."""
    if endpoint.costs == "sound":
        return transcription.max_spoken_tokens(call.prompt_estimate)
    if endpoint.costs != "prompt and answer":
        return 0
    most = model.context or validation.MAX_CONTEXT
    return min(requested_max_tokens(call, endpoint) or most, most) * call.answers


def parse(body: bytes) -> Call:
    """Read a request body. Raise BadRequest. Members that are not known here are left to the engine."""
    if len(body) > validation.MB:
        validation.check_density(body)
    fields = decode_json(body)
    if not isinstance(fields, dict):
        raise BadRequest("not_an_object", code="invalid_json")
    model = fields.get("model")
    if not isinstance(model, str) or not model:
        raise BadRequest("missing_model", code="invalid_value", param="model")
    media = validation.find_media(fields) if validation.may_have_media(body) else []
    coerced = validation.read_members(fields)
    known = {**fields, **coerced} if coerced else fields
    options, user = known.get("stream_options"), fields.get("user")
    call = Call(
        body=body,
        fields=fields,
        model=model,
        stream=known.get("stream") is True,
        asks_usage=bool(options and options.get("include_usage")),
        end_user="" if user is None else clean_end_user(user),
        n=max(known.get("n") or 1, known.get("best_of") or 1) if "n" in known or "best_of" in known else 1,
        prompts=count_prompts(fields["prompt"]) if "prompt" in fields else 1,
        coerced=coerced,
        max_tokens={name: known[name] for name in MAX_TOKENS_MEMBERS if known.get(name) is not None},
        media=media,
    )
    if call.answers > validation.MAX_INPUTS:
        most, sent = f"{validation.MAX_INPUTS:,}", f"{call.answers:,}"
        raise validation.invalid_value("too_many_answers", "n", most=most, sent=sent)
    return call


def count_prompts(prompt: Any) -> int:
    """Return how many prompts there are: a list of numbers is one, its tokens."""
    return len(prompt) if isinstance(prompt, list) and prompt and not validation.are_token_ids(prompt) else 1


def decode_json(body: bytes) -> Any:
    """Decode JSON, however odd. Raise BadRequest.

    orjson takes a fifth of json's time, but refuses half a surrogate pair, NaN and numbers beyond 64 bits.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        if len(body) > validation.MB:  # json takes five times as long
            validation.check_density(body, validation.MAX_VALUES_SLOW)
        return decode_exactly(body)


def decode_exactly(body: bytes) -> Any:
    try:
        # Half of a surrogate pair passes, which is written by clients that cut an emoji in two.
        return json.loads(body.decode("utf-8-sig", "surrogatepass"))
    except UnicodeDecodeError as error:
        raise BadRequest("not_utf8", code="invalid_json", encoding=guess_encoding(body, error.start)) from error
    except (ValueError, RecursionError) as error:
        raise BadRequest("invalid_json", detail=describe_json_fault(error)) from error


def guess_encoding(body: bytes, start: int = 0) -> str:
    """Guess how a body is encoded whose byte at `start` is the first that is not UTF-8's.

    By the text around it: Python's Japanese codecs take 250 ms for 30 MB, and all calls wait.
    """
    if body.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16"
    quote = body.rfind(b'"', max(0, start - SAMPLE), start)  # begins a character in each of these encodings
    begin = quote if quote >= 0 else start
    sample = body[begin : start + SAMPLE]
    for name, codec in (("EUC-JP", "euc_jp"), ("Shift_JIS", "cp932")):
        with contextlib.suppress(UnicodeDecodeError):
            codecs.getincrementaldecoder(codec)().decode(sample, final=start + SAMPLE >= len(body))
            return name
    return "?"


def clean_end_user(user: Any) -> str:
    """Return the part of the name that is stored.

    No database takes a NUL, and UTF-8 has no half of a surrogate pair, which JSON can contain.
    """
    return user[:MAX_END_USER].replace("\0", "").encode(errors="replace").decode() if isinstance(user, str) else ""


def upstream_body(
    call: Call,
    endpoint: Endpoint,
    model: str,
    *,
    force_stream: bool,
    extra: Mapping[str, Any] | None = None,
    re_encode: bool = False,
) -> bytes:
    """Return the body for the engine.

    It is the client's, except for: the model's name there, the request for usage, values that were coerced, and
    `extra`: members to set, or (None) to leave out.

    A member is appended to the bytes where possible, even if the client sent one of that name: of two, our engines take
    the last, as we do. Decoding and encoding a long conversation costs more than all the rest of a call. `force_stream`
    asks for a stream although the client did not. `re_encode`: for an engine that we do not know. It is sent what we
    understood, each member once: of two it might take the first. Numbers of more than 64 bits become the nearest that
    JavaScript knows.
    """
    changes: dict[str, Any] = {**call.coerced, **extra} if extra else dict(call.coerced)
    if (
        endpoint.streams
        and endpoint.api_format.needs_usage_option
        and (force_stream or (call.stream and not call.asks_usage))
    ):
        changes["stream_options"] = {**(call.value("stream_options") or {}), "include_usage": True}
    if force_stream:
        changes["stream"] = True
    if model != call.model:
        changes["model"] = model
    if re_encode:
        return _encode_understood(call, changes)
    if not changes:
        return call.body
    if any(value is None and name in call.fields for name, value in changes.items()):
        return _rewrite(call, changes)
    added = {name: value for name, value in changes.items() if value is not None}
    if not added:
        return call.body
    return b"%b,%b" % (call.body[: call.body.rindex(b"}")], encode_json(added)[1:])


def _encode_understood(call: Call, changes: Mapping[str, Any]) -> bytes:
    """Encode the members as they were understood, with these changes."""
    fields = call.fields if call.size <= SMALL_SHARE else decode_json(call.body)  # a large call's values were dropped
    try:
        return orjson.dumps(merge_members(fields, changes) if changes else fields)
    except orjson.JSONEncodeError:  # half of a surrogate pair, a very long number
        return _rewrite(call, changes)


def _rewrite(call: Call, changes: Mapping[str, Any]) -> bytes:
    if call.size > SMALL_SHARE:
        # Otherwise a body with 5 million numbers would hold up all calls for 2 s. Numbers of more than 64 bits
        # become the nearest that JavaScript knows.
        try:
            return orjson.dumps(merge_members(orjson.loads(call.body), changes))
        except (orjson.JSONDecodeError, orjson.JSONEncodeError):
            pass
    # Read again, because orjson rounds numbers beyond 64 bits. Half of a surrogate pair (an emoji that a client cut) is
    # escaped as it came; UTF-8 cannot hold it.
    kept = merge_members(decode_exactly(call.body), changes)
    return json.dumps(kept, ensure_ascii=False).encode(errors="backslashreplace")


def merge_members(fields: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the members with these changes; those changed to None are left out."""
    kept = {**fields, **changes}
    for name, value in changes.items():
        if value is None:
            del kept[name]
    return kept


# Up to this size the whole answer is decoded: 20 µs at most.
SMALL = 8 * 1024


def find_usage(body: bytes) -> dict[str, Any] | None:
    """Return the `usage` object of a unary answer, without decoding the rest (embeddings are megabytes long).

    A quote inside a JSON text is escaped, so an unescaped `"usage"` before a colon is a key; the last one that is
    followed by an object is the answer's own.
    """
    if len(body) <= SMALL:
        try:
            answer = loads(body)
        except ValueError:
            pass
        else:
            usage = answer.get("usage") if isinstance(answer, dict) else None
            return usage if isinstance(usage, dict) else None
    at = len(body)
    while (at := body.rfind(b'"usage"', 0, at)) >= 0:
        rest = body[at + 7 : at + 7 + SMALL].lstrip()
        if rest[:1] == b":" and body[at - 1 : at] != b"\\":
            try:
                found, _ = json.JSONDecoder().raw_decode(rest[1:].decode(errors="replace").lstrip())
            except (ValueError, RecursionError):
                continue
            if isinstance(found, dict):
                return found
    return None


# Bytes of a unary answer that are not text.
FRAME = 256


def read_used_tokens(body: bytes, call: Call, endpoint: Endpoint) -> tuple[Tokens, bool]:
    """Return what a unary answer says that it used, and whether that had to be estimated."""
    if endpoint.costs == "nothing":
        return Tokens(), False
    if endpoint.costs == "sound":
        return transcription.read_used_tokens(body, call.prompt_estimate)
    reported = read_tokens(find_usage(body))
    if reported is not None:
        return reported, False
    text = max(0, len(body) - FRAME) if endpoint.costs == "prompt and answer" else 0
    return Tokens(prompt=call.prompt_estimate, completion=text // BYTES_PER_TOKEN), True


def encode_models(offered: Mapping[str, Model]) -> bytes:
    """Encode a list of models by the names that clients may use; a model appears once for each of its names."""
    data = [describe_model(name, model) for name, model in offered.items()]
    return json.dumps({"object": "list", "data": data}).encode()


def encode_model(name: str, model: Model) -> bytes:
    return json.dumps(describe_model(name, model)).encode()


def describe_model(name: str, model: Model) -> dict[str, Any]:
    # vLLM's extensions: `max_model_len` is read by Open WebUI and others, `root` names the model behind an alias.
    more: dict[str, Any] = {"max_model_len": model.context} if model.context else {}
    if name != model.name:
        more["root"] = model.name
    return {"id": name, "object": "model", "created": model.created, "owned_by": "madoguchi", **more}
