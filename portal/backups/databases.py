"""Copy the database while it is in use, and put a copy in its place: SQLite's backup API, PostgreSQL's own tools.

Passwords are passed to PostgreSQL's tools in the environment, which only this user and root can read; never as an
argument, which every account of the machine can.
"""

import contextlib
import os
import re
import shutil
import sqlite3
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any

from django.db import connection, transaction
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.recorder import MigrationRecorder
from psycopg.pq import Conninfo

from modelregistry.models import Replica
from portal.accounts.models import Tenant, User
from portal.backups.encryption import find_program, run_tool
from portal.backups.errors import BackupRefused
from portal.keys.models import ApiKey

LOCK_WAIT = "60s"  # how long pg_dump waits for a table that a migration changes


class DatabaseCopier(ABC):
    """How the database of one engine is stored."""

    engine: str
    member: str  # the name of its file in a backup

    @abstractmethod
    def estimate_size(self) -> int:
        """Return about how many bytes a backup takes; rather too many."""

    @abstractmethod
    def dump(self, writer: IO[bytes], scratch: Path) -> dict[str, int]:
        """Write the database as it is at one moment; return the rows of each table at that moment.

        `scratch`: a file that does not exist yet, in the state directory, for a copy in between.
        """

    @abstractmethod
    def check_dump(self, path: Path) -> None:
        """Check a copy that is not encrypted. Raises BackupRefused."""


def database_copier() -> DatabaseCopier:
    return PostgresCopier() if connection.vendor == "postgresql" else SqliteCopier()


def count_rows(tables: Iterable[str], execute: Any) -> dict[str, int]:
    """Return the rows of these tables. `execute` runs a query and returns what has `fetchone`."""
    counts = {}
    for table in sorted(tables):
        check_name(table)
        counts[table] = int(execute(f"SELECT count(*) FROM {table}").fetchone()[0])  # noqa: S608 - checked above
    return counts


def check_name(table: str) -> None:
    """Refuse a name that no table of ours has, and that could be more than a name. Raises BackupRefused."""
    if not re.fullmatch("[a-z0-9_]+", table):
        raise BackupRefused(f"{table!r} is no table of this product")


def own_tables() -> list[str]:
    """Return the tables that the database has of this product."""
    return connection.introspection.django_table_names(only_existing=True, include_views=False)


class SqliteCopier(DatabaseCopier):
    engine = "sqlite"
    member = "database.sqlite3"

    def estimate_size(self) -> int:
        return sum(path.stat().st_size for path in sqlite_files(sqlite_path()) if path.exists())

    def dump(self, writer: IO[bytes], scratch: Path) -> dict[str, int]:
        scratch.touch(mode=0o600)
        try:
            with (
                contextlib.closing(sqlite3.connect(sqlite_path(), timeout=20)) as source,
                contextlib.closing(sqlite3.connect(scratch)) as target,
            ):
                source.backup(target)  # in one step: writers go on in the WAL, and none makes it begin again
                # One file: nothing that opens it next needs a -wal beside it.
                target.execute("PRAGMA journal_mode=DELETE")
            check_sqlite(scratch)
            with contextlib.closing(open_copy(scratch)) as copy:
                rows = count_rows(own_tables(), copy.execute)
            with scratch.open("rb") as file:
                shutil.copyfileobj(file, writer, 1 << 20)
        except sqlite3.Error as error:
            raise BackupRefused(f"the database cannot be copied: {error}") from error
        finally:
            scratch.unlink(missing_ok=True)
        return rows

    def check_dump(self, path: Path) -> None:
        check_sqlite(path)


def sqlite_path() -> Path:
    return Path(connection.settings_dict["NAME"])


def sqlite_files(path: Path) -> list[Path]:
    return [path.with_name(path.name + end) for end in ("", "-wal", "-shm")]


def open_copy(path: Path) -> sqlite3.Connection:
    """Open a database that no process writes to; nothing is written beside it."""
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)


