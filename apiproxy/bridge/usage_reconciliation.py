"""The ledger beside the engines' own counters. Pure: numbers in, comparison out.

An engine counts from its start, and everything that it is asked: what the gateway relayed, the supervisor's readiness
questions (one generated token each), and direct calls by other holders of its key. The ledger counts what the gateway
relayed. So the engine is ahead by the supervisor's questions even when nothing is wrong; a ledger that is ahead has
estimated (an aborted stream without the engine's own numbers) or counted too much.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from modelregistry.engines.base import MonitoringSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class CounterReading:
    """One engine since its start, by its own counters and by the ledger."""

    model: str
    replica: str
    engine_prompt: int = 0
    engine_completion: int = 0
    ledger_prompt: int = 0
    ledger_completion: int = 0
    why_not: str = ""  # why the engine cannot be compared: its numbers are 0 then
    code: str = ""  # the same for programs


def read_counters(names: MonitoringSpec, values: Mapping[str, float]) -> tuple[int, int]:
    """Return (prompt, completion) of an engine's metrics. Raises KeyError if one of them is missing."""
    return int(values[names.prompt]), int(values[names.generated])


def compare_by_model(readings: Iterable[CounterReading]) -> list[dict[str, Any]]:
    """Return one row per model.

    It has both sides, engine minus ledger, how many engines were compared, and which were not, with the reason.
    """
    rows: dict[str, dict[str, Any]] = {}
    for reading in sorted(readings, key=lambda reading: (reading.model, reading.replica)):
        row = rows.setdefault(reading.model, _empty(reading.model))
        if reading.why_not:
            row["not_compared"].append({"replica": reading.replica, "code": reading.code, "why": reading.why_not})
            continue
        row["engines"] += 1
        numbers = asdict(reading)
        for kind in ("prompt", "completion"):
            engine, ledger = numbers[f"engine_{kind}"], numbers[f"ledger_{kind}"]
            row[f"{kind}_tokens"]["engine"] += engine
            row[f"{kind}_tokens"]["ledger"] += ledger
            row[f"{kind}_tokens"]["difference"] += engine - ledger
    return list(rows.values())


def _empty(model: str) -> dict[str, Any]:
    sides = ("engine", "ledger", "difference")
    return {
        "model": model,
        "engines": 0,
        "prompt_tokens": dict.fromkeys(sides, 0),
        "completion_tokens": dict.fromkeys(sides, 0),
        "not_compared": [],
    }
