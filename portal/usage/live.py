"""What is used right now: the answers of the last five minutes, read by each process while anybody looks.

`LiveUsageFeed` is built once, in portal.asgi. An answer is known when it is finished; its tokens are spread over the
time in which they were written.
"""

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from django.db import Error, close_old_connections, connections
from django.utils import timezone

from modelregistry.models import Replica
from modelregistry.supervisor.watchdog import Watchdog
from portal.keys.models import ApiKey
from portal.usage.models import UsageRecord

log = logging.getLogger("madoguchi.live")

WINDOW = 300  # seconds that are shown
SLOT = 5  # seconds of a bar
SETTLED = 2  # seconds after which what was answered has been recorded, mostly: the ledger writes every second
LAST = 20  # requests that are listed
MOST = 20_000  # answers that are kept: 66 a second for five minutes
# A record may become visible after one with a higher number: of so many seconds all are looked at again.
OVERLAP = timedelta(seconds=4)
COLUMNS = (
    *("pk", "started_at", "duration_ms", "first_token_ms", "prompt_tokens", "completion_tokens"),
    *("status", "model", "tenant_id", "user_id", "key_id"),
)
Owner = tuple[Literal["tenant", "user"], int] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A finished request, without a word of what was said. Times are Unix seconds."""

    number: int
    began: float
    first: float | None
    ended: float
    prompt_tokens: int
    completion_tokens: int
    status: str
    model: str
    tenant: int
    user: int | None
    key: int

    def is_of(self, owner: Owner) -> bool:
        return owner is None or getattr(self, owner[0]) == owner[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What was read at one time. `stale`: the database has not answered since `at`.

    `running`: requests that engines work on, by model. `keys`: what those of the answers are called, by number.
    """

    number: int
    at: datetime
    answers: tuple[Answer, ...] = ()
    running: dict[str, int] | None = None
    keys: dict[int, str] | None = None
    stale: bool = False


class Reader:
    """Reads frames, in one thread of its own. Blocks on the database; raises django.db.Error."""

    def __init__(self, clock: Callable[[], datetime] = timezone.now) -> None:
        self._clock = clock
        self._answers: dict[int, Answer] = {}
        self._marks: list[tuple[datetime, int]] = []  # (when, highest number known then)
        self._keys: dict[int, str] = {}

    def __call__(self, number: int) -> Snapshot:
        """Return three queries at most."""
        now = self._clock()
        self._read(now)
        unknown = {answer.key for answer in self._answers.values()} - self._keys.keys()
        if unknown:
            self._keys.update(dict.fromkeys(unknown, ""))
            self._keys.update(ApiKey.objects.filter(pk__in=unknown).values_list("pk", "name"))
        running: Counter[str] = Counter()
        for model, live in Replica.objects.filter(live__isnull=False).values_list("model__name", "live"):
            running[model] += (live or {}).get("running") or 0
        answers = tuple(sorted(self._answers.values(), key=lambda answer: answer.ended))
        return Snapshot(number=number, at=now, answers=answers, running=dict(running), keys=dict(self._keys))

    def _read(self, now: datetime) -> None:
        """Add what is new and forget what is too old to be shown."""
        known = [number for at, number in self._marks if at <= now - OVERLAP]
        rows = UsageRecord.objects.order_by("-pk")
        if known:
            rows = rows.filter(pk__gt=known[-1])
        else:  # a long answer began before the window
            rows = rows.filter(started_at__gt=now - timedelta(seconds=4 * WINDOW))
        for row in rows.values_list(*COLUMNS)[:MOST]:
            found = answer(*row)
            self._answers[found.number] = found
        oldest = now.timestamp() - WINDOW - SLOT - SETTLED
        kept = sorted(self._answers.values(), key=lambda one: one.ended)[-MOST:]
        highest = max(self._answers, default=0)
        self._answers = {one.number: one for one in kept if one.ended > oldest}
        self._marks = [mark for mark in self._marks if mark[0] > now - 2 * OVERLAP] + [(now, highest)]


def answer(
    number: int,
    started: datetime,
    duration: int,
    first: int | None,
    prompt: int,
    completion: int,
    status: str,
    model: str,
    tenant: int,
    user: int | None,
    key: int,
) -> Answer:
    """Return a record, by COLUMNS."""
    began = started.timestamp()
    return Answer(
        number=number,
        began=began,
        first=None if first is None else began + first / 1000,
        ended=began + duration / 1000,
        prompt_tokens=prompt,
        completion_tokens=completion,
        status=status,
        model=model,
        tenant=tenant,
        user=user,
        key=key,
    )


# --- What one person sees of it
@dataclass(frozen=True, slots=True, kw_only=True)
class UsageView:
    """`slots`: when each begins. `tokens` a second and `requests` in each. `models`: the busiest first, of the whole
    window, with what runs now (None where that is not the reader's alone). `last`: the latest requests first."""

    slots: tuple[datetime, ...]
    tokens: tuple[float, ...]
    requests: tuple[int, ...]
    models: tuple[dict[str, Any], ...]
    last: tuple[dict[str, Any], ...]


