"""Pages and API offer what the registry of engines has, and validate by it."""

import pytest

from modelregistry.engines import registry
from modelregistry.models import ServedModel
from tests.modelregistry import paper_models
from tests.modelregistry.engines import parrot
from tests.portal.calling import Caller

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def known(monkeypatch) -> None:
    monkeypatch.setitem(registry.ENGINES, "parrot", parrot.CLASS)


@pytest.fixture
def gguf(tmp_path) -> str:
    return str(paper_models.gguf(tmp_path / "model.gguf"))


def test_the_api_registers_and_plans_a_model_of_a_third_engine(olivia, gguf):
    operator = Caller(olivia, {"paths": {}})  # the one description for all tests knows no third engine
    body = {"engine": "parrot", "path": gguf, "args": ["--words=3"]}
    answer = operator("POST", "models/", {"name": "polly", **body})
    assert (answer.status_code, answer.json()["engine"]) == (201, "parrot")
    assert operator("POST", "models/predict/", body).json()["prediction"]["cache"] == 2 * parrot.CACHE
    answer = operator("POST", "models/", {"name": "other", **body, "task": "embedding"})
    assert [one["pointer"] for one in answer.json()["errors"]] == ["#/task"]


def test_the_page_registers_a_model_of_a_third_engine(client, olivia, gguf):
    client.force_login(olivia)
    assert 'value="parrot"' in client.get("/operations/models/new/").content.decode()
    form = {"name": "polly", "engine": "parrot", "task": "chat", "path": gguf, "replicas": "1", "tensor_parallel": "1"}
    client.post("/operations/models/new/", form | {"args": "--words=0"})
    assert not ServedModel.objects.exists()
    client.post("/operations/models/new/", form)
    assert ServedModel.objects.get().engine == "parrot"
