"""One bundle and one installed host for all tests of releases: making both takes half a minute of a processor.

The bundle is made once, also where several workers of pytest-xdist want it: the first one makes it, the others wait.
"""

import fcntl
import os

import pytest

from tests.release.bundles import commit_working_tree, release, unpack
from tests.release.hosts import Host


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """Return the folder of this run of all workers, which has a repository, its release, and that unpacked."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "release"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "unpacked").exists():
            for name in ("repository", "unpacking"):
                (folder / name).mkdir()
            done = release(commit_working_tree(folder / "repository"), folder / "dist")
            assert done.returncode == 0, done.stderr
            (archive,) = (folder / "dist").glob("*.tar")
            unpack(archive, folder / "unpacking")
            (folder / "unpacking").rename(folder / "unpacked")
    return folder


@pytest.fixture(scope="session")
def repository(made):
    return made / "repository"


@pytest.fixture(scope="session")
def archive(made):
    (archive,) = (made / "dist").glob("*.tar")
    return archive


@pytest.fixture(scope="session")
def first(made):
    (first,) = (made / "unpacked").iterdir()
    return first


# What the installer prints before what it does, one for each state in which a kill can leave the host: with nothing,
# with directories (then settings are filled in), with half a version, a whole one, half the migrations and all of them,
# and after the switch.
BEFORE_SETTINGS = ("[1/6]", "[2/6]")
STEPS = ("  packages", "[4/6]", "Running migrations", "[5/6]", "[6/6]")


@pytest.fixture(scope="session")
def interrupted_host(first, tmp_path_factory):
    """Return a host whose first installation was killed at each step, and what its last run printed."""
    host = Host(tmp_path_factory.mktemp("host"))
    install = first / "deploy" / "install"
    for step in BEFORE_SETTINGS:
        host.interrupt(install, step)
    assert host.run(install).returncode == 1  # the example of the settings has not been filled in
    _first, *lines = host.environment.read_text().splitlines()
    host.environment.write_text("\n".join([*lines, "TIME_ZONE=Europe/Berlin", "MADOGUCHI_CANARY_HOUR=off", ""]))
    for step in STEPS:
        host.interrupt(install, step)
    done = host.run(install)
    assert done.returncode == 0, done.stderr
    return host


@pytest.fixture
def host(interrupted_host, tmp_path):
    return interrupted_host.copy(tmp_path / "host")