def usage_view(frame: Snapshot, owner: Owner) -> UsageView:
    """What of the frame is this owner's. Pure."""
    answers = [one for one in frame.answers if one.is_of(owner)]
    end = (frame.at.timestamp() - SETTLED) // SLOT * SLOT
    begin = end - WINDOW
    starts = [begin + SLOT * n for n in range(WINDOW // SLOT)]
    return UsageView(
        slots=tuple(datetime.fromtimestamp(start, UTC) for start in starts),
        tokens=spread_tokens(answers, begin, len(starts)),
        requests=count_answers(answers, begin, len(starts)),
        models=models(answers, frame.running or {} if owner is None else None, begin),
        last=tuple(snapshot_for(one, frame.keys or {}) for one in reversed(answers[-LAST:])),
    )


def spread_tokens(answers: Iterable[Answer], begin: float, slots: int) -> tuple[float, ...]:
    """Return tokens a second in each slot since `begin`: those of an answer evenly from its first token to its end."""
    tokens = [0.0] * slots
    for one in answers:
        first = one.began if one.first is None else one.first
        if one.ended <= first:
            at = int((one.ended - begin) // SLOT)
            if 0 <= at < slots:
                tokens[at] += one.completion_tokens
            continue
        rate = one.completion_tokens / (one.ended - first)
        for at in range(max(0, int((first - begin) // SLOT)), min(slots - 1, int((one.ended - begin) // SLOT)) + 1):
            low, high = begin + SLOT * at, begin + SLOT * (at + 1)
            tokens[at] += rate * max(0.0, min(one.ended, high) - max(first, low))
    return tuple(round(total / SLOT, 1) for total in tokens)


def count_answers(answers: Iterable[Answer], begin: float, slots: int) -> tuple[int, ...]:
    """Return requests that ended in each slot."""
    found = Counter(int((one.ended - begin) // SLOT) for one in answers)
    return tuple(found[at] for at in range(slots))


def models(answers: Sequence[Answer], running: dict[str, int] | None, begin: float) -> tuple[dict[str, Any], ...]:
    """Return those that answered since `begin` or run something."""
    rows: dict[str, dict[str, Any]] = defaultdict(lambda: {"requests": 0, "tokens": 0, "unanswered": 0})
    for one in answers:
        if one.ended >= begin:
            row = rows[one.model]
            row["requests"] += 1
            row["tokens"] += one.completion_tokens
            row["unanswered"] += one.status != UsageRecord.Status.FINISHED
    for model, number in (running or {}).items():
        if number:
            rows[model]["running"] = number
    found = [
        {
            "model": model,
            "running": None if running is None else 0,
            **row,
            "per_second": round(row["tokens"] / WINDOW, 1),
        }
        for model, row in rows.items()
    ]
    return tuple(sorted(found, key=lambda row: (-(row["running"] or 0), -row["requests"], row["model"])))


def snapshot_for(one: Answer, keys: dict[int, str]) -> dict[str, Any]:
    writing = one.ended - one.first if one.first is not None else 0
    return {
        "number": one.number,
        "at": datetime.fromtimestamp(one.ended, UTC),
        "model": one.model,
        "key": keys.get(one.key, ""),
        "status": one.status,
        "tokens_in": one.prompt_tokens,
        "tokens_out": one.completion_tokens,
        "first": None if one.first is None else round(one.first - one.began, 2),
        "took": round(one.ended - one.began, 1),
        "speed": round(one.completion_tokens / writing) if writing > 0 else None,
    }


# --- For open sockets
def _connected(read: Callable[[int], Snapshot], number: int) -> Snapshot:
    """In a thread that lives long: its connection may have ended meanwhile, and others want it between two reads."""
    close_old_connections()
    try:
        return read(number)
    finally:
        close_old_connections()


class LiveUsageFeed:
    """What watchers see. Its task and thread begin with the first of them and end with the last."""

    def __init__(
        self, reader: Callable[[], Callable[[int], Snapshot]] = Reader, *, poll: float = 2.0, patience: float = 5.0
    ):
        """`poll`: seconds between two reads; a database that takes longer than `patience` seconds counts as away."""
        self._reader = reader
        self._poll = poll
        self._patience = patience
        self._watchers = 0
        self._frame: Snapshot | None = None
        self._news = asyncio.Event()
        self._watchdog = Watchdog()
        self._task: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def watching(self) -> AsyncIterator["LiveUsageFeed"]:
        self._watchers += 1
        if self._task is None:
            self._news, self._frame = asyncio.Event(), None
            self._task = self._watchdog.keep("pulse", self._run)
        try:
            yield self
        finally:
            self._watchers -= 1
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
        thread = ThreadPoolExecutor(1, thread_name_prefix="pulse")
        loop, away = asyncio.get_running_loop(), False
        number = self._frame.number if self._frame is not None else 0  # those who watch wait for later ones
        try:
            read = self._reader()
            while True:
                number += 2  # one for what is told while it is waited for
                next_read = loop.time() + self._poll
                job = loop.run_in_executor(thread, _connected, read, number)
                try:
                    done, _ = await asyncio.wait([job], timeout=self._patience)
                    if not done:
                        self._lost(number - 1)
                    self._show(await job)
                    away = False
                except Exception as error:  # the loop must go on for those who watch
                    if not away:
                        log.warning("the live view stands still: %s", error, exc_info=not isinstance(error, Error))
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
