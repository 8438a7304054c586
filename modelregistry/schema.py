"""Whether the database has exactly the schema of this code, which long-running commands check before they start."""

import logging
from collections.abc import Collection

from django.conf import settings
from django.core.management.base import CommandError
from django.db import DatabaseError, connection
from django.db.migrations.loader import MigrationLoader

log = logging.getLogger(__name__)
# What to do, by whether this is a release or a checkout.
NEWER = {
    True: "Run deploy/install of the newer version's bundle, or that version's deploy/rollback to go back to this one.",
    False: "Run: git pull && make setup. To go back to this version instead, restore the backup from before the "
    "upgrade (deploy/OPERATIONS.md).",
}
MISSING = {True: "deploy/install of this version's bundle", False: ".venv/bin/python manage.py migrate"}
NOT_COMPARED = "the schema cannot be compared, the database does not answer: %s"
SHOWN = 3  # migrations that a message names


def unknown_migrations(loader: MigrationLoader) -> set[tuple[str, str]]:
    """Return the applied migrations that this version lacks: another version has migrated the database."""
    replaced = {name for migration in loader.replacements.values() for name in migration.replaces}
    return loader.applied_migrations.keys() - loader.disk_migrations.keys() - replaced


def check_schema() -> None:
    """Check that all migrations of this code are applied and no others. Raises CommandError, which says what to do.

    Passes if the database does not answer: after a power cut it may start last, and engines are adopted without it.
    """
    try:
        loader = MigrationLoader(connection)
        unknown = unknown_migrations(loader)
        # Not a plan to the last ones: where one of these is applied, a plan omits all before it.
        missing = loader.graph.nodes.keys() - loader.applied_migrations.keys()
    except DatabaseError as error:
        log.warning(NOT_COMPARED, error)
        return
    finally:
        connection.close()
    if unknown:
        raise CommandError(
            f"The database has {_count(unknown)} that this version does not know ({_name_some(unknown)}): a "
            f"newer version has migrated it. {NEWER[settings.RELEASED]}"
        )
    if missing:
        raise CommandError(
            f"The database lacks {_count(missing)} of this version ({_name_some(missing)}). Make a backup, then "
            f"run: {MISSING[settings.RELEASED]}"
        )


def _count(migrations: Collection[object]) -> str:
    return "1 migration" if len(migrations) == 1 else f"{len(migrations)} migrations"


def _name_some(migrations: Collection[tuple[str, str]]) -> str:
    """Return `app.name` of the first few."""
    names = [".".join(migration) for migration in sorted(migrations)]
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
