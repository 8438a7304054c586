"""The bundles of a rehearsal: of the commit that is checked out, and of the same with the next version's number."""

import os
import re
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

from deploy.release.bundle import MANIFEST, sum_of
from deploy.release.steps import run

ROOT = Path(__file__).resolve().parent.parent.parent
EXTRAS = ("llama.cpp", "demo-models", "ray")
VERSION = re.compile(r'^version = "(\d+)\.(\d+)\.(\d+)"$', re.M)
AUTHOR = ("-c", "user.name=Rehearsal", "-c", "user.email=rehearsal@example.co.jp", "-c", "core.hooksPath=")


@dataclass(frozen=True)
class Bundle:
    """`archive`: the file that is carried to hosts. `sum`: of its manifest, which the operator has by another way."""

    archive: Path
    sum: str

    @property
    def name(self) -> str:
        return self.archive.name.removesuffix(".tar")

    @property
    def version(self) -> str:
        return self.name.removeprefix("madoguchi-")


def raise_version(text: str) -> str:
    """Return a pyproject.toml with the next version."""
    found = VERSION.search(text)
    assert found, "pyproject.toml has no version"
    major, minor, patch = map(int, found.groups())
    return VERSION.sub(f'version = "{major}.{minor}.{patch + 1}"', text, count=1)


def make_both(place: Path) -> tuple[Bundle, Bundle]:
    """Make both below `place`: the first with engine, models and Ray, the next one without."""
    first = release(ROOT, place / "first", *EXTRAS)
    following = place / "repository"
    run("git", "clone", "--quiet", "--shared", ROOT, following)
    project = following / "pyproject.toml"
    project.write_text(raise_version(project.read_text()))
    run("git", *AUTHOR, "commit", "--quiet", "--all", "--message", "Raise the version", cwd=following)
    return first, release(following, place / "next", "ray")


def release(repository: Path, to: Path, *extras: str) -> Bundle:
    words = [word for extra in extras for word in ("--with", extra)]
    command = [sys.executable, "-m", "deploy.release", "--to", str(to), *words]
    done = subprocess.run(
        command, cwd=repository, env={**os.environ, "PYTHONPATH": ""}, stdout=subprocess.PIPE, check=False
    )
    if done.returncode:
        raise SystemExit(f"No bundle could be made: {done.stdout.decode()}")
    (archive,) = to.glob("*.tar")
    with tarfile.open(archive) as tar:
        (folder,) = {member.name.split("/")[0] for member in tar}
        manifest = tar.extractfile(f"{folder}/{MANIFEST}")
        assert manifest
        (to / MANIFEST).write_bytes(manifest.read())
    return Bundle(archive, sum_of(to / MANIFEST))