def check_sqlite(path: Path) -> None:
    """Check the structure of a database file. Raises BackupRefused."""
    try:
        with contextlib.closing(open_copy(path)) as database:
            found = [str(row[0]) for row in database.execute("PRAGMA quick_check(3)")]
    except sqlite3.Error as error:
        raise BackupRefused(f"the database in {path} is damaged: {error}") from error
    if found != ["ok"]:
        raise BackupRefused(f"the database in {path} is damaged: {'; '.join(found)}")


class PostgresCopier(DatabaseCopier):
    engine = "postgresql"
    member = "database.pgdump"

    def estimate_size(self) -> int:
        """Return the size of the tables without their indexes: what `pg_dump` compresses to a third or less."""
        with connection.cursor() as cursor:
            cursor.execute("SELECT coalesce(sum(pg_table_size(oid)), 0) FROM pg_class WHERE relkind = 'r'")
            return int(cursor.fetchone()[0]) // 3

    def dump(self, writer: IO[bytes], scratch: Path) -> dict[str, int]:
        check_client("pg_dump")
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            cursor.execute("SELECT pg_export_snapshot()")
            snapshot = str(cursor.fetchone()[0])

            def execute(query: str) -> Any:
                cursor.execute(query)
                return cursor

            rows = count_rows(own_tables(), execute)
            options = ["--format=custom", f"--snapshot={snapshot}", f"--lock-wait-timeout={LOCK_WAIT}", "--no-password"]
            command = [find_program("pg_dump"), *options]
            with run_tool(command, stdin=subprocess.DEVNULL, stdout=writer, env=client_environment()) as process:
                process.wait()
        return rows

    def check_dump(self, path: Path) -> None:
        with (
            path.open("rb") as file,
            run_tool([find_program("pg_restore"), "--list"], stdin=file, stdout=subprocess.DEVNULL) as process,
        ):
            process.wait()


def check_client(name: str) -> None:
    """Refuse a client of PostgreSQL that is older than the server, which it could not read. Raises BackupRefused."""
    said = subprocess.run([find_program(name), "--version"], capture_output=True, text=True, check=True).stdout
    with connection.cursor() as cursor:
        cursor.execute("SHOW server_version_num")
        server = int(cursor.fetchone()[0]) // 10000
    if not is_as_new_as(said, server):
        raise BackupRefused(
            f"{said.strip()} is older than the server, PostgreSQL {server}: apt-get install postgresql-client-{server}"
        )


def is_as_new_as(said: str, server: int) -> bool:
    """Return whether a program that says this of its version can read what a server of this version writes."""
    found = re.search(r"\) ([0-9]+)", said)
    return found is not None and int(found[1]) >= server


def client_environment(database: str = "") -> dict[str, str]:
    """Return the environment in which PostgreSQL's tools reach the database that Django has.

    `database`: another one of the same server.
    """
    params = {**connection.get_connection_params(), **({"dbname": database} if database else {})}
    return {**os.environ, **libpq_variables(params)}


def libpq_variables(params: Mapping[str, Any]) -> dict[str, str]:
    """Return the variables by which libpq takes these parameters; what is not libpq's is left out."""
    variables = {
        option.keyword.decode(): option.envvar.decode()
        for option in Conninfo.get_defaults()
        if option.envvar is not None
    }
    return {variables[name]: str(value) for name, value in params.items() if name in variables and value is not None}


def load_dump(
    source: AbstractContextManager[IO[bytes]],
    rows: Mapping[str, int],
    *,
    margin: int,
    replaced: Sequence[str] = (),
    database: str = "",
) -> None:
    """Load a dump in one transaction, in place of these tables.

    It is committed when the dump was read to its end, `source` left without an error, and each table has its `rows`.
    `margin`: how far new ids are from the dump's. `database`: another one of the same server, which is empty.
    Raises BackupRefused; nothing is changed then.
    """
    psql = [find_program("psql"), "--no-psqlrc", "--quiet", "--no-password", "--set=ON_ERROR_STOP=1"]
    convert = [find_program("pg_restore"), "--no-owner", "--no-privileges", "--file=-"]
    # Not CASCADE: what others made of our tables, as a view, is named in the error and stays.
    drop = f"DROP TABLE {', '.join(replaced)};" if replaced else ""
    checks = [row_check(table, count) for table, count in sorted(rows.items())]
    moves = [
        f"SELECT setval(sequence, nextval(sequence) + {margin}) "  # noqa: S608 - names of our own models
        f"FROM (SELECT pg_get_serial_sequence('{table}', '{column}')::regclass AS sequence) AS found;"
        for table, column in recorded_ids()
        if table in rows
    ]
    # The dump leaves the search path empty.
    finish = "\n".join(["", "RESET search_path;", *checks, *moves, "COMMIT;", ""])
    with run_tool(psql, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=client_environment(database)) as loader:
        assert loader.stdin is not None
        loader.stdin.write(f"BEGIN;\n{drop}\n".encode())
        with source as reader, run_tool(convert, stdin=reader, stdout=subprocess.PIPE) as converter:
            assert converter.stdout is not None
            shutil.copyfileobj(converter.stdout, loader.stdin, 1 << 20)
        loader.stdin.write(finish.encode())


