"""Put a backup in the place of what is there, or rehearse that in a database of its own.

Everything is checked before anything is changed. The database then changes as a whole or not at all: a new SQLite file
that is renamed when it is complete and migrated, or one transaction of PostgreSQL's. Files follow: a run that was
killed between the two is simply repeated. PostgreSQL's migrations come last, and were rehearsed before.
"""

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import psycopg
from django.conf import settings
from django.db import Error, connection
from django.utils import timezone

from portal.accounts.models import User
from portal.backups import databases, leftovers
from portal.backups.backup import FILES, ROOM, sync_directory
from portal.backups.contents import SECRETS, read_files, write_private
from portal.backups.encryption import decrypting_command, open_reader
from portal.backups.errors import BackupRefused
from portal.backups.manifest import BackupManifest, check_files, check_migrations, lacks_migrations, read_manifest
from portal.keys.models import ApiKey
from portal.usage.models import UsageRecord

ID_MARGIN = 10_000  # ids that may have been given within a second of the backup, as by an import
RESTORED = "restored"  # below the state directory: configuration that is to be compared with what is in place
FAILURES = (OSError, Error, sqlite3.Error, psycopg.Error)
AddToSpool = Callable[[str, bytes], None]


@dataclass(slots=True, kw_only=True)
class RestoreReport:
    """What was restored; `differing` files of the configuration are to be put in place by the operator."""

    manifest: BackupManifest
    differing: list[Path] = field(default_factory=list)
    spool_files: int = 0


@dataclass(frozen=True, slots=True)
class Restoration:
    """A backup that is to be restored. `identity`: the file of age's private key."""

    path: Path
    manifest: BackupManifest
    identity: Path | None

    @contextlib.contextmanager
    def read(self, member: str) -> Iterator[Any]:
        """Provide what is in a file of the backup. Raises BackupRefused, also at the end."""
        tool = self.manifest.encryption
        name = f"{member}.{tool}" if tool else member
        if name not in self.manifest.files:
            raise BackupRefused(f"the backup has no {name}")
        with open_reader(self.path / name, decrypting_command(tool, self.identity) if tool else None) as reader:
            yield reader

    @contextlib.contextmanager
    def unpack(self) -> Iterator[Path]:
        """Provide a private directory with the backup's files, for the block. Raises BackupRefused."""
        leftovers.remove_leftovers()
        with leftovers.private_directory() as directory:
            with self.read(FILES) as reader:
                read_files(reader, directory)
            yield directory


def open_backup(path: Path, identity: Path | None) -> Restoration:
    """Check a backup's files, and that this version and this database can take it. Raises BackupRefused."""
    manifest = read_manifest(path)
    copier = databases.database_copier()
    if manifest.engine != copier.engine:
        raise BackupRefused(f"the backup is of {manifest.engine}, and DATABASE_URL names {copier.engine}")
    check_migrations(manifest)
    check_files(path, manifest)
    settings.VAR.mkdir(mode=0o700, parents=True, exist_ok=True)
    return Restoration(path, manifest, identity)


# --- What is there


def count_lost() -> dict[str, int]:
    """Return what a restoration would replace: people, keys and calls. All 0: nothing that anyone made."""
    if connection.vendor == "sqlite" and not databases.sqlite_path().exists():  # asking would make it
        return {}
    tables = set(connection.introspection.table_names())
    kinds = {"people": User, "keys": ApiKey, "calls": UsageRecord}
    return {
        name: kind.objects.count() if kind._meta.db_table in tables else 0  # type: ignore[attr-defined]
        for name, kind in kinds.items()
    }


def check_secrets(directory: Path) -> None:
    """Refuse a backup under whose secrets nothing here would work. Raises BackupRefused."""
    for name, file in SECRETS.items():
        stored = (directory / "state" / file).read_text().strip()
        given = [variable for variable in (name, f"{name}_FILE") if os.environ.get(variable)]
        if given and stored != str(getattr(settings, name)):
            raise BackupRefused(
                f"{given[0]} is set, and differs from the backup's: remove it, or set it to the value in the backup's "
                f"configuration. With another value no {'API key' if name == 'API_KEY_SECRET' else 'session'} works"
            )


# --- Restoring


def restore(restoration: Restoration, add_to_spool: AddToSpool) -> RestoreReport:
    """Restore the database, then the files. The caller has seen that nothing runs here. Raises BackupRefused."""
    report = RestoreReport(manifest=restoration.manifest)
    try:
        with restoration.unpack() as directory:
            check_secrets(directory)
            if connection.vendor == "postgresql":
                _restore_postgres(restoration)
            else:
                _restore_sqlite(restoration)
            _put_files(directory, report, add_to_spool)
            if connection.vendor == "postgresql":  # last: whatever fails, secrets and database are of one backup
                _migrate("")
    except FAILURES as error:
        raise BackupRefused(f"the backup cannot be restored: {error}") from error
    return report


def _restore_sqlite(restoration: Restoration) -> None:
    target = databases.sqlite_path()
    draft = leftovers.restoring_sqlite()
    with _loaded_sqlite(restoration, draft):
        connection.close()
        # A -wal of the old file would be added to the new one. It is emptied first, so that the old file is whole until
        # it is replaced; a damaged one may be what makes the restoration necessary.
        with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(target)) as old:
            old.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        for path in databases.sqlite_files(target)[1:]:
            path.unlink(missing_ok=True)
        draft.rename(target)
        sync_directory(target.parent)


