"""Probes an engine: a cheap health check that disturbs nothing, and a real question.

`check_health` is a hint: an engine can report itself healthy and answer no request. `ask_question` is the proof: one
token, one embedding or one ranking. A busy engine is slow to report its metrics (llama.cpp: 7 s in the middle of a long
prompt), so no answer there means "busy", not "dead". External engines only get health checks: their tokens cost money.
"""

import asyncio
import re
import struct
from dataclasses import dataclass
from typing import Any

import httpx2

from modelregistry.engines.registry import launched_by

# One second of it: 16 kHz, 16 bits, one channel, after the header of a WAV file.
SILENCE = (
    b"RIFF"
    + struct.pack("<I", 36 + 32_000)
    + b"WAVEfmt "
    + struct.pack("<IHHIIHH", 16, 1, 1, 16_000, 32_000, 2, 16)
    + b"data"
    + struct.pack("<I", 32_000)
    + bytes(32_000)
)
CHECK_TIMEOUT = 2.0  # seconds; health is answered beside the work, in milliseconds
QUESTION_TIMEOUT = 120.0  # seconds; vLLM's first request may compile, and others may be in front


class ProbeFailed(Exception):
    """The engine did not answer, or not what it should; the message says what came instead."""


class ProbeRefusal(ProbeFailed):
    """The engine works and refuses: asking again will hardly help."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The engine to probe. `launcher` is empty for an external one."""

    launcher: str
    url: str
    api_key: str
    model: str
    task: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthCheck:
    """What a health check saw. None: the engine did not report it, being busy, or never does."""

    healthy: bool
    detail: str = ""
    running: int | None = None  # requests worked on or waiting
    work: float | None = None  # grows whenever the engine does something
    waiting: int | None = None  # of `running`
    generated: float | None = None  # tokens so far
    cache_used: float | None = None  # of the memory for contexts, 0 to 1


async def check_health(client: httpx2.AsyncClient, target: Target) -> HealthCheck:
    """Read the engine's health, and its metrics if it has any; within 2 × CHECK_TIMEOUT."""
    engine = launched_by(target.launcher)
    if engine.external:
        return await _check_external(client, target)
    monitoring = engine.monitoring
    try:
        health = await client.get(target.url + monitoring.health, headers=_headers(target), timeout=CHECK_TIMEOUT)
    except httpx2.HTTPError as error:
        return HealthCheck(healthy=False, detail=_describe_error(error))
    if health.status_code != 200:
        return HealthCheck(healthy=False, detail=f"{monitoring.health}: {health.status_code} {_error_message(health)}")
    if not monitoring.metrics:
        return HealthCheck(healthy=True)
    try:
        metrics = await client.get(target.url + monitoring.metrics, headers=_headers(target), timeout=CHECK_TIMEOUT)
    except httpx2.HTTPError:
        return HealthCheck(healthy=True)
    values = sum_metrics(metrics.text) if metrics.status_code == 200 else {}
    if monitoring.running not in values:
        return HealthCheck(healthy=True)
    return HealthCheck(
        healthy=True,
        running=int(values[monitoring.running] + values.get(monitoring.waiting, 0)),
        work=sum(values.get(name, 0) for name in monitoring.work),
        waiting=int(values[monitoring.waiting]) if monitoring.waiting in values else None,
        generated=values.get(monitoring.generated),
        cache_used=values.get(monitoring.cache_used),
    )


async def read_version(client: httpx2.AsyncClient, target: Target) -> str:
    """Return the version that the engine reports; empty: it reports none. Within CHECK_TIMEOUT."""
    path, name = launched_by(target.launcher).monitoring.version
    if not path:
        return ""
    try:
        answer = await client.get(target.url + path, headers=_headers(target), timeout=CHECK_TIMEOUT)
        return str(answer.json()[name])[:60]
    except (httpx2.HTTPError, LookupError, TypeError, ValueError):
        return ""