def row_check(table: str, count: int) -> str:
    """Return a statement that fails unless the table has this many rows. Raises BackupRefused for no table of ours."""
    check_name(table)
    return (
        f"DO $$ DECLARE found bigint; BEGIN SELECT count(*) INTO found FROM {table}; IF found <> {count:d} THEN "  # noqa: S608
        f"RAISE EXCEPTION 'the database does not have the rows that were backed up ({table}: {count:d} in the backup, "
        "% here)', found; END IF; END $$;"
    )


def replaced_tables() -> list[str]:
    """Return the tables in the current schemas, quoted. Raises BackupRefused if one is not of this product.

    Ours are those of this version, those of the version that migrated the database, and, if that is a newer one, those
    that are named after an app of whose migrations the database has more.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT relname, quote_ident(nspname) || '.' || quote_ident(relname) FROM pg_class "
            "JOIN pg_namespace ON pg_namespace.oid = relnamespace "
            "WHERE relkind IN ('r', 'p') AND nspname = ANY (current_schemas(false)) AND NOT EXISTS (SELECT FROM "
            "pg_depend WHERE classid = 'pg_class'::regclass AND objid = pg_class.oid AND deptype = 'e')"  # extensions'
        )
        found = {str(quoted): str(name) for name, quoted in cursor.fetchall()}
    if not found:
        return []
    known, newer = known_tables()
    if foreign := sorted(name for name in found.values() if name not in known and not name.startswith(newer)):
        shown = ", ".join(foreign[:5]) + (", …" if len(foreign) > 5 else "")
        raise BackupRefused(
            f"the database has tables that are not Madoguchi's ({shown}): move them to a database of their own first"
        )
    return list(found)


def known_tables() -> tuple[set[str], tuple[str, ...]]:
    """Return the tables that this version or the applied migrations make, and how tables of newer ones begin."""
    loader = MigrationLoader(connection)
    applied = [key for key in loader.applied_migrations if key in loader.graph.nodes]
    models = loader.project_state(applied).apps.get_models(include_auto_created=True)
    known = {model._meta.db_table for model in models} | {MigrationRecorder.Migration._meta.db_table}
    known.update(connection.introspection.django_table_names(include_views=False))
    newer = {f"{app}_" for app, name in loader.applied_migrations if (app, name) not in loader.disk_migrations}
    return known, tuple(newer)


def recorded_ids() -> list[tuple[str, str]]:
    """Return table and column of each id that a spool names and no constraint of the database holds."""
    return [(model._meta.db_table, model._meta.pk.attname) for model in (ApiKey, Tenant, User, Replica)]


def move_sqlite_ids(database: sqlite3.Connection, margin: int) -> None:
    """Let new ids be this far from those that were in use."""
    for table, _ in recorded_ids():
        moved = database.execute("UPDATE sqlite_sequence SET seq = seq + ? WHERE name = ?", (margin, table))
        if not moved.rowcount:
            database.execute("INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", (table, margin))
    database.commit()


def other_connections() -> int:
    """Return how many other connections to the database there are; 0 with SQLite."""
    if connection.vendor != "postgresql":
        return 0
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
            "AND backend_type = 'client backend'"
        )
        return int(cursor.fetchone()[0])
