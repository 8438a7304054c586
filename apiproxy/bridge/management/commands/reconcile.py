"""Prints the ledger beside the engines' own counters."""

import json
from argparse import ArgumentParser
from datetime import UTC, datetime
from typing import Any

import httpx2
from django.conf import settings
from django.core.management.base import BaseCommand
from django.db.models import F, Sum

from apiproxy.bridge import usage_reconciliation
from apiproxy.bridge.usage_reconciliation import CounterReading
from modelregistry.engines.base import MonitoringSpec
from modelregistry.engines.registry import launched_by
from modelregistry.models import Replica
from modelregistry.process.probe import sum_metrics
from modelregistry.terminal import clean, format_table
from portal.usage.models import UsageRecord

SIDES = ("engine", "ledger", "difference")
PATIENCE = 10.0  # seconds; llama.cpp was seen to report its metrics only after 7 in the middle of a long prompt


class Command(BaseCommand):
    help = (
        "Compares recorded usage with the engines' own token counters since each engine's start, by model. "
        "Engines also count the supervisor's readiness questions (a short prompt and one token each), "
        "and calls that are still under way; so they are a little ahead. llama.cpp does not count prompt tokens "
        "that it found in its cache, so these are left out of the ledger's side; vLLM counts the prompt "
        "of n answers n times. Run it on each host: only engines that this host started can be asked."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="a list of objects")

    def handle(self, **options: Any) -> None:
        replicas = Replica.objects.filter(state=Replica.State.READY).select_related("model", "host")
        rows = usage_reconciliation.compare_by_model([read_replica(replica) for replica in replicas])
        if options["json"]:
            self.stdout.write(json.dumps(rows, ensure_ascii=False))
            return
        lines = [
            [row["model"], kind, *(f"{row[f'{kind}_tokens'][name]:,}" for name in SIDES)]
            for row in rows
            for kind in ("prompt", "completion")
            if row["engines"]
        ]
        for line in format_table(["model", "tokens", *SIDES], lines, numeric=SIDES):
            self.stdout.write(line)
        for row in rows:
            for left_out in row["not_compared"]:
                self.stdout.write(clean(f"{row['model']}: {left_out['replica']} is not compared: {left_out['why']}"))


def read_replica(replica: Replica) -> CounterReading:
    """Ask the engine and the database; wait up to PATIENCE for the engine."""
    name = f"#{replica.index} on {replica.host.name}"
    try:
        counters = counters_of(replica)
        began = started_at(replica)
        engine_prompt, engine_completion = read_engine(replica, counters)
    except NotComparable as error:
        return CounterReading(model=replica.model.name, replica=name, why_not=str(error), code=error.code)
    ledger_prompt, ledger_completion = sum_ledger(replica, began, counters)
    return CounterReading(
        model=replica.model.name,
        replica=name,
        engine_prompt=engine_prompt,
        engine_completion=engine_completion,
        ledger_prompt=ledger_prompt,
        ledger_completion=ledger_completion,
    )


class NotComparable(Exception):
    """There is nothing to compare this engine's usage with; the message says why, `code` for programs."""

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code


def counters_of(replica: Replica) -> MonitoringSpec:
    monitoring = launched_by(replica.launcher).monitoring
    if not monitoring.prompt:
        engine = replica.launcher or "an external engine"
        raise NotComparable(f"{engine} has no counters that can be read", code="no-counters")
    return monitoring


def started_at(replica: Replica) -> datetime:
    """Return when the engine began to count: its run's directory is made just before it starts."""
    spec = settings.RUN / "engines" / replica.run_id / "spec.json"
    if not replica.run_id or not spec.exists():
        message = f"it was not started here; run this command on {replica.host.name}"
        raise NotComparable(message, code="another-host")
    return datetime.fromtimestamp(spec.stat().st_mtime, UTC)


def read_engine(replica: Replica, counters: MonitoringSpec) -> tuple[int, int]:
    """Return the engine's own prompt and completion tokens."""
    headers = {"authorization": f"Bearer {replica.api_key}"} if replica.api_key else {}
    url = replica.url + counters.metrics
    try:
        answer = httpx2.get(url, headers=headers, timeout=PATIENCE)
        answer.raise_for_status()
        return usage_reconciliation.read_counters(counters, sum_metrics(answer.text))
    except httpx2.HTTPError as error:
        raise NotComparable(f"it does not answer ({type(error).__name__})", code="no-answer") from error
    except KeyError as error:
        raise NotComparable(f"it does not report {error.args[0]}", code="not-reported") from error


def sum_ledger(replica: Replica, began: datetime, counters: MonitoringSpec) -> tuple[int, int]:
    """Return the ledger's prompt and completion tokens of this engine's run, counted by the engine's rules."""
    prompt = F("prompt_tokens") if counters.counts_cached else F("prompt_tokens") - F("cached_tokens")
    found = UsageRecord.objects.filter(replica_id=replica.pk, started_at__gte=began).aggregate(
        prompt=Sum(prompt, default=0), completion=Sum("completion_tokens", default=0)
    )
    return found["prompt"], found["completion"]
