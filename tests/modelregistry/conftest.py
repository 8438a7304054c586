from collections.abc import Iterator

import pytest

from modelregistry.process import process
from modelregistry.process.process import Runs
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
