import pytest

from tests.apiproxy.dataplane.limits.budgets import Records


@pytest.fixture
def recorded() -> Records:
    return Records()
