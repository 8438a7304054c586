"""Where secrets and rehearsals are kept for a moment, and how what a killed run left there is removed by the next one.

A lock shows that the process which made it lives: of the file system on a directory, of PostgreSQL on the name of a
database.
"""

import contextlib
import fcntl
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
from django.conf import settings
from django.db import connection

from portal.backups import databases
from portal.backups.errors import BackupRefused

PRIVATE = ".restore-"  # below the state directory: a backup's files, with its secrets in plain text
REHEARSAL = "madoguchi_rehearsal"  # beside the number of the database whose server it is on


def restoring_sqlite() -> Path:
    """Return where a SQLite database is made before it takes the place of ours: on the same disk."""
    target = databases.sqlite_path()
    return target.with_name(f".{target.name}.restoring")


@contextlib.contextmanager
def private_directory() -> Iterator[Path]:
    """Provide a directory that this user alone can read, for the block. Raises OSError."""
    with tempfile.TemporaryDirectory(prefix=PRIVATE, dir=settings.VAR) as name:
        descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield Path(name)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def rehearsal_database() -> Iterator[str]:
    """Provide the name of an empty PostgreSQL database beside ours, for the block. Raises BackupRefused."""
    params = connection.get_connection_params()
    with psycopg.connect(**params, autocommit=True) as server:
        name = f"{_beginning(server)}{secrets.token_hex(4)}"
        server.execute("SELECT pg_advisory_lock(hashtext(%s))", (name,))
        try:
            server.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8'")
        except psycopg.errors.InsufficientPrivilege as error:
            raise BackupRefused(
                "the rehearsal needs a database of its own, which this role may not create: run ALTER ROLE "
                f"{params.get('user', 'madoguchi')} CREATEDB as PostgreSQL's administrator"
            ) from error
        try:
            yield name
        finally:
            server.execute(f"DROP DATABASE {name} WITH (FORCE)")


def _beginning(server: "psycopg.Connection[Any]") -> str:
    """Return how names of our rehearsals begin: the locks of other databases are not seen from ours."""
    row = server.execute("SELECT oid FROM pg_database WHERE datname = current_database()").fetchone()
    assert row is not None
    return f"{REHEARSAL}_{row[0]}_"


def remove_leftovers() -> None:
    """Remove what killed restorations and rehearsals left behind. What cannot be removed is left for the next time."""
    if not _remove_directories() and connection.vendor == "sqlite":
        for path in databases.sqlite_files(restoring_sqlite()):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
    if connection.vendor == "postgresql":
        with contextlib.suppress(psycopg.Error):
            _remove_databases()


def _remove_directories() -> bool:
    """Remove directories whose process is gone; return whether another one lives."""
    is_any_alive = False
    for path in settings.VAR.glob(f"{PRIVATE}*"):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        except OSError:
            is_any_alive = True
        finally:
            os.close(descriptor)
    return is_any_alive


def _remove_databases() -> None:
    with psycopg.connect(**connection.get_connection_params(), autocommit=True) as server:
        query = "SELECT datname FROM pg_database WHERE starts_with(datname, %s)"
        for (name,) in server.execute(query, (_beginning(server),)).fetchall():
            row = server.execute("SELECT pg_try_advisory_lock(hashtext(%s))", (name,)).fetchone()
            if row is not None and row[0]:
                server.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
