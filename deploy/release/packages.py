"""The wheels of all dependencies, by the checksums of the locks, and an environment that holds them to build with.

What is published as source only (python-ldap) is compiled here, so that a target needs no compiler: such a wheel fits
this distribution and its libraries. The set is kept in MADOGUCHI_CACHE by the content of the locks.
"""

import hashlib
import platform
import re
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

from deploy.release.steps import run
from modelregistry.install.build_cache import Report, build_once

LOCKS = ("requirements.lock", "deploy/release/build.lock")
# Of what is compiled, whatever the time of the commit is: the set is the same for many commits.
BUILT_AT = "1577836800"
# No paths of this machine in what is compiled.
REPRODUCIBLE = {"SOURCE_DATE_EPOCH": BUILT_AT, "CFLAGS": "-g0 -O2", "LDFLAGS": "-Wl,--build-id=none"}


class Tools(NamedTuple):
    """`wheels`: of all that runs, and pip. `environment` has them and the build tools."""

    wheels: Path
    environment: Path

    @property
    def python(self) -> Path:
        return self.environment / "bin" / "python"


def prepare(source: Path, cache: Path, say: Report) -> Tools:
    content = hashlib.sha256(f"{distribution()} {platform.machine()} {sys.version_info[:2]}".encode())
    for part in (*(source / lock for lock in LOCKS), Path(__file__)):
        content.update(part.read_bytes())
    target = cache / "release" / content.hexdigest()[:16]

    def make(workspace: Path) -> Path:
        say("wheels of all dependencies (half a minute, kept)")
        made = workspace / "made"
        made.mkdir()
        build(made, target, source)
        return made

    build_once(target, make, say)
    return Tools(target / "wheels", target / "environment")


def distribution() -> str:
    """Return as "debian 12" what this system is."""
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return "unknown"
    return f"{release.get('ID', 'unknown')} {release.get('VERSION_ID', '')}".strip()


def build(made: Path, target: Path, source: Path) -> None:
    """Make wheels/ and environment/ in `made`, which is moved to `target` afterwards."""
    wheels, tools = made / "wheels", made / "tools"
    run(sys.executable, "-m", "venv", made / "environment")
    python = made / "environment" / "bin" / "python"
    pip = (python, "-m", "pip", "--disable-pip-version-check", "--quiet")
    for lock, folder in zip(LOCKS, (wheels, tools), strict=True):
        folder.mkdir()
        (folder / "lock").write_text(for_every_patch((source / lock).read_text()))
        run(*pip, "download", "--no-deps", "--require-hashes", "-r", folder / "lock", "-d", folder)
        (folder / "lock").unlink()
    run(*pip, "install", "--no-index", "--find-links", tools, "--require-hashes", "-r", source / LOCKS[1])
    offline = ("--no-index", "--no-deps", "--no-build-isolation")
    for archive in [path for path in wheels.iterdir() if path.suffix != ".whl"]:
        run(*pip, "wheel", *offline, "-w", wheels, archive, env=REPRODUCIBLE)
        archive.unlink()
    run(*pip, "install", "--no-index", "--no-deps", *sorted(wheels.iterdir()))
    for wheel in tools.glob("pip-*.whl"):
        shutil.copy(wheel, wheels)
    shutil.rmtree(tools)


def for_every_patch(lock: str) -> str:
    """Return the lock with what only older releases of this Python need: Debian 12 has 3.11.2, whatever runs here."""
    return re.sub(rf" ; python_full_version < '3\.{sys.version_info.minor}\.\d+'", "", lock)


def libraries(environment: Path) -> list[str]:
    """Return the names of the system's libraries that what was compiled here needs, as "libldap-2.5.so.0"."""
    found = set()
    for module in environment.glob("lib/python3*/site-packages/_ldap*.so"):
        listed = run("readelf", "--dynamic", "--wide", module)
        found |= {line.split("[")[1].rstrip("]") for line in listed.splitlines() if "(NEEDED)" in line}
    return sorted(found)


def node_modules(source: Path, cache: Path) -> Path:
    """Return where the packages of npm are that `portal.frontend` of this commit fetched."""
    code = "import portal.frontend, pathlib, sys; print(portal.frontend.directory(pathlib.Path(sys.argv[1])))"
    return Path(run(sys.executable, "-c", code, cache, cwd=source)) / "node_modules"
