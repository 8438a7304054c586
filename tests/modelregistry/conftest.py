import pytest

from tests.modelregistry.site import Site


@pytest.fixture
def site(transactional_db, tmp_path):
    site = Site(tmp_path)
    yield site
    site.close()
