"""Lists the machines of the site that have gateways or controllers."""

import json
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from apiproxy.bridge.machines import list_machines
from modelregistry.terminal import format_table


class Command(BaseCommand):
    help = (
        "Lists the machines whose gateways or controllers have reported within a week, with their version and whether "
        "they run: they report every 20 s, and count as running for 90 s. deploy/rollback uses it."
    )
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--json", action="store_true", help="for scripts; `here`: this machine")

    def handle(self, *args: Any, **options: Any) -> None:
        machines = list_machines()
        if options["json"]:
            rows = [
                {
                    "name": one.name,
                    "kind": one.kind,
                    "version": one.version,
                    "reported_at": one.reported_at.isoformat(),
                    "running": one.running,
                    "here": one.here,
                }
                for one in machines
            ]
            self.stdout.write(json.dumps(rows, indent=1, ensure_ascii=False))
            return
        cells = [
            [one.name, one.kind, one.version, "runs" if one.running else f"silent for {one.seconds:.0f} s"]
            for one in machines
        ]
        for line in format_table(["machine", "kind", "version", "state"], cells):
            self.stdout.write(line)
