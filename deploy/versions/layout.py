"""Where everything is on a host, and which version is in use.

    /opt/madoguchi/1.0.0/        a version: its code, its .venv/ and its documents; belongs to root, never changed later
    /opt/madoguchi/current       a link to the one in use; previous: to the one before
    /etc/madoguchi/environment   settings, kept by every version
    /var/lib/madoguchi           state, for the service user alone
    /var/cache/madoguchi         engines and models

On a GPU host of a cluster /opt/madoguchi-host and /var/lib/madoguchi-host alone.
All below `root`, which is / except in rehearsals.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMPLETE = ".complete"  # the last file of a version to be written; holds the sum of its bundle's manifest


def sync_directory(path: Path) -> None:
    """Bring the names in a directory to the disk: without that a power cut may undo a rename."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, text: str) -> None:
    """Write a file that is there with all of its text or not at all, also after a power cut."""
    draft = path.with_name(f"{path.name}.new")
    with draft.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)
    sync_directory(path.parent)


class Refused(Exception):
    """A sentence for the operator; nothing was changed by the step that raises it."""


@dataclass(frozen=True)
class Layout:
    root: Path

    @property
    def opt(self) -> Path:
        return self.root / "opt" / "madoguchi"

    @property
    def etc(self) -> Path:
        return self.root / "etc" / "madoguchi"

    @property
    def environment(self) -> Path:
        return self.etc / "environment"

    @property
    def var(self) -> Path:
        return self.root / "var" / "lib" / "madoguchi"

    @property
    def cache(self) -> Path:
        return self.root / "var" / "cache" / "madoguchi"

    @property
    def units(self) -> Path:
        return self.root / "etc" / "systemd" / "system"

    @property
    def commands(self) -> Path:
        return self.root / "usr" / "local" / "bin"

    def version(self, name: str) -> Path:
        return self.opt / name

    def linked(self, link: str) -> str:
        """Return the version that `current` or `previous` leads to; "" if there is none."""
        path = self.opt / link
        return os.readlink(path) if path.is_symlink() and path.exists() else ""

    def link(self, link: str, version: str) -> None:
        """Let the link lead to this version; at every moment it leads to one of the two."""
        draft = self.opt / f".{link}.new"
        draft.unlink(missing_ok=True)
        draft.symlink_to(version)
        draft.rename(self.opt / link)
        sync_directory(self.opt)

    def unlink(self, link: str) -> None:
        (self.opt / link).unlink(missing_ok=True)
        sync_directory(self.opt)

    def complete(self, version: str, total: str) -> None:
        """Mark a version as complete, once all of it is on the disk. `total`: the sum of its bundle's manifest."""
        place = self.version(version)
        os.sync()
        write_whole(place / COMPLETE, total)

    def is_complete(self, version: str) -> bool:
        return (self.version(version) / COMPLETE).exists()

    def migrations(self, version: str) -> list[dict[str, Any]]:
        """Return the migrations that a version has, whether or not they are applied."""
        listed: list[dict[str, Any]] = json.loads((self.version(version) / "migrations.json").read_text())
        return listed

    def applied_before(self, version: str) -> Path:
        """Return the file of what the database had before this version migrated it, until the version is in use."""
        return self.opt / f".{version}.applied-before.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Raise Refused if another process changes versions here."""
        self.opt.mkdir(mode=0o755, parents=True, exist_ok=True)
        with (self.opt / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Refused(f"Another process changes versions in {self.opt}: wait until it has ended.") from None
            yield


class HostLayout(Layout):
    """Of a GPU host; apart from the versions of portal and gateway, for one machine may have both."""

    @property
    def opt(self) -> Path:
        return self.root / "opt" / "madoguchi-host"

    @property
    def var(self) -> Path:
        return self.root / "var" / "lib" / "madoguchi-host"