async def _check_external(client: httpx2.AsyncClient, target: Target) -> HealthCheck:
    try:
        answer = await client.get(f"{target.url}/v1/models", headers=_headers(target), timeout=10.0)
    except httpx2.HTTPError as error:
        return HealthCheck(healthy=False, detail=_describe_error(error))
    if answer.status_code in (401, 403):
        return HealthCheck(healthy=False, detail=f"it refuses our key ({answer.status_code})")
    detail = _explain_no_api(answer)
    return HealthCheck(healthy=not detail, detail=detail)


def _explain_no_api(answer: httpx2.Response) -> str:
    """Return why what answers `/v1/models` is no engine; empty: it may be one."""
    got = f"/v1/models: {answer.status_code}"
    if answer.status_code >= 500:
        return got
    if 300 <= answer.status_code < 400:
        return f"{got}, to {answer.headers.get('location', '?')[:200]}: is this the address of an API?"
    if answer.headers.get("content-type", "").startswith("text/html"):
        return f"{got}, a page for browsers: is this the address of an API?"
    if answer.status_code != 200:
        return ""  # 404 and 405: it is alive, and does not list its models
    try:
        listed = answer.json()
    except ValueError:
        return f"{got}, but no JSON: is this the address of an API?"
    return "" if isinstance(listed, dict | list) else f"{got}, but no list of models"


async def ask_question(client: httpx2.AsyncClient, target: Target, *, within: float = QUESTION_TIMEOUT) -> None:
    """Have the engine answer one request. Raises ProbeFailed (ProbeRefusal if it refuses) in `within` seconds."""
    try:
        async with asyncio.timeout(within):
            askers = {"chat": _chat, "embedding": _embedding, "rerank": _rerank, "transcription": _transcription}
            await askers[target.task](client, target)
    except TimeoutError as error:
        raise ProbeFailed(f"no answer within {within:g} s") from error
    except httpx2.HTTPError as error:
        raise ProbeFailed(_describe_error(error)) from error
    except (LookupError, TypeError, ValueError) as error:
        raise ProbeRefusal(f"an answer that cannot be read: {error!r}") from error


# Greedy, so that two versions of an engine can be compared; short, as it is asked at a start.
QUESTION = "Count from one to ten in words."
SAMPLE_TOKENS = 24
SAMPLE_TIMEOUT = 60.0  # seconds
SAMPLE_TEXTS = ("The weather is fine today.", "Trains leave every ten minutes.", "One, two, three, four, five.")
VECTOR_PART = 256  # numbers of an embedding that are kept


async def ask_sample(
    client: httpx2.AsyncClient, target: Target, *, within: float = SAMPLE_TIMEOUT
) -> dict[str, Any] | None:
    """Return the answer to a fixed question: {"text"}, {"vector"} or {"best"}; None: none that can be compared."""
    askers = {"chat": _sample_text, "embedding": _sample_vector, "rerank": _sample_ranking}
    if target.task not in askers:
        return None
    try:
        async with asyncio.timeout(within):
            return await askers[target.task](client, target)
    except (ProbeFailed, TimeoutError, httpx2.HTTPError, LookupError, TypeError, ValueError):
        return None


async def _sample_text(client: httpx2.AsyncClient, target: Target) -> dict[str, Any]:
    greedy = {"max_tokens": SAMPLE_TOKENS, "temperature": 0, "seed": 0}
    try:
        question = {"messages": [{"role": "user", "content": QUESTION}]}
        answer = await _post(client, target, "/v1/chat/completions", question | greedy)
        message = answer["choices"][0]["message"]
        text = message.get("content") or message.get("reasoning_content") or message.get("reasoning") or ""
    except ProbeRefusal:
        answer = await _post(client, target, "/v1/completions", {"prompt": QUESTION} | greedy)
        text = answer["choices"][0]["text"]
    return {"text": str(text)[:1000]}


