"""What ended a call: a small set of codes, whatever word an engine or an API has for it."""

from apiproxy.dataplane.errors import Refusal
from apiproxy.dataplane.upstream import Broken, UpstreamError

LOOP, CLIENT, RESTART, OTHER = "loop", "client", "restart", "other"
STOP, ENGINE_DIED, ENGINE_ERROR, ENGINE_REFUSED = "stop", "engine_died", "engine_error", "engine_refused"
# By the engine's word: of chat and completions, of Messages, of Responses.
BY_FINISH_REASON = {
    **dict.fromkeys(("stop", "end_turn", "stop_sequence", "eos", "completed"), STOP),
    **dict.fromkeys(("length", "max_tokens", "max_output_tokens", "model_context_window_exceeded"), "length"),
    **dict.fromkeys(("tool_calls", "function_call", "tool_use"), "tool_calls"),
    **dict.fromkeys(("content_filter", "refusal"), "content_filter"),
    "repetition": LOOP,
    "abort": ENGINE_DIED,  # vLLM, of calls that it abandons when it is stopped
}
# By the code of what the client was sent in place of an answer, or after a part of it.
BY_REFUSAL = {
    "engine_timeout": "deadline",
    "shutting_down": "shutdown",
    "internal_error": "gateway",
    "engine_busy": "engine_busy",
    "context_length_exceeded": "context",
    "answer_too_large": "too_large",
    "model_unavailable": ENGINE_DIED,  # with its host
    "engine_error": ENGINE_ERROR,
}
STOPS = frozenset({LOOP, CLIENT, RESTART, OTHER, ENGINE_REFUSED, *BY_FINISH_REASON.values(), *BY_REFUSAL.values()})


def stop_of_failure(refusal: Refusal, error: UpstreamError | None, *, says_dead: bool) -> str:
    """Return what ended a call that has no complete answer. `error`: of the engine's connection."""
    if refusal.code == "engine_error" and (says_dead or (isinstance(error, Broken) and error.lost)):
        return ENGINE_DIED
    return BY_REFUSAL.get(refusal.code, ENGINE_REFUSED if refusal.status < 500 else OTHER)
