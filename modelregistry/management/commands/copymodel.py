import sys
import time
from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from modelregistry.controller.repository import new_copy
from modelregistry.engines.registry import engine_named
from modelregistry.management.commands.hosts import find_host
from modelregistry.models import Host, ModelCopy, ServedModel
from modelregistry.plain_numbers import decimal_number
from modelregistry.terminal import clean

LOOK_EVERY = 1.0  # seconds
SHOW_EVERY = 5.0  # seconds between two lines of progress
NO_CONTROLLER_AFTER = 30.0  # seconds without any change
MOST = 1_000_000.0  # MB/s

State = ModelCopy.State


class Command(BaseCommand):
    help = (
        "Copies the files of a model to a host, at the same path, from the host that has them; shows the progress. "
        "The controller goes on with it also if this command is interrupted; run again, it shows the progress again, "
        "and goes on with a copy that failed where that was. Checksums are compared at the end."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("name", help="the model's")
        parser.add_argument("host")
        parser.add_argument(
            "--from",
            dest="source",
            default="",
            metavar="HOST|DIRECTORY",
            help="the host that gives them, or a folder that HOST itself has, such as a share; default: any that has",
        )
        parser.add_argument("--limit", type=decimal_number, default=0.0, metavar="MB/S", help="default: none")
        parser.add_argument("--stop", action="store_true", help="give the copy up, and delete what it brought")
        parser.add_argument("--no-wait", action="store_true", help="request it, and show no progress")

    def handle(self, *args: Any, **options: Any) -> str:
        model, host = _find_model(options["name"]), find_host(options["host"])
        if options["stop"]:
            return _stop(model, host)
        limit = options["limit"]
        if limit and not 1.0 <= limit <= MOST:
            raise CommandError("A limit is 1 MB/s at least; leave it out for none.")
        _check_source(options["source"], host)
        number = _request(model, host, options["source"], int(limit * 1e6))
        if options["no_wait"]:
            return model.path
        try:
            _watch(number)
        except KeyboardInterrupt:
            raise CommandError("The copy goes on. --stop gives it up.", returncode=130) from None
        return model.path


def _find_model(name: str) -> ServedModel:
    model = ServedModel.objects.filter(name=name).first()
    if model is None:
        raise CommandError(f"There is no model {name}; `manage.py models` shows those that there are.")
    if engine_named(model.engine).external:
        raise CommandError(f"{name} is served elsewhere, and has no files here.")
    return model


def _check_source(source: str, host: Host) -> None:
    if source == host.name:
        raise CommandError("A host does not copy to itself.")
    if not source.startswith("/") and source not in ("", settings.HOST_NAME):
        find_host(source)


def _request(model: ServedModel, host: Host, source: str, limit: int) -> str:
    """Request the copy, unless it goes on already as it is wanted; return its number."""
    there = ModelCopy.objects.filter(model=model, host=host, source=source, limit=limit)
    if goes_on := there.filter(state__in=[State.WAITING, State.RUNNING]).first():
        return goes_on.number
    values = new_copy(source=source, limit=limit)
    row, _ = ModelCopy.objects.update_or_create(model=model, host=host, defaults=values)
    return row.number


def _stop(model: ServedModel, host: Host) -> str:
    stopping = ModelCopy.objects.filter(model=model, host=host)
    if not stopping.exclude(state=State.DONE).update(state=State.STOPPING):
        raise CommandError(f"{model.name} is not being copied to {host.name}.")
    return f"{model.name}: what was copied to {host.name} is deleted."


def _watch(number: str) -> None:
    """Show the progress until the copy is over. Raises CommandError when it fails."""
    shown, shown_at, changed_at = "", float("-inf"), time.monotonic()
    before = None
    while True:
        row = ModelCopy.objects.filter(number=number).first()
        if row is None or row.state == State.STOPPING:
            raise CommandError("It was given up, or requested again in another way.")
        if row.changed_at != before:
            before, changed_at = row.changed_at, time.monotonic()
        line = _describe(row, waited=time.monotonic() - changed_at)
        is_over = row.state in (State.DONE, State.FAILED)
        if line != shown and (is_over or row.state == State.WAITING or time.monotonic() - shown_at >= SHOW_EVERY):
            print(line, file=sys.stderr, flush=True)
            shown, shown_at = line, time.monotonic()
        if row.state == State.FAILED:
            raise CommandError(clean(row.detail, 2000))
        if is_over:
            return
        time.sleep(LOOK_EVERY)


def _describe(row: ModelCopy, *, waited: float) -> str:
    sizes = f"{row.done / max(row.total, 1):4.0%}  {row.done / 1e9:.1f} of {row.total / 1e9:.1f} GB"
    if row.state == State.RUNNING and row.total and row.done == row.total:
        return f"{sizes}  comparing checksums"
    if row.state == State.WAITING:
        silent = "no controller does it: is `manage.py supervise` running?" if waited > NO_CONTROLLER_AFTER else ""
        return f"waiting: {clean(row.detail or silent, 1000) or 'for the controller'}"
    return sizes