async def _sample_vector(client: httpx2.AsyncClient, target: Target) -> dict[str, Any]:
    answer = await _post(client, target, "/v1/embeddings", {"input": QUESTION})
    return {"vector": [round(float(number), 5) for number in answer["data"][0]["embedding"][:VECTOR_PART]]}


async def _sample_ranking(client: httpx2.AsyncClient, target: Target) -> dict[str, Any]:
    answer = await _post(client, target, "/v1/rerank", {"query": QUESTION, "documents": list(SAMPLE_TEXTS)})
    return {"best": max(answer["results"], key=lambda result: float(result["relevance_score"]))["index"]}


async def _chat(client: httpx2.AsyncClient, target: Target) -> None:
    question = {"messages": [{"role": "user", "content": "ping"}]}
    try:
        answer = await _post(client, target, "/v1/chat/completions", question | {"max_tokens": 1})
    except ProbeRefusal as refusal:
        # A base model without a chat template serves completions.
        try:
            answer = await _post(client, target, "/v1/completions", {"prompt": "ping", "max_tokens": 1})
        except ProbeRefusal:
            raise refusal from None
    if not answer["choices"]:
        raise ProbeRefusal("an answer without choices")


async def _embedding(client: httpx2.AsyncClient, target: Target) -> None:
    answer = await _post(client, target, "/v1/embeddings", {"input": "ping"})
    if not answer["data"][0]["embedding"]:
        raise ProbeRefusal("an empty embedding")


async def _rerank(client: httpx2.AsyncClient, target: Target) -> None:
    answer = await _post(client, target, "/v1/rerank", {"query": "ping", "documents": ["ping"]})
    if not answer["results"]:
        raise ProbeRefusal("an empty ranking")


async def _transcription(client: httpx2.AsyncClient, target: Target) -> None:
    answer = await client.post(
        target.url + "/v1/audio/transcriptions",
        data={"model": target.model},
        files={"file": ("ping.wav", SILENCE, "audio/wav")},
        headers=_headers(target),
        timeout=None,
    )
    if "text" not in _read_answer(answer, "/v1/audio/transcriptions"):
        raise ProbeRefusal("a transcription without a text")


async def _post(client: httpx2.AsyncClient, target: Target, path: str, question: dict[str, Any]) -> dict[str, Any]:
    answer = await client.post(
        target.url + path, json={"model": target.model} | question, headers=_headers(target), timeout=None
    )
    return _read_answer(answer, path)


def _read_answer(answer: httpx2.Response, path: str) -> dict[str, Any]:
    if answer.status_code == 503:
        raise ProbeFailed(f"{path}: 503 {_error_message(answer)}")  # loading
    if answer.status_code != 200:
        raise ProbeRefusal(f"{path}: {answer.status_code} {_error_message(answer)}")
    body: dict[str, Any] = answer.json()
    return body


def sum_metrics(text: str) -> dict[str, float]:
    """Parse Prometheus text into each metric's sum over its labels. Lines that cannot be read are left out."""
    values: dict[str, float] = {}
    for line in text.splitlines():
        match = re.match(r"([A-Za-z_:][\w:]*)(?:\{.*\})? +([^ ]+)", line)
        if match:
            try:
                values[match[1]] = values.get(match[1], 0.0) + float(match[2])
            except ValueError:
                continue
    return values


def _headers(target: Target) -> dict[str, str]:
    return {"Authorization": f"Bearer {target.api_key}"} if target.api_key else {}


def _error_message(answer: httpx2.Response) -> str:
    """Return the error message of the engine's answer, at most 300 characters."""
    try:
        error = answer.json()["error"]
        text = error["message"] if isinstance(error, dict) else str(error)
    except (LookupError, TypeError, ValueError):
        text = answer.text
    return " ".join(str(text).split())[:300]


def _describe_error(error: httpx2.HTTPError) -> str:
    return str(error) or type(error).__name__
