"""One line of the log for each call, with the content of its usage row; never a prompt, an answer or a key."""

import logging
import time

from apiproxy.dataplane.errors import InvalidKey, Refusal
from apiproxy.dataplane.usage_events import Usage

log = logging.getLogger("madoguchi.calls")
REJECTED = "turned away"  # the message of a call that reached no engine
# Fields that a logging.LogRecord otherwise determines each time, down to the line of the caller: 11 µs instead of 3.
TEMPLATE = logging.LogRecord(log.name, logging.INFO, "", 0, "call", None, None).__dict__


def log_call(usage: Usage, refusal: Refusal | None) -> None:
    """Log a call that reached an engine. `refusal`: what the client got instead of an answer."""
    if not log.isEnabledFor(logging.INFO):
        return
    record = logging.LogRecord.__new__(logging.LogRecord)
    record.__dict__.update(TEMPLATE, created=time.time(), facts=call_facts(usage, refusal))
    log.handle(record)


def log_rejection(request_id: str, key: int | None, refusal: Refusal) -> None:
    """Log a call that reached no engine.

    One with an invalid key is logged only at DEBUG: a flood of them writes nothing.
    """
    level = logging.DEBUG if isinstance(refusal, InvalidKey) else logging.INFO
    if log.isEnabledFor(level):
        facts = {"request_id": request_id, "key": key, "http": refusal.status, "code": refusal.code}
        log.log(level, REJECTED, extra={"facts": facts})


def call_facts(usage: Usage, refusal: Refusal | None) -> dict[str, str | int | bool | None]:
    return {
        "request_id": usage.request_id,
        "key": usage.key,
        "user": usage.user,
        "tenant": usage.tenant,
        "model": usage.model,
        "replica": usage.replica,
        "endpoint": usage.endpoint,
        "status": usage.status,
        "stopped_by": usage.stopped_by,
        "http": refusal.status if refusal else 200,
        "code": refusal.code if refusal else None,
        "prompt_tokens": usage.prompt_tokens,
        "cached_tokens": usage.cached_tokens,
        "completion_tokens": usage.completion_tokens,
        "estimated": usage.estimated,
        "queued_ms": usage.queued_ms,
        "loading_ms": usage.loading_ms,
        "first_token_ms": usage.first_token_ms,
        "ms": usage.duration_ms,
    }