@contextlib.contextmanager
def _loaded_sqlite(restoration: Restoration, draft: Path) -> Iterator[None]:
    """Provide the backup's database in this file: checked, migrated; the block may rename it."""
    _remove_sqlite(draft)
    free = shutil.disk_usage(draft.parent).free
    size = restoration.manifest.size
    if free < size + ROOM:
        raise BackupRefused(f"{draft.parent} has {free >> 20} MB free, and {(size + ROOM) >> 20} MB are needed")
    try:
        draft.touch(mode=0o600)
        with restoration.read(databases.SqliteCopier.member) as reader, draft.open("wb") as file:
            shutil.copyfileobj(reader, file, 1 << 20)
        databases.check_sqlite(draft)
        with contextlib.closing(databases.open_copy(draft)) as copy:
            _compare_rows(restoration.manifest, copy.execute)
        _migrate(f"sqlite:///{draft}")
        with contextlib.closing(sqlite3.connect(draft)) as migrated:  # one file again
            migrated.execute("PRAGMA journal_mode=DELETE")
            databases.move_sqlite_ids(migrated, _margin(restoration.manifest))
        yield
    finally:
        _remove_sqlite(draft)


def _remove_sqlite(path: Path) -> None:
    for one in databases.sqlite_files(path):
        one.unlink(missing_ok=True)


def _restore_postgres(restoration: Restoration) -> None:
    manifest = restoration.manifest
    databases.check_client("psql")
    replaced = databases.replaced_tables()
    if lacks_migrations(manifest):  # they are applied after the commit: none may fail then
        _rehearse_postgres(restoration)
    connection.close()  # or its locks could keep the tables from being dropped
    reader = restoration.read(databases.PostgresCopier.member)
    databases.load_dump(reader, manifest.rows, margin=_margin(manifest), replaced=replaced)


def _margin(manifest: BackupManifest) -> int:
    """Return how many ids to leave out: those of keys and people since the backup whose calls spools hold.

    Enough for one a second since then, so that those made after an earlier restoration are left out as well.
    """
    return ID_MARGIN + max(0, round((timezone.now() - manifest.made_at).total_seconds()))


def _compare_rows(manifest: BackupManifest, execute: Any) -> None:
    found = databases.count_rows(manifest.rows, execute)
    if different := {table: (count, found[table]) for table, count in manifest.rows.items() if found[table] != count}:
        shown = ", ".join(f"{table}: {made} in the backup, {now} here" for table, (made, now) in different.items())
        raise BackupRefused(f"the database does not have the rows that were backed up ({shown})")


def _migrate(url: str) -> None:
    """Apply the migrations that came after the backup. `url`: of another database than ours. Raises BackupRefused."""
    env = {name: value for name, value in os.environ.items() if not (url and name.startswith("DATABASE_URL"))}
    command = [sys.executable, str(settings.BASE_DIR / "manage.py"), "migrate", "--no-input", "--verbosity", "0"]
    done = subprocess.run(command, env=env | ({"DATABASE_URL": url} if url else {}), capture_output=True, text=True)
    if done.returncode:
        raise BackupRefused(f"the restored database cannot be migrated: {done.stderr.strip()[-500:]}")


def _put_files(directory: Path, report: RestoreReport, add_to_spool: AddToSpool) -> None:
    """Put state and spool in place; lay configuration that differs beside."""
    state = directory / "state"
    if (state / "cluster").is_dir():
        shutil.rmtree(settings.VAR / "cluster", ignore_errors=True)
    for path in _files_below(state):
        write_private(settings.VAR / path.relative_to(state), path.read_bytes())
    for path in _files_below(directory / "spool"):
        add_to_spool(path.name, path.read_bytes())
        report.spool_files += 1
    shutil.rmtree(settings.VAR / RESTORED, ignore_errors=True)
    configuration = directory / "configuration"
    for path in _files_below(configuration):
        place = Path("/") / path.relative_to(configuration)
        if not _is_same(place, path):
            write_private(settings.VAR / RESTORED / path.relative_to(configuration), path.read_bytes())
            report.differing.append(place)


def _files_below(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def _is_same(place: Path, copy: Path) -> bool:
    try:
        return place.read_bytes() == copy.read_bytes()
    except OSError:
        return False


# --- Rehearsal


def rehearse(restoration: Restoration) -> None:
    """Restore into a database of its own, which is removed again; change nothing. Raises BackupRefused."""
    try:
        with restoration.unpack() as directory:
            missing = [file for file in SECRETS.values() if not (directory / "state" / file).is_file()]
            if missing:
                raise BackupRefused(f"the backup lacks {', '.join(missing)}")
            if connection.vendor == "postgresql":
                databases.check_client("psql")
                _rehearse_postgres(restoration)
            else:
                with _loaded_sqlite(restoration, directory / "rehearsal.sqlite3"):
                    pass
    except FAILURES as error:
        raise BackupRefused(f"the backup cannot be restored: {error}") from error


def _rehearse_postgres(restoration: Restoration) -> None:
    with leftovers.rehearsal_database() as name:
        reader = restoration.read(databases.PostgresCopier.member)
        databases.load_dump(reader, restoration.manifest.rows, margin=0, database=name)
        _migrate(url_of_database(name))


def url_of_database(name: str) -> str:
    """Return DATABASE_URL, or what is in its file, with another database of the same server."""
    file = os.environ.get("DATABASE_URL_FILE")
    url = urlsplit(Path(file).read_text().strip() if file else os.environ["DATABASE_URL"])
    return urlunsplit(url._replace(path=f"/{quote(name)}"))
