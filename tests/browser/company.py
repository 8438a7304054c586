"""A Madoguchi as a company has it, for browsers: slapd, supervisor, gateway and a model in llama.cpp, all real."""

from collections.abc import Iterator

import pytest
from django.conf import settings

from modelregistry.install.demo_models import SMOLLM2
from tests.installation import Installation, installed
from tests.slapd import Directory


@pytest.fixture(scope="module", name="madoguchi")
def company(directory: Directory, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    with installed(tmp_path_factory.mktemp("var"), **directory.env()) as installation:
        # One thread: several wait for each other by spinning, and on a busy machine a token may take a second.
        shape = ("--context", "2048", "--slots", "2", "--arg=--threads=1")
        path = str(SMOLLM2.path(settings.CACHE))
        installation.manage("registermodel", "smollm2", "--engine", "llama.cpp", "--path", path, *shape)
        installation.start()
        installation.ready("smollm2")
        yield installation


@pytest.fixture
def site(madoguchi: Installation) -> str:
    return madoguchi.url
