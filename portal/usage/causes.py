"""Why a call was slow, short or refused: causes with their figures, found in its timeline. Pure: no sentences, no I/O.

Bounds in milliseconds and tokens are what people notice; where it is known what is usual for the model, a call counts
as slow only against that.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

NOTICED_MS = 500  # of waiting, that people notice
SLOW_START_MS = 1000
LONG_PROMPT = 4000  # tokens
LONG_ANSWER = 1000  # tokens
LONG_MS = 2000  # of generating, below which no answer is called long
MUCH = 2.0  # times as much as usual
SLOW_SPEED = 0.6  # of the usual
FEW = 8  # calls of the last days, with less nothing is called usual

Figure = int | float | str


def measure_generation(
    first_token_ms: int | None, prefill_ms: int | None, queued_ms: int | None, whole: int
) -> int | None:
    """Return the time from the first token to the end; None of an answer in one piece. `whole`: its duration."""
    if first_token_ms is None or (prefill_ms is None and queued_ms is not None):
        return None
    return max(0, whole - first_token_ms)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallTimeline:
    """One call, as it was recorded. Milliseconds; None: not known, as of older gateways."""

    request_id: str
    began: datetime  # when it was sent to its engine, or refused
    key: int
    user: int | None
    tenant: int
    model: str
    endpoint: str
    status: str  # a UsageRecord.Status; "": the gateway refused it
    stopped_by: str = ""
    queued_ms: int | None = None
    loading_ms: int | None = None
    prefill_ms: int | None = None
    first_token_ms: int | None = None
    duration_ms: int = 0
    retries: int | None = None
    replica: int | None = None
    engine: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    looped_tokens: int = 0
    estimated: bool = False
    end_user: str = ""
    # Of a refused call: the code of the answer, what is behind it, and of a limit whose it is and for how long.
    code: str = ""
    reason: str = ""
    scope: str = ""
    window: str = ""
    retry_after: int | None = None

    @property
    def waited_ms(self) -> int:
        return (self.queued_ms or 0) + (self.loading_ms or 0)

    @property
    def generating_ms(self) -> int | None:
        """From the first token to the end; None of an answer in one piece."""
        return measure_generation(self.first_token_ms, self.prefill_ms, self.queued_ms, self.duration_ms)

    @property
    def lost_ms(self) -> int:
        """Before the attempt that was answered: on other replicas, and until there was a connection."""
        if self.first_token_ms is None or self.prefill_ms is None:
            return 0
        return max(0, self.first_token_ms - self.prefill_ms)

    @property
    def start_ms(self) -> int | None:
        """The time in which the engine read the prompt."""
        return self.first_token_ms if self.prefill_ms is None else self.prefill_ms

    @property
    def speed(self) -> float | None:
        """Tokens per second, from the first token on."""
        generating = self.generating_ms
        return 1000 * self.completion_tokens / generating if generating and self.completion_tokens > 1 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class UsualFigures:
    """The medians of a model's complete answers in the days before; None: not known."""

    calls: int = 0
    queued_ms: float | None = None
    start_ms: float | None = None
    speed: float | None = None
    prompt_tokens: float | None = None
    completion_tokens: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What is compared with a call: what is usual for the model, and the calls around it."""

    usual: UsualFigures = field(default_factory=UsualFigures)
    own: int = 0  # calls of the same person or service that ran while it waited
    others: int = 0  # calls of all others that ran meanwhile
    beside: int = 0  # calls that its replica worked on at the same time
    is_batch: bool = False  # its key lets those of people go first


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """One cause. `effect`: whether the call was slow by it, ended by it, or never began."""

    code: str
    effect: Literal["slow", "ended", "refused", "none"]
    figures: Mapping[str, Figure] = field(default_factory=dict)


# What ended a call, as pages name it. "stop" and "tool_calls" are no cause of anything.
ENDED = {
    "length": "cut_at_limit",
    "content_filter": "content_filtered",
    "loop": "loop_stopped",
    "client": "client_left",
    "deadline": "timed_out",
    "engine_died": "engine_died",
    "engine_error": "engine_failed",
    "engine_busy": "engine_busy",
    "engine_refused": "engine_refused",
    "context": "context_too_long",
    "too_large": "answer_too_large",
    "shutdown": "gateway_stopped",
    "restart": "gateway_restarted",
    "gateway": "gateway_failed",
}
# Of rows that do not say what ended them.
ENDED_BY_STATUS = {
    "aborted": "client_left",
    "interrupted": "gateway_restarted",
    "failed": "engine_failed",
    "refused": "engine_refused",
}
# By what is behind the code, then by the code. All others are "refused", with their code.
REFUSED_BY_REASON = {
    "blocked_by_quota": "quota_is_zero",
    "too_many_concurrent": "too_many_at_once",
    "held_by_running_requests": "too_many_at_once",
    "too_many_bytes": "too_many_at_once",
    "too_many_loading": "too_many_loading",
    "model_retired": "model_retired",
    "key_revoked": "key_revoked",
    "key_expired": "key_expired",
    "key_stopped": "key_stopped",
    "engine_died": "engine_died",
}
REFUSED = {
    "insufficient_quota": "quota_used_up",
    "rate_limit_exceeded": "rate_limited",
    "model_busy": "model_busy",
    "batch_held_back": "batch_held_back",
    "model_not_found": "model_not_allowed",
    "model_unavailable": "model_not_running",
    "model_loading": "model_not_loaded",
    "network_not_allowed": "network_not_allowed",
    "context_length_exceeded": "context_too_long",
    "shutting_down": "gateway_stopped",
    "engine_timeout": "timed_out",
    "internal_error": "gateway_failed",
}
CODES = frozenset(
    {
        *(*ENDED.values(), *ENDED_BY_STATUS.values(), *REFUSED_BY_REASON.values(), *REFUSED.values(), "refused"),
        *("waited_behind_own", "waited_behind_others", "waited_in_queue", "batch_waited", "model_was_asleep"),
        *("moved_to_other_replica", "long_prompt", "slow_start", "slow_engine", "long_answer", "loop_repeated"),
        *("nothing_unusual", "timeline_unknown"),
    }
)


def explain(call: CallTimeline, around: Surroundings) -> list[Cause]:
    """Return the causes, what ended the call first, then what took the most of its time."""
    if not call.status:
        return [_name_refusal(call)]
    ended = list(_find_end(call))
    slow = sorted(_find_delays(call, around), key=lambda cause: -float(cause.figures["ms"]))
    if ended or slow:
        return [*ended, *slow]
    return [Cause(code="timeline_unknown" if call.queued_ms is None else "nothing_unusual", effect="none")]


def _name_refusal(call: CallTimeline) -> Cause:
    code = REFUSED_BY_REASON.get(call.reason) or REFUSED.get(call.code) or "refused"
    figures: dict[str, Figure] = {"code": call.code, "model": call.model, "scope": call.scope, "window": call.window}
    figures |= {"ms": call.waited_ms, "retry_after": call.retry_after or 0}
    return Cause(code=code, effect="refused", figures=figures)


def _find_end(call: CallTimeline) -> Iterator[Cause]:
    code = ENDED.get(call.stopped_by) if call.stopped_by else ENDED_BY_STATUS.get(call.status)
    figures: dict[str, Figure] = {"tokens": call.completion_tokens, "prompt": call.prompt_tokens}
    figures |= {"ms": call.duration_ms, "looped": call.looped_tokens, "model": call.model}
    if code is not None:
        yield Cause(code=code, effect="ended", figures=figures)
    if call.status == "looped" and code != "loop_stopped":
        yield Cause(code="loop_repeated", effect="ended", figures=figures)


def _find_delays(call: CallTimeline, around: Surroundings) -> Iterator[Cause]:
    """Yield what took long; each has the time that it took as "ms"."""
    queued, loading = call.queued_ms or 0, call.loading_ms or 0
    if queued >= NOTICED_MS:
        figures: dict[str, Figure] = {"ms": queued, "own": around.own, "others": around.others}
        yield Cause(code=_name_wait(around), effect="slow", figures=figures)
    if loading >= NOTICED_MS:
        yield Cause(code="model_was_asleep", effect="slow", figures={"ms": loading, "model": call.model})
    if call.retries:
        figures = {"ms": call.lost_ms, "retries": call.retries}
        yield Cause(code="moved_to_other_replica", effect="slow", figures=figures)
    yield from _find_slow_start(call, around)
    yield from _find_slow_answer(call, around)


def _name_wait(around: Surroundings) -> str:
    if around.is_batch:
        return "batch_waited"
    if not around.own and not around.others:
        return "waited_in_queue"
    return "waited_behind_own" if around.own >= around.others else "waited_behind_others"


def _find_slow_start(call: CallTimeline, around: Surroundings) -> Iterator[Cause]:
    start, usual = call.start_ms, around.usual
    if start is None or start < SLOW_START_MS or call.generating_ms is None:
        return
    if usual.start_ms is not None and start < MUCH * usual.start_ms:
        return
    fresh = call.prompt_tokens - call.cached_tokens
    is_long = fresh >= LONG_PROMPT or (
        usual.prompt_tokens is not None and fresh >= MUCH * max(usual.prompt_tokens, 500)
    )
    figures: dict[str, Figure] = {"ms": start, "prompt": call.prompt_tokens, "beside": around.beside}
    figures["usual_ms"] = round(usual.start_ms or 0)
    yield Cause(code="long_prompt" if is_long else "slow_start", effect="slow", figures=figures)


def _find_slow_answer(call: CallTimeline, around: Surroundings) -> Iterator[Cause]:
    generating, usual, speed = call.generating_ms, around.usual, call.speed
    if generating is None or speed is None:
        return
    figures: dict[str, Figure] = {"tokens": call.completion_tokens, "speed": round(speed, 1), "beside": around.beside}
    if usual.speed is not None and speed < SLOW_SPEED * usual.speed and generating >= SLOW_START_MS:
        lost = generating - 1000 * call.completion_tokens / usual.speed
        more: dict[str, Figure] = {"ms": round(lost), "usual_speed": round(usual.speed, 1)}
        yield Cause(code="slow_engine", effect="slow", figures={**figures, **more})
    tokens, median = call.completion_tokens, usual.completion_tokens
    is_long = tokens >= LONG_ANSWER if median is None else tokens >= max(MUCH * median, LONG_ANSWER / 2)
    if is_long and generating >= LONG_MS:
        yield Cause(code="long_answer", effect="slow", figures={**figures, "ms": generating})
