"""A bundle as a file: its description, the sums of all its files, and the archive with a sum of its own beside it."""

import hashlib
import json
import platform
import re
import sys
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

from deploy.release.bill import read_metadata
from deploy.release.packages import distribution, libraries
from deploy.release.steps import say

MANIFEST = "SHA256SUMS"
DESCRIPTION = "bundle.json"
FORMAT = 1  # of the description, the manifest and the places of files; deploy/versions.py reads it


def describe(made: Path, *, version: str, commit: str, epoch: int, environment: Path) -> None:
    """Write what the installer reads: bundle.json, two files of requirements with sums, and the manifest, last."""
    pins(made / "wheels", made / "requirements.txt")
    pins(made / "product", made / "product.txt")
    described = {
        "format": FORMAT,
        "version": version,
        "commit": commit,
        "time": epoch,
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "machine": platform.machine(),
        "distribution": distribution(),
        "libraries": libraries(environment),
        "engines": sorted(path.name for path in made.glob("engines/*")),
    }
    (made / DESCRIPTION).write_text(json.dumps(described, indent=1) + "\n")
    files = sorted(path for path in made.rglob("*") if path.is_file())
    lines = [f"{sum_of(path)}  {path.relative_to(made)}\n" for path in files]
    (made / MANIFEST).write_text("".join(lines))


def pins(folder: Path, listing: Path) -> None:
    """Write the wheels of a folder as requirements with their sums."""
    lines = []
    for path in sorted(folder.glob("*.whl")):
        with zipfile.ZipFile(path) as wheel:
            metadata = read_metadata(wheel)
        lines.append(f"{metadata['Name']}=={metadata['Version']} --hash=sha256:{sum_of(path)}\n")
    listing.write_text("".join(lines))


def sum_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write(made: Path, folder: Path, epoch: int) -> None:
    """Write the archive and its sum, and show both and what takes how much room."""
    archive = folder / f"{made.name}.tar"
    draft = archive.with_suffix(".part")

    def normal(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.mtime, member.uid, member.gid, member.uname, member.gname = epoch, 0, 0, "", ""
        member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
        return member

    with tarfile.open(draft, "w", format=tarfile.PAX_FORMAT) as tar:
        tar.add(made, made.name, recursive=False, filter=normal)
        for path in sorted(made.rglob("*")):
            tar.add(path, f"{made.name}/{path.relative_to(made)}", recursive=False, filter=normal)
    draft.rename(archive)
    total = sum_of(archive)
    archive.with_name(f"{archive.name}.sha256").write_text(f"{total}  {archive.name}\n")
    for part, size in Counter(sizes(made)).most_common():
        say(f"{size / 1e6:8.1f} MB  {part}")
    say(f"{archive.stat().st_size / 1e6:8.1f} MB  {archive}")
    say(f"sum of the file      {total}")
    say(f"sum of its manifest  {sum_of(made / MANIFEST)}")


def sizes(made: Path) -> dict[str, int]:
    """Return the bytes of each part: the first folder, or the first two of engines."""
    found: Counter[str] = Counter()
    for path in made.rglob("*"):
        if path.is_file():
            place = str(path.relative_to(made))
            found[re.sub(r"^(engines/[^/]+|[^/]+)/.*", r"\1/", place) if "/" in place else "documents"] += (
                path.stat().st_size
            )
    return dict(found)
