"""What the migrations of this version do to a database, and the way back from them to an older version's schema."""

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from django.db import connection
from django.db.migrations import Migration
from django.db.migrations.executor import MigrationExecutor
from django.db.migrations.operations import DeleteModel, RemoveField
from django.db.migrations.operations.base import Operation

from modelregistry.schema import unknown_migrations


class CannotUndo(Exception):
    """Names the migrations because of which nothing was undone."""


class SchemaChange(NamedTuple):
    """One migration, as `manage.py migrations` prints it."""

    app: str
    name: str
    applied: bool
    reversible: bool
    deletes: bool  # columns or tables: undone, they come back empty

    def __str__(self) -> str:
        return f"{self.app}.{self.name}"


def list_migrations(*, database: bool = True) -> list[SchemaChange]:
    """Return all migrations of this version, in the order in which they are applied.

    Without `database` none counts as applied, and none has to answer.
    """
    executor = MigrationExecutor(connection if database else None)
    applied = executor.loader.applied_migrations
    return [_describe(migration, applied) for migration in _in_order(executor)]


def list_unknown() -> list[str]:
    """Return the applied migrations that this version lacks: another version has migrated the database."""
    loader = MigrationExecutor(connection).loader
    return sorted(".".join(key) for key in unknown_migrations(loader))


def undo_all_but(kept: Collection[tuple[str, str]]) -> Iterator[SchemaChange]:
    """Undo the applied migrations that are not in `kept`, the latest first, and yield each.

    Raises CannotUndo before the first one if one is irreversible, or unknown to this version. One that fails leaves
    those before it undone: run it again.
    """
    executor = MigrationExecutor(connection)
    loader = executor.loader
    unknown = unknown_migrations(loader) - set(kept)
    undone = [
        migration
        for migration in reversed(_in_order(executor))
        if (key := (migration.app_label, migration.name)) in loader.applied_migrations and key not in kept
    ]
    changes = [_describe(migration, loader.applied_migrations) for migration in undone]
    blocked = [*(str(change) for change in changes if not change.reversible), *(".".join(key) for key in unknown)]
    if blocked:
        raise CannotUndo(f"These migrations cannot be undone: {', '.join(sorted(blocked))}. Nothing was changed.")
    for migration, change in zip(undone, changes, strict=True):
        executor.migrate([], plan=[(migration, True)])
        yield change


def _in_order(executor: MigrationExecutor) -> list[Migration]:
    plan = executor.migration_plan(executor.loader.graph.leaf_nodes(), clean_start=True)
    return [migration for migration, _backwards in plan]


def _describe(migration: Migration, applied: Collection[tuple[str, str]]) -> SchemaChange:
    operations: Sequence[Operation] = migration.operations
    return SchemaChange(
        migration.app_label,
        migration.name,
        applied=(migration.app_label, migration.name) in applied,
        reversible=all(operation.reversible for operation in operations),
        deletes=any(isinstance(operation, (RemoveField, DeleteModel)) for operation in operations),
    )
