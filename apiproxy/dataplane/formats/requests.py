"""The paths of `/v1` and the few fields of their bodies that the gateway reads or changes. No I/O."""

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
from apiproxy.dataplane.formats.dialects import CHAT, MESSAGES, RESPONSES, TRANSCRIPTS, Dialect, encoded
from apiproxy.dataplane.memory_budget import SMALL as SMALL_SHARE
from apiproxy.dataplane.memory_budget import BudgetShare
from apiproxy.dataplane.routes import RERANKERS
from apiproxy.dataplane.token_usage import MOST_TOKENS, Tokens, read_tokens

# A prompt's length before the engine has counted it. Qwen, Llama and Gemma tokenizers give 3 to 4.5 characters per
# token for English and about 1.5 for Japanese, which is 3 bytes a character in UTF-8: 3 bytes per token errs upwards.
BYTES_PER_TOKEN = 3
# What vLLM is told of a batch key's call: it takes waiting requests in the order of their priority, the lowest first;
# all others have 0. A client's own word on it is nothing to go by: everybody would be first.
BATCH_PRIORITY = 1
# Every engine's words for the bound of an answer. Which wins differs: llama.cpp takes `n_predict` before all others.
MAX_TOKENS = ("max_completion_tokens", "max_tokens", "max_output_tokens", "n_predict")
SEVERAL = ("n", "best_of")
ENDS = 8 * 1024  # bytes of each end by which a large body is known
END_USER = 64  # characters of the body's "user" that are kept


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A path that is passed on.

    `tasks`: what a model must be for. `costs`: what a call can use up; "sound": it is an upload. `streams`: takes
    `stream`. `everywhere`: every engine that serves such a model has it; of other paths the engine may say that it has
    not. `sorted`: engines that sort waiting calls know its `priority`. `bound`: its words for the most tokens of an
    answer, the first wins. `several`: it has a word for several answers. `short`: where no bound is stated, vLLM's
    answers have 16 tokens, as OpenAI's description says.
    """

    path: str
    tasks: frozenset[str]
    costs: Literal["prompt and answer", "prompt", "nothing", "sound"]
    streams: bool = False
    everywhere: bool = False
    sorted: bool = False
    dialect: Dialect = CHAT
    bound: tuple[str, ...] = ("max_tokens",)
    several: bool = False
    short: bool = False


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
            everywhere=True,
            sorted=True,
            bound=("max_completion_tokens", "max_tokens"),
            several=True,
        ),
        Endpoint(
            *("/v1/completions", TEXT, "prompt and answer"),
            streams=True,
            everywhere=True,
            sorted=True,
            several=True,
            short=True,
        ),
        Endpoint(
            *("/v1/responses", TEXT, "prompt and answer"),
            streams=True,
            sorted=True,
            dialect=RESPONSES,
            bound=("max_output_tokens",),
        ),
        Endpoint("/v1/messages", TEXT, "prompt and answer", streams=True, dialect=MESSAGES),
        Endpoint("/v1/messages/count_tokens", TEXT, "nothing", dialect=MESSAGES),
        Endpoint("/v1/embeddings", VECTORS, "prompt", everywhere=True),
        Endpoint("/v1/rerank", RANKING, "prompt"),
        Endpoint("/v1/score", RANKING, "prompt"),
        Endpoint("/v1/audio/transcriptions", HEARING, "sound", streams=True, dialect=TRANSCRIPTS),
        Endpoint("/v1/audio/translations", HEARING, "sound", streams=True, dialect=TRANSCRIPTS),
    )
}
ENDPOINTS |= dict.fromkeys(RERANKERS, ENDPOINTS["/v1/rerank"])  # requests and answers are the same


# What is looked at again after that.
KEPT = frozenset({"stream_options", "cache_salt"})


@dataclass(slots=True)
class Call:
    """What the gateway needs to know of a request body, every number within its bounds (`validation`).

    `share`: what it holds of the memory budget, its body above all.
    """

    body: bytes
    fields: dict[str, Any]
    model: str
    stream: bool
    asks_usage: bool
    end_user: str
    n: int = 1  # answers that are wanted to each prompt
    prompts: int = 1
    # Members that engines would read otherwise than we do, as we read them; None: they are not told.
    typed: Mapping[str, Any] = field(default_factory=dict)
    most: Mapping[str, int] = field(default_factory=dict)  # tokens of an answer (-1: any), by which of MAX_TOKENS
    media: Sequence[tuple[str, str]] = ()  # where its pictures and recordings are, with the member that says so
    share: BudgetShare | None = None
    size: int = field(init=False)  # of the body in bytes
    answers: int = field(init=False)  # to all prompts

    def __post_init__(self) -> None:
        self.size = len(self.body)
        self.answers = self.n * self.prompts

    def value(self, name: str) -> Any:
        """Return a member as engines are told it."""
        return self.typed[name] if name in self.typed else self.fields.get(name)

    @property
    def prompt_estimate(self) -> int:
        return max(1, self.size // BYTES_PER_TOKEN)

    def lighten(self) -> None:
        """Forget the values that only engines look at, once they have been looked through: they may take ten times
        the memory of their bytes, which are there for another attempt."""
        if self.size > SMALL_SHARE:
            for name, value in self.fields.items():
                if isinstance(value, list | str | dict) and name not in KEPT:
                    self.fields[name] = True if value else None  # whether there are tools is asked again

    @property
    def identity(self) -> bytes:
        """What tells it from others: its body, or of a large one the length and both ends."""
        body = self.body
        if self.size <= SMALL_SHARE or len(body) < self.size:
            return body
        return b"%d %b %b" % (self.size, body[:ENDS], body[-ENDS:])

    def forget_body(self) -> None:
        """No engine will be sent it any more: what a large one took is free, however long the answer lasts."""
        if self.size > SMALL_SHARE:
            self.body = self.identity
            if self.share is not None:
                self.share.give_back(self.share.held - len(self.body))


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What the operator has set about request bodies."""

    # Tokens of an answer whose call states no bound but falls under a limit of tokens. It has to have one, for what is
    # reserved must be what the engine obeys. 1,024 would cut what people wait for; all of a context of 128 K would let
    # eight open calls use up a day's million for all colleagues while they run.
    default_answer: int = 8192
    # From where engines may fetch pictures and recordings; from nowhere, if none.
    media_domains: frozenset[str] = frozenset()
    # Of the salts that keep tenants' prompts in engines' caches apart; empty: all share one cache.
    salt_key: bytes = b""


