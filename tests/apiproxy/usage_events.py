"""Usage of a call, as the gateway records it."""

from typing import Any

from apiproxy.dataplane.usage_events import Usage


def usage(request_id: str, **more: Any) -> Usage:
    facts: dict[str, Any] = {
        "request_id": request_id,
        "key": 1,
        "user": None,
        "tenant": 1,
        "model": "m",
        "replica": 1,
        "endpoint": "/v1/chat/completions",
        "started": 1.5,
        "first_token_ms": 3,
        "duration_ms": 9,
        "prompt_tokens": 7,
        "cached_tokens": 0,
        "completion_tokens": 5,
        "reasoning_tokens": 0,
        "status": "finished",
        "estimated": False,
        "end_user": "山田",
    }
    return Usage(**{**facts, **more})
