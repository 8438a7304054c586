"""The files of a backup beside the database, as one tar: secrets and state, configuration, and the gateway's spool.

- `state/…`: the files of the state directory and its `cluster/`, with the secrets in effect under their files' names,
  wherever they come from;
- `configuration/…`: by their absolute paths, the files of CONFIGURATION and those that settings name;
- `spool/…`: usage that is not in the database yet.
"""

import io
import os
import stat
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.parse import parse_qs, urlsplit

from django.conf import settings

from portal.backups.errors import BackupRefused

CONFIGURATION = Path("/etc/madoguchi")
CLUSTER = "cluster"
# In the state directory, by setting. Their values may also be set in the environment.
SECRETS = {"SECRET_KEY": "secret-key", "API_KEY_SECRET": "api-key-secret"}
# Beginnings of settings whose `…_FILE` names a file that is not one of the system's.
OURS = ("LDAP_", "SECRET_KEY", "API_KEY_SECRET", "DATABASE_URL", "REDIS_URL", "EMAIL_URL")
MOST_BYTES = 16 << 20  # of one file of state or configuration: a larger one is none of ours

Spool = Iterable[tuple[str, bytes]]  # names of files of the spool, with what is in them


def write_files(writer: IO[bytes], spool: Spool) -> None:
    """Write all files but the database. Raises OSError and BackupRefused."""
    with tarfile.open(fileobj=writer, mode="w|") as tar:
        for name, content in spool:  # first: what is moved to the database from now on is in the copy of that
            _add(tar, f"spool/{name}", content)
        for name, content in state_files().items():
            _add(tar, f"state/{name}", content)
        for path in configuration_files():
            if (read := _read_small(path)) is not None:
                _add(tar, f"configuration{path}", read)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), 0o600
    tar.addfile(member, io.BytesIO(content))


def state_files() -> dict[str, bytes]:
    """Return what is in the state directory, by its path in there; secrets as they are in effect."""
    found: dict[str, bytes] = {}
    for path in _list_state():
        if (content := _read_small(path)) is not None:
            found[str(path.relative_to(settings.VAR))] = content
    for name, file in SECRETS.items():
        found[file] = str(getattr(settings, name)).encode()
    return found


def _list_state() -> Iterator[Path]:
    database = str(settings.DATABASES["default"]["NAME"])
    for path in sorted(settings.VAR.iterdir()):
        if not str(path).startswith(database) and path.suffix not in (".lock", ".log", ".sqlite3"):
            yield path
    cluster = settings.VAR / CLUSTER
    if cluster.is_dir():
        yield from (path for path in sorted(cluster.rglob("*")) if path.suffix not in (".lock", ".log"))


def configuration_files() -> list[Path]:
    """List the files of CONFIGURATION and those that the environment names, by absolute paths."""
    found = set(CONFIGURATION.rglob("*")) if os.access(CONFIGURATION, os.R_OK | os.X_OK) else set()
    found |= {Path(path) for path in named_files(os.environ)}
    return sorted(path for path in found if path.is_absolute())


def named_files(environment: Mapping[str, str]) -> set[str]:
    """Return what settings name: certificates, and secrets and tables that are mounted as files (NAME_FILE)."""
    found = {
        path
        for name, path in environment.items()
        if name.startswith(OURS) and name.endswith("_FILE") and path[:1] == "/"
    }
    options = settings.DATABASES["default"].get("OPTIONS", {})
    found |= {str(options[name]) for name in ("sslrootcert", "sslcert", "sslkey") if options.get(name)}
    query = parse_qs(urlsplit(settings.REDIS_URL).query)
    return found | {value for name, values in query.items() if name.startswith("ssl_") for value in values}


def _read_small(path: Path) -> bytes | None:
    """Return what is in a regular file; None for all else, and for one that cannot be read or is none of ours."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > MOST_BYTES:
            return None
        return path.read_bytes()
    except OSError:
        return None


def read_files(reader: IO[bytes], directory: Path) -> None:
    """Unpack the files below this directory. Raises BackupRefused."""
    try:
        with tarfile.open(fileobj=reader, mode="r|") as tar:
            for member in tar:
                path = PurePosixPath(member.name)
                if not member.isreg() or path.is_absolute() or ".." in path.parts:
                    raise BackupRefused(f"the backup holds {member.name!r}, which no backup of ours does")
                content = tar.extractfile(member)
                assert content is not None
                write_private(directory / path, content.read())
    except tarfile.TarError as error:
        raise BackupRefused(f"the backup's files cannot be unpacked: {error}") from error


def write_private(path: Path, content: bytes) -> None:
    """Write a file that this user alone can read, complete or not at all."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.draft")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)