def stated(call: Call, endpoint: Endpoint) -> int | None:
    """Return the most tokens of each answer as the client says.

    By a word of another API if there is none of this one.
    """
    said = call.most
    if not said:
        return None
    for name in endpoint.bound:
        if said.get(name, -1) > 0:
            return said[name]
    return next((most for most in said.values() if most > 0), None)


def answer(call: Call, endpoint: Endpoint, model: Model, terms: Terms) -> int:
    """Return the most tokens that are reserved for each answer."""
    return min(stated(call, endpoint) or terms.default_answer, model.context or validation.LONGEST)


def bounding(
    call: Call, endpoint: Endpoint, model: Model, terms: Terms, *, limited: Callable[[], bool]
) -> dict[str, Any]:
    """Return the members by which the engine is told what was reserved, and (None) those that it could obey instead.

    `limited()`: the call falls under a limit of tokens. Without one an answer of no stated bound may go on until the
    context ends, as everywhere.
    """
    if endpoint.costs != "prompt and answer":
        return {}
    # Of a protocol that has no word for it: llama.cpp gives several answers all the same, and tells the usage of one.
    members: dict[str, Any] = {} if endpoint.several else {name: None for name in SEVERAL if name in call.fields}
    short = endpoint.short and model.stops_unary and not model.external
    said = stated(call, endpoint)
    if said is None and (short or not limited()):
        return members
    most = min(said or terms.default_answer, model.context or validation.LONGEST)
    if call.most == {"max_tokens": most} and "max_tokens" in endpoint.bound and "max_tokens" not in call.typed:
        return members  # as nearly always
    told = [name for name in endpoint.bound if name in call.most] or [endpoint.bound[0]]
    if not model.stops_unary and "max_tokens" in endpoint.bound:
        told.append("max_tokens")  # llama-cpp-python knows no other
    for name in MAX_TOKENS:
        wanted, came = most if name in told else None, call.fields.get(name)
        if wanted != came or type(wanted) is not type(came):
            members[name] = wanted
    return members


def caching(call: Call, model: Model, terms: Terms, tenant: int) -> dict[str, Any]:
    """Return the members that keep a tenant from what others' prompts have left in an engine's cache.

    Else whoever guesses a beginning is told how much of it was right: by `cached_tokens`, and by the time to the first
    token. vLLM's cache is salted; a client's own salt divides its tenant's further. llama.cpp has one cache for all, so
    only a model of one tenant may use it (it ignores this member on /v1/messages: it is started so as well). Of
    engines that others run we know nothing.
    """
    if model.external or not terms.salt_key:
        return {}
    if not model.stops_unary:  # llama.cpp
        return {"cache_prompt": model.tenants is not None and len(model.tenants) == 1}
    own = call.fields.get("cache_salt")
    if isinstance(own, str):
        return {"cache_salt": digest(f"{tenant}:{own}", terms.salt_key)}
    return {"cache_salt": tenant_salt(tenant, terms.salt_key)}


