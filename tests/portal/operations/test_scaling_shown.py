"""Models whose replicas become more and fewer, as operators see and set them."""

import json
from datetime import timedelta

import pytest
from django.core.exceptions import ValidationError
from django.core.management import CommandError, call_command
from django.utils import timezone

from modelregistry.controller.repository import add_replica, note_shortages, remove_replica
from modelregistry.controller.shortages import Shortage
from modelregistry.host_figures import read_figures
from modelregistry.models import ReplicaShortage, ServedModel
from modelregistry.overview import ModelState, read_overview
from tests.fleet import gpu, host, model, replica
from tests.html import all_of, one_of
from tests.modelregistry import paper_models

pytestmark = pytest.mark.django_db


@pytest.fixture
def grown():
    """Provide a model of 1 to 3 replicas, of which two run."""
    hosts = [host(f"gpu-{number}", gpu(0, "NVIDIA A100", 85.9, 40.0)) for number in range(2)]
    busy = model("busy", replicas_max=3)
    for number, one in enumerate(hosts):
        replica(busy, one, index=number)
    assert add_replica(busy.pk, 1, hosts[1].pk)
    return busy


def test_a_page_shows_how_many_there_are_of_how_many_there_may_be(as_olivia, grown):
    page = as_olivia.get("/operations/models/busy/").content.decode()
    assert one_of(page, "[data-replicas]")["data-replicas"] == "1-3"
    assert one_of(page, "[data-move=busy]")["data-cause"] == "busy"
    remove_replica(grown.pk, 1, cause="quiet")
    page = as_olivia.get("/operations/models/busy/").content.decode()
    assert [one["data-cause"] for one in all_of(page, "[data-move=busy]")] == ["quiet", "busy"]
    assert as_olivia.get(f"/api/v1/models/{grown.pk}/").json()["replicas_max"] == 3


def test_the_terminal_shows_it(grown):
    assert "busy: 2 of 1-3 replicas" in call_command("models")
    [shown] = json.loads(call_command("models", "busy", "--json"))
    assert shown["replicas_max"] == 3


def test_a_model_with_the_least_is_ready(grown):
    grown.replica_set.filter(index=1).update(state="starting")
    [now] = read_overview(timezone.now()).models
    assert (now.state, now.ready, now.wanted, now.most) == (ModelState.READY, 1, 1, 3)


def test_it_is_set_by_form_and_command_and_removed(as_olivia, grown, tmp_path):
    page = as_olivia.get("/operations/edit/busy/").content.decode()
    assert one_of(page, "[name=replicas_max]")["value"] == "3"
    path = str(paper_models.small_llama(tmp_path / "m"))
    call_command("registermodel", "other", "--engine", "vllm", "--path", path, "--replicas-max", "4")
    assert ServedModel.objects.get(name="other").replicas_max == 4
    with pytest.raises(CommandError, match="--replicas-max"):
        call_command("registermodel", "other", "--update", "--replicas", "5")
    call_command("registermodel", "other", "--update", "--replicas-max", "none")
    assert ServedModel.objects.get(name="other").replicas_max is None


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"replicas": 2, "replicas_max": 1}, "most-below-least"),
        ({"replicas_max": 2, "bound": True}, "most-not-placed"),
        ({"replicas_max": 2, "engine": "external", "url": "http://e.test"}, "most-not-placed"),
        ({"replicas_max": 4, "engine": "vllm", "nodes": 2, "tensor_parallel": 2}, "most-not-placed"),
        ({"replicas": 2, "replicas_max": 2, "bound": True}, ""),
    ],
)
def test_what_cannot_be_is_refused(values, code):
    bound = host("gpu-1", gpu(0, "A", 80, 0)) if values.pop("bound", False) else None
    row = ServedModel(**{"name": "m", "engine": "llama.cpp", "path": "/m.gguf", "host": bound, **values})
    found = ""
    try:
        row.full_clean()
    except ValidationError as error:
        found = next((one.code for one in error.error_dict.get("replicas_max", [])), "")
    assert found == code


# --- one more is wanted, and there is no place for it


@pytest.mark.parametrize("cause", ReplicaShortage.Cause.values)
def test_pages_the_terminal_and_the_api_show_what_is_missing_until_it_is_not(as_olivia, grown, cause):
    host_id = grown.replica_set.earliest("index").host_id if cause == "no-room" else None
    note_shortages({grown.pk: Shortage(cause=cause, wanted=3, host=host_id, free=8_000_000_000, need=40_000_000_000)})
    page = as_olivia.get("/operations/models/busy/").content.decode()
    assert one_of(page, "[data-shortage]")["data-shortage"] == cause
    for path in ("/operations/", "/"):
        assert all_of(as_olivia.get(path).content.decode(), "[data-short=busy]")
    [line] = [one for one in call_command("models").splitlines() if "3 replicas wanted" in one]
    assert ("gpu-0" in line) == (cause == "no-room")
    shown = as_olivia.get(f"/api/v1/models/{grown.pk}/").json()["now"]["shortage"]
    assert (shown["cause"], shown["wanted"]) == (cause, 3)
    assert json.loads(call_command("models", "busy", "--json"))[0]["shortage"]["cause"] == cause
    note_shortages({})
    assert not all_of(as_olivia.get("/operations/models/busy/").content.decode(), "[data-shortage]")
    assert not all_of(as_olivia.get("/operations/").content.decode(), "[data-short]")
    assert "wanted since" not in call_command("models")


def test_since_when_it_is_missing_stays_when_the_cause_changes(grown):
    note_shortages({grown.pk: Shortage(cause="no-room", wanted=3)})
    before = ReplicaShortage.objects.get()
    note_shortages({grown.pk: Shortage(cause="no-host", wanted=3), 10_000: Shortage(cause="no-host", wanted=2)})
    after = ReplicaShortage.objects.get()
    assert (after.since, after.cause) == (before.since, "no-host")


@pytest.mark.parametrize("change", [{"enabled": False}, {"replicas_max": None}])
def test_nothing_is_missing_of_a_model_that_was_changed_while_no_controller_looked(as_olivia, grown, change):
    note_shortages({grown.pk: Shortage(cause="no-room", wanted=3)})
    ServedModel.objects.update(**change)
    assert not all_of(as_olivia.get("/operations/").content.decode(), "[data-short]")


def test_monitoring_is_given_for_how_long_it_has_been_missing(grown):
    model("fixed")
    assert read_figures().shortages == {"busy": 0.0}
    note_shortages({grown.pk: Shortage(cause="no-room", wanted=3)})
    ReplicaShortage.objects.update(since=timezone.now() - timedelta(minutes=5))
    assert 300 <= read_figures().shortages["busy"] < 330
