"""A bundle, as `make release` made it: checked to the last byte before anything of it is used."""

import hashlib
import json
import os
import shutil
import stat
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from versions.layout import COMPLETE, Layout, Refused

MANIFEST = "SHA256SUMS"
FORMAT = 1  # of deploy/release/bundle.py


@dataclass(frozen=True)
class Bundle:
    """`sum` is that of its manifest, which has the sums of all other files."""

    path: Path
    described: dict[str, Any]
    sum: str

    @property
    def version(self) -> str:
        return str(self.described["version"])

    @property
    def migrations(self) -> list[dict[str, Any]]:
        listed: list[dict[str, Any]] = json.loads((self.path / "migrations.json").read_text())
        return listed


@contextmanager
def opened(path: Path, layout: Layout, expected: str = "") -> Iterator[Bundle]:
    """Yield the bundle in a directory, or in an archive, of which a copy is unpacked meanwhile. Raises Refused.

    `expected`: the sum of its manifest, if the operator has it from elsewhere.
    """
    if not path.is_file():
        yield read_bundle(path, expected)
        return
    check_archive(path)
    layout.opt.mkdir(mode=0o755, parents=True, exist_ok=True)
    # deploy/prune removes what a power cut leaves of it.
    with tempfile.TemporaryDirectory(prefix=".unpacked-", dir=layout.opt) as folder:
        yield read_bundle(unpack(path, Path(folder)), expected)


def read_bundle(path: Path, expected: str) -> Bundle:
    """Return the bundle in a directory, after all checks. Raises Refused."""
    if (path / COMPLETE).exists():
        raise Refused(f"{path} is an installed version. Name a bundle: deploy/install madoguchi-VERSION.tar")
    manifest = path / MANIFEST
    if not manifest.is_file():
        raise Refused(f"{path} is no bundle of Madoguchi: it has no {MANIFEST}.")
    check_access(path)
    total = sum_of(manifest)
    if expected and total != expected.lower():
        raise Refused(f"The manifest has the sum {total}, not the expected one. Nothing of this bundle was used.")
    check(path, manifest)
    described = json.loads((path / "bundle.json").read_text())
    if described["format"] != FORMAT:
        raise Refused("This bundle is installed by its own installer: unpack it, and run deploy/install there.")
    return Bundle(path, described, total)


def check_archive(archive: Path) -> None:
    """Raise Refused if there is a file with its sum beside it, and that is another one."""
    beside = archive.with_name(f"{archive.name}.sha256")
    if beside.exists() and beside.read_text().split()[0] != sum_of(archive):
        raise Refused(f"{archive} is damaged: it does not have the sum of {beside.name}.")


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack into an empty folder, and return the one directory in it. Raises Refused.

    Nothing has been checked yet and this is root: only new plain files and directories are made, with modes of our own.
    """
    try:
        with tarfile.open(archive, "r:") as tar:
            for member in tar:
                write_member(tar, member, folder)
    except (tarfile.TarError, OSError, ValueError) as error:
        raise Refused(f"{archive} cannot be unpacked: {error}") from None
    made = list(folder.iterdir())
    if len(made) != 1:
        raise Refused(f"{archive} is no bundle of Madoguchi: it has not one directory with all in it.")
    return made[0]


def write_member(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    """Raise ValueError if it is neither a file nor a directory, or would not be below the folder."""
    place = PurePosixPath(member.name)
    if place.is_absolute() or ".." in place.parts or not (member.isreg() or member.isdir()):
        raise ValueError(f"{member.name!r} is not a file or directory below its own directory")
    target = folder / place
    if member.isdir():
        target.mkdir(mode=0o755, parents=True, exist_ok=True)
        return
    content = tar.extractfile(member)
    assert content
    with target.open("xb") as file:
        shutil.copyfileobj(content, file)
    target.chmod(0o755 if member.mode & 0o100 else 0o644)


def check_access(path: Path) -> None:
    """Raise Refused if others than root and this user can change the bundle, or it is not of files and directories.

    They could exchange a file after its sum was checked.
    """
    trusted = {0, os.geteuid(), Path("/").stat().st_uid}  # that of / is root, also where root has another number
    for place in [*path.parents, path, *path.rglob("*")]:
        found = place.lstat()
        kept = found.st_mode & stat.S_ISVTX and place in path.parents  # only owners rename what is in such a directory
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
            raise Refused(f"{place} is neither a file nor a directory. Nothing was installed of this bundle.")
        if found.st_uid not in trusted or (found.st_mode & 0o022 and not kept):
            raise Refused(
                f"Others than root can write to {place}. Name the archive, madoguchi-VERSION.tar, or unpack it in a "
                "directory that only root can write to, such as /srv."
            )


def check(path: Path, manifest: Path) -> None:
    """Raise Refused, which names them, if files differ from the manifest, are missing, or are not in it."""
    listed = {name: content for content, name in (line.split("  ", 1) for line in manifest.read_text().splitlines())}
    present = {str(file.relative_to(path)) for file in path.rglob("*") if not file.is_dir() or file.is_symlink()}
    wrong = [f"{name} (missing)" for name in sorted(listed.keys() - present)]
    wrong += [f"{name} (not in the manifest)" for name in sorted(present - listed.keys() - {MANIFEST})]
    wrong += [name for name in sorted(listed.keys() & present) if sum_of(path / name) != listed[name]]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise Refused(f"The bundle is damaged: {', '.join(wrong[:5])}{more}. Nothing was installed of it.")


def sum_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