@lru_cache(maxsize=4096)
def tenant_salt(tenant: int, key: bytes) -> str:
    return digest(f"{tenant}", key)


def digest(text: str, key: bytes) -> str:
    return hashlib.blake2b(text.encode(errors="replace"), key=key, digest_size=20).hexdigest()


def estimate(call: Call, endpoint: Endpoint, model: Model, terms: Terms) -> int:
    """Return the most tokens that this call can be expected to use."""
    if endpoint.costs == "nothing":
        return 0
    prompt = call.prompt_estimate
    if endpoint.costs != "prompt and answer":
        return min(prompt, MOST_TOKENS)
    answers = answer(call, endpoint, model, terms) * call.answers
    return min(prompt + answers, (model.context or validation.LONGEST) * call.answers)


def max_usage(call: Call, endpoint: Endpoint, model: Model) -> int:
    """The most tokens that can be right, whatever an engine says. Of servers of others we know the context by hearsay;
    an answer of Responses may have several rounds, of a context each."""
    if endpoint.costs != "prompt and answer":
        return MOST_TOKENS
    known = None if model.external or endpoint.dialect is RESPONSES else model.context
    return min((known or validation.LONGEST) * call.answers, MOST_TOKENS)


def max_generated(call: Call, endpoint: Endpoint, model: Model) -> int:
    """Return the most tokens that all its answers together can have."""
    if endpoint.costs == "sound":
        return transcription.spoken(call.prompt_estimate)
    if endpoint.costs != "prompt and answer":
        return 0
    most = model.context or validation.LONGEST
    return min(stated(call, endpoint) or most, most) * call.answers


def parse(body: bytes) -> Call:
    """Read a request body. Raises BadRequest; fields it does not know are none of its business."""
    if len(body) > validation.MB:
        validation.check_density(body)
    fields = decoded(body)
    if not isinstance(fields, dict):
        raise BadRequest("not_an_object", code="invalid_json")
    model = fields.get("model")
    if not isinstance(model, str) or not model:
        raise BadRequest("missing_model", code="invalid_value", param="model")
    media = validation.places(fields) if validation.may_have_places(body) else []
    typed = validation.read(fields)
    known = {**fields, **typed} if typed else fields
    options, user = known.get("stream_options"), fields.get("user")
    call = Call(
        body=body,
        fields=fields,
        model=model,
        stream=known.get("stream") is True,
        asks_usage=bool(options and options.get("include_usage")),
        end_user="" if user is None else end_user(user),
        n=max(known.get("n") or 1, known.get("best_of") or 1) if "n" in known or "best_of" in known else 1,
        prompts=prompts(fields["prompt"]) if "prompt" in fields else 1,
        typed=typed,
        most={name: known[name] for name in MAX_TOKENS if known.get(name) is not None},
        media=media,
    )
    if call.answers > validation.MOST_INPUTS:
        most, sent = f"{validation.MOST_INPUTS:,}", f"{call.answers:,}"
        raise validation.invalid("too_many_answers", "n", most=most, sent=sent)
    return call


def prompts(prompt: Any) -> int:
    """Return how many: a list of numbers is one, its tokens."""
    return len(prompt) if isinstance(prompt, list) and prompt and not validation.token_ids(prompt) else 1


