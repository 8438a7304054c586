from tests.modelregistry.conftest import site  # noqa: F401 - a fixture
