"""Lists usage that could not be recorded, and records it again."""

from argparse import ArgumentParser
from datetime import datetime
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.utils import timezone

from apiproxy.bridge import catalogue_loader
from apiproxy.dataplane.ledger import DatabaseUnavailable, replay
from apiproxy.dataplane.quarantine import Quarantine, QuarantinedRecord
from modelregistry.terminal import format_table


class Command(BaseCommand):
    help = (
        "Lists the usage that gateways of this host could not record: a line that was damaged or is of another "
        "version, or a row that the database refused. It counted towards limits. When the cause is fixed, "
        "--replay records it; what still cannot be recorded stays. What never will be (damaged lines) is dropped by "
        "--discard, after a copy was made. Run it on each host that runs a gateway; gateways may go on meanwhile."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        do = parser.add_mutually_exclusive_group()
        do.add_argument("--replay", action="store_true", help="records what can be recorded now")
        do.add_argument(
            "--discard", action="store_true", help="discards what is there; the file is kept under a new name"
        )

    def handle(self, **options: Any) -> None:
        set_aside = Quarantine(settings.SPOOL)
        if not len(set_aside):
            self.stdout.write("nothing is set aside")
        elif options["replay"]:
            self._replay(set_aside)
        elif options["discard"]:
            self.stdout.write(f"kept as {set_aside.discard()}")
        else:
            for line in format_table(["time", "request", "error"], map(table_row, set_aside)):
                self.stdout.write(line)

    def _replay(self, set_aside: Quarantine) -> None:
        try:
            recorded, left = replay(set_aside, catalogue_loader.record_usage)
        except DatabaseUnavailable as error:
            raise CommandError(f"{error}; nothing is lost, run it again") from error
        self.stdout.write(f"recorded: {recorded}, still set aside: {left}")


def table_row(one: QuarantinedRecord) -> list[str]:
    """Return a row of the list: when, which call, why."""
    when = timezone.localtime(datetime.fromtimestamp(one.at, timezone.get_default_timezone())) if one.at else None
    time = when.strftime("%Y-%m-%d %H:%M:%S") if when else "-"
    return [time, one.request_id or "-", one.error]
