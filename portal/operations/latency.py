"""How long clients have recently waited for the first token, by model."""

import math
from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime, timedelta

from portal.keys.models import ApiKey
from portal.usage.models import UsageRecord

WINDOW = timedelta(minutes=15)
# Requests: enough for a 95th percentile of many models, and few enough to sort for each page.
NEWEST_REQUESTS = 5000


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Seconds to the first token: half of the requests took `half` or less, 95 in 100 `slow` or less."""

    half: float
    slow: float
    requests: int


def read_latencies(now: datetime) -> dict[str, Latency]:
    """Return the latency of each model that people called, by its name. One query.

    The canary's calls wait for all others and pick their replica, so they say nothing about what people wait for.
    """
    canary = ApiKey.objects.filter(key_class=ApiKey.Class.CANARY).values("pk")
    rows = (
        UsageRecord.objects.filter(started_at__gt=now - WINDOW, first_token_ms__isnull=False)
        .exclude(key__in=canary)
        .order_by("-started_at")
        .values_list("model", "first_token_ms")[:NEWEST_REQUESTS]
    )
    times: dict[str, list[int]] = defaultdict(list)
    for model, milliseconds in rows:
        times[model].append(milliseconds or 0)
    return {model: summarise_latency(found) for model, found in times.items()}


def summarise_latency(milliseconds: list[int]) -> Latency:
    """Return the latency of at least one request, by nearest rank: each figure is one that a client had."""
    ordered = sorted(milliseconds)
    return Latency(
        half=_nearest_rank(ordered, 0.5) / 1000, slow=_nearest_rank(ordered, 0.95) / 1000, requests=len(ordered)
    )


def _nearest_rank(ordered: list[int], share: float) -> int:
    return ordered[math.ceil(share * len(ordered)) - 1]