def decoded(body: bytes) -> Any:
    """JSON, however odd. Raises BadRequest.

    orjson takes a fifth of json's time, but refuses half a surrogate pair, NaN and numbers beyond 64 bits.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        if len(body) > validation.MB:  # json takes five times as long
            validation.check_density(body, validation.MOST_VALUES_EXACTLY)
        return decoded_exactly(body)


def decoded_exactly(body: bytes) -> Any:
    try:
        # Half of a surrogate pair passes, which is written by clients that cut an emoji in two.
        return json.loads(body.decode("utf-8-sig", "surrogatepass"))
    except UnicodeDecodeError as error:
        raise BadRequest("not_utf8", code="invalid_json", encoding=encoding_of(body)) from error
    except (ValueError, RecursionError) as error:
        raise BadRequest("invalid_json", detail=str(error)) from error


def encoding_of(body: bytes) -> str:
    """What a body that is not UTF-8 is written in, as far as can be seen."""
    if body.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16"
    for name, codec in (("EUC-JP", "euc_jp"), ("Shift_JIS", "cp932")):
        with contextlib.suppress(UnicodeDecodeError):
            body.decode(codec)
            return name
    return "?"


def end_user(user: Any) -> str:
    """What is kept of it. No database takes a NUL, and UTF-8 no half of a surrogate pair, which JSON can say."""
    return user[:END_USER].replace("\0", "").encode(errors="replace").decode() if isinstance(user, str) else ""


def upstream_body(
    call: Call,
    endpoint: Endpoint,
    model: str,
    *,
    force_stream: bool,
    more: Mapping[str, Any] | None = None,
    afresh: bool = False,
) -> bytes:
    """Return the body for the engine: as it came but for the model's name there, the request for usage, what was read
    otherwise than it came, and `more`: members to set, or (None) to leave out.

    A member is put behind the bytes where possible, also in place of one that the client sent: of two our engines take
    the last, as we do. Decoding and encoding a long conversation costs more than all the rest of a call.
    `force_stream` asks for a stream although the client did not. `afresh`: for an engine that we do not know. It is
    sent what we understood, each member once: of two it might take the first. Numbers of more than 64 bits become the
    nearest that JavaScript knows.
    """
    changes: dict[str, Any] = {**call.typed, **more} if more else dict(call.typed)
    if endpoint.streams and endpoint.dialect.asks_usage and (force_stream or (call.stream and not call.asks_usage)):
        changes["stream_options"] = {**(call.value("stream_options") or {}), "include_usage": True}
    if force_stream:
        changes["stream"] = True
    if model != call.model:
        changes["model"] = model
    if afresh:
        fields = call.fields if call.size <= SMALL_SHARE else decoded(call.body)  # not what was made lighter
        try:
            return orjson.dumps(merged(fields, changes) if changes else fields)
        except orjson.JSONEncodeError:
            pass  # half of a surrogate pair, a very long number
    if not changes and not afresh:
        return call.body
    if afresh or any(value is None and name in call.fields for name, value in changes.items()):
        return _rewritten(call, changes)
    told = {name: value for name, value in changes.items() if value is not None}
    if not told:
        return call.body
    return b"%b,%b" % (call.body[: call.body.rindex(b"}")], encoded(told)[1:])


def _rewritten(call: Call, changes: Mapping[str, Any]) -> bytes:
    if call.size > SMALL_SHARE:
        # Else whoever has 5 million numbers in a body would hold up everybody for 2 s. Numbers of more than 64 bits
        # become the nearest that JavaScript knows.
        try:
            return orjson.dumps(merged(orjson.loads(call.body), changes))
        except (orjson.JSONDecodeError, orjson.JSONEncodeError):
            pass
    # Read again, because orjson rounds what is beyond 64 bits. Half of a surrogate pair (an emoji that a client cut) is
    # escaped as it came; UTF-8 cannot hold it.
    kept = merged(decoded_exactly(call.body), changes)
    return json.dumps(kept, ensure_ascii=False).encode(errors="backslashreplace")


def merged(fields: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the members with these set, or (None) left out."""
    kept = {**fields, **changes}
    for name, value in changes.items():
        if value is None:
            del kept[name]
    return kept


# Up to so many bytes all of an answer is decoded: 20 µs at most.
SMALL = 8 * 1024


def usage_in(body: bytes) -> dict[str, Any] | None:
    """Return the `usage` object of an unary answer, found without decoding the rest (embeddings are megabytes long).

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


# Bytes of an unary answer that are not text.
FRAME = 256


def used_tokens(body: bytes, call: Call, endpoint: Endpoint) -> tuple[Tokens, bool]:
    """What an unary answer says that it used, and whether that had to be estimated."""
    if endpoint.costs == "nothing":
        return Tokens(), False
    if endpoint.costs == "sound":
        return transcription.used(body, call.prompt_estimate)
    told = read_tokens(usage_in(body))
    if told is not None:
        return told, False
    text = max(0, len(body) - FRAME) if endpoint.costs == "prompt and answer" else 0
    return Tokens(prompt=call.prompt_estimate, completion=text // BYTES_PER_TOKEN), True


def models_body(offered: Mapping[str, Model]) -> bytes:
    """Of models by the names that clients may write; a model appears once for each of its names."""
    data = [model_object(name, model) for name, model in offered.items()]
    return json.dumps({"object": "list", "data": data}).encode()


def model_body(name: str, model: Model) -> bytes:
    return json.dumps(model_object(name, model)).encode()


def model_object(name: str, model: Model) -> dict[str, Any]:
    # vLLM's extensions: `max_model_len` is read by Open WebUI and others, `root` tells what an alias stands for.
    more: dict[str, Any] = {"max_model_len": model.context} if model.context else {}
    if name != model.name:
        more["root"] = model.name
    return {"id": name, "object": "model", "created": model.created, "owned_by": "madoguchi", **more}
