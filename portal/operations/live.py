"""The live state of hosts and models and the ends of logs, for operators' open sockets: read once a second.

`LiveOperationsFeed` is built once, in portal.asgi.
"""

from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Final, Literal

import orjson
from django.utils import timezone

from modelregistry import overview
from modelregistry.database_clock import read_now
from modelregistry.models import LogSubscription, Replica
from modelregistry.overview import FirstToken, Overview
from portal.operations.latency import read_latencies
from portal.operations.queue import QueueReader
from portal.web.live_feed import LiveFeed, Snapshot, Watcher

MEASURE_AGAIN = 10.0  # seconds between two measurements of first tokens: 20 ms for 5,000 calls
SUBSCRIBED_FOR = timedelta(seconds=15)  # to a log; renewed every RENEW_EVERY seconds while it is watched
RENEW_EVERY = 5.0
QUEUE: Final = "queue"  # what is watched


def read_first_tokens(now: datetime) -> dict[str, FirstToken]:
    """Return how long first tokens take, by the model's name. One query."""
    return {
        model: FirstToken(requests=latency.requests, half=latency.half, slow=latency.slow)
        for model, latency in read_latencies(now).items()
    }


@dataclass(frozen=True, slots=True)
class Tail:
    """The end of a replica's log; "" and None until its supervisor has reported it."""

    text: str
    at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationsSnapshot(Snapshot):
    """Hosts and models, and the ends of logs.

    Hosts and models as JSON, by id; None if no one watched them when the read began. `tails`: of the watched replicas,
    by id; None for a replica that is gone. `queue`: as JSON; None if no one watched it.
    """

    hosts: dict[int, bytes] | None = None
    models: dict[int, bytes] | None = None
    tails: dict[int, Tail | None] = field(default_factory=dict)
    queue: bytes | None = None


class OverviewReader:
    """Reads snapshots. Blocks on the database; raises django.db.Error."""

    def __init__(self, clock: Callable[[], datetime] = timezone.now) -> None:
        self._clock = clock
        self._first_tokens: dict[str, FirstToken] = {}
        self._measured_at: datetime | None = None
        self._requested_at: dict[int, datetime] = {}
        self._read_queue = QueueReader()

    def __call__(self, number: int, *, state: bool, replicas: Iterable[int], queue: bool = False) -> OperationsSnapshot:
        """Read what is watched: hosts and models (`state`), the logs of these replicas, the queue."""
        now = self._clock()
        snapshot = OperationsSnapshot(
            number=number,
            at=now,
            tails=self._read_tails(list(replicas), now),
            queue=orjson.dumps(self._read_queue(now)) if queue else None,
        )
        if not state:
            return snapshot
        seen = self._read_overview(now)
        return replace(
            snapshot,
            hosts={host.id: orjson.dumps(host) for host in seen.hosts},
            models={model.id: orjson.dumps(model) for model in seen.models},
        )

    def _read_overview(self, now: datetime) -> Overview:
        if self._measured_at is None or (now - self._measured_at).total_seconds() >= MEASURE_AGAIN:
            self._first_tokens, self._measured_at = read_first_tokens(now), now
        return overview.read_overview(read_now(), self._first_tokens)

    def _read_tails(self, replicas: list[int], now: datetime) -> dict[int, Tail | None]:
        """Read the tails of these replicas, and request further ones of those that still exist."""
        if not replicas:
            return {}
        rows = Replica.objects.filter(pk__in=replicas).values_list("pk", "log_tail__text", "log_tail__at")
        tails = {number: Tail(text or "", at) for number, text, at in rows}
        for number in tails:
            if (now - self._requested_at.get(number, now - SUBSCRIBED_FOR)).total_seconds() >= RENEW_EVERY:
                request_log(number, now)
                self._requested_at[number] = now
        return {number: tails.get(number) for number in replicas}


def request_log(replica: int, now: datetime) -> None:
    """Make the replica's supervisor keep its LogTail up to date for the next 15 s."""
    LogSubscription.objects.update_or_create(replica_id=replica, defaults={"until": now + SUBSCRIBED_FOR})


class LiveOperationsFeed(LiveFeed[OperationsSnapshot]):
    """The feed of operators' sockets. It reads only what is watched."""

    def __init__(
        self,
        make_reader: Callable[[], Callable[..., OperationsSnapshot]] = OverviewReader,
        *,
        poll: float = 1.0,
        patience: float = 5.0,
    ) -> None:
        super().__init__("operations", make_reader, OperationsSnapshot, poll=poll, patience=patience)
        # Replicas whose logs are watched; None: hosts and models.
        self._watched: Counter[int | Literal["queue"] | None] = Counter()

    def read_options(self) -> dict[str, Any]:
        return {
            "state": None in self._watched,
            "replicas": [one for one in self._watched if isinstance(one, int)],
            "queue": QUEUE in self._watched,
        }

    @asynccontextmanager
    async def watching(
        self, subject: int | Literal["queue"] | None = None
    ) -> AsyncIterator[Watcher[OperationsSnapshot]]:
        """Provide a watcher of hosts and models, of the queue, or of the log of the replica with this id."""
        self._watched[subject] += 1
        try:
            async with super().watching() as watcher:
                yield watcher
        finally:
            self._watched[subject] -= 1
            self._watched += Counter()  # removes what no one watches any more
