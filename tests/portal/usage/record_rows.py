"""Rows of `record_usage`, of one moment."""

from datetime import UTC, datetime
from typing import Any

NOON = datetime(2026, 11, 22, 3, tzinfo=UTC)  # in Tokyo


def row(request_id: str, **more: Any) -> dict[str, Any]:
    return {
        **{"request_id": request_id, "key_id": 1, "user_id": 1, "tenant_id": 1, "model": "m", "replica_id": 1},
        **{"endpoint": "chat/completions", "started_at": NOON, "first_token_ms": 120, "duration_ms": 1120},
        **{"prompt_tokens": 7, "cached_tokens": 2, "completion_tokens": 50, "reasoning_tokens": 0},
        **{"looped_tokens": 0, "saved_tokens": 0, "temperature": None, "watched": True},
        **{"status": "finished", "estimated": False, "end_user": ""},
        **more,
    }
