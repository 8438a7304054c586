"""A cluster's secrets, and runs of programs that sleep."""

import pytest

from modelregistry.cluster import certificates
from modelregistry.engines.base import EngineCommand
from modelregistry.process import process
from modelregistry.process.process import Runs


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
def runs(tmp_path):
    """Provide a directory of runs; what is left of them is killed."""
    found = Runs(tmp_path / "runs")
    yield found
    for run in found.all():
        process.stop(run, grace=0.0)


@pytest.fixture
def sleeper():
    return EngineCommand(argv=("/bin/sleep", "300"), env={})
