"""Make the calls: rows for `usage.records`, a day at a time. Pure except for chance."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from itertools import accumulate
from random import Random
from typing import Any
from zoneinfo import ZoneInfo

from portal.demo import workdays
from portal.demo.keyrings import Holder, client_class_of
from portal.demo.plan import ENGINES, LARGE

ENGINE = {engine.name: engine for engine in ENGINES}
STOPPED_BY = {
    **{"finished": "stop", "looped": "loop", "aborted": "client", "interrupted": "restart"},
    **{"failed": "engine_error", "refused": "engine_refused"},
}
HOURS = {
    "office": workdays.OFFICE,
    "counter": workdays.COUNTER,
    "night": workdays.NIGHT,
    "dawn": workdays.DAWN,
    "machines": workdays.MACHINES,
}
SUMMED = {name: list(accumulate(hours)) for name, hours in HOURS.items()}
BUSIEST = max(workdays.OFFICE)
ENDPOINTS = {
    "chat": "chat/completions",
    "embedding": "embeddings",
    "rerank": "rerank",
    "transcription": "audio/transcriptions",
}
# Incidents of the quarter: (days ago, from, to, model, share that failed), in hours of Tokyo.
INCIDENTS = ((23, 14.2, 14.9, LARGE, 0.8), (61, 10.0, 11.5, LARGE, 0.45), (9, 9.1, 9.3, "", 0.3))
TOKYO = ZoneInfo("Asia/Tokyo")
# Temperatures of calls in hundredths, how many of 100 have them, and the share of answers of LARGE that loop.
TEMPERATURES: tuple[tuple[int | None, int, float], ...] = (
    (None, 52, 0.0015),
    (0, 16, 0.022),
    (20, 13, 0.012),
    (70, 14, 0.002),
    (100, 5, 0.0),
)
MOST_TOKENS = 4096  # that programs ask for at most, so as much as a loop takes

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class SimulatedCall:
    """A call before an engine has it."""

    at: datetime
    model: str
    prompt: int
    answer: int
    end_user: str


def daily_calls(
    chance: Random, holders: list[Holder], now: datetime, days: int, amount: float = 1.0
) -> Iterator[list[Row]]:
    """Yield the rows of each day, oldest first. `amount`: times the calls in the plan."""
    today = now.astimezone(TOKYO).date()
    for ago in range(
        days - 1, -2, -1
    ):  # tomorrow has begun somewhere before it does in Tokyo, and ends later elsewhere
        day = today - timedelta(days=ago)
        # A popular system is used more each month. Today is always a working day, so that there is something to show
        # on a holiday as well.
        grown = amount * (0.62 + 0.38 * (1 - max(ago, 0) / days))
        rows = [
            row
            for holder in holders
            for row in _draw_calls(chance, holder, day, now, grown, 0.95 if day == today else 0.0)
        ]
        rows.sort(key=lambda row: row["started_at"])
        yield rows


def _draw_calls(chance: Random, holder: Holder, day: date, now: datetime, grown: float, least: float) -> Iterator[Row]:
    zone = ZoneInfo(holder.department.zone)
    midnight = datetime.combine(day, time(), zone).astimezone(UTC)
    age = (midnight - holder.since).days
    if age < 0 or midnight >= now:
        return
    count = _poisson(chance, grown * _expected_calls(holder, day, age, least))
    if not count:
        return
    service = holder.service
    hours = SUMMED[service.hours if service else "office"]
    mix = holder.mix or (service.mix if service else holder.department.mix)
    models, weights = list(mix), list(accumulate(mix.values()))
    for _ in range(count):
        hour = chance.choices(range(24), cum_weights=hours)[0]
        at = midnight + timedelta(seconds=3600 * hour + chance.random() * 3600)
        key = holder.key_at(at)
        if at >= now or key is None:
            continue
        model = chance.choices(models, cum_weights=weights)[0]
        prompt, answer = _lengths(chance, holder, model)
        end_user = (
            f"{holder.department.slug}-{_caller(chance, service.callers):04}" if service and service.callers else ""
        )
        row = _row(chance, SimulatedCall(at, model, prompt, answer, end_user), day, now)
        row["key_id"], row["user_id"], row["tenant_id"] = key.pk, key.user_id, key.tenant_id
        row["client_class"] = client_class_of(key)
        yield row


def _expected_calls(holder: Holder, day: date, age: int, least: float) -> float:
    """Return the expected number of calls of a day. `least`: the least share of a working day."""
    department, service = holder.department, holder.service
    pace = workdays.office_activity(day) if department.zone == "Asia/Tokyo" else workdays.office_activity_abroad(day)
    pace = max(pace, least)
    if department.closing > 1 and workdays.closes_month(day):
        pace *= department.closing
    if service:
        pace = max(pace, service.weekends)
        return service.calls * pace * (0.35 + 0.65 * min(1.0, age / 45))  # a service is rolled out over some weeks
    return department.calls * holder.heavy * pace * (0.6 + 0.4 * min(1.0, age / 30))


def _poisson(chance: Random, mean: float) -> int:
    if mean > 30:
        return max(0, round(chance.gauss(mean, math.sqrt(mean) * 1.6)))
    limit, product, count = math.exp(-mean), chance.random(), 0
    while product > limit:
        product *= chance.random()
        count += 1
    return count


def _caller(chance: Random, callers: int) -> int:
    """Return the number of an end user: few of them call often, most of them seldom."""
    return min(callers, 1 + int(callers * chance.random() ** 2.4))


def _lengths(chance: Random, holder: Holder, model: str) -> tuple[int, int]:
    engine, service = ENGINE[model], holder.service
    prompt = service.prompt if service else 620
    answer = service.answer if service else 270
    if engine.task == "embedding":
        return _draw_length(chance, prompt * 0.6, 0.5, 512 * 40), 0
    if engine.task == "rerank":
        return _draw_length(chance, prompt * 1.1, 0.4, 40_000), 0
    if engine.task == "transcription":
        return 0, _draw_length(chance, max(answer, 700), 0.6, 8000)
    most = engine.context - 64
    prompt = _draw_length(chance, prompt, 0.75, most - 128)
    return prompt, _draw_length(chance, max(answer, 60), 0.7, most - prompt)


def _draw_length(chance: Random, median: float, spread: float, most: int) -> int:
    return max(8, min(most, int(chance.lognormvariate(math.log(median), spread))))


def _row(chance: Random, call: SimulatedCall, day: date, now: datetime) -> Row:
    engine = ENGINE[call.model]
    local = call.at.astimezone(TOKYO)
    load = workdays.OFFICE[local.hour] / BUSIEST
    slow = 1 + 0.9 * load * load
    chat = engine.task == "chat"
    first = int(engine.first * slow * (1 + call.prompt / 5000) * chance.lognormvariate(0, 0.38))
    queued = int(chance.uniform(1500, 9000)) if chance.random() < 0.02 * load else 0
    speed = engine.speed / (1 + 0.35 * load) * chance.uniform(0.85, 1.1) if engine.speed else 0
    status, answer, estimated = _draw_outcome(chance, call, now)
    streamed = status in ("finished", "aborted") and chat and chance.random() < 0.94  # the others do not stream
    number = chance.getrandbits(128)
    # By a generator of its own: with it or without, the rest of the company is the same.
    temperature, looped = _draw_loop(Random(number), call) if chat else (None, 0)  # noqa: S311 -- nothing secret
    if status != "finished":
        looped = 0
    if looped:
        status, answer = "looped", answer + looped
    return {
        "request_id": f"{number:032x}",
        "model": call.model,
        "replica_id": None,
        "endpoint": ENDPOINTS[engine.task],
        "started_at": call.at,
        "first_token_ms": first if streamed else None,
        "duration_ms": first + int(1000 * answer / speed if speed else 0),
        "prompt_tokens": call.prompt if status not in ("failed", "refused") else 0,
        "cached_tokens": int(call.prompt * chance.uniform(0.3, 0.9)) if streamed and chance.random() < 0.35 else 0,
        "completion_tokens": answer,
        "reasoning_tokens": 0,
        "looped_tokens": looped,
        "saved_tokens": max(0, MOST_TOKENS - answer) if looped else 0,
        "temperature": temperature,
        "watched": chat,
        "queued_ms": queued,
        "loading_ms": 0,
        "prefill_ms": first if streamed else None,
        "retries": 0,
        "stopped_by": STOPPED_BY[status],
        "status": status,
        "estimated": estimated,
        "end_user": call.end_user,
    }


def _draw_loop(chance: Random, call: SimulatedCall) -> tuple[int | None, int]:
    """Return the temperature and the tokens that repeat others; 0: no loop."""
    temperature, _share, loops = chance.choices(TEMPERATURES, [share for _, share, _ in TEMPERATURES])[0]
    if call.model != LARGE or chance.random() >= loops:
        return temperature, 0
    return temperature, chance.randint(120, 280)


def _draw_outcome(chance: Random, call: SimulatedCall, now: datetime) -> tuple[str, int, bool]:
    """Return the status, the tokens of the answer, and whether they are estimated."""
    throw = chance.random()
    for ago, begin, end, model, share in INCIDENTS:
        if call.model == model or not model:
            local = call.at.astimezone(TOKYO)
            on = (now.astimezone(TOKYO).date() - local.date()).days == ago
            if on and begin <= local.hour + local.minute / 60 < end and throw < share:
                return ("failed", 0, False) if model else ("interrupted", call.answer // 3, True)
    if throw < 0.004:
        return "failed", 0, False
    if throw < 0.009:
        return "refused", 0, False
    if throw < 0.029:
        return "aborted", int(call.answer * chance.random()), chance.random() < 0.2
    return "finished", call.answer, False
