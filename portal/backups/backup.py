"""Make a backup: a directory `madoguchi-20261201T020000Z`, which appears when it is complete and was read back.

Until then it is `.madoguchi-20261201T020000Z.draft`: a failure removes it, and the next backup what a kill left behind.
"""

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from django.conf import settings
from django.db import Error

from modelregistry.version import VERSION
from portal.backups.contents import Spool, state_files, write_files
from portal.backups.databases import DatabaseCopier, database_copier
from portal.backups.encryption import Recipient, open_writer
from portal.backups.errors import BackupRefused
from portal.backups.leftovers import remove_leftovers
from portal.backups.manifest import (
    BackupManifest,
    applied_migrations,
    check_files,
    describe_file,
    read_manifest,
)

NAME = re.compile(r"madoguchi-([0-9]{8}T[0-9]{6}Z)")
DRAFT = re.compile(rf"\.{NAME.pattern}\.draft")
TIME_FORMAT = "%Y%m%dT%H%M%SZ"
FILES = "files.tar"
ROOM = 64 << 20  # bytes that stay free on the disk of the backups


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredBackup:
    """A complete backup: where it is and what it says of itself."""

    path: Path
    manifest: BackupManifest


def make_backup(directory: Path, spool: Spool, *, recipient: Recipient | None, now: datetime) -> StoredBackup:
    """Make a complete backup below this directory. Raises BackupRefused; what was there before stays then."""
    if recipient is not None:
        recipient.check()
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with lock_directory(directory):
            remove_drafts(directory)
            copier = database_copier()
            check_room(directory, copier)
            name = f"madoguchi-{now.astimezone(UTC):{TIME_FORMAT}}"
            final, draft = directory / name, directory / f".{name}.draft"
            if final.exists():
                raise BackupRefused(f"{final} exists already")
            try:
                manifest = _write_backup(draft, copier, spool, recipient, now)
                check_files(draft, manifest)
                sync_directory(draft)
                draft.rename(final)
            except BaseException:
                shutil.rmtree(draft, ignore_errors=True)
                raise
            sync_directory(directory)
    except OSError as error:
        raise BackupRefused(f"the backup cannot be written: {error}") from error
    except Error as error:
        raise BackupRefused(f"the database cannot be copied: {error}") from error
    return StoredBackup(path=final, manifest=manifest)


def _write_backup(
    draft: Path, copier: DatabaseCopier, spool: Spool, recipient: Recipient | None, now: datetime
) -> BackupManifest:
    draft.mkdir(mode=0o700)
    command = recipient.command() if recipient else None
    suffix = f".{recipient.tool}" if recipient else ""
    files, database = draft / f"{FILES}{suffix}", draft / f"{copier.member}{suffix}"
    with open_writer(files, command) as writer:
        write_files(writer, spool)
    migrations = applied_migrations()
    with open_writer(database, command) as writer:
        rows = copier.dump(writer, settings.VAR / f".backup-{os.getpid()}.sqlite3")
    if applied_migrations() != migrations:
        raise BackupRefused("the database was migrated meanwhile: make the backup again")
    if recipient is None:
        copier.check_dump(database)
    manifest = BackupManifest(
        version=VERSION,
        made_at=now,
        host=settings.HOST_NAME,
        engine=copier.engine,
        encryption=recipient.tool if recipient else "",
        migrations=migrations,
        rows=rows,
        files={path.name: describe_file(path) for path in (files, database)},
    )
    manifest.write(draft)
    return manifest


def check_room(directory: Path, copier: DatabaseCopier) -> None:
    """Refuse a backup for which there is no room. Raises BackupRefused."""
    size = copier.estimate_size() + sum(map(len, state_files().values()))
    needed = {directory: size + ROOM}
    if copier.engine == "sqlite":  # the copy in between
        is_same_disk = directory.stat().st_dev == settings.VAR.stat().st_dev
        needed[directory if is_same_disk else settings.VAR] = size * 2 + ROOM if is_same_disk else size
    for path, least in needed.items():
        free = shutil.disk_usage(path).free
        if free < least:
            raise BackupRefused(f"{path} has {free >> 20} MB free, and {least >> 20} MB are needed")


@contextlib.contextmanager
def lock_directory(directory: Path) -> Iterator[None]:
    """Hold the lock of the directory: one backup at a time. Raises BackupRefused."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise BackupRefused(f"another backup into {directory} is being made") from error
    finally:
        os.close(descriptor)


def remove_drafts(directory: Path) -> None:
    """Remove what killed backups left behind, here and in the state directory."""
    for path in directory.iterdir():
        if DRAFT.fullmatch(path.name):
            shutil.rmtree(path)
    for path in settings.VAR.glob(".backup-*.sqlite3*"):
        if not Path("/proc", path.name.split(".")[1].removeprefix("backup-")).exists():
            path.unlink(missing_ok=True)
    remove_leftovers()


def sync_directory(directory: Path) -> None:
    """Block until the names in a directory are on the disk."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def list_backups(directory: Path) -> list[StoredBackup]:
    """Return the complete backups in this directory, newest first. Raises OSError."""
    found = []
    for path in sorted(directory.iterdir(), reverse=True):
        if NAME.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            with contextlib.suppress(BackupRefused):
                found.append(StoredBackup(path=path, manifest=read_manifest(path)))
    return found


def remove_older(directory: Path, keep: int) -> Sequence[Path]:
    """Remove all complete backups but the newest ones; return what was removed. Raises OSError."""
    removed = [backup.path for backup in list_backups(directory)[keep:]]
    for path in removed:
        # No complete backup from here on, whenever the removal is interrupted.
        draft = path.with_name(f".{path.name}.draft")
        path.rename(draft)
        shutil.rmtree(draft)
    return removed
