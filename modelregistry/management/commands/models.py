import json
from argparse import ArgumentParser
from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand
from django.utils import timezone

from modelregistry.models import Host, Replica, ServedModel

UNSEEN = timedelta(seconds=60)  # a supervisor says every 10 s that it lives


class Command(BaseCommand):
    help = "Shows the registered models and how each replica is."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="a list of objects, one for each model")

    def handle(self, *args: Any, **options: Any) -> str:
        models = ServedModel.objects.select_related("host").prefetch_related("replica_set__host")
        if options["json"]:
            return json.dumps([_as_object(model) for model in models], ensure_ascii=False, indent=2)
        return _table([row for model in models for row in _rows(model)])


def _as_object(model: ServedModel) -> dict[str, Any]:
    return {
        "name": model.name,
        "engine": model.engine,
        "task": model.task,
        "host": model.host.name if model.host else None,
        "enabled": model.enabled,
        "replicas": [
            {
                "number": replica.index,
                "host": replica.host.name,
                "supervised": _is_supervised(replica.host),
                "state": replica.state,
                "launcher": replica.launcher,
                "slots": replica.slots,
                "pid": replica.pid,
                "memory_bytes": replica.memory_bytes,
                "restarts": replica.restarts,
                "since": replica.changed_at.isoformat(),
                "detail": replica.detail,
            }
            for replica in model.replica_set.all()
        ],
    }


def _rows(model: ServedModel) -> list[list[str]]:
    replicas = list(model.replica_set.all())
    if not replicas:
        host = model.host.name if model.host else "-"
        return [[model.name, model.engine, model.task, host, _waits_for(model), "-", "-", ""]]
    return [
        [model.name, model.engine, model.task, replica.host.name, replica.state, *_measures(replica)]
        for replica in replicas
    ]


def _waits_for(model: ServedModel) -> str:
    if not model.enabled:
        return "disabled"
    return "waits for its supervisor" if model.host else "waits for a host that has it"


def _is_supervised(host: Host) -> bool:
    return host.seen_at is not None and timezone.now() - host.seen_at < UNSEEN


def _measures(replica: Replica) -> list[str]:
    memory = f"{replica.memory_bytes / 1e9:.1f} GB" if replica.memory_bytes and replica.pid else "-"
    since = timezone.localtime(replica.changed_at).strftime("%m-%d %H:%M:%S")
    # The first line says what happened; the lines after it are the engine's own words.
    detail = replica.detail.partition("\n")[0][:120]
    if not _is_supervised(replica.host):
        detail = " ".join(["(no supervisor: may be otherwise by now)", detail]).strip()
    return [memory, since, detail]


def _table(rows: list[list[str]]) -> str:
    table = [["MODEL", "ENGINE", "TASK", "HOST", "STATE", "MEMORY", "SINCE", "DETAIL"], *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table
    )
