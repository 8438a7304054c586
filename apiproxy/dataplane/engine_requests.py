"""The HTTP request with which a call goes to an engine."""

from typing import Any

from apiproxy.dataplane.catalogue import Model, Replica
from apiproxy.dataplane.context import RequestContext
from apiproxy.dataplane.formats import requests
from apiproxy.dataplane.formats.requests import Call, Endpoint, RequestPolicy
from apiproxy.dataplane.loops import COPIES, LoopPolicy
from apiproxy.dataplane.memory_budget import SMALL
from apiproxy.dataplane.upstream import Address


def engine_request(
    context: RequestContext, address: Address, replica: Replica, policy: RequestPolicy, *, assemble: bool
) -> bytes:
    """Return the request's head and body; of an upload the head, after which its body is written chunk by chunk.

    `assemble`: see `must_stream_upstream`.
    """
    call, endpoint, upload = context.call, context.endpoint, context.upload
    head = (
        f"POST {address.prefix}{endpoint.path} HTTP/1.1\r\nhost: {address.host_header}\r\n"
        f"authorization: Bearer {replica.api_key}\r\nx-request-id: {engine_request_id(context.request_id)}\r\n"
        "accept-encoding: identity\r\n"
    )
    if context.trace is not None:
        head += f"traceparent: {context.trace.traceparent}\r\n"
    if upload is not None:
        body = b""
        head += f"content-type: {upload.content_type}\r\ntransfer-encoding: chunked\r\n\r\n"
    else:
        body = requests.upstream_body(
            call,
            endpoint,
            replica.upstream_model,
            force_stream=assemble,
            extra=_members(context, replica, policy),
            re_encode=context.model.external,
        )
        if call.size > SMALL:
            call.drop_values()
        head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode("latin-1") + body


def _members(context: RequestContext, replica: Replica, policy: RequestPolicy) -> dict[str, Any]:
    """Return what the engine is sent beside what the client says."""
    call, endpoint, key, model = context.call, context.endpoint, context.key, context.model

    def is_limited() -> bool:
        counters = (limit.counter for limit in key.limits)
        return any(counter.unit.bounds_answer and counter.model in (None, model.id) for counter in counters)

    members = requests.max_tokens_members(call, endpoint, model, policy, limited=is_limited)
    if not model.external:
        members |= requests.cache_members(call, model, policy, key.tenant)
    if context.presets:
        members |= context.presets
    if replica.ends_loops and not context.streams and context.guard is not None and context.guard.may_stop:
        members["repetition_detection"] = detection_members(context.guard.policy)
    if key.batch and replica.supports_priority and endpoint.takes_priority:
        members["priority"] = requests.BATCH_PRIORITY
    return members


def detection_members(policy: LoopPolicy) -> dict[str, int]:
    """Return vLLM's parameters (0.17 and newer) for ending an answer in one piece that loops, as ours are for streams.

    vLLM counts copies alone, so that four dashes would be a loop. But a text of a short period has a multiple of it as
    a period as well: only periods of at least `least` tokens are looked for, and four copies then are long enough.
    """
    least = max(1, policy.least // COPIES)
    return {"min_pattern_size": least, "max_pattern_size": 2 * least, "min_count": COPIES}


def engine_request_id(request_id: str) -> str:
    """Return the id as a UUID: llama-cpp-python and other servers with starlette-context answer 400 to any other."""
    return request_id.removeprefix("req_").ljust(32, "0")


def must_stream_upstream(call: Call, endpoint: Endpoint, model: Model) -> bool:
    """Return whether the engine is asked for a stream although the client wants one JSON."""
    if call.stream or not endpoint.streams or endpoint.costs == "sound":
        return False
    if not model.stops_unary:
        # llama.cpp has no log probabilities in the stream of a call with tools.
        return not (call.value("logprobs") and call.fields.get("tools"))
    # An unknown engine may be a llama.cpp, which reports the usage of one answer of several; in a stream it can be
    # counted. No engine streams a beam search.
    several = call.answers > 1 and not call.fields.get("use_beam_search")
    return model.external and several and endpoint.api_format.needs_usage_option
