"""What a backup says of itself: versions, rows, and the sums of its files. It is not encrypted and holds no secret."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from django.db import connection
from django.db.migrations.loader import MigrationLoader

from portal.backups.errors import BackupRefused

NAME = "manifest.json"
PRODUCT = "madoguchi"
FORMAT = 1  # of the whole backup; one that this code does not know is refused
MOST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of a backup as it is on the disk, encrypted or not."""

    sha256: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupManifest:
    """`rows`: by table, as the stored database has them."""

    version: str
    made_at: datetime
    host: str
    engine: str  # "sqlite" or "postgresql"
    encryption: str  # "age", "gpg"; "": none
    migrations: list[str]  # that the database had, as "app.0001_initial"
    rows: dict[str, int]
    files: dict[str, StoredFile]

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files.values())

    def write(self, directory: Path) -> None:
        values = {"product": PRODUCT, "format": FORMAT, **asdict(self), "made_at": self.made_at.isoformat()}
        path = directory / NAME
        path.touch(mode=0o600)
        path.write_text(json.dumps(values, indent=1, sort_keys=True) + "\n")


def read_manifest(directory: Path) -> BackupManifest:
    """Read what the backup in this directory says of itself. Raises BackupRefused."""
    try:
        with (directory / NAME).open("rb") as file:
            values = json.loads(file.read(MOST_BYTES))
        return _parse_manifest(values)
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise BackupRefused(f"{directory} is no backup that can be read: {error}") from error


def _parse_manifest(values: Mapping[str, Any]) -> BackupManifest:
    if values["product"] != PRODUCT or values["format"] != FORMAT:
        raise ValueError(f"made by {values['product']}, format {values['format']}; this version reads format {FORMAT}")
    files = {str(name): StoredFile(str(one["sha256"]), int(one["size"])) for name, one in values["files"].items()}
    if any("/" in name or name.startswith(".") for name in files):
        raise ValueError("a file's name leads out of the backup")
    return BackupManifest(
        version=str(values["version"]),
        made_at=datetime.fromisoformat(values["made_at"]),
        host=str(values["host"]),
        engine=str(values["engine"]),
        encryption=str(values["encryption"]),
        migrations=[str(name) for name in values["migrations"]],
        rows={str(table): int(count) for table, count in values["rows"].items()},
        files=files,
    )


def describe_file(path: Path) -> StoredFile:
    """Read the file and return what the manifest says of it."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return StoredFile(digest.hexdigest(), file.tell())


def check_files(directory: Path, manifest: BackupManifest) -> None:
    """Read all files and compare them with the manifest. Raises BackupRefused and OSError."""
    for name, expected in manifest.files.items():
        try:
            found = describe_file(directory / name)
        except FileNotFoundError as error:
            raise BackupRefused(f"{name} is missing from the backup") from error
        if found != expected:
            raise BackupRefused(
                f"{name} is damaged: {found.size} bytes with SHA-256 {found.sha256}, made as {expected.size} bytes "
                f"with {expected.sha256}. Use another backup"
            )


def applied_migrations() -> list[str]:
    return sorted(".".join(key) for key in MigrationLoader(connection).applied_migrations)


def check_migrations(manifest: BackupManifest) -> None:
    """Refuse a backup whose database this version cannot have made. Raises BackupRefused."""
    loader = MigrationLoader(None)
    known = {".".join(key) for key in loader.disk_migrations}
    known |= {".".join(key) for one in loader.replacements.values() for key in one.replaces}
    if unknown := [name for name in manifest.migrations if name not in known]:
        shown = ", ".join(unknown[:3]) + (", …" if len(unknown) > 3 else "")
        raise BackupRefused(
            f"the backup is of version {manifest.version}, which is newer than this one: its database has migrations "
            f"that are not known here ({shown}). Install that version, or a later one, and restore with it"
        )


def lacks_migrations(manifest: BackupManifest) -> bool:
    """Return whether this version migrates the backup's database."""
    return not {".".join(key) for key in MigrationLoader(None).disk_migrations} <= set(manifest.migrations)
