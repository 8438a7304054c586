"""Usage right now: the requests that ended within the last five minutes.

`LiveUsageFeed` is built once, in portal.asgi. A request is known when it has ended; its tokens are spread over the time
in which they were generated.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from django.utils import timezone

from modelregistry.models import Replica
from portal.keys.models import ApiKey
from portal.usage.models import UsageRecord
from portal.web.live_feed import LiveFeed, Snapshot

WINDOW = 300  # seconds that are shown
SLOT = 5  # seconds of a bar
SETTLED = 2  # seconds after which most ended requests have been recorded: the ledger writes every second
LATEST = 20  # requests that are listed
MAX_ANSWERS = 20_000  # that are kept: 66 a second for five minutes
# A record may become visible after one with a higher number, so the last few seconds are read again.
OVERLAP = timedelta(seconds=4)
COLUMNS = (
    *("pk", "started_at", "duration_ms", "first_token_ms", "prompt_tokens", "completion_tokens"),
    *("status", "model", "tenant_id", "user_id", "key_id", "request_id"),
)
# A loop that was only counted is a complete answer; one that was ended is shown among the loops.
ANSWERED = (UsageRecord.Status.FINISHED, UsageRecord.Status.LOOPED)
Owner = tuple[Literal["tenant", "user"], int] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AnsweredRequest:
    """A request that has ended, without any of its text. Times are Unix seconds."""

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
    request_id: str

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "AnsweredRequest":
        """Return the answer of a record's COLUMNS, by name."""
        began, first = record["started_at"].timestamp(), record["first_token_ms"]
        return cls(
            number=record["pk"],
            began=began,
            first=None if first is None else began + first / 1000,
            ended=began + record["duration_ms"] / 1000,
            prompt_tokens=record["prompt_tokens"],
            completion_tokens=record["completion_tokens"],
            status=record["status"],
            model=record["model"],
            tenant=record["tenant_id"],
            user=record["user_id"],
            key=record["key_id"],
            request_id=record["request_id"],
        )

    def belongs_to(self, owner: Owner) -> bool:
        return owner is None or getattr(self, owner[0]) == owner[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageSnapshot(Snapshot):
    """The answers of the window, with what a view needs beside them.

    `running`: requests that engines work on, by model. `keys`: the names of the answers' keys, by number.
    """

    answers: tuple[AnsweredRequest, ...] = ()
    running: dict[str, int] | None = None
    keys: dict[int, str] | None = None


class LiveUsageReader:
    """Reads snapshots, each time only the new records. Blocks on the database; raises django.db.Error."""

    def __init__(self, clock: Callable[[], datetime] = timezone.now) -> None:
        self._clock = clock
        self._answers: dict[int, AnsweredRequest] = {}
        self._marks: list[tuple[datetime, int]] = []  # (time of a read, highest number known then)
        self._keys: dict[int, str] = {}

    def __call__(self, number: int) -> UsageSnapshot:
        """Read a snapshot. Three queries at most."""
        now = self._clock()
        self._read_answers(now)
        unknown = {answer.key for answer in self._answers.values()} - self._keys.keys()
        if unknown:
            self._keys.update(dict.fromkeys(unknown, ""))
            self._keys.update(ApiKey.objects.filter(pk__in=unknown).values_list("pk", "name"))
        running: Counter[str] = Counter()
        for model, live in Replica.objects.filter(live__isnull=False).values_list("model__name", "live"):
            running[model] += (live or {}).get("running") or 0
        answers = tuple(sorted(self._answers.values(), key=lambda answer: answer.ended))
        return UsageSnapshot(number=number, at=now, answers=answers, running=dict(running), keys=dict(self._keys))

    def _read_answers(self, now: datetime) -> None:
        """Add new answers and drop those that are too old to be shown."""
        known = [number for at, number in self._marks if at <= now - OVERLAP]
        rows = UsageRecord.objects.order_by("-pk")
        if known:
            rows = rows.filter(pk__gt=known[-1])
        else:  # a long answer may have begun before the window
            rows = rows.filter(started_at__gt=now - timedelta(seconds=4 * WINDOW))
        for record in rows.values(*COLUMNS)[:MAX_ANSWERS]:
            self._answers[record["pk"]] = AnsweredRequest.from_record(record)
        oldest = now.timestamp() - WINDOW - SLOT - SETTLED
        kept = sorted(self._answers.values(), key=lambda answer: answer.ended)[-MAX_ANSWERS:]
        highest = max(self._answers, default=0)
        self._answers = {answer.number: answer for answer in kept if answer.ended > oldest}
        self._marks = [mark for mark in self._marks if mark[0] > now - 2 * OVERLAP] + [(now, highest)]


# --- What one person sees of it
@dataclass(frozen=True, slots=True, kw_only=True)
class UsageView:
    """What a person sees of a snapshot."""

    slots: tuple[datetime, ...]  # the start of each
    tokens: tuple[float, ...]  # per second, in each slot
    requests: tuple[int, ...]  # that ended in each slot
    # Over the whole window, the busiest first. `running` now: None unless the view is of all usage.
    models: tuple[dict[str, Any], ...]
    last: tuple[dict[str, Any], ...]  # requests, the latest first


def usage_view(snapshot: UsageSnapshot, owner: Owner) -> UsageView:
    """Return the part of the snapshot that belongs to this owner. Pure."""
    answers = [one for one in snapshot.answers if one.belongs_to(owner)]
    end = (snapshot.at.timestamp() - SETTLED) // SLOT * SLOT
    begin = end - WINDOW
    starts = [begin + SLOT * n for n in range(WINDOW // SLOT)]
    return UsageView(
        slots=tuple(datetime.fromtimestamp(start, UTC) for start in starts),
        tokens=spread_tokens(answers, begin, len(starts)),
        requests=count_answers(answers, begin, len(starts)),
        models=model_rows(answers, snapshot.running or {} if owner is None else None, begin),
        last=tuple(request_row(one, snapshot.keys or {}) for one in reversed(answers[-LATEST:])),
    )


def spread_tokens(answers: Iterable[AnsweredRequest], begin: float, slots: int) -> tuple[float, ...]:
    """Return the tokens per second in each slot since `begin`, each answer's evenly from its first token to its end."""
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


def count_answers(answers: Iterable[AnsweredRequest], begin: float, slots: int) -> tuple[int, ...]:
    """Return how many requests ended in each slot."""
    found = Counter(int((one.ended - begin) // SLOT) for one in answers)
    return tuple(found[at] for at in range(slots))


def model_rows(
    answers: Sequence[AnsweredRequest], running: dict[str, int] | None, begin: float
) -> tuple[dict[str, Any], ...]:
    """Return a row for each model that answered since `begin` or is running requests."""
    rows: dict[str, dict[str, Any]] = defaultdict(lambda: {"requests": 0, "tokens": 0, "unanswered": 0})
    for one in answers:
        if one.ended >= begin:
            row = rows[one.model]
            row["requests"] += 1
            row["tokens"] += one.completion_tokens
            row["unanswered"] += one.status not in ANSWERED
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


def request_row(one: AnsweredRequest, keys: dict[int, str]) -> dict[str, Any]:
    writing = one.ended - one.first if one.first is not None else 0
    return {
        "number": one.number,
        "request": one.request_id,
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
class LiveUsageFeed(LiveFeed[UsageSnapshot]):
    """The feed of the live view."""

    def __init__(
        self,
        make_reader: Callable[[], Callable[[int], UsageSnapshot]] = LiveUsageReader,
        *,
        poll: float = 2.0,
        patience: float = 5.0,
    ) -> None:
        super().__init__("usage", make_reader, UsageSnapshot, poll=poll, patience=patience)
