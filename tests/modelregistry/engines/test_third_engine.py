"""An engine is one class and one row: a third one is started, watched, planned and validated by no other code."""

import sys
from pathlib import Path

import pytest
from django.core.exceptions import ValidationError

from modelregistry import fit, routes
from modelregistry.engines import programs, registry
from modelregistry.engines.arguments import read_arguments
from modelregistry.engines.base import Spec
from modelregistry.models import ServedModel
from tests.modelregistry import paper_models
from tests.modelregistry.engines import parrot
from tests.modelregistry.site import stream
from tests.waiting import until


@pytest.fixture
def known(monkeypatch) -> None:
    monkeypatch.setitem(registry.ENGINES, "parrot", parrot.CLASS)


@pytest.fixture
def gguf(tmp_path) -> Path:
    return paper_models.gguf(tmp_path / "model.gguf")


def refused(**fields) -> dict[str, list[str]]:
    with pytest.raises(ValidationError) as error:
        ServedModel(**{"name": "m", "engine": "parrot", **fields}).full_clean()
    return error.value.message_dict


def test_its_supervisor_starts_watches_and_plans_it(site, known):
    site.command = ["-m", "tests.modelregistry.engines.parrot"]
    site.supervise(PARROT_COMMAND=f"{sys.executable} {parrot.SERVER}", LLAMA_SERVER_COMMAND="")
    model = site.model(engine="parrot", slots=3)
    ready = site.reaches("ready")
    assert (ready.launcher, ready.slots) == ("parrot-server", 3)
    assert stream(ready, 2).rest().endswith("[DONE]\n\n")
    assert (ready.predicted["cache"], ready.predicted["overhead"]) == (3 * parrot.CACHE, parrot.PROCESS)
    assert f"--memory\0{3 * parrot.CACHE}\0" in Path(f"/proc/{ready.pid}/cmdline").read_text()
    assert until(lambda: site.replica().live)["running"] == 0  # by the names of its metrics
    assert until(lambda: site.replica().version).startswith("b4711")
    [route] = routes.ready_replicas()
    assert (route.model_id, route.launcher, route.health, route.supports_priority) == (
        *(model.pk, "parrot-server", "/health"),
        True,
    )


@pytest.mark.django_db
def test_a_model_is_registered_with_it(known, gguf):
    model = ServedModel(name="m", engine="parrot", path=str(gguf), args=["--words=3"])
    model.full_clean()
    model.save()
    assert model.get_engine_display() == "Parrot"
    assert fit.estimate(model).prediction.cache == 2 * parrot.CACHE


@pytest.mark.django_db
def test_its_own_rules_decide_what_is_refused(known, gguf, tmp_path):
    path = str(gguf)
    assert refused(path=path, task="embedding").keys() == {"task"}
    assert refused(path=path, args=["--words=0"]).keys() == {"args"}
    assert refused(path=path, launcher="llama-server").keys() == {"launcher"}
    assert refused(path=str(paper_models.gguf(tmp_path / "other.gguf", "qwen2"))).keys() == {"path"}
    assert refused(path="", url="http://10.0.0.5:8000").keys() == {"path", "url"}


@pytest.mark.django_db
def test_without_its_row_no_model_can_have_it(gguf):
    assert "engine" in refused(path=str(gguf))


def test_a_host_without_its_program_says_so(known):
    spec = Spec(engine="parrot", name="m", path="/m.gguf")
    with pytest.raises(programs.NoLauncher, match="parrot"):
        programs.choose_launcher(spec, {"llama-server": ("/bin/llama-server",)})
    assert programs.choose_launcher(spec, {"parrot-server": ("/bin/parrot",)}) == "parrot-server"


def test_its_arguments_are_read_by_its_table(known):
    assert read_arguments("parrot-server", ["--words", "7"]).number("--words") == 7
