"""Show who waits how long for which model, what replicas work on, and how fair the queue was."""

from argparse import ArgumentParser
from typing import Any

import orjson
from django.core.management.base import BaseCommand
from django.utils import timezone

from modelregistry.terminal import format_table
from portal.operations.queue import QueuedModel, QueueNow, QueueReader


class Command(BaseCommand):
    help = "Shows who waits how long for which model, what its replicas work on, and how fair the last hour was."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="as JSON, for programs")

    def handle(self, **options: Any) -> str:
        queue = QueueReader()(timezone.now())
        return orjson.dumps(queue).decode() if options["json"] else "\n\n".join(_show(queue))


def _show(queue: QueueNow) -> list[str]:
    models = format_table(
        ("MODEL", "WAITING", "LONGEST", "RUNNING", "FAIRNESS"),
        [
            (model.model, str(model.total), f"{model.longest:.0f} s", _running(model), _fairness(model))
            for model in queue.models
        ],
        numeric={"WAITING", "LONGEST"},
    )
    calls = format_table(
        ("WAITS", "PLACE", "MODEL", "CLASS", "TENANT", "WHO", "KEY"),
        [
            (
                *(f"{call.waited:.0f} s", str(call.place), call.model, call.call_class, call.tenant),
                *(" · ".join(filter(None, (call.user or call.name, call.end_user))), call.key),
            )
            for call in queue.calls
        ],
        numeric={"WAITS", "PLACE"},
    )
    workers = format_table(
        ("WORKER", "REPORTED", "WAITING"),
        [(worker.worker, f"{worker.age:.0f} s ago", str(worker.waiting)) for worker in queue.workers],
        numeric={"REPORTED", "WAITING"},
    )
    return [
        "\n".join(models) if queue.models else "No model works on a call.",
        "\n".join(calls) if queue.calls else "No one waits.",
        "\n".join(workers)
        if queue.workers
        else "No gateway has reported: none is running, or none reaches the database.",
    ]


def _running(model: QueuedModel) -> str:
    return ", ".join(
        f"{one.running}" if one.room is None else f"{one.running} of {one.room:g}" for one in model.replicas
    )


def _fairness(model: QueuedModel) -> str:
    return ", ".join(f"{one.index:.2f} ({one.call_class}, {one.callers} callers)" for one in model.fairness)
