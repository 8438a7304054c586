"""Runs of programs that sleep."""

import pytest

from modelregistry.engines.base import EngineCommand
from modelregistry.process import process
from modelregistry.process.process import Runs


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
