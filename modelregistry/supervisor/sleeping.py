"""Puts an engine to sleep and wakes it by vLLM's routes, and has it prove after waking that it is what it was.

An engine whose weights did not come back as they were reports itself healthy and answers "!!!!" (vLLM's issue 54235).
So its answer to a fixed question is kept with its run when it is first ready, and it must give the same one each time
it was woken. The answer is to a question of ours; nothing of a caller's is kept.

At level 1 vLLM holds the weights in RAM, and keeps that RAM when it is awake again (its issue 16663).
"""

import asyncio
import math
from collections.abc import Mapping
from typing import Any

import httpx2

from modelregistry.engines.base import LEVEL_1, LEVEL_2
from modelregistry.engines.version_trials import explain_difference
from modelregistry.hostside.sleep_record import SleepRecord
from modelregistry.process import probe
from modelregistry.process.probe import Target

# Seconds. Level 1 copies the weights to RAM, some GB a second at worst; level 2 only lets go.
SLEEP_WITHIN = 120.0
ASK_WITHIN = 5.0
# To copy the weights back from RAM, and to answer twice. Level 2 reads them again: from a network disk at worst.
WAKE_WITHIN = 120.0
SLOWEST_DISK = 100e6  # bytes a second
LEVELS = {LEVEL_1: 1, LEVEL_2: 2}
# More than one in a row, and it is stopped instead of put to sleep, until it is changed or restarted by an operator:
# each costs a wait and a whole start.
MOST_FAILURES = 2


class SleepFault(Exception):
    """It did not sleep or wake as it should. `cause`: a code of `failure_advice`; the message is for operators."""

    def __init__(self, cause: str, message: str) -> None:
        super().__init__(message)
        self.cause = cause


async def ask_whether_asleep(client: httpx2.AsyncClient, target: Target) -> bool | None:
    """Return what the engine says within ASK_WITHIN seconds; None: it does not say, or cannot sleep."""
    try:
        answer = await client.get(f"{target.url}/is_sleeping", headers=_headers(target), timeout=ASK_WITHIN)
        asleep = answer.json()["is_sleeping"]
    except (httpx2.HTTPError, LookupError, TypeError, ValueError):
        return None
    return asleep if isinstance(asleep, bool) else None


async def fall_asleep(client: httpx2.AsyncClient, target: Target, level: str, *, within: float = SLEEP_WITHIN) -> None:
    """Put it to sleep; what it still works on is aborted. Raises SleepFault."""
    try:
        async with asyncio.timeout(within):
            await _control(client, target, "/sleep", {"level": LEVELS[level]})
            if not await ask_whether_asleep(client, target):
                raise SleepFault("sleep-failed", "does not report that it sleeps")
    except (TimeoutError, httpx2.HTTPError, probe.ProbeFailed) as error:
        raise SleepFault("sleep-failed", _describe(error, within)) from error


def wake_limit(level: str, weights: int | None) -> float:
    """Return the seconds that it may take to wake. `weights`: bytes on all cards; None: not known."""
    if level == LEVEL_1:
        return WAKE_WITHIN
    return math.inf if weights is None else WAKE_WITHIN + weights / SLOWEST_DISK


async def wake_up(client: httpx2.AsyncClient, target: Target, record: SleepRecord, *, within: float) -> None:
    """Wake it and have it prove that it is what it was, all in `within` seconds. Raises SleepFault."""
    try:
        async with asyncio.timeout(within):
            await _control(client, target, "/wake_up", {"tags": "weights"})
            if record.level != LEVEL_1:  # also where it is not known
                await _control(client, target, "/collective_rpc", body={"method": "reload_weights"})
            await _control(client, target, "/wake_up", {"tags": "kv_cache"})
            if await ask_whether_asleep(client, target) is not False:
                raise SleepFault("wake-failed", "does not report that it is awake")
            await probe.ask_question(client, target, within=within)
            answer = await probe.ask_sample(client, target, within=within)
    except (TimeoutError, httpx2.HTTPError, probe.ProbeFailed) as error:
        raise SleepFault("wake-failed", _describe(error, within)) from error
    if difference := find_difference(record.answer, answer):
        raise SleepFault("wake-damaged", difference)


def find_difference(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> str:
    """Return how the answer to the fixed question differs from the first one; empty: it is the same.

    The same process answers greedily, with nothing beside it and no cache: a text is the same to the letter. Vectors
    are computed in other orders at times.
    """
    if before is None or after is None:
        return "gave no answer that can be compared"
    if before == after:
        return ""
    if "text" in before:
        return f"answers {str(after.get('text'))[:60]!r} to the fixed question, not {str(before['text'])[:60]!r}"
    return explain_difference(before, after)


async def _control(
    client: httpx2.AsyncClient,
    target: Target,
    path: str,
    params: Mapping[str, str | int] | None = None,
    body: Mapping[str, Any] | None = None,
) -> None:
    """Post to one of its routes of development. Raises ProbeFailed, httpx2.HTTPError; waits as long as its caller."""
    answer = await client.post(target.url + path, params=params, json=body, headers=_headers(target), timeout=None)
    if answer.status_code != 200:
        raise probe.ProbeFailed(f"{path}: {answer.status_code} {answer.text[:200]}")


def _headers(target: Target) -> dict[str, str]:
    return {"Authorization": f"Bearer {target.api_key}"}


def _describe(error: Exception, within: float) -> str:
    if isinstance(error, TimeoutError):
        return f"did not within {within:g} s"
    return str(error) or type(error).__name__
