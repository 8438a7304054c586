import json
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from modelregistry import schema_changes


class Command(BaseCommand):
    help = (
        "Prints as JSON each migration of this version, in the order in which they are applied: whether it is applied, "
        "whether it can be undone, and whether it deletes columns or tables. deploy/install and deploy/rollback use it."
    )
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--unknown", action="store_true", help="only the names of applied ones that it lacks")
        parser.add_argument("--no-database", action="store_true", help="only what this version has; asks no database")
        parser.add_argument(
            "--back-to",
            type=Path,
            metavar="FILE",
            help="undo every migration that is not in this output of another version; none, if one cannot be undone",
        )

    def handle(self, *args: Any, **options: Any) -> str | None:
        if options["unknown"]:
            return json.dumps(schema_changes.list_unknown())
        if not options["back_to"]:
            listed = schema_changes.list_migrations(database=not options["no_database"])
            return json.dumps([change._asdict() for change in listed], indent=1)
        kept = {(row["app"], row["name"]) for row in json.loads(options["back_to"].read_text())}
        try:
            for change in schema_changes.undo_all_but(kept):
                self.stdout.write(f"undid {change}")
        except schema_changes.CannotUndo as error:
            raise CommandError(str(error)) from error
        return None
