"""The private state directory of an installation, its generated secrets, and checks of settings."""

import contextlib
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import environs
from django.core.exceptions import ImproperlyConfigured
from django.utils.functional import SimpleLazyObject

OTHERS = 0o077  # what group and others may
# As browsers write one: no path, no slash at the end, lower case. Extensions and apps have schemes of their own.
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://([a-z0-9._-]+|\[[0-9a-f:]+\])(:[0-9]{1,5})?")


def make_private_directory(path: Path) -> None:
    """Make the directory, readable by this user alone.

    An existing one is tightened: systemd's StateDirectory and older versions left it open to all accounts of the
    machine.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    tighten(path)


def make_private_database(path: Path) -> None:
    """Make a SQLite file before SQLite does, which would make it readable by all; its directory may be shared.

    The files -wal and -shm take their mode from it.
    """
    with contextlib.suppress(FileExistsError, FileNotFoundError, PermissionError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    for end in ("", "-wal", "-shm"):
        tighten(path.with_name(path.name + end))


def tighten(path: Path) -> None:
    """Remove all permissions of group and others.

    A path stays as it is if it is missing, cannot be changed (another user's, a read-only file system), or is shared by
    its sticky bit (/tmp).
    """
    with contextlib.suppress(OSError):
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & OTHERS and not mode & stat.S_ISVTX:
            path.chmod(mode & ~OTHERS)


def check_origins(origins: Sequence[str]) -> None:
    """Raise environs.ValidationError for what no browser sends as an Origin; `*` stands for all."""
    for origin in origins:
        if origin != "*" and not ORIGIN.fullmatch(origin):
            raise environs.ValidationError(
                f"{origin!r} is not an origin: https://host or https://host:port, without a path"
            )


def check_collector(address: str) -> None:
    """Raise environs.ValidationError for what is neither empty nor an address to which a path can be added."""
    try:
        parts = urlsplit(address)
        is_one = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, or a host in brackets that is no address
        is_one = False
    if address and (not is_one or re.search(r"[\s?#@]", address) or not address.isascii()):
        raise environs.ValidationError(f"{address!r} is not an address such as http://otel.example.co.jp:4318")


def check_hour(text: str) -> None:
    """Raise environs.ValidationError for what `read_hour` cannot read."""
    if text.lower() not in ("", "off") and not (
        text.isascii() and text.isdecimal() and len(text) < 3 and int(text) < 24
    ):
        raise environs.ValidationError(f"{text!r} is not an hour: 0 to 23, or off")


def read_hour(text: str) -> int | None:
    """Return the hour of a day; None for "off" or no text."""
    return int(text) if text.isdecimal() else None


def load_secret(path: Path) -> str:
    """Return the secret in this file; if there is none, a lazy string that generates it at its first use.

    Lazy only in that case: the gateway uses a secret for every request, and a plain string costs it nothing.
    """
    if path.exists():
        return path.read_text().strip()
    return cast(str, SimpleLazyObject(lambda: make_secret(path)))


def make_secret(path: Path) -> str:
    """Generate the secret in this file if it does not exist, and return it. Raises ImproperlyConfigured."""
    try:
        if not path.exists():
            make_private_directory(path.parent)
            write_secret(path)
        return path.read_text().strip()
    except OSError as error:
        raise ImproperlyConfigured(f"cannot make or read the secret of this installation: {error}") from error


def write_secret(path: Path) -> None:
    """Write 384 random bits for this user alone.

    Several processes and threads may do so at once: the file appears complete or not at all, and the first one stays.
    """
    descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.")
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_urlsafe(48))
    try:
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        os.unlink(draft)
