"""Bundles of the working tree, and further versions derived of one: another number and further files, in a second."""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

from deploy.release import bundle
from tests.installation import ROOT

WHEN = "2026-01-01T00:00:00Z"  # of the commit


def commit_working_tree(to: Path) -> Path:
    """Return a repository with one commit: what is here, committed or not."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, stdout=-1, check=True
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, to / name)
    author = {"GIT_AUTHOR_DATE": WHEN, "GIT_COMMITTER_DATE": WHEN, "GIT_CONFIG_GLOBAL": os.devnull}
    git = ("git", "-c", "user.name=Test", "-c", "user.email=test@example.com", "-c", "core.hooksPath=")
    for words in (("init", "--quiet"), ("add", "--all", "--force"), ("commit", "--quiet", "--message", "All")):
        subprocess.run([*git, *words], cwd=to, env={**os.environ, **author}, check=True)
    return to


def release(repository: Path, to: Path, *, umask: int = 0o022, **environment: str) -> subprocess.CompletedProcess[str]:
    """Make the release of a repository, as `make release` does once its system packages are there."""
    return subprocess.run(
        [sys.executable, "-m", "deploy.release", "--to", to],
        cwd=repository,
        env={**os.environ, **environment},
        umask=umask,
        capture_output=True,
        text=True,
    )


def unpack(archive: Path, to: Path) -> Path:
    with tarfile.open(archive) as tar:
        tar.extractall(to, filter="fully_trusted") if hasattr(tarfile, "fully_trusted_filter") else tar.extractall(to)
    return to / archive.name.removesuffix(".tar")


def derive(first: Path, to: Path, version: str, files: Mapping[str, str]) -> Path:
    """Return the directory of a bundle of another version, which has these files as well."""
    made = to / f"madoguchi-{version}"
    shutil.copytree(first, made, copy_function=os.link)
    for name in ("bundle.json", "migrations.json", "requirements.txt", "product.txt", bundle.MANIFEST):
        (made / name).unlink()
    shutil.rmtree(made / "product")
    (made / "product").mkdir()
    (wheel,) = (first / "product").glob("*.whl")
    repack(wheel, made / "product", version, files)
    described = json.loads((first / "bundle.json").read_text())
    rows = json.loads((first / "migrations.json").read_text())
    (made / "migrations.json").write_text(json.dumps([*rows, *(migration(*file) for file in files.items())]))
    bundle.describe(made, version=version, commit="0" * 40, epoch=described["time"], environment=to)
    sign(made, {"libraries": described["libraries"]})
    return made


def migration(path: str, text: str) -> dict[str, object]:
    """Return the row of a migration in modelregistry; one that runs Python has no way back."""
    reversible = "RunPython" not in text
    return {
        "app": "modelregistry",
        "name": Path(path).stem,
        "applied": False,
        "reversible": reversible,
        "deletes": False,
    }


def sign(made: Path, described: Mapping[str, object]) -> None:
    """Change the description of a bundle, and its manifest so that it fits again."""
    path = made / "bundle.json"
    before = bundle.sum_of(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **described}))
    manifest = made / bundle.MANIFEST
    text = manifest.read_text().replace(before, bundle.sum_of(path))
    manifest.unlink()  # it may be linked to that of another bundle
    manifest.write_text(text)


def repack(wheel: Path, to: Path, version: str, files: Mapping[str, str]) -> None:
    """Write the wheel of another version."""
    _, old, *tags = wheel.name.split("-")
    with zipfile.ZipFile(wheel) as source:
        content = {name: source.read(name) for name in source.namelist() if not name.endswith("/RECORD")}
    content |= {name: text.encode() for name, text in files.items()}
    for name in ("pyproject.toml", f"madoguchi-{old}.dist-info/METADATA"):
        text = content[name].decode()
        content[name] = text.replace(f'version = "{old}"', f'version = "{version}"', 1).encode()
        content[name] = content[name].replace(f"Version: {old}\n".encode(), f"Version: {version}\n".encode(), 1)
    content = {
        name.replace(f"madoguchi-{old}.dist-info", f"madoguchi-{version}.dist-info"): c for name, c in content.items()
    }
    record = f"madoguchi-{version}.dist-info/RECORD"
    rows = [f"{name},sha256={digest(data)},{len(data)}\n" for name, data in content.items()]
    with zipfile.ZipFile(to / "-".join(["madoguchi", version, *tags]), "w") as target:
        for name, data in content.items():
            target.writestr(name, data)
        target.writestr(record, "".join([*rows, f"{record},,\n"]))


def digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
