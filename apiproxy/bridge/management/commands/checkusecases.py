"""Puts published use cases with their example values to models; the supervisors run it every quarter of an hour."""

import signal
import sys
from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from apiproxy.bridge.management.commands.canary import OWN, is_loop
from portal.canary.asking import Asker, NotDone, find_gateway
from portal.keys import canary_key
from portal.use_cases import checking
from portal.use_cases.checking import DueCheck
from portal.use_cases.models import UseCaseCheck


class Command(BaseCommand):
    help = (
        "Puts each published use case with its example values to a model that answers now, once a night, and stores "
        "how that went, not the answers. May be interrupted and run again at any time."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--due", action="store_true", help="as the supervisors run it: a busy moment is no error")

    def handle(self, *args: Any, due: bool, **options: Any) -> None:
        found = checking.find_due_checks(timezone.now())
        if not found:
            self.stdout.write("nothing is due")
            return
        if not checking.begin_session(timezone.now()):
            if due:
                self.stdout.write("another process checks them now")
                return
            raise CommandError("another process checks them now; run it again when that is done")
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("interrupted"))
        try:
            rows = check_found(found)
        finally:
            checking.end_session()
        self.stdout.write(", ".join(f"{row.use_case_id}: {row.obstacle or row.outcome}" for row in rows))


def check_found(found: list[DueCheck]) -> list[UseCaseCheck]:
    """Check these cases through the gateway. Raises CommandError if none answers."""
    addresses = [settings.GATEWAY_URL] if settings.GATEWAY_URL else [OWN, settings.PUBLIC_URL]
    try:
        address = find_gateway([one for one in addresses if one])
    except NotDone as problem:
        raise CommandError(f"{problem}; GATEWAY_URL says where this host reaches it") from problem
    asker = Asker(address, canary_key.renew_key(checking.KEY))
    try:
        return checking.check_all(found, asker, clock=timezone.now, is_loop=is_loop)
    finally:
        asker.close()
        canary_key.renew_key(checking.KEY)  # to a text that no one knows
