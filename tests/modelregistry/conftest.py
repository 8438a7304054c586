from collections.abc import Callable, Iterator
from typing import Any

import pytest

from modelregistry.cluster import certificates
from modelregistry.process import process
from modelregistry.process.process import Runs
from tests.modelregistry.file_host import FileHost
from tests.modelregistry.site import Site


@pytest.fixture
def site(transactional_db, tmp_path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.close()


@pytest.fixture
def runs(tmp_path) -> Iterator[Runs]:
    """Provide a directory of runs, of which none outlives the test."""
    runs = Runs(tmp_path / "engines")
    yield runs
    for run in runs.all():
        assert process.stop(run, grace=0)
    process.kill(runs.find_strays())


@pytest.fixture(scope="session")
def authority(tmp_path_factory):
    directory = tmp_path_factory.mktemp("authority")
    certificates.create_authority(directory)
    return directory


@pytest.fixture
def issue(authority, tmp_path):
    """Return a function that lets a host in, and returns the directory of its secrets."""

    def issue(name: str, address: str = "127.0.0.1", *, signer=authority):
        certificates.issue(signer, name, [address], tmp_path / name)
        return tmp_path / name

    return issue


@pytest.fixture
def start_file_host(issue, tmp_path) -> Iterator[Callable[..., FileHost]]:
    """Return a function that starts a host. None outlives the test."""
    hosts = []

    def start(name: str, **more: Any) -> FileHost:
        directory = tmp_path / "hosts" / name
        directory.mkdir(parents=True)
        issue(name).rename(directory / "secrets")
        host = FileHost(directory, **more)
        hosts.append(host)
        host.start()
        return host

    yield start
    for host in hosts:
        host.kill()
