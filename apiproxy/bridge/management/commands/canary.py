"""Puts fixed prompts to chat models and judges the answers; the supervisors run it every few minutes."""

import json
import signal
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.db import transaction
from django.utils import timezone

from apiproxy.dataplane.loops import SENSITIVITIES, LoopDetector
from modelregistry.models import ServedModel
from modelregistry.terminal import clean, format_table
from portal.canary import due, running
from portal.canary.asking import Asker, NotDone, find_gateway
from portal.canary.due import Due
from portal.canary.models import CanaryRun
from portal.keys import canary_key

# What `up` listens on unless it is given another port, which it then says in GATEWAY_URL.
OWN = "http://127.0.0.1:8000"
COLUMNS = ("model", "host", "replica", "result", "tokens/s", "findings")


class Command(BaseCommand):
    help = (
        "Puts the fixed prompts to each replica of the chat models, or of one, one after another as batch calls, "
        "judges the answers and stores them for operators. May be interrupted and run again at any time."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("model", nargs="?", default="", help="its name; all chat models without it")
        parser.add_argument("--due", action="store_true", help="only what is due, as the supervisors run it")
        parser.add_argument("--json", action="store_true", help="a list of objects")

    def handle(self, *, model: str, due: bool, **options: Any) -> None:
        found = find_work(model, only_due=due)
        try:
            runs = run_all(found) if found else []
        except RunGoesOn as other:
            if due:
                self.stdout.write(str(other))
                return
            raise CommandError(f"{other}; run it again when that is done") from other
        if options["json"]:
            self.stdout.write(json.dumps([describe_run(run) for run in runs], ensure_ascii=False))
        elif due:
            self.stdout.write(", ".join(f"{run.model.name}: {run.verdict}" for run in runs) or "nothing is due")
        else:
            for line in format_table(COLUMNS, [table_row(run) for run in runs], numeric=("replica", "tokens/s")):
                self.stdout.write(line)


def find_work(model: str, *, only_due: bool) -> list[Due]:
    """Return what to ask. Raises CommandError for a model that cannot be asked."""
    if only_due:
        return due.find_due(timezone.now())
    if model and not ServedModel.objects.filter(name=model, task=ServedModel.Task.CHAT).exists():
        raise CommandError(f"there is no chat model {clean(model)}")
    found = due.targets(model)
    if not found:
        raise CommandError(f"no replica of {clean(model) if model else 'any chat model'} answers now")
    return [Due(target=target, reason=CanaryRun.Reason.REQUEST) for target in found]


class RunGoesOn(Exception):
    """Another process asks a model now, perhaps on another host."""


def check_none_runs() -> None:
    """Raise RunGoesOn if there is a run that goes on."""
    if other := due.running_now(timezone.now()):
        raise RunGoesOn(f"{other.model.name} is being asked since {timezone.localtime(other.began_at):%H:%M}")


def begin_session(first: Due) -> tuple[CanaryRun, str]:
    """Return the begun run and the session's key. Raises RunGoesOn.

    Both at once: of two commands that are started together, the second one would take the key away from the first.
    """
    with transaction.atomic():
        canary_key.lock_key()
        check_none_runs()
        return running.begin_run(first, timezone.now()), canary_key.renew_key()


def run_all(found: Sequence[Due]) -> list[CanaryRun]:
    """Run the canary on these replicas. Raises RunGoesOn, and CommandError if no gateway answers."""
    check_none_runs()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("interrupted"))
    addresses = [settings.GATEWAY_URL] if settings.GATEWAY_URL else [OWN, settings.PUBLIC_URL]
    try:
        address = find_gateway([one for one in addresses if one])
    except NotDone as problem:
        for one in found:
            now = timezone.now()
            running.end_run(running.begin_run(one, now), now, CanaryRun.Verdict.NOT_DONE, obstacle=problem.obstacle)
        raise CommandError(f"{problem}; GATEWAY_URL says where this host reaches it") from problem
    begun, key = begin_session(found[0])
    asker = Asker(address, key)
    try:
        return [
            running.run_canary(one, asker, clock=timezone.now, is_loop=is_loop, begun=None if number else begun)
            for number, one in enumerate(found)
        ]
    finally:
        asker.close()
        canary_key.renew_key()  # to a text that no one knows


def is_loop(text: str, tokens: int) -> bool:
    """Return whether an answer of so many tokens ends in a word loop, as the gateway's guard finds them."""
    return LoopDetector(SENSITIVITIES["high"]).feed(text.encode(errors="replace"), max(1, tokens))


def describe_run(run: CanaryRun) -> dict[str, Any]:
    return {
        "model": run.model.name,
        "host": run.host,
        "replica": run.number,
        "reason": run.reason,
        "verdict": run.verdict,
        "obstacle": run.obstacle,
        "findings": run.findings,
        "changed": run.changed,
        "tokens_per_second": run.tokens_per_second,
        "usual_tokens_per_second": run.usual_tokens_per_second,
    }


def table_row(run: CanaryRun) -> list[str]:
    speed = "-" if run.tokens_per_second is None else f"{run.tokens_per_second:.1f}"
    found = ", ".join(finding["code"] for finding in run.findings) or run.obstacle or "-"
    return [run.model.name, run.host, str(run.number), run.verdict, speed, found]
