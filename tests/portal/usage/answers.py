"""Answers as the live view of usage counts them, around one moment."""

from datetime import UTC, datetime
from typing import Any

from portal.usage import live
from portal.usage.live import AnsweredRequest

AT = datetime(2026, 11, 22, 12, 0, 2, tzinfo=UTC)  # SETTLED after the end of a slot
END = AT.timestamp() - live.SETTLED


def answered(
    ended: float, took: float = 0, tokens: int = 10, first: float | None = None, **more: Any
) -> AnsweredRequest:
    """Return an answer that ended so many seconds before the last slot did."""
    end = END - ended
    facts = {"number": 1, "prompt_tokens": 5, "status": "finished", "model": "qwen", "tenant": 1, "user": 1, "key": 1}
    facts["request_id"] = "r"
    return AnsweredRequest(began=end - took, first=first, ended=end, completion_tokens=tokens, **{**facts, **more})
