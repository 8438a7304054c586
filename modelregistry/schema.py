"""Whether the database has exactly the schema of this code: what long-running commands ask before they start."""

import logging
from collections.abc import Collection

from django.core.management.base import CommandError
from django.db import DatabaseError, connection
from django.db.migrations.loader import MigrationLoader

log = logging.getLogger(__name__)
SHOWN = 3  # migrations that a message names


def check_schema() -> None:
    """Return if all migrations of this code are applied and no others. Raises CommandError, which says what to do.

    Also if the database does not answer: after a power cut it may come up last, and engines are adopted without it.
    """
    try:
        loader = MigrationLoader(connection)
        replaced = {name for migration in loader.replacements.values() for name in migration.replaces}
        unknown = loader.applied_migrations.keys() - loader.disk_migrations.keys() - replaced
        # Not a plan to the last ones: where one of these is applied, it looks at none before.
        missing = loader.graph.nodes.keys() - loader.applied_migrations.keys()
    except DatabaseError as error:
        log.warning("the schema cannot be compared, the database does not answer: %s", error)
        return
    finally:
        connection.close()
    if unknown:
        raise CommandError(
            f"The database has {number(unknown, 'migration')} that this version does not know ({some(unknown)}): a "
            "newer version has migrated it. Run: git pull && make setup. To go back to this version instead, restore "
            "the backup from before the upgrade (deploy/OPERATIONS.md)."
        )
    if missing:
        raise CommandError(
            f"The database lacks {number(missing, 'migration')} of this version ({some(missing)}). Make a backup, then "
            "run: .venv/bin/python manage.py migrate"
        )


def number(of: Collection[object], noun: str) -> str:
    return f"{len(of)} {noun}{'' if len(of) == 1 else 's'}"


def some(migrations: Collection[tuple[str, str]]) -> str:
    """`app.name` of the first of them."""
    names = [".".join(migration) for migration in sorted(migrations)]
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
