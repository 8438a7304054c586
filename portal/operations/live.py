"""The live state of hosts, models and logs for open sockets: read once a second by each process while anybody looks.

`LiveState` is built once, in portal.asgi. Watchers keep no queue: each asks for the newest frame when it has sent the
one before, so who reads slowly gets fewer frames, each complete.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial

import orjson
from django.db import Error, close_old_connections, connections
from django.utils import timezone

from modelregistry import overview
from modelregistry.models import LogSubscription, Replica
from modelregistry.overview import FirstToken, Overview
from modelregistry.supervisor.watchdog import Watchdog
from portal.operations.latency import latencies

log = logging.getLogger("madoguchi.live")

FIRST_TOKENS_AGAIN = 10.0  # seconds between two looks at how long first tokens took: of 5,000 calls, some 20 ms
SUBSCRIBED_FOR = timedelta(seconds=15)  # to a log; renewed every RENEW_EVERY seconds while a page shows it
RENEW_EVERY = 5.0


def first_tokens(now: datetime) -> dict[str, FirstToken]:
    """By the model's name. One query."""
    return {
        model: FirstToken(requests=pace.requests, half=pace.half, slow=pace.slow)
        for model, pace in latencies(now).items()
    }


@dataclass(frozen=True, slots=True)
class Tail:
    """The end of a replica's log; "" and None while nobody has reported any."""

    text: str
    at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What was read at one time. `stale`: the database has not answered since `at`.

    Hosts and models as JSON, by id; None if nobody looked at them when the read began. `tails` of the replicas that
    were looked at, by id; None for one that is gone.
    """

    number: int
    at: datetime
    hosts: dict[int, bytes] | None = None
    models: dict[int, bytes] | None = None
    tails: dict[int, Tail | None] = field(default_factory=dict)
    stale: bool = False


class Reader:
    """Reads frames, in one thread of its own. Blocks on the database; raises django.db.Error."""

    def __init__(self, clock: Callable[[], datetime] = timezone.now) -> None:
        self._clock = clock
        self._first_tokens: dict[str, FirstToken] = {}
        self._measured: datetime | None = None
        self._requested: dict[int, datetime] = {}

    def __call__(self, number: int, *, state: bool, replicas: Iterable[int]) -> Snapshot:
        """`state`: whether somebody looks at hosts and models. `replicas`: whose logs are looked at."""
        close_old_connections()
        try:
            return self._read(number, state=state, replicas=replicas)
        finally:
            close_old_connections()  # others want it between two reads

    def _read(self, number: int, *, state: bool, replicas: Iterable[int]) -> Snapshot:
        now = self._clock()
        frame = Snapshot(number=number, at=now, tails=self._tails(list(replicas), now))
        if not state:
            return frame
        seen = self._overview(now)
        return replace(
            frame,
            hosts={host.id: orjson.dumps(host) for host in seen.hosts},
            models={model.id: orjson.dumps(model) for model in seen.models},
        )

    def _overview(self, now: datetime) -> Overview:
        if self._measured is None or (now - self._measured).total_seconds() >= FIRST_TOKENS_AGAIN:
            self._first_tokens, self._measured = first_tokens(now), now
        return overview.read_overview(now, self._first_tokens)

    def _tails(self, replicas: list[int], now: datetime) -> dict[int, Tail | None]:
        """Renew the subscriptions to those that are still open."""
        if not replicas:
            return {}
        there = Replica.objects.filter(pk__in=replicas).values_list("pk", "log_tail__text", "log_tail__at")
        tails = {number: Tail(text or "", at) for number, text, at in there}
        for number in tails:
            if (now - self._requested.get(number, now - SUBSCRIBED_FOR)).total_seconds() >= RENEW_EVERY:
                request_log(number, now)
                self._requested[number] = now
        return {number: tails.get(number) for number in replicas}


def request_log(replica: int, now: datetime) -> None:
    """The replica's supervisor keeps its LogTail up to date for the next 15 s."""
    LogSubscription.objects.update_or_create(replica_id=replica, defaults={"until": now + SUBSCRIBED_FOR})


class LiveState:
    """What watchers see. Its task and thread begin with the first of them and end with the last."""

    def __init__(
        self, reader: Callable[[], Callable[..., Snapshot]] = Reader, *, poll: float = 1.0, patience: float = 5.0
    ):
        """`poll`: seconds between two reads; a database that takes longer than `patience` seconds counts as away."""
        self._reader = reader
        self._poll = poll
        self._patience = patience
        self._watchers = 0
        self._states = 0
        self._replicas: Counter[int] = Counter()
        self._frame: Snapshot | None = None
        self._news = asyncio.Event()
        self._watchdog = Watchdog()
        self._task: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def watching(self, *, replica: int | None = None) -> AsyncIterator["Watcher"]:
        """Of hosts and models, or of one replica's log."""
        self._watchers += 1
        if replica is None:
            self._states += 1
        else:
            self._replicas[replica] += 1
        if self._task is None:
            self._news, self._frame = asyncio.Event(), None
            self._task = self._watchdog.keep("live", self._run)
        try:
            yield Watcher(self)
        finally:
            self._watchers -= 1
            if replica is None:
                self._states -= 1
            else:
                self._replicas[replica] -= 1
                self._replicas += Counter()  # forgets those that nobody looks at
            if not self._watchers:
                task, self._task = self._task, None
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def after(self, number: int) -> Snapshot:
        """Return the newest frame, as soon as it is later than `number`."""
        while self._frame is None or self._frame.number <= number:
            await self._news.wait()
        return self._frame

    def _show(self, frame: Snapshot) -> None:
        self._frame = frame
        self._news.set()
        self._news = asyncio.Event()

    async def _run(self) -> None:
        # A thread of its own: a database that hangs holds up nobody else's work.
        thread = ThreadPoolExecutor(1, thread_name_prefix="live")
        loop, away = asyncio.get_running_loop(), False
        number = self._frame.number if self._frame is not None else 0  # those who watch wait for later ones
        try:
            read = self._reader()
            while True:
                number += 1
                next_read = loop.time() + self._poll
                job = loop.run_in_executor(
                    thread, partial(read, number, state=self._states > 0, replicas=list(self._replicas))
                )
                try:
                    done, _ = await asyncio.wait([job], timeout=self._patience)
                    if not done:
                        self._lost(number)
                        number += 1
                    self._show(replace(await job, number=number))
                    away = False
                except Exception as error:  # the loop must go on for those who watch
                    if not away:
                        log.warning("operators' pages stand still: %s", error, exc_info=not isinstance(error, Error))
                    away = True
                    self._lost(number)
                await asyncio.sleep(max(0.0, next_read - loop.time()))
        finally:
            thread.submit(connections.close_all)
            thread.shutdown(wait=False)

    def _lost(self, number: int) -> None:
        """Tell watchers that what they have is not confirmed any more."""
        last = self._frame or Snapshot(number=0, at=timezone.now())
        self._show(replace(last, number=number, stale=True))


class Watcher:
    """One pair of eyes: `next` gives the newest frame that was not given before, at first the one of just now."""

    def __init__(self, live: LiveState) -> None:
        self._live = live
        self._last = 0

    async def next(self) -> Snapshot:
        frame = await self._live.after(self._last)
        self._last = frame.number
        return frame
