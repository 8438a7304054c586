"""How long clients waited for the first token of late, by model."""

import math
from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime, timedelta

from portal.usage.models import UsageRecord

WINDOW = timedelta(minutes=15)
# Of the newest requests: enough for the 95th of a hundred of many models, and few enough to sort for each page.
NEWEST = 5000


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Seconds to the first token: half of the requests were as quick as `half`, 95 in 100 as quick as `slow`."""

    half: float
    slow: float
    requests: int


def latencies(now: datetime) -> dict[str, Latency]:
    """By name of the model; only those that were called. One query."""
    rows = (
        UsageRecord.objects.filter(started_at__gt=now - WINDOW, first_token_ms__isnull=False)
        .order_by("-started_at")
        .values_list("model", "first_token_ms")[:NEWEST]
    )
    times: dict[str, list[int]] = defaultdict(list)
    for model, milliseconds in rows:
        times[model].append(milliseconds or 0)
    return {model: latency_of(found) for model, found in times.items()}


def latency_of(milliseconds: list[int]) -> Latency:
    """Of at least one request; by nearest rank, so that each figure is one that somebody met."""
    ordered = sorted(milliseconds)
    return Latency(half=_rank(ordered, 0.5) / 1000, slow=_rank(ordered, 0.95) / 1000, requests=len(ordered))


def _rank(ordered: list[int], share: float) -> int:
    return ordered[math.ceil(share * len(ordered)) - 1]
